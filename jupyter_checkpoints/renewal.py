"""What no two kernels may share, and what is run in a kernel that was resumed.

CRIU brings everything back, the state of random number generators too. What is only safe is
renewed after each resume in a new kernel: OpenSSL's generator, and the one that names temporary
files. What changes results (``random``, NumPy) is renewed only where the user asks for it. Only
modules that the kernel has loaded are touched, and no name of the user's.
"""

from __future__ import annotations

_RANDOM = """
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
_KEY = """
from IPython import get_ipython
session = get_ipython().kernel.session
session.key = {key} or session.key
"""
_ON_RESUME = """
import sys
if "jupyter_checkpoints.ipython" in sys.modules:
    sys.modules["jupyter_checkpoints.ipython"].resumed()
"""


def random_code(language: str, *, seeds: bool) -> str:
    """Code that renews random numbers in a kernel of this language; empty if there is none.

    Called by :class:`~jupyter_checkpoints.after_resume.AfterResume`, as the others here.
    ``seeds``: also what changes results.
    """
    return _python(language, _RANDOM + (_SEEDS if seeds else ""))


def key_code(language: str, key: bytes | None) -> str:
    """Code that gives an IPython kernel another key for its messages; raises in others.

    The reply is signed with the new key already. ``None`` changes nothing, and so asks whether
    it can be done.
    """
    return _python(language, _KEY.format(key=key))


def on_resume_code(language: str) -> str:
    """Code that runs what was registered with :mod:`jupyter_checkpoints.ipython`."""
    return _python(language, _ON_RESUME)


def _python(language: str, code: str) -> str:
    return f"exec({code!r}, {{}})" if language == "python" else ""
