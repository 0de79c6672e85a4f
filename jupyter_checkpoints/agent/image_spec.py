"""What an image is to contain: the small file that people write, and how it is read."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from ..errors import InvalidRequest, NotFound
from ..models import Mode, Name, Text

Suite = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9.-]{0,63}\Z")]
#: A package's name, with an architecture, version or suite as apt takes them. Never an option.
Package = Annotated[str, Meta(pattern=r"^[a-z0-9][A-Za-z0-9+.:=~/-]{0,255}\Z")]
#: A requirement as pip takes it. Never an option.
Requirement = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][^\n\r]{0,1023}\Z")]
Mirror = Annotated[str, Meta(pattern=r"^(deb |https?://)[^\n\r]{1,1023}\Z")]
VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}\Z")]


class KernelEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel that the image offers; ``image build --kernelspecs`` installs a kernelspec for it.

    ``argv`` may name ``{connection_file}``.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
    display_name: Name
    language: Name
    argv: Annotated[list[Text], Meta(min_length=1, max_length=256)]
    mode: Mode = "process"


class ImageSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Debian suite, Debian packages, Python packages, environment, commands, kernels.

    Python packages go into a virtual environment at ``/opt/kernel``, first on ``PATH``. The
    commands of ``run`` are given to ``sh -c`` inside, as root and with the image's environment,
    after everything is installed.
    """

    suite: Suite
    description: Name = ""
    packages: list[Package] = field(default_factory=list)
    python: list[Requirement] = field(default_factory=list)
    mirrors: list[Mirror] = field(default_factory=list)
    """Where packages come from; default: the host's own Debian mirror."""
    env: dict[VariableName, Text] = field(default_factory=dict)
    run: list[Text] = field(default_factory=list)
    kernels: list[KernelEntry] = field(default_factory=list)


def read_spec(path: Path) -> ImageSpec:
    """Read a specification in TOML. Called by ``jupyter checkpoints image build``.

    Raises
    ------
    NotFound
        If there is no such file.
    InvalidRequest
        If it is not TOML, or not a specification; the reason names the place.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no file {path}", hint=f"Specifications that come along: {shipped()}."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read", reason=str(error)) from error
    return _parse(text, str(path))


def shipped_spec(name: str) -> ImageSpec:
    """A specification that comes with the package: ``python3`` (the default image) or ``r``.

    Raises :class:`NotFound` for any other name.
    """
    if name not in shipped():
        raise NotFound(
            f"No specification {name!r} comes along", hint=f"These do: {', '.join(shipped())}."
        )
    file = resources.files(__package__).joinpath("image_specs", f"{name}.toml")
    return _parse(file.read_text(encoding="utf-8"), f"{name}.toml")


def shipped() -> list[str]:
    """The names that :func:`shipped_spec` knows."""
    directory = resources.files(__package__).joinpath("image_specs")
    return sorted(
        file.name.removesuffix(".toml")
        for file in directory.iterdir()
        if file.name.endswith(".toml")
    )


def _parse(text: str, where: str) -> ImageSpec:
    try:
        data: dict[str, Any] = tomllib.loads(text)
        return msgspec.convert(data, ImageSpec)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(
            f"{where} is not the specification of an image",
            reason=str(error),
            hint="It may have: suite, description, packages, python, mirrors, env, run, kernels.",
        ) from error
