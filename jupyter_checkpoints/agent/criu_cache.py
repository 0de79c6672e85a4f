"""What CRIU finds out about this Linux, kept where its next run finds it.

CRIU tries out at each start what Linux can do. On an idle host that is a third of all that it does
for a small kernel. It keeps the answers in ``/run/criu.kdat``, but only where ``/run`` is a tmpfs,
for they must not outlive a boot; in most containers, and on some hosts, it is none. There the
answers come to lie on a tmpfs of their own, which is mounted over that file.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from pathlib import Path

from . import mounting
from .tools import Tools

log = logging.getLogger(__name__)

_ANSWERS = Path("/run/criu.kdat")
#: It is there for a moment while CRIU writes. One that was killed leaves it behind, and so does one
#: that finds no tmpfs; from then on no other writes any more.
_UNFINISHED = Path("/run/criu.kdat.tmp")
_MOMENT_SECONDS = 60.0
_TIMEOUT_SECONDS = 60.0

#: $1 is CRIU, the only one that sees another /run. The file stays as long as it is mounted.
_KEEP = """
place=$(mktemp -d /dev/shm/criu.XXXXXX)
trap 'rm -r "$place"' EXIT
unshare --mount sh -ec 'mount --bind "$1" /run; exec "$2" check' sh "$place" "$1" || :
test -s "$place/criu.kdat"
touch /run/criu.kdat
mount --bind "$place/criu.kdat" /run/criu.kdat
"""


class CriuCache:
    """Used by an engine from its start to its end. Its methods block, and raise nothing.

    Where several agents are on one host, the first to end takes the answers away: that only makes
    CRIU slower.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._mounted = False

    def open(self) -> None:
        """See to it that CRIU finds its answers. Takes as long as one start of it."""
        with contextlib.suppress(OSError):
            if time.time() - _UNFINISHED.stat().st_mtime > _MOMENT_SECONDS:
                _UNFINISHED.unlink()
        if _is_tmpfs(_ANSWERS.parent):
            return
        # An agent that was killed may have left them; CRIU may be another one by now.
        self._remove()
        try:
            subprocess.run(
                ["sh", "-ec", _KEEP, "sh", self._tools.criu],
                env=self._tools.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.info("CRIU tries out at each start what this host can do: %s", error)
            return
        self._mounted = True

    def close(self) -> None:
        """Leave the host as it was."""
        if self._mounted:
            self._mounted = False
            self._remove()

    def _remove(self) -> None:
        mounting.detach(str(_ANSWERS))
        with contextlib.suppress(OSError):  # another agent's are there
            _ANSWERS.unlink()


def _is_tmpfs(place: Path) -> bool:
    """Whether what a directory shows is one."""
    command = ["stat", "--file-system", "--format=%T", str(place)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() == "tmpfs"
