"""Runs as a program: saves and deletes checkpoints until it is killed.

``sweep ROOT``
    forks one process after the other, each with a store of its own below ``ROOT``, and each kills
    itself at the next of the operating system's calls that Python tells of; ends when one lived.
``loop ROOT SEED``
    goes on for ever with files of random sizes, and prints a line for what was promised.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from pathlib import Path

from msgspec.structs import replace

from jupyter_checkpoints.store.directory import DirectoryStore
from tests.unit.store.contract import SOME_FILES, manifest_of, save, write_files

#: Audit events that stand for a system call that changes something, or precedes one.
CALLS = ("open", "os.", "shutil.")


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def scenario(root: Path) -> None:
    """``new`` is committed, ``lost`` given up, ``doomed`` (there already) deleted.

    ``kept`` (there already) gets a note and a copy.
    """
    store = DirectoryStore(root)
    store.annotate("kept", lambda notes: replace(notes, name="kept"))
    store.clone("kept", manifest_of("copy", store.load("kept").files))
    save(store, "new", {**SOME_FILES, "pages-1.img": b"x" * 5000})
    staging = store.begin("lost", 0)
    write_files(staging.images, {"core-1.img": b"registers"})
    staging.seal()
    staging.abandon()
    store.delete("doomed")
    store.collect()


def sweep(base: Path) -> None:
    for number in itertools.count(1):
        root = base / f"{number:04}"
        store = DirectoryStore(root)
        for name in ("kept", "doomed"):
            save(store, name, {"core-1.img": name.encode()})
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
            scenario(root)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            say(number)
            return


def loop(root: Path, seed: int) -> None:
    at = random.Random(seed)
    store = DirectoryStore(root)
    store.collect()
    alive = [manifest.checkpoint.id for manifest in store.list()]
    for number in itertools.count():
        name = f"c{seed}-{number}"
        staging = store.begin(name, 0)
        write_files(
            staging.images,
            {f"{n}.img": at.randbytes(at.choice((0, 10, 10**5, 6 * 10**6))) for n in range(4)},
        )
        staging.commit(manifest_of(name, staging.seal()))
        say("saved", name)
        alive.append(name)
        if len(alive) > 3:
            doomed = alive.pop(at.randrange(len(alive)))
            say("deleting", doomed)
            store.delete(doomed)


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        sweep(Path(sys.argv[2]))
    else:
        loop(Path(sys.argv[2]), int(sys.argv[3]))
