"""Sets of addresses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jupyter_checkpoints.agent import ranges
from jupyter_checkpoints.agent.ranges import Array

SETS = st.sets(st.integers(0, 60))


def made(members: set[int]) -> Array:
    each = np.array(sorted(members), np.int64)
    return ranges.normal(np.stack([each, each + 1], axis=1))


def members_of(array: Array) -> set[int]:
    # They are in order and do not touch.
    assert (array[:, 0] < array[:, 1]).all() and (array[1:, 0] > array[:-1, 1]).all()
    return {member for start, stop in array.tolist() for member in range(start, stop)}


@given(SETS, SETS)
def test_operations(one: set[int], other: set[int]) -> None:
    operations: list[tuple[Callable[[Array, Array], Array], set[int]]] = [
        (ranges.union, one | other),
        (ranges.intersection, one & other),
        (ranges.difference, one - other),
    ]
    for operation, wanted in operations:
        assert members_of(operation(made(one), made(other))) == wanted
    assert ranges.size(made(one)) == len(one)


@given(SETS, st.integers(1, 20))
def test_portions(whole: set[int], limit: int) -> None:
    found = [members_of(portion) for portion in ranges.portions(made(whole), limit)]
    assert [member for portion in found for member in sorted(portion)] == sorted(whole)
    assert all(len(portion) == limit for portion in found[:-1])
