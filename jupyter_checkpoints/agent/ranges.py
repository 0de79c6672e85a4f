"""Sets of addresses, as sorted ranges [start, stop) that do not touch: int64 arrays (n, 2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EMPTY: Array = np.empty((0, 2), np.int64)


def union(one: Array, other: Array) -> Array:
    """What is in either."""
    return _where(one, other, np.logical_or)


def intersection(one: Array, other: Array) -> Array:
    """What is in both."""
    return _where(one, other, np.logical_and)


def difference(one: Array, other: Array) -> Array:
    """What is in ``one`` and not in ``other``."""
    return _where(one, other, np.greater)


def size(ranges: Array) -> int:
    """How many addresses it has."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def normal(ranges: Array) -> Array:
    """A set of ranges that come in any order, may touch, but do not overlap."""
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    return _joined(ranges[:, 0], ranges[:, 1])


def portions(ranges: Array, limit: int) -> Iterator[Array]:
    """The same addresses in order, ``limit`` of them (a multiple of no range) at a time."""
    stops = np.cumsum(ranges[:, 1] - ranges[:, 0])
    starts = stops - (ranges[:, 1] - ranges[:, 0])
    for first in range(0, int(stops[-1]) if len(stops) else 0, limit):
        low = int(np.searchsorted(stops, first, "right"))
        high = int(np.searchsorted(starts, first + limit, "left"))
        portion = ranges[low:high].copy()
        portion[0, 0] += max(0, first - int(starts[low]))
        portion[-1, 1] -= max(0, int(stops[high - 1]) - (first + limit))
        yield portion


def _where(one: Array, other: Array, wanted: np.ufunc) -> Array:
    points = np.unique(np.concatenate([one.ravel(), other.ravel()]))
    if not len(points):
        return EMPTY
    inside = wanted(_inside(one, points[:-1]), _inside(other, points[:-1]))
    return _joined(points[:-1][inside], points[1:][inside])


def _inside(ranges: Array, points: Array) -> Array:
    if not len(ranges):
        return np.zeros(len(points), bool)
    at = np.searchsorted(ranges[:, 0], points, "right") - 1
    found: Array = (at >= 0) & (points < ranges[at, 1])
    return found


def _joined(starts: Array, stops: Array) -> Array:
    apart = starts[1:] != stops[:-1]
    first = np.concatenate([[True], apart])[: len(starts)]
    last = np.concatenate([apart, [True]])[-len(starts) :] if len(starts) else first
    return np.stack([starts[first], stops[last]], axis=1)
