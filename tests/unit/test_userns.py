"""Mappings of ids, and the ranges that they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_checkpoints.agent import subids
from jupyter_checkpoints.agent.identity import Identity
from jupyter_checkpoints.agent.subids import SIZE, SubordinateIds
from jupyter_checkpoints.agent.userns import Extent, id_map, supplementary_groups
from jupyter_checkpoints.errors import InsufficientResources, NotAllowed

START = 0x7740_0000


def _pairs(extents: tuple[Extent, ...]) -> dict[int, int]:
    pairs = [(e.inside + n, e.outside + n) for e in extents for n in range(e.size)]
    inside, outside = (dict.fromkeys(column) for column in zip(*pairs, strict=True))
    assert len(inside) == len(outside) == len(pairs), "an id comes twice"
    return dict(pairs)


@pytest.mark.parametrize("uid", [1, 999, 1000, 65534, 65536, 1_000_001, 2**31])
def test_every_id_inside_is_one_outside(uid: int) -> None:
    ids = id_map(Identity(uid=uid, gid=uid + 1), START)
    users, groups = _pairs(ids.uids), _pairs(ids.gids)
    assert users.keys() == groups.keys() == set(range(SIZE))
    assert (users[0], groups[0]) == ids.root == (uid, uid + 1)
    assert users[1] == START + 1 and users[SIZE - 1] == START + SIZE - 1
    assert ids.keeper == (users[65534], groups[65534])


def test_groups_are_themselves() -> None:
    user = Identity(uid=1000, gid=1000, groups=[4, 27, 28, 1000, 65535, 65536, 70000, 0])
    ids = id_map(user, START)
    groups = _pairs(ids.gids)
    assert groups.keys() == set(range(SIZE))
    assert supplementary_groups(ids) == [4, 27, 28, 65535]
    assert all(groups[g] == g for g in (4, 27, 28, 65535))
    assert groups[0] == 1000 and groups[5] == START + 5 and groups[1000] == START + 1000
    assert _pairs(ids.uids)[27] == START + 27


def test_ranges_stay_and_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [(START + SIZE + 5, 10), (100_000, SIZE)]
    monkeypatch.setattr(subids, "_taken", lambda: taken)
    path = tmp_path / "ids.json"
    given = {uid: SubordinateIds(path, START).range_of(uid) for uid in (1000, 1001, 1002)}
    # The second would meet what somebody else has.
    assert list(given.values()) == [START, START + 2 * SIZE, START + 3 * SIZE]
    again = SubordinateIds(path, START + 100 * SIZE)
    assert {uid: again.range_of(uid) for uid in (1002, 1000, 1001)} == given
    assert again.range_of(1003) == START + 100 * SIZE


def test_what_the_host_has_given_away_is_taken(tmp_path: Path) -> None:
    assert (0, 1) in subids._taken()


def test_ranges_end(tmp_path: Path) -> None:
    ids = SubordinateIds(tmp_path / "ids.json", 2**31 - 2 * SIZE)
    assert [ids.range_of(uid) for uid in (1, 2)] == [2**31 - 2 * SIZE, 2**31 - SIZE]
    with pytest.raises(InsufficientResources):
        ids.range_of(3)
    assert ids.range_of(1) == 2**31 - 2 * SIZE


def test_what_is_in_a_range_is_no_user(tmp_path: Path) -> None:
    ids = SubordinateIds(tmp_path / "ids.json", START)
    start = ids.range_of(1000)
    for uid in (start, start + 33, start + SIZE - 1):
        with pytest.raises(NotAllowed):
            ids.range_of(uid)
    assert ids.range_of(1000) == start
