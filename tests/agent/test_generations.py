"""Twenty times saved and resumed, each from the one before, changed each time: nothing is lost."""

from __future__ import annotations

import pytest

from .callers import for_all_callers
from .launch import Launch
from .launch import launch as launch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), for_all_callers]

GENERATIONS = 20

#: What there is, and one digest of it: variables, files, attributes, an open file, a database.
PREPARE = """
import hashlib, os, random, sqlite3
import numpy as np
chance = random.Random(1)
numbers = np.random.default_rng(1)
state = {"generation": 0, "text": [], "array": numbers.integers(0, 2**63, 100_000)}
os.makedirs("/root/files", exist_ok=True)
log = open("/root/files/log", "a+")
database = sqlite3.connect("/root/files/database")
database.execute("create table t(generation)")
database.commit()

def describe(path):
    info = os.lstat(path)
    content = b""
    if os.path.islink(path):
        content = os.readlink(path).encode()
    elif os.path.isfile(path):
        content = open(path, "rb").read()
    facts = (path, oct(info.st_mode), info.st_size, info.st_mtime_ns, info.st_ino)
    return repr(facts).encode() + content

def digest():
    whole = hashlib.sha256()
    for directory, directories, files in os.walk("/root/files"):
        directories.sort()
        for name in sorted(files + directories):
            whole.update(describe(os.path.join(directory, name)))
    whole.update(repr((state["generation"], state["text"], log.tell())).encode())
    whole.update(state["array"].tobytes())
    whole.update(repr(database.execute("select * from t").fetchall()).encode())
    whole.update(repr((chance.getstate(), numbers.bit_generator.state)).encode())
    return whole.hexdigest()
"""

#: One generation's changes: written, overwritten, appended, renamed, linked, removed, made sparse.
CHANGE = """
state["generation"] += 1
n = state["generation"]
state["text"].append(chance.random())
at = numbers.integers(0, 100_000, 1000)
state["array"][at] ^= numbers.integers(0, 2**63, 1000)
with open(f"/root/files/{n}", "wb") as file:
    file.write(chance.randbytes(chance.randrange(300_000)))
with open("/root/files/same", "wb") as file:
    file.write(chance.randbytes(1000))
log.write(f"generation {n};")
log.flush()
os.link(f"/root/files/{n}", f"/root/files/link-{n}")
os.symlink(f"{n}", f"/root/files/symbolic-{n}")
os.chmod(f"/root/files/{n}", 0o600 + n % 8)
if n > 3:
    os.remove(f"/root/files/{n - 3}")
    os.rename(f"/root/files/link-{n - 2}", f"/root/files/renamed-{n - 2}")
with open("/root/files/sparse", "ab") as file:
    file.truncate(n * 10**7)
database.execute("insert into t values (?)", (n,))
database.commit()
"""


async def test_twenty_generations(launch: Launch) -> None:
    kernel = await launch.start()
    await kernel.run(PREPARE)
    parent = ""
    for generation in range(1, GENERATIONS + 1):
        await kernel.run(CHANGE)
        before = await kernel.run("digest()")
        saved = await kernel.save()
        assert saved.parent == parent
        parent = saved.id
        # Nothing of the older ones is needed, not even by those made from them.
        await kernel.end()
        kernel = await launch.resume(saved)
        assert await kernel.run("digest()") == before, f"generation {generation}"
        assert await kernel.run("state['generation']") == str(generation)
        assert (await launch.agent.verify(saved.id)).ok
        if generation % 5 == 0:
            for checkpoint in await launch.agent.checkpoints():
                if checkpoint.id != saved.id:
                    await launch.agent.delete_checkpoint(checkpoint.id)
    # What only the first one had seen is there still, and open.
    log = await kernel.run("log.seek(0); log.read()")
    assert "".join(f"generation {n};" for n in range(1, GENERATIONS + 1)) in log
    rows = await kernel.run("database.execute('select count(*) from t').fetchone()[0]")
    assert rows == str(GENERATIONS)
