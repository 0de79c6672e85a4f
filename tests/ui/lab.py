"""A JupyterLab with an agent of its own, and a browser that tests it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints import kernelspecs
from jupyter_checkpoints.agent.images import ImageStore
from jupyter_checkpoints.layout import SOCKET_ENV

from ..agent.agents import IMAGES, wait_until
from ..agent.conftest import running_agent
from ..users import User, two_users

_REPOSITORY = Path(__file__).parents[2]
UI_TESTS = _REPOSITORY / "labextension" / "ui-tests"
_PLAYWRIGHT = UI_TESTS / "node_modules" / ".bin" / "playwright"
#: Seconds that an idle kernel of the spec ``SLEEPY`` is left alone.
SLEEPY_AFTER = 2
SLEEPY = "checkpoints-sleepy"

_CONFIG = """
from pathlib import Path

from jupyter_server.auth.authorizer import AllowAllAuthorizer
from jupyterlab.galata import configure_jupyter_server

# Tests write there what is forbidden: actions on runtime checkpoints.
forbidden = Path({forbidden!r})


class Guard(AllowAllAuthorizer):
    def is_authorized(self, handler, user, action, resource):
        return resource != "runtime_checkpoints" or action not in forbidden.read_text().split()


forbidden.touch()
configure_jupyter_server(c)
c.ServerApp.authorizer_class = Guard
c.ServerApp.root_dir = {root!r}
c.ServerApp.port = {port}
c.ServerApp.allow_root = True
c.MultiKernelManager.default_kernel_name = "checkpoints-python3"
c.MappingKernelManager.cull_idle_timeout = 3600
c.MappingKernelManager.cull_interval = 1
c.MappingKernelManager.cull_connected = True
"""


def add_kernelspecs(prefix: Path) -> None:
    """Ours, and one whose kernels soon go to sleep."""
    # What is to be added is looked for first, and the user's own are not meant.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
        kernelspecs.add_defaults(prefix=str(prefix))
    specs = prefix / "share" / "jupyter" / "kernels"
    shutil.copytree(specs / "checkpoints-python3", specs / SLEEPY)
    file = specs / SLEEPY / "kernel.json"
    spec = json.loads(file.read_text())
    spec["display_name"] = "Python 3 (sleeps soon)"
    spec["metadata"]["cull_idle_timeout"] = SLEEPY_AFTER
    file.write_text(json.dumps(spec))


@contextmanager
def running_lab(agent_socket: Path, home: Path, user: User | None = None) -> Iterator[str]:
    """The address of a JupyterLab that has no password; directories are below ``home``.

    It is ``user``'s, or else root's.
    """
    home.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prefix, root = home / "prefix", home / "notebooks"
    root.mkdir()
    add_kernelspecs(prefix)
    config = home / "jupyter_server_config.py"
    config.write_text(_CONFIG.format(root=str(root), port=port, forbidden=str(home / "forbidden")))
    environment = {
        SOCKET_ENV: str(agent_socket),
        "JUPYTER_PATH": str(prefix / "share" / "jupyter"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTERLAB_GALATA_ROOT_DIR": str(root),
        "IPYTHONDIR": str(home / "ipython"),
    }
    if user is not None:
        environment |= _made_reachable(user, home, root, prefix)
    log = home / "lab.log"
    with log.open("ab") as output:
        child: dict[str, Any] = {"cwd": root, "stdin": subprocess.DEVNULL}
        child |= {"stdout": output, "stderr": output}
        arguments = ["-m", "jupyterlab", f"--config={config}"]
        process = (
            subprocess.Popen(
                [sys.executable, *arguments], env={**os.environ, **environment}, **child
            )
            if user is None
            else user.popen(user.python, *arguments, env=environment, **child)
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/status", timeout=5):
                return True
        except OSError:
            return False

    try:
        wait_until(answers, 90, "JupyterLab's start")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _made_reachable(user: User, home: Path, root: Path, prefix: Path) -> dict[str, str]:
    """Give a user his directories, and what of JupyterLab he could not reach where it is."""
    for directory in (home, root):
        os.chown(directory, user.uid, user.gid)
    extension = "jupyter-runtime-checkpoints"
    shutil.copytree(
        _REPOSITORY / "jupyter_checkpoints" / "labextension",
        prefix / "share" / "jupyter" / "labextensions" / extension,
    )
    reachable = user.environment["JUPYTER_PATH"]
    return {
        "JUPYTER_PATH": f"{prefix / 'share' / 'jupyter'}{os.pathsep}{reachable}",
        "JUPYTERLAB_DIR": f"{reachable}/lab",
    }


def browse(*arguments: str) -> int:
    """Start everything, run the browser's tests, remove everything; Playwright's exit status.

    ``arguments`` go to ``playwright test``.
    """
    ImageStore(IMAGES).ensure_default(lambda stage, message: None)
    home = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-lab-"))
    try:
        with (
            two_users() as users,
            running_agent(
                "--AgentApp.orphan_grace=5", f"--AgentApp.allowed_groups={users.group}"
            ) as agent,
            running_lab(agent.socket, home / "lab") as address,
            running_lab(home / "nobody.sock", home / "lonely") as lonely,
            running_lab(agent.socket, users.alice.home / "lab", users.alice) as alice,
            running_lab(agent.socket, users.bob.home / "lab", users.bob) as bob,
        ):
            status = subprocess.run(
                [_PLAYWRIGHT, "test", *arguments],
                cwd=UI_TESTS,
                env={
                    **os.environ,
                    "TARGET_URL": address,
                    "JUPYTER_ROOT": str(home / "lab" / "notebooks"),
                    "FORBIDDEN": str(home / "lab" / "forbidden"),
                    "LONELY_URL": lonely,
                    "ALICE_URL": alice,
                    "ALICE_NAME": users.alice.name,
                    "BOB_URL": bob,
                    "BOB_NAME": users.bob.name,
                },
                check=False,
            ).returncode
            if status:
                sys.stdout.write((home / "lab" / "lab.log").read_text()[-8000:])
            return status
    finally:
        shutil.rmtree(home)
