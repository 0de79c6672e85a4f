"""What all commands have in common: arguments, ``--json``, errors, exit codes.

A command derives from :class:`Command` and implements :meth:`Command.run`, or, if it talks to the
agent, from :class:`AgentCommand` and implements :meth:`AgentCommand.work`. It raises
:class:`~jupyter_checkpoints.errors.CheckpointsError` for what goes wrong;
:func:`jupyter_checkpoints.cli.app.main` turns that into output and an exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from jupyter_core.application import JupyterApp, base_aliases, base_flags
from traitlets import Bool, Unicode
from traitlets.config.loader import KVArgParseConfigLoader

from .. import __version__
from ..errors import CheckpointsError, InvalidRequest

if TYPE_CHECKING:
    from ..client import AgentClient
    from ..models import Event

EXIT_CODES = """\
Exit codes
==========
  0  done
  1  a defect of this program, or a value in its configuration that cannot be read
  2  the input is wrong                     9  a kernel's container did not start
  3  no such kernel, checkpoint or image   10  the kernel could not be saved; it goes on running
  4  busy, or in the wrong state           11  the checkpoint could not be resumed
  5  this user may not do that             12  the checkpoint cannot be resumed on this host
  6  the host lacks a tool or a feature    13  files of the checkpoint are missing or changed
  7  no agent answers                      14  an operation took too long and was ended
  8  not enough disk or memory             15  a user ended the operation; nothing was changed
                                           16  it would be more than this user may have
                                          130  interrupted by the user
"""


class _StrictLoader(KVArgParseConfigLoader):
    """Refuses options it does not know: an option that silently does nothing is a trap."""

    def _parse_args(self, args: Any) -> Any:
        try:
            return super()._parse_args(args)
        except argparse.ArgumentError as error:
            option = f"{error.argument_name}: " if error.argument_name else ""
            raise InvalidRequest(
                f"{option}{error.message}",
                hint="The same command with --help lists the options.",
            ) from None

    def _handle_unrecognized_alias(self, arg: str) -> NoReturn:
        raise InvalidRequest(
            f"There is no option --{arg}.", hint="The same command with --help lists the options."
        )


class Command(JupyterApp):
    """One command. Subclasses set ``name``, ``description``, :attr:`synopsis` and the traits."""

    version = __version__
    synopsis: ClassVar[str] = ""
    """The positional arguments as help shows them, for instance ``KERNEL``."""
    arguments: ClassVar[tuple[int, int | None]] = (0, 0)
    """How many positional arguments there may be: least and most (``None``: any number)."""

    json = Bool(False, help="Print JSON on standard output, for programs.").tag(config=True)

    aliases: dict[Any, Any] = {**base_aliases}
    flags: dict[Any, Any] = {
        "json": ({"Command": {"json": True}}, "Print JSON on standard output, for programs."),
        "debug": base_flags["debug"],
        "y": base_flags["y"],
    }

    def _log_level_default(self) -> int:
        return 30  # WARNING: what a command has to say it prints

    def _config_file_name_default(self) -> str:
        return "jupyter_checkpoints_config"

    def _find_subcommand(self, name: str) -> str:
        return ""  # the first argument is an id, never the name of some program on PATH

    def _create_loader(
        self, argv: list[str] | None, aliases: Any, flags: Any, classes: Any
    ) -> KVArgParseConfigLoader:
        return _StrictLoader(
            argv,
            aliases,
            flags,
            classes=classes,
            log=self.log,
            subcommands=self.subcommands,
            exit_on_error=False,
        )

    def start(self) -> None:
        """Check the number of arguments, then :meth:`run`. Called by ``launch_instance``."""
        super().start()  # generated configuration and subcommands end there
        least, most = self.arguments
        if len(self.extra_args) < least or (most is not None and len(self.extra_args) > most):
            raise InvalidRequest(
                f"Usage: {self.usage_line()}", hint="The same command with --help tells more."
            )
        self.run()

    def run(self) -> None:
        """Do the work. Blocking; raises :class:`CheckpointsError`."""
        raise NotImplementedError

    def usage_line(self) -> str:
        return f"{self.name.replace('jupyter-', 'jupyter ')} {self.synopsis} [options]".replace(
            "  ", " "
        )

    def emit_description(self) -> Generator[str, None, None]:
        yield f"Usage: {self.usage_line()}"
        yield ""
        yield from super().emit_description()

    def emit_help_epilogue(self, classes: bool) -> Generator[str, None, None]:
        yield EXIT_CODES
        yield from super().emit_help_epilogue(classes)

    def print_result(self, data: Any, show: Callable[[], None]) -> None:
        """Print ``data`` as one JSON value with ``--json``, else call ``show``.

        ``data`` is whatever msgspec encodes: structs of :mod:`jupyter_checkpoints.models`, lists
        of them, dictionaries.
        """
        if self.json:
            print_json(data)
        else:
            show()

    def progress(self, label: str) -> AbstractContextManager[Callable[[Event], None]]:
        """A context that shows the :class:`Event` s of one long operation on standard error.

        A bar on a terminal, one plain line per stage otherwise, nothing with ``--json``.
        """
        from .output import progress

        return progress(label, quiet=self.json)


class AgentCommand(Command):
    """A command that talks to the agent."""

    socket = Unicode(
        "", help="The agent's socket; default: $JUPYTER_CHECKPOINTS_SOCKET or the host's own."
    ).tag(config=True)

    aliases = {**Command.aliases, "socket": "AgentCommand.socket"}

    def run(self) -> None:
        async def main() -> None:
            from ..client import connect

            async with connect(Path(self.socket) if self.socket else None) as agent:
                await self.work(agent)

        asyncio.run(main())

    async def work(self, agent: AgentClient) -> None:
        """Do the work with a connected client."""
        raise NotImplementedError


def print_json(data: Any) -> None:
    """One JSON value on one line of standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(data).decode() + "\n")


def report(error: CheckpointsError, *, as_json: bool) -> int:
    """Tell the user of an error; returns the exit code. Called by ``main`` only.

    The message always goes to standard error; with ``--json`` the error's body goes to standard
    output as well, where a program expects its answer.
    """
    if as_json:
        print_json(error.to_json())
    print(str(error), file=sys.stderr)
    return error.exit_code


def wants_json(argv: Sequence[str]) -> bool:
    """Whether ``--json`` is among the options, also where parsing them failed."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in options
