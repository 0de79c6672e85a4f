"""Message types that threads may use: msgspec has to have looked at them before."""

from __future__ import annotations

import contextlib

import msgspec
from msgspec import Struct

_PACKAGE = __name__.partition(".")[0]


def make_types_ready() -> None:
    """Have msgspec look at all message types of this package that are loaded.

    Called by each program of ours before its threads decode anything. At its first use msgspec
    (0.22) shows what it finds out about a type before it has found out all: a second thread that
    decodes one meanwhile ends the process with a segmentation fault.
    """
    found: list[type[Struct]] = [Struct]
    while found:
        for kind in found.pop().__subclasses__():
            found.append(kind)
            if kind.__module__.partition(".")[0] == _PACKAGE:
                with contextlib.suppress(TypeError):  # it is never decoded
                    msgspec.json.Decoder(kind)
