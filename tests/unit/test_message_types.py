"""Types of messages are there, whole, before threads use them."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from jupyter_checkpoints import message_types
from jupyter_checkpoints.models import KernelModel
from jupyter_checkpoints.store.store import Manifest

#: Types that nobody has used yet, and three threads that use each at once.
PROGRAM = """
import sys, threading, types
import msgspec
from jupyter_checkpoints.message_types import make_types_ready

sys.setswitchinterval(1e-6)
SOURCE = '''
from msgspec import Struct

class Inner(Struct):
    x: int

class Outer(Struct):
    a: Inner
    b: list[Inner]
    c: str
'''
modules = []
for number in range(300):
    module = types.ModuleType(f"jupyter_checkpoints.made_{number}")
    sys.modules[module.__name__] = module
    exec(SOURCE, module.__dict__)
    modules.append(module)
make_types_ready()
for module in modules:
    together = threading.Barrier(3)

    def use():
        together.wait()
        msgspec.json.decode(b'{"a": {"x": 1}, "b": [{"x": 2}], "c": "d"}', type=module.Outer)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_use_a_type_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_types_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type] = []
    monkeypatch.setattr(msgspec.json, "Decoder", seen.append)
    message_types.make_types_ready()
    assert {KernelModel, Manifest} <= set(seen)
