"""What pages show of a runtime's checkpoints."""

from __future__ import annotations

from jupyter_checkpoints.history import listed, with_remixes
from jupyter_checkpoints.models import CheckpointModel, HostFacts, Usage

HOST = HostFacts(
    arch="x86_64",
    cpu_model="",
    cpu_flags=[],
    kernel_release="",
    criu_version="",
    runc_version="",
    engine="",
    pool="",
    boot_id="",
)


def checkpoint(name: str, runtime: str, parent: str = "", trigger: str = "cull") -> CheckpointModel:
    return CheckpointModel(
        id=name,
        kernel_id="k",
        uid=0,
        mode="process",
        trigger=trigger,  # type: ignore[arg-type]
        created="2026-11-25T00:00:00+00:00",
        image="",
        image_digest="",
        argv=[],
        host=HOST,
        runtime=runtime,
        parent=parent,
    )


def test_what_they_hold_and_share() -> None:
    usage = Usage(total=150, checkpoints={"a": 30, "b": 20}, held={"a": 130, "b": 120})
    [a, b] = listed([checkpoint("a", "r"), checkpoint("b", "s")], usage, {"r": "n.ipynb"})
    assert (a.id, a.held, a.shared, a.notebook) == ("a", 130, 100, "n.ipynb")
    assert (b.id, b.held, b.shared, b.notebook) == ("b", 120, 100, "")


def test_remixes_of_remixes_branch_off() -> None:
    line = [
        checkpoint("d", "third", "c", "remix"),
        checkpoint("x", "other"),
        checkpoint("c", "second", "b"),
        checkpoint("b", "second", "a", "remix"),
        checkpoint("a", "first"),
    ]
    assert [c.id for c in with_remixes(line, "first", {})] == ["d", "c", "b", "a"]
    assert [c.id for c in with_remixes(line, "second", {})] == ["d", "c", "b"]
    assert [c.id for c in with_remixes(line, "third", {})] == ["d"]
    assert with_remixes(line, "unknown", {}) == []


def test_what_is_written_down_outlives_the_first_checkpoint_of_a_remix() -> None:
    line = [checkpoint("c", "second", "b"), checkpoint("a", "first")]
    assert [c.id for c in with_remixes(line, "first", {})] == ["a"]
    assert [c.id for c in with_remixes(line, "first", {"second": "first"})] == ["c", "a"]


def test_a_circle_ends() -> None:
    line = [checkpoint("a", "r", "b", "remix"), checkpoint("b", "s", "a", "remix")]
    assert len(with_remixes(line, "r", {"r": "s", "s": "r"})) == 2
