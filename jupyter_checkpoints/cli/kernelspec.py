"""``kernelspec add|list|remove``: kernels of any language, in containers that can be saved."""

from __future__ import annotations

import json
import shlex
from typing import Any, cast

from traitlets import Bool, Enum, Float, Integer, Unicode

from .. import kernelspecs
from ..errors import InvalidRequest
from ..models import Mode
from .base import Command

_HERE = "jupyter_checkpoints.cli.kernelspec"


class KernelSpecApp(Command):
    name = "jupyter-checkpoints kernelspec"
    synopsis = "add|list|remove"
    arguments = (0, None)
    description = "Kernelspecs whose kernels run in containers that can be saved."
    subcommands: dict[str, Any] = {
        "add": (f"{_HERE}.AddApp", "Add a kernelspec"),
        "list": (f"{_HERE}.ListApp", "List kernelspecs"),
        "remove": (f"{_HERE}.RemoveApp", "Remove kernelspecs"),
    }

    def run(self) -> None:
        if self.extra_args:
            raise InvalidRequest(f"Usage: {self.usage_line()}")
        self.print_help()


class AddApp(Command):
    name = "jupyter-checkpoints kernelspec add"
    synopsis = "NAME --image IMAGE (--argv COMMAND | -- COMMAND...)"
    arguments = (1, None)
    description = """Add a kernelspec: a name for "this command in this image".

    The command runs inside of the image; {connection_file} in it stands for the file that tells
    the kernel where to listen. It is given as one text, which is split as a shell would, as a
    JSON array, or as what follows after --.

    With --json: {"name": ..., "path": ...}."""
    examples = """\
jupyter checkpoints kernelspec add data-science --image data-science \\
    --argv "python -m ipykernel_launcher -f {connection_file}"
jupyter checkpoints kernelspec add r --image r --language R --display-name R \\
    -- R --slave -e 'IRkernel::main()' --args {connection_file}"""

    image = Unicode("", help="The image to start from; see `jupyter checkpoints image list`.").tag(
        config=True
    )
    command = Unicode("", help="The command that starts a kernel inside of the image.").tag(
        config=True
    )
    display_name = Unicode("", help="What users see. Default: the name.").tag(config=True)
    language = Unicode("python", help="The language of its cells.").tag(config=True)
    mode = Enum(
        ["process", "filesystem"], "process", help="Save memory and files, or files only."
    ).tag(config=True)
    mem_limit = Unicode("", help="Most memory of a kernel, like 4G.").tag(config=True)
    cpu_limit = Float(None, allow_none=True, help="Most CPUs of a kernel, like 1.5.").tag(
        config=True
    )
    pids_limit = Integer(None, allow_none=True, help="Most processes and threads.").tag(config=True)
    user = Bool(False, help="Install for this user only.").tag(config=True)
    prefix = Unicode("", help="Install to PREFIX/share/jupyter/kernels.").tag(config=True)
    replace = Bool(False, help="Replace a kernelspec of that name.").tag(config=True)

    aliases = {
        **Command.aliases,
        "image": "AddApp.image",
        "argv": "AddApp.command",
        "display-name": "AddApp.display_name",
        "language": "AddApp.language",
        "mode": "AddApp.mode",
        "mem-limit": "AddApp.mem_limit",
        "cpu-limit": "AddApp.cpu_limit",
        "pids-limit": "AddApp.pids_limit",
        "prefix": "AddApp.prefix",
    }
    flags = {
        **Command.flags,
        "user": ({"AddApp": {"user": True}}, "Install for this user only."),
        "replace": ({"AddApp": {"replace": True}}, "Replace a kernelspec of that name."),
    }

    def run(self) -> None:
        after = self.argv[self.argv.index("--") + 1 :] if "--" in self.argv else []
        names = self.extra_args[: len(self.extra_args) - len(after)]
        if len(names) != 1 or not self.image or bool(self.command) == bool(after):
            raise InvalidRequest(f"Usage: {self.usage_line()}")
        if self.user and self.prefix:
            raise InvalidRequest("Say either --user or --prefix.")
        config = {
            "mem_limit": self.mem_limit or None,
            "cpu_limit": self.cpu_limit,
            "pids_limit": self.pids_limit,
        }
        path = kernelspecs.add(
            names[0],
            image=self.image,
            argv=after or _split(self.command),
            display_name=self.display_name,
            language=self.language,
            mode=cast("Mode", self.mode),
            config={name: value for name, value in config.items() if value is not None},
            user=self.user,
            prefix=self.prefix or None,
            replace=self.replace,
        )
        self.print_result({"name": path.name, "path": str(path)}, lambda: print(path))


class ListApp(Command):
    name = "jupyter-checkpoints kernelspec list"
    description = """List the kernelspecs whose kernels can be saved.

    With --json: an array of {"name", "display_name", "language", "image", "mode", "path"}."""

    def run(self) -> None:
        specs = kernelspecs.installed()

        def show() -> None:
            from .output import print_table

            print_table(
                ["KERNELSPEC", "DISPLAY NAME", "LANGUAGE", "IMAGE", "MODE", "PATH"],
                [(s.name, s.display_name, s.language, s.image, s.mode, s.path) for s in specs],
                empty="No kernelspecs. `jupyter checkpoints setup` installs the first ones.",
            )

        self.print_result(specs, show)


class RemoveApp(Command):
    name = "jupyter-checkpoints kernelspec remove"
    synopsis = "NAME..."
    arguments = (1, None)
    description = """Remove kernelspecs. Images, kernels and checkpoints stay.

    With --json: {"removed": [path, ...]}."""

    def run(self) -> None:
        removed = [str(kernelspecs.remove(name)) for name in self.extra_args]
        self.print_result({"removed": removed}, lambda: print("\n".join(removed)))


def _split(command: str) -> list[str]:
    try:
        if not command.lstrip().startswith("["):
            return shlex.split(command)
        argv = json.loads(command)
    except ValueError as error:
        raise InvalidRequest(f"--argv cannot be read: {command}", reason=str(error)) from error
    if not all(isinstance(arg, str) for arg in argv):
        raise InvalidRequest(f"--argv is not an array of texts: {command}")
    return list(argv)
