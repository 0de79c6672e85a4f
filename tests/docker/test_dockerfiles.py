"""The Dockerfiles that come along make images whose kernels are saved and resumed.

Building takes minutes and a lot of a mirror's packages: ``TEST_DOCKERFILES=1`` asks for it, or
``TEST_DOCKERFILES=bash,python`` for some of them. No registry of images is needed: what the
Dockerfiles start from is made of Debian packages here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints.agent import debian
from jupyter_checkpoints.agent.image_build import pip_settings
from jupyter_checkpoints.agent.tools import child_environment
from tests.agent.kernelspecs import jupyter_dirs as jupyter_dirs
from tests.agent.kernelspecs import nothing_left as nothing_left
from tests.agent.test_cli import answer, command

from .engine import DockerEngine
from .test_kernels import docker as docker

DOCKERFILES = Path(__file__).parents[2] / "dockerfiles"
KERNELS = {
    "bash": ["--language=bash", "--", "python", "-m", "bash_kernel", "-f", "{connection_file}"],
    "python": ["--", "python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "r": [
        *("--language=R", "--", "R", "--slave", "-e", "IRkernel::main()"),
        *("--args", "{connection_file}"),
    ],
}
WANTED = os.environ.get("TEST_DOCKERFILES", "")
BASE = "tests/base"

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not WANTED, reason="TEST_DOCKERFILES=1 has the Dockerfiles built"),
]


@pytest.fixture(scope="session")
def base(docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Like ``debian:trixie-slim``, and it knows the way to the mirrors that this host uses."""
    tree = tmp_path_factory.mktemp("base") / "tree"
    debian.bootstrap(
        tree,
        suite="trixie",
        include=["apt"],
        variant="minbase",
        tell=lambda line: None,
        timeout=900,
    )
    settings, bundle = pip_settings()
    if bundle:
        shutil.copyfile(bundle, tree / "mirrors.pem")
        settings |= {"PIP_CERT": "/mirrors.pem", "SSL_CERT_FILE": "/mirrors.pem"}
    # The mirror's own word on how long it is good for is not what is tested.
    (tree / "etc/apt/apt.conf.d/mirror").write_text(
        "".join(f"{line};\n" for line in debian._ALLOW_EXPIRED)
    )
    archive = subprocess.Popen(
        ["tar", "-C", tree, "--numeric-owner", "-cf-", "."],
        env=child_environment(),
        stdout=subprocess.PIPE,
    )
    client = docker_engine.client()
    with archive:
        client.api.import_image_from_stream(
            archive.stdout,
            repository=BASE,
            tag="latest",
            changes=[f'ENV {name}="{value}"' for name, value in settings.items()],
        )
    assert archive.returncode == 0
    shutil.rmtree(tree)
    yield BASE
    client.images.remove(BASE)
    client.close()


@pytest.mark.parametrize("name", list(KERNELS))
def test_an_image_of_a_dockerfile(docker: Any, base: str, jupyter_dirs: Path, name: str) -> None:
    if WANTED != "1" and name not in WANTED.split(","):
        pytest.skip(f"TEST_DOCKERFILES={WANTED} does not name it")
    image = f"kernels/{name}"
    docker.images.build(
        path=str(DOCKERFILES),
        dockerfile=f"{name}.Dockerfile",
        tag=image,
        buildargs={"BASE": base},
        network_mode="host",
        forcerm=True,
    )
    options = f"--image={image}", f"--prefix={jupyter_dirs / 'prefix'}"
    command("kernelspec", "add", f"docker-{name}", *options, *KERNELS[name])
    result = answer("doctor", "--kernel", f"docker-{name}")
    (proof,) = result["proofs"]
    assert result["status"]["engine"] == "docker"
    assert proof["ok"] and len(proof["checks"]) >= 3, proof
    docker.images.remove(image, force=True)
