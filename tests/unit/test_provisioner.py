"""What the provisioner asks the agent for: argv, environment, mounts, limits, and once only."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import TraitError, Unicode
from traitlets.config import Config, LoggingConfigurable

from jupyter_checkpoints import mounts
from jupyter_checkpoints.errors import InvalidRequest
from jupyter_checkpoints.models import CONNECTION_FILE, Limits, Mount, StartRequest
from jupyter_checkpoints.provisioner import (
    ContainerProvisioner,
    allowed_environment,
    format_argv,
    parse_size,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server(LoggingConfigurable):
    """What a provisioner sees of the application that starts its kernel."""

    root_dir = Unicode()


def spec(*argv: str, **traits: Any) -> KernelSpec:
    return KernelSpec(
        argv=list(argv or ("python", "-m", "ipykernel_launcher", "-f", "{connection_file}")),
        display_name="Python 3",
        language="python",
        **traits,
    )


def provisioner(
    kernel_spec: KernelSpec | None = None, *, root_dir: str = "", **traits: Any
) -> ContainerProvisioner:
    """A provisioner as a manager under a server makes it."""
    manager = AsyncKernelManager(kernel_name="checkpoints-python3")
    if root_dir:
        manager.parent = Server(root_dir=root_dir)
    return ContainerProvisioner(
        kernel_id="one", kernel_spec=kernel_spec or spec(), parent=manager, **traits
    )


def manager(made: ContainerProvisioner) -> Any:
    return made.parent


async def request(made: ContainerProvisioner, **arguments: Any) -> StartRequest:
    """What a start with these arguments sends to the agent."""
    prepared = await made.pre_launch(**arguments)
    cwd = os.fspath(prepared["cwd"] or os.getcwd())
    return await anyio.to_thread.run_sync(
        made._start_request, prepared["cmd"], prepared["env"], cwd
    )


# -- argv ---------------------------------------------------------------------------------------


async def test_the_hosts_connection_file_never_appears() -> None:
    made = provisioner()
    manager(made).connection_file = "/host/kernel-one.json"
    asked = await request(made, extra_arguments=["--debug"])
    assert asked.argv == ["python", "-m", "ipykernel_launcher", "-f", CONNECTION_FILE, "--debug"]


def test_placeholders() -> None:
    argv = format_argv(
        spec("k", "{resource_dir}/k.py", "{prefix}/bin", "{port}", "{unknown}", resource_dir="/r"),
        [],
        {"port": 7},
        prefix="/opt/python",
    )
    assert argv == ["k", "/r/k.py", "/opt/python/bin", "7", "{unknown}"]


def test_this_interpreter_is_the_images_python_there() -> None:
    assert format_argv(spec(sys.executable, "-m", "x"), [], {}, prefix="")[0] == "python"


async def test_resources_a_command_names_are_shown(tmp_path: Path) -> None:
    resources = tmp_path / "kernels" / "k"
    resources.mkdir(parents=True)
    kernel_spec = spec("k", "{resource_dir}/k.py", resource_dir=str(resources))
    asked = await request(provisioner(kernel_spec), cwd="/usr")
    shown = Mount(source=str(resources), target=str(resources), read_only=True)
    assert asked.mounts == [shown]


# -- environment --------------------------------------------------------------------------------


async def test_the_servers_environment_stays_with_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "x",
        "PATH": "/bin",
        "JPY_PARENT_PID": "1",
        "JPY_SESSION_NAME": "/home/me/n.ipynb",
        "LANG": "de_DE.UTF-8",
        "LC_TIME": "C",
        "TZ": "Europe/Berlin",
        "MY_DATA": "/data",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = provisioner(spec(env={"GREETING": "hello ${LANG} ${PATH}"}), env_keep=["LANG", "MY_*"])
    for arguments in ({}, {"env": environment}):
        asked = await request(made, **arguments)
        assert asked.env == {
            "JPY_SESSION_NAME": "/home/me/n.ipynb",
            "LANG": "de_DE.UTF-8",
            "MY_DATA": "/data",
            "GREETING": "hello de_DE.UTF-8 ${PATH}",
        }


def test_by_default_language_and_time_zone_are_kept() -> None:
    kept = allowed_environment(
        {"LANG": "C", "LC_ALL": "C", "TZ": "UTC", "LANGUAGES_SPOKEN": "2", "HOME": "/"},
        ContainerProvisioner().env_keep,
    )
    assert kept == {"LANG": "C", "LC_ALL": "C", "TZ": "UTC"}


# -- mounts -------------------------------------------------------------------------------------


async def test_the_servers_root_is_shown_at_its_own_path(tmp_path: Path) -> None:
    notebooks = tmp_path / "notebooks"
    (notebooks / "deep").mkdir(parents=True)
    made = provisioner(root_dir=str(notebooks))
    asked = await request(made, cwd=str(notebooks / "deep"))
    assert asked.mounts == [Mount(source=str(notebooks), target=str(notebooks))]
    assert asked.cwd == str(notebooks / "deep")


async def test_without_a_server_the_current_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = await request(provisioner())
    assert asked.mounts == [Mount(source=str(tmp_path), target=str(tmp_path))]
    assert asked.cwd == str(tmp_path)


async def test_a_link_is_shown_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made = provisioner(notebook_dir=str(tmp_path / "link"))
    asked = await request(made, cwd=str(tmp_path / "link" / "sub"))
    assert asked.mounts == [Mount(source=str(tmp_path / "real"), target=str(tmp_path / "link"))]
    assert asked.cwd == str(tmp_path / "link" / "sub")


@pytest.mark.parametrize(
    "directory",
    ["/", "/usr", "/usr/share", "/etc", "/proc/self", "/sys", "/dev/shm", "/run", "/var", "/tmp"],
)
async def test_system_directories_are_not_shown(
    directory: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = await request(provisioner(root_dir=directory), cwd=directory)
    assert (asked.mounts, asked.cwd) == ([], "")
    assert "belongs to the system" in caplog.text


async def test_a_link_to_a_system_directory_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    assert mounts.own_path_mount(tmp_path / "link") is None


async def test_a_directory_outside_of_the_root_is_not_the_working_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "other").mkdir()
    made = provisioner(root_dir=str(tmp_path / "root"))
    asked = await request(made, cwd=str(tmp_path / "other"))
    assert asked.cwd == ""


async def test_volumes(tmp_path: Path) -> None:
    made = provisioner(
        notebook_dir=str(tmp_path),
        volumes={"/data": "/mnt/data", "/more": {"bind": "/mnt/more", "mode": "ro"}},
        read_only_volumes={"/models": "/mnt/models/"},
    )
    asked = await request(made, cwd=str(tmp_path))
    assert asked.mounts[1:] == [
        Mount(source="/data", target="/mnt/data"),
        Mount(source="/more", target="/mnt/more", read_only=True),
        Mount(source="/models", target="/mnt/models", read_only=True),
    ]


def test_volumes_by_name() -> None:
    user = getpass.getuser()
    assert mounts.volume_mounts({"of-{username}": "/work", "/data/{username}": "/data"}) == [
        Mount(source=f"of-{user}", target="/work"),
        Mount(source=f"/data/{user}", target="/data"),
    ]


@pytest.mark.parametrize("volume", [{"./data": "/mnt"}, {"/data": "mnt"}, {"/d": 1}, {"/d": {}}])
def test_volumes_that_cannot_be_read(volume: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        mounts.volume_mounts(volume)


# -- limits -------------------------------------------------------------------------------------


async def test_limits_and_image_come_from_kernelspec_or_configuration(tmp_path: Path) -> None:
    config = Config({"ContainerProvisioner": {"mem_limit": "1.5G", "image": "configured"}})
    made = provisioner(
        notebook_dir=str(tmp_path), config=config, image="of-the-spec", cpu_limit=1.5, pids_limit=64
    )
    asked = await request(made, cwd=str(tmp_path))
    assert asked.image == "of-the-spec"
    assert asked.limits == Limits(memory=1536 * 2**20, cpus=1.5, pids=64)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4294967296", 2**32), (4096, 4096), ("512M", 2**29), ("4g", 2**32), ("1.5 GiB", 3 * 2**29)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "4X", "-1", "4 G G"])
def test_what_is_no_size_is_an_error_at_once(text: str) -> None:
    with pytest.raises(TraitError, match="512M"):
        ContainerProvisioner(mem_limit=text)


# -- the start's own arguments ------------------------------------------------------------------


async def test_a_checkpoint_is_resumed_once() -> None:
    made = provisioner()
    replayed: dict[str, Any] = {"restore_from": "c1", "cwd": "/tmp"}
    manager(made).set_trait("_launch_args", replayed)
    await made.pre_launch(restore_from="c1", cwd="/tmp")
    assert made._restore_from == "c1"
    replayed = manager(made)._launch_args
    assert replayed == {"cwd": "/tmp"}
    await made.pre_launch(**replayed)
    assert made._restore_from == ""


async def test_encrypted_transport_is_refused_where_it_is_demanded() -> None:
    made = provisioner()
    manager(made).transport_encryption = "required"
    with pytest.raises(InvalidRequest, match="encrypted"):
        await made.pre_launch()


async def test_the_sessions_key_is_the_kernels() -> None:
    made = provisioner()
    asked = await request(made)
    assert asked.key.encode() == manager(made).session.key
    assert asked.kernel_id == "one"
    assert asked.kernel_name == "checkpoints-python3"


def test_a_path_is_resolved_against_the_kernels_directory(tmp_path: Path) -> None:
    (tmp_path / "code.py").touch()
    made = provisioner()
    made.cwd = str(tmp_path)
    assert made.resolve_path("code.py") == str(tmp_path / "code.py")
    assert made.resolve_path("nothing.py") is None
