"""What is found out about the host, on hosts that lack it."""

import subprocess
import sys

_LOOK = """
from jupyter_checkpoints.agent.host_features import _unfiltered
print(_unfiltered())
"""
# One rule: allow (BPF_RET, SECCOMP_RET_ALLOW); PR_SET_NO_NEW_PRIVS, as not only root runs this.
_FILTERED = f"""
import ctypes, struct
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("rules", ctypes.c_char_p))
rules = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(1, rules)), 0, 0) == 0
{_LOOK}
"""


def test_a_seccomp_filter_of_our_own_is_seen() -> None:
    found = [
        subprocess.check_output([sys.executable, "-c", program], text=True).strip()
        for program in (_LOOK, _FILTERED)
    ]
    assert found == ["True", "False"]
