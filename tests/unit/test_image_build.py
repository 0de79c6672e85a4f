"""How a build reaches the outside: the host's mirrors and its settings of pip."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_checkpoints.agent import debian, image_build


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which pip and the libraries are not told anything."""
    for name in ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return monkeypatch


def test_the_hosts_index_is_used_inside(no_settings: pytest.MonkeyPatch) -> None:
    no_settings.setenv("PIP_INDEX_URL", "https://pypi.example.org/simple")
    no_settings.setenv("PIP_EXTRA_INDEX_URL", "file:///opt/own https://more.example.org/simple")
    no_settings.setenv("PIP_FIND_LINKS", "/opt/wheels")
    no_settings.setenv("PIP_DEFAULT_TIMEOUT", "77")
    no_settings.setenv("https_proxy", "http://proxy.example.org:3128")
    settings, _ = image_build.pip_settings()
    assert settings["PIP_INDEX_URL"] == "https://pypi.example.org/simple"
    assert settings["PIP_EXTRA_INDEX_URL"] == "https://more.example.org/simple"
    assert settings["PIP_TIMEOUT"] == "77"
    assert settings["https_proxy"] == "http://proxy.example.org:3128"
    assert not [value for value in settings.values() if "/opt/" in value]


def test_the_hosts_certificates_are_used_inside(
    no_settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    no_settings.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    no_settings.setenv("SSL_CERT_FILE", str(bundle))
    assert image_build.pip_settings()[1] == str(bundle)
    other = tmp_path / "pip.pem"
    other.touch()
    no_settings.setenv("PIP_CERT", str(other))
    assert image_build.pip_settings()[1] == str(other)


def test_stable_suites_come_with_their_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_ask", lambda *command: [])
    assert debian.sources("sid") == ["deb http://deb.debian.org/debian sid main"]
    assert debian.sources("trixie") == [
        "deb http://deb.debian.org/debian trixie main",
        "deb http://deb.debian.org/debian trixie-updates main",
        "deb http://security.debian.org/debian-security trixie-security main",
    ]


def test_the_hosts_mirror_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        "https://apt.example.org/tool/|Tool|stable",
        "http://security.example.org/debian-security/|Debian|oldstable-security",
        "http://mirror.example.org/debian/|Debian|oldstable",
        "http://mirror.example.org/debian/|Debian|oldstable-updates",
    ]
    monkeypatch.setattr(debian, "_ask", lambda *command: rows)
    assert debian.sources("trixie") == [
        "deb http://mirror.example.org/debian trixie main",
        "deb http://mirror.example.org/debian trixie-updates main",
        "deb http://security.example.org/debian-security trixie-security main",
    ]
