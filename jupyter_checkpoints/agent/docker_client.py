"""The connection to Docker Engine, through its own SDK. Everything here blocks."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..errors import CheckpointsError, HostNotReady
from .docker_setup import RUNTIME

#: The storage drivers whose layers can be laid under the agent's own: Docker's classic one, and
#: that of containerd's image store.
_DRIVERS = ("overlay2", "overlayfs")
_SHIFTED = {"name=userns": "in a user namespace (userns-remap)", "name=rootless": "rootless"}
#: Seconds that Docker may be silent when it is asked something; what takes longer says so itself.
SECONDS = 60.0
#: While it takes in an image, or lays out the files of one for the first container.
IMAGE_SECONDS = 600.0
_silence: ContextVar[float | None] = ContextVar("silence", default=None)
USUAL_SOCKET = "unix:///var/run/docker.sock"
_SETUP_HINT = "Run `sudo jupyter checkpoints setup --engine docker`."


class DockerFailed(Exception):
    """Docker Engine could not do what it was asked; the message is its own."""


class DockerMissing(DockerFailed):
    """Docker Engine does not have the container or image."""


def connect(host: str) -> Any:
    """A ``docker.APIClient`` to the engine at ``host`` (a URL; empty: the usual socket).

    Called by the agent when it starts. The client may be used by any number of threads.

    Raises
    ------
    HostNotReady
        If it cannot be used: no SDK, no answer, the runtime is not registered, its storage
        driver is none of those that are supported, or it shifts the owners of files.
    """
    try:
        importlib.import_module("docker")
    except ImportError as error:
        raise HostNotReady(
            "The Python SDK of Docker is not installed.",
            reason=str(error),
            hint="pip install 'jupyter-runtime-checkpoints[docker]'",
        ) from error
    with told():
        api = client_of(host)
        info = api.info()
    if RUNTIME not in info.get("Runtimes", {}):
        raise HostNotReady(
            "Docker Engine does not know the OCI runtime of runtime checkpoints.",
            reason=f"`{RUNTIME}` is not among its runtimes",
            hint=_SETUP_HINT,
        )
    if info.get("Driver") not in _DRIVERS:
        raise HostNotReady(
            f"Docker's storage driver {info.get('Driver')!r} is not supported.",
            reason=f"The files of kernels can be saved with {' or '.join(_DRIVERS)}.",
            hint="Set `storage-driver` in Docker's daemon.json, or use the embedded engine.",
        )
    for option, name in _SHIFTED.items():
        if option in (info.get("SecurityOptions") or []):
            raise HostNotReady(
                f"Docker Engine is {name}, which is not supported.",
                reason="The owners of images' files are not those that kernels are to see.",
                hint="Use another Docker Engine, or the embedded engine.",
            )
    return api


def client_of(host: str, version: str = "auto") -> Any:
    """A client that waits for no answer longer than :func:`told` says. Raises the SDK's errors."""
    import docker

    class Client(docker.APIClient):
        def send(self, request: Any, **kwargs: Any) -> Any:
            # Streams (of events) are silent as long as nothing happens. For all else the SDK has
            # one limit, and for some calls none.
            if not kwargs.get("stream"):
                kwargs["timeout"] = _silence.get() or SECONDS
            return super().send(request, **kwargs)

    return Client(base_url=host or USUAL_SOCKET, version=version)


@contextmanager
def told(within: float | None = None) -> Iterator[None]:
    """Errors of the SDK become :class:`DockerFailed`, or one of ours if Docker does not answer.

    ``within``: the seconds that Docker may be silent; :data:`SECONDS` if it is not given.
    """
    from docker.errors import APIError, DockerException
    from docker.errors import NotFound as Missing
    from requests.exceptions import RequestException

    limit = _silence.set(within)
    try:
        yield
    except Missing as error:
        raise DockerMissing(str(error.explanation or error)) from error
    except APIError as error:
        raise DockerFailed(str(error.explanation or error)) from error
    except (DockerException, RequestException, OSError) as error:
        raise HostNotReady(
            "Docker Engine does not answer.",
            reason=str(error),
            hint="Start it, or have the agent use the embedded engine.",
        ) from error
    finally:
        _silence.reset(limit)


def is_ready(host: str) -> bool:
    """Whether ``engine = auto`` takes Docker: it answers, and the runtime is registered."""
    url = host or USUAL_SOCKET
    if url.startswith("unix://") and not os.path.exists(url.removeprefix("unix://")):
        return False
    try:
        connect(host).close()
    except CheckpointsError:
        return False
    return True
