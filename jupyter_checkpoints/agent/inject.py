"""Takes a userfaultfd of another process, by having that process make one; for :mod:`.dirty`.

Run as a program, ``python -I -S inject.py PID``, with a socket as its standard input: it sends the
descriptor through it, or says why there is none. It is a program of its own because nothing may
end it midway, whatever becomes of the agent: the other process would be left with its registers
changed. It is done within milliseconds.

The other process is stopped as CRIU stops it (ptrace(2), ``PTRACE_SEIZE``), all its threads: none
may fork while the descriptor is there. One of them is made to call userfaultfd(2), from where its
vDSO has a system call, and close(2) when the descriptor was copied (pidfd_getfd(2)). It is let go
from the very stop that it came from, so a call of its own that was interrupted is restarted by the
Linux kernel as after any stop.
"""

import ctypes
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# sys/ptrace.h, linux/ptrace.h
_CONT, _DETACH, _SYSCALL = 7, 17, 24
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_SYSGOOD, _SUSPEND_SECCOMP = 0x1, 1 << 21
_EVENT_STOP = 128
_WALL = 0x40000000
_NT_PRSTATUS = 1

#: x86_64: numbers of system calls, `syscall`, and places in user_regs_struct (27 words)
_USERFAULTFD, _CLOSE, _PIDFD_GETFD = 323, 3, 438
_INSTRUCTION = b"\x0f\x05"
_WORDS = 27
_RAX, _RSI, _RDI, _ORIG_RAX, _RIP, _CS = 10, 13, 14, 15, 16, 17
_CODE_64 = 0x33

#: Only faults of user mode may be waited for, which needs no privilege. Ours are never waited for.
_USER_MODE_ONLY = 1
_SECONDS = 5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Refused(Exception):
    """Why there is no descriptor."""


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace: {os.strerror(code)}")


def _registers(tid: int) -> list[int]:
    buffer = ctypes.create_string_buffer(8 * _WORDS)
    vector = _Vector(ctypes.addressof(buffer), len(buffer))
    _ptrace(_GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))
    found = list(struct.unpack(f"<{_WORDS}Q", buffer.raw))
    if vector.size != 8 * _WORDS or found[_CS] != _CODE_64:
        raise Refused("it is no 64-bit process")
    return found


def _set_registers(tid: int, registers: list[int]) -> None:
    buffer = ctypes.create_string_buffer(struct.pack(f"<{_WORDS}Q", *registers), 8 * _WORDS)
    vector = _Vector(ctypes.addressof(buffer), 8 * _WORDS)
    _ptrace(_SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))


def _mask(tid: int) -> bytes:
    buffer = ctypes.create_string_buffer(8)
    _ptrace(_GETSIGMASK, tid, 8, ctypes.addressof(buffer))
    return buffer.raw


def _set_mask(tid: int, mask: bytes) -> None:
    _ptrace(_SETSIGMASK, tid, 8, ctypes.addressof(ctypes.create_string_buffer(mask, 8)))


class _Stopped:
    """All threads of a process, each in a stop of ptrace's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.threads: list[int] = []
        #: Signals that came meanwhile, to be sent again.
        self.signals: list[tuple[int, int]] = []

    def stop(self) -> None:
        while True:
            found = [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
            new = [tid for tid in found if tid not in self.threads]
            if not new:
                return
            for tid in new:
                self._stop(tid)

    def _stop(self, tid: int) -> None:
        try:
            _ptrace(_SEIZE, tid, 0, _SYSGOOD | _SUSPEND_SECCOMP)
        except ProcessLookupError:
            return  # it has ended
        self.threads.append(tid)
        _ptrace(_INTERRUPT, tid)
        if self.wait(tid) != signal.SIGTRAP:
            raise Refused("it was stopped by a signal")

    def wait(self, tid: int) -> int:
        """Until the thread stops where it was sent; the signal of that stop."""
        while True:
            _, status = os.waitpid(tid, _WALL)
            if not os.WIFSTOPPED(status):
                self.threads.remove(tid)
                raise Refused("it has ended")
            number = os.WSTOPSIG(status)
            if status >> 16 == _EVENT_STOP or number == signal.SIGTRAP | 0x80:
                return number
            self.signals.append((tid, number))
            _ptrace(_CONT, tid)

    def let_go(self) -> None:
        for tid in self.threads:
            try:
                _ptrace(_DETACH, tid)
            except ProcessLookupError:
                continue
        for tid, number in self.signals:
            _libc.tgkill(self.pid, tid, number)


class _Caller:
    """A stopped thread that makes system calls for us."""

    def __init__(self, process: _Stopped, tid: int, instruction: int) -> None:
        self.process, self.tid, self.instruction = process, tid, instruction
        self.registers = _registers(tid)

    def call(self, number: int, *arguments: int) -> int:
        registers = list(self.registers)
        registers[_RIP] = self.instruction
        registers[_RAX] = number
        registers[_ORIG_RAX] = 2**64 - 1  # nothing is to be restarted now
        for place, argument in zip((_RDI, _RSI), arguments, strict=False):
            registers[place] = argument
        _set_registers(self.tid, registers)
        for _ in ("entry", "exit"):
            _ptrace(_SYSCALL, self.tid)
            self.process.wait(self.tid)
        result = _registers(self.tid)[_RAX]
        return result - 2**64 if result >> 63 else result

    def put_back(self) -> None:
        """As it was, in a stop like the first: before it goes on, signals and restarts are due."""
        _ptrace(_INTERRUPT, self.tid)
        _ptrace(_CONT, self.tid)
        self.process.wait(self.tid)
        _set_registers(self.tid, self.registers)


@contextmanager
def _calling(process: _Stopped, tid: int, instruction: int) -> Iterator[_Caller]:
    caller = _Caller(process, tid, instruction)
    mask = _mask(tid)
    _set_mask(tid, b"\xff" * 8)
    try:
        yield caller
    finally:
        caller.put_back()
        _set_mask(tid, mask)


def _system_call(pid: int) -> int:
    """Where the process has the instruction of a system call."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            if line.endswith("[vdso]\n"):
                start, end = (int(word, 16) for word in line.split(" ", 1)[0].split("-"))
                break
        else:
            raise Refused("it has no vDSO")
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = os.pread(fd, end - start, start).find(_INSTRUCTION)
    finally:
        os.close(fd)
    if at < 0:
        raise Refused("its vDSO has no system call")
    return start + at


def userfaultfd_of(pid: int) -> int:
    """A new userfaultfd of process ``pid``, which itself has none afterwards.

    Raises
    ------
    Refused, OSError
        If it cannot be had; the process goes on as before.
    """
    if os.uname().machine != "x86_64":
        raise Refused("it is not known how on this kind of processor")
    pidfd = os.pidfd_open(pid)
    process = _Stopped(pid)
    try:
        process.stop()
        if not process.threads:
            raise Refused("it has ended")
        with _calling(process, process.threads[0], _system_call(pid)) as caller:
            theirs = caller.call(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
            if theirs < 0:
                raise Refused(f"userfaultfd: {os.strerror(-theirs)}")
            ours = _libc.syscall(_PIDFD_GETFD, pidfd, theirs, 0)
            code = ctypes.get_errno()
            caller.call(_CLOSE, theirs)
        if ours < 0:
            raise OSError(code, f"pidfd_getfd: {os.strerror(code)}")
        return int(ours)
    finally:
        process.let_go()


def _too_long(*_: object) -> None:
    raise Refused("it could not be stopped in time")


def main(argv: list[str]) -> int:
    # Whoever stops the agent with Ctrl+C does not mean this.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(_SECONDS)
    with socket.socket(fileno=0) as answer:
        try:
            fd = userfaultfd_of(int(argv[0]))
        except (Refused, OSError) as error:
            answer.sendall(str(error).encode())
            return 1
        signal.alarm(0)
        socket.send_fds(answer, [b"\0"], [fd])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
