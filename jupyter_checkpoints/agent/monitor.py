"""The process that stays with one container: holds its stdio, reaps it, writes down how it ended.

The agent starts one per container and tells it what to do in one line of JSON, once the container
is prepared. It runs the runc command named there as a child, with pipes as the container's stdio,
becomes the container's parent (child subreaper), copies the output into a log of bounded size, and
leaves the exit code in a file. It outlives the agent: the next one finds the files and takes over.

Only the standard library, and little of it: it must start in a few milliseconds.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36
CHUNK = 65536


class Log:
    """Appends to ``path``; at ``size`` bytes it becomes ``path.1`` and so on, ``files`` in all."""

    def __init__(self, path: str, size: int, files: int) -> None:
        self.path, self.size, self.files = path, size, files
        self.fd = self._open()

    def _open(self) -> int:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.written = os.fstat(fd).st_size
        return fd

    def write(self, data: bytes) -> None:
        if self.written + len(data) > self.size:
            os.close(self.fd)
            for n in range(self.files - 1, 0, -1):
                older = self.path if n == 1 else f"{self.path}.{n - 1}"
                if os.path.exists(older):
                    os.replace(older, f"{self.path}.{n}")
            self.fd = self._open()
        # If the disk is full the kernel's output is lost, and the kernel goes on.
        with contextlib.suppress(OSError):
            self.written += os.write(self.fd, data)


def replace(path: str, content: dict[str, object]) -> None:
    """Write a small JSON file so that a reader sees all of it or nothing."""
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, json.dumps(content).encode())
    os.close(fd)
    os.replace(temporary, path)


def say(content: dict[str, object]) -> None:
    """Tell the agent that waits for the start; it may be gone by now."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(content).encode() + b"\n")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)


def code_of(status: int) -> int:
    """The exit code as shells give it: 128 + signal for a death by signal."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def main() -> int:
    line = sys.stdin.readline()
    if not line:
        return 0  # the container could not be prepared, or the agent is gone
    job = json.loads(line)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    log = Log(job["log"], job["log_size"], job["log_files"])
    stdin_read, _stdin_write = os.pipe2(os.O_CLOEXEC)
    output, out_write = os.pipe2(os.O_CLOEXEC)
    errors, err_write = os.pipe2(os.O_CLOEXEC)
    for fd in (stdin_read, out_write, err_write):
        os.fchown(fd, *job["owner"])  # or /dev/stdout could not be opened inside
    runc = os.posix_spawn(
        job["command"][0],
        job["command"],
        job["env"],
        file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin_read, 0),
            (os.POSIX_SPAWN_DUP2, out_write, 1),
            (os.POSIX_SPAWN_DUP2, err_write, 2),
        ],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE],
    )
    # The container alone may hold these ends, so that its end is seen as an end of file.
    for fd in (stdin_read, out_write, err_write):
        os.close(fd)

    poller = select.poll()
    open_outputs = {output, errors}
    for fd in (output, errors, wake_read):
        poller.register(fd, select.POLLIN)
    container = None
    exit_code = None
    reaped: dict[int, int] = {}
    while exit_code is None or open_outputs:
        # After the container's end its pipes hold what was written last, and nothing more comes
        # unless something outside the container was given them: do not wait for that.
        ready = poller.poll(None if exit_code is None else 200)
        if not ready:
            break
        for fd, _ in ready:
            if fd == wake_read:
                os.read(wake_read, CHUNK)
                continue
            data = os.read(fd, CHUNK)
            if data:
                log.write(data)
            else:
                poller.unregister(fd)
                open_outputs.discard(fd)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
                if container is None and exit_code is None:
                    exit_code = 255
            if pid == 0:
                break
            if pid == runc and container is None:
                if status != 0:
                    say({"status": code_of(status)})
                    return 1
                with open(job["pid_file"]) as file:
                    container = int(file.read())
                say({"pid": container})
            # A container that ends at once is reaped before runc has returned.
            reaped[pid] = status
            if container in reaped and exit_code is None:
                exit_code = code_of(reaped[container])
                replace(job["exit_file"], {"code": exit_code})
    return 0


if __name__ == "__main__":
    sys.exit(main())
