"""Kernelspecs whose kernels run in containers that can be saved.

An ordinary kernelspec, but for its metadata: they name our provisioner and the image. Used by
``setup``, and by ``jupyter checkpoints kernelspec``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from msgspec import Struct

from .errors import Conflict, InvalidRequest, NotAllowed, NotFound
from .models import Mode

PROVISIONER = "checkpoint-container-provisioner"
#: The image that the kernelspecs of :func:`add_defaults` start from.
DEFAULT_IMAGE = "python3"


class InstalledSpec(Struct, frozen=True, kw_only=True):
    """One installed kernelspec of ours."""

    name: str
    display_name: str
    language: str
    image: str
    mode: str
    path: str


def add(
    name: str,
    *,
    image: str,
    argv: Sequence[str],
    display_name: str = "",
    language: str = "python",
    mode: Mode = "process",
    env: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    user: bool = False,
    prefix: str | None = None,
    replace: bool = False,
) -> Path:
    """Install a kernelspec; returns its directory.

    Parameters
    ----------
    name:
        What programs call it: ``jupyter console --kernel NAME``.
    image:
        The image its kernels start from.
    argv:
        How a kernel starts inside the image. Must name ``{connection_file}``.
    config:
        More settings of :class:`~jupyter_checkpoints.provisioner.ContainerProvisioner`, for
        instance ``{"mem_limit": "4G"}``.
    user, prefix:
        As ``jupyter kernelspec install --user`` and ``--prefix``. Default: this Python's own
        environment, ``sys.prefix``.
    replace:
        Overwrite a kernelspec of that name.

    Raises
    ------
    InvalidRequest
        If the name or the argument vector cannot be one of a kernelspec.
    Conflict
        If there is one of that name already.
    NotAllowed
        If the directory cannot be written to.
    """
    if not any("{connection_file}" in arg for arg in argv):
        raise InvalidRequest(
            f"The kernelspec {name!r} would start kernels that nobody can reach.",
            reason="its argv does not contain {connection_file}",
            hint="A kernel is told by this file where to listen, for instance: "
            "python -m ipykernel_launcher -f {connection_file}",
        )
    manager = KernelSpecManager(ensure_native_kernel=False)
    if not replace and name.lower() in manager.find_kernel_specs():
        raise Conflict(
            f"There is a kernelspec {name!r} already.",
            reason=manager.find_kernel_specs()[name.lower()],
            hint="Choose another name, or --replace it.",
        )
    spec = {
        "argv": list(argv),
        "display_name": display_name or name,
        "language": language,
        "interrupt_mode": "signal",
        "env": dict(env or {}),
        "metadata": {
            **(metadata or {}),
            "kernel_provisioner": {
                "provisioner_name": PROVISIONER,
                "config": {"image": image, "mode": mode, **(config or {})},
            },
        },
    }
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "kernel"
        source.mkdir(mode=0o755)
        (source / "kernel.json").write_text(json.dumps(spec, indent=1) + "\n")
        try:
            installed = manager.install_kernel_spec(
                str(source), name, user=user, prefix=None if user else prefix or sys.prefix
            )
        except ValueError as error:
            raise InvalidRequest(
                f"{name!r} cannot be a kernelspec's name.", reason=str(error)
            ) from error
        except OSError as error:
            raise NotAllowed(
                f"The kernelspec {name!r} could not be written.",
                reason=str(error),
                hint="Use --user, or --prefix with a directory you can write to.",
            ) from error
    return Path(installed)


def add_defaults(*, user: bool = False, prefix: str | None = None) -> list[Path]:
    """Install the kernelspecs of the default image, over any older ones. Called by ``setup``."""
    python = add(
        "checkpoints-python3",
        image=DEFAULT_IMAGE,
        argv=["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3 (checkpoints)",
        metadata={"debugger": True},
        user=user,
        prefix=prefix,
        replace=True,
    )
    bash = add(
        "checkpoints-bash",
        image=DEFAULT_IMAGE,
        argv=["python", "-m", "bash_kernel", "-f", "{connection_file}"],
        display_name="Bash (checkpoints)",
        language="bash",
        mode="filesystem",
        user=user,
        prefix=prefix,
        replace=True,
    )
    return [python, bash]


def installed() -> list[InstalledSpec]:
    """All kernelspecs of ours that Jupyter finds, by name."""
    found = []
    for name, entry in sorted(
        KernelSpecManager(ensure_native_kernel=False).get_all_specs().items()
    ):
        spec = entry["spec"]
        stanza = spec.get("metadata", {}).get("kernel_provisioner", {})
        if stanza.get("provisioner_name") != PROVISIONER:
            continue
        config = stanza.get("config", {})
        found.append(
            InstalledSpec(
                name=name,
                display_name=spec["display_name"],
                language=spec["language"],
                image=config.get("image", DEFAULT_IMAGE),
                mode=config.get("mode", "process"),
                path=entry["resource_dir"],
            )
        )
    return found


def remove(name: str) -> Path:
    """Remove a kernelspec of ours; returns the directory that was.

    Raises
    ------
    NotFound
        If there is none, or it is somebody else's.
    NotAllowed
        If it cannot be deleted.
    """
    for spec in installed():
        if spec.name == name.lower():
            try:
                shutil.rmtree(spec.path)
            except OSError as error:
                raise NotAllowed(
                    f"The kernelspec {name!r} could not be removed.", reason=str(error)
                ) from error
            return Path(spec.path)
    raise NotFound(
        f"There is no kernelspec {name!r} of runtime checkpoints.",
        hint="`jupyter checkpoints kernelspec list` shows those there are; for all others use "
        "`jupyter kernelspec remove`.",
    )
