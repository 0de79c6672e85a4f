"""What two kernels that come from one state must not share.

CRIU brings everything back, the state of random number generators too. What is only safe is
renewed after each resume in a new kernel: OpenSSL's generator, and the one that names temporary
files. What changes results (``random``, NumPy) is renewed only where the user asks for it. Only
modules that the kernel has loaded are touched, and no name of the user's.
"""

from __future__ import annotations

_SAFE = """
import os, sys
if "ssl" in sys.modules:
    sys.modules["ssl"].RAND_add(os.urandom(32), 32.0)
if "tempfile" in sys.modules:
    sys.modules["tempfile"]._name_sequence = None
"""
_SEEDS = """
if "random" in sys.modules:
    sys.modules["random"].seed()
if "numpy.random" in sys.modules:
    sys.modules["numpy.random"].seed()
"""


def renewal_code(language: str, *, seeds: bool) -> str:
    """Code that renews it in a kernel of this language; empty if there is none.

    Called by :class:`~jupyter_checkpoints.runtimes.Runtimes` after a resume. ``seeds``: also
    what changes results.
    """
    if language != "python":
        return ""
    return f"exec({_SAFE + (_SEEDS if seeds else '')!r}, {{}})"
