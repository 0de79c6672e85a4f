"""Runs as a program: saves and deletes checkpoints until it is killed.

``sweep BACKEND ROOT``
    forks one process after the other, each with a store of its own below ``ROOT``, and each kills
    itself at the next of the operating system's calls that Python tells of; ends when one lived.
``loop BACKEND ROOT SEED``
    goes on for ever with files of random sizes, and prints a line for what was promised.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from tests.unit.store.saving import BACKENDS, Backend, manifest_of, save, write_files

#: Large enough to be a pack of its own.
MEMORY = os.urandom(300 * 4096)
#: Audit events that stand for a system call that changes something, or precedes one.
CALLS = ("open", "os.", "shutil.", "fcntl.", "ctypes.")


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def scenario(backend: Backend, root: Path) -> None:
    """``new`` is committed, ``lost`` given up, ``doomed`` (there already) deleted.

    ``kept`` (there already) gets a note and a copy, and ``new`` is built on it, and on what was
    copied ahead of it.
    """
    store = backend.make(root)
    store.annotate("kept", lambda notes: replace(notes, name="kept"))
    store.clone("kept", manifest_of("copy", store.load("kept").files))
    changed = bytes(4096) + MEMORY[4096:-4096] + os.urandom(4096)
    ahead = store.begin("ahead", 0, "kept")
    pages = np.frombuffer(MEMORY, np.uint8).reshape(-1, 4096)
    ahead.memory.write("pagemap-1", np.array([[0, len(pages)]]), pages)
    ahead.precopy()
    save(store, "new", {"pages-1.img": changed, "pages-2.img": b"x" * 5000}, parent="ahead")
    store.forget("ahead")
    staging = store.begin("lost", 0)
    write_files(staging.images, {"core-1.img": b"registers"})
    staging.seal()
    staging.abandon()
    store.delete("doomed")
    store.tidy(0)
    store.collect()


def prepare(kind: str, root: Path) -> None:
    """What is there before; in a process of its own, because threads do not outlive a fork."""
    pid = os.fork()
    if pid == 0:
        backend = BACKENDS[kind]()
        store = backend.make(root)
        for name, memory in (("kept", MEMORY), ("doomed", MEMORY[::-1])):
            save(store, name, {"core-1.img": name.encode(), "pages-1.img": memory})
        backend.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def sweep(kind: str, base: Path) -> None:
    prepared = base / "prepared"
    prepare(kind, prepared / "store")
    for number in itertools.count(1):
        directory = base / f"{number:04}"
        shutil.copytree(prepared, directory)
        pid = os.fork()
        if pid == 0:
            left = number

            def hook(event: str, args: tuple[object, ...]) -> None:
                nonlocal left
                if event.startswith(CALLS):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            scenario(BACKENDS[kind](), directory / "store")
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            say(number)
            return


def loop(kind: str, root: Path, seed: int) -> None:
    at = random.Random(seed)
    store = BACKENDS[kind]().make(root)
    store.collect()
    alive = [manifest.checkpoint.id for manifest in store.list()]
    for number in itertools.count():
        name = f"c{seed}-{number}"
        staging = store.begin(name, 0, alive[-1] if alive else "")
        write_files(
            staging.images,
            {f"{n}.img": content(at, at.choice((0, 10, 10**5, 6 * 2**20))) for n in range(4)},
        )
        staging.commit(manifest_of(name, staging.seal()))
        say("saved", name)
        alive.append(name)
        if len(alive) > 3:
            doomed = alive.pop(at.randrange(len(alive)))
            say("deleting", doomed)
            store.delete(doomed)
            store.tidy(0)


def content(at: random.Random, size: int) -> bytes:
    """Some of it as it was before, some new."""
    old = random.Random(size).randbytes(size)
    start = at.randrange(size + 1)
    return old[:start] + at.randbytes(size - start)


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        sweep(sys.argv[2], Path(sys.argv[3]))
    else:
        loop(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
