"""Sets of bytes as sorted, disjoint, half-open ranges `[start, end)`.

A set is one int64 array of shape (n, 2), so that a million ranges are two columns and not a
million objects. Nothing here loops in Python over ranges or blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ranges = NDArray[np.int64]


def empty_ranges() -> Ranges:
    """Return the empty set."""
    return np.empty((0, 2), dtype=np.int64)


def as_ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Return the set of the given (start, end) pairs, which are sorted and disjoint already."""
    return np.array(list(pairs), dtype=np.int64).reshape(-1, 2)


def union(*sets: Ranges) -> Ranges:
    """Return all bytes in any of the sets; ranges that touch become one.

    The inputs may be unsorted and overlap; empty ranges are dropped.
    """
    everything = np.concatenate([np.asarray(one, dtype=np.int64).reshape(-1, 2) for one in sets])
    everything = everything[everything[:, 1] > everything[:, 0]]
    if len(everything) == 0:
        return empty_ranges()
    everything = everything[np.argsort(everything[:, 0], kind="stable")]
    reach = np.maximum.accumulate(everything[:, 1])
    first = np.ones(len(everything), dtype=bool)
    first[1:] = everything[1:, 0] > reach[:-1]
    starts = np.flatnonzero(first)
    lasts = np.append(starts[1:], len(everything)) - 1
    return np.stack([everything[starts, 0], reach[lasts]], axis=1)


def complement(ranges: Ranges, start: int, end: int) -> Ranges:
    """Return the bytes of `[start, end)` that are not in the sorted, disjoint `ranges`."""
    inside = clip(ranges, start, end)
    starts = np.concatenate([[start], inside[:, 1]])
    ends = np.concatenate([inside[:, 0], [end]])
    gaps = np.stack([starts, ends], axis=1).astype(np.int64)
    return gaps[gaps[:, 1] > gaps[:, 0]]


def clip(ranges: Ranges, start: int, end: int) -> Ranges:
    """Return the part of the set that lies inside `[start, end)`."""
    clipped = np.clip(ranges, start, end)
    return clipped[clipped[:, 1] > clipped[:, 0]]


def intersect(left: Ranges, right: Ranges) -> Ranges:
    """Return the bytes that are in both sorted, disjoint sets."""
    if len(left) == 0 or len(right) == 0:
        return empty_ranges()
    low = int(min(left[0, 0], right[0, 0]))
    high = int(max(left[-1, 1], right[-1, 1]))
    outside = union(complement(left, low, high), complement(right, low, high))
    return complement(outside, low, high)


def subtract(left: Ranges, right: Ranges) -> Ranges:
    """Return the bytes of `left` that are not in `right`; both sorted and disjoint."""
    if len(left) == 0 or len(right) == 0:
        return left
    low, high = int(left[0, 0]), int(left[-1, 1])
    return intersect(left, complement(right, low, high))


def total(ranges: Ranges) -> int:
    """Return how many bytes the set holds."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def from_bits(bits: NDArray[np.bool_], unit: int, start: int = 0) -> Ranges:
    """Return the runs of true bits as ranges of `unit` bytes a bit, the first bit at `start`."""
    padded = np.zeros(len(bits) + 2, dtype=np.int8)
    padded[1:-1] = bits
    steps = np.diff(padded)
    firsts = np.flatnonzero(steps == 1)
    ends = np.flatnonzero(steps == -1)
    return np.stack([firsts, ends], axis=1).astype(np.int64) * unit + start


def meeting(
    low: NDArray[np.int64], high: NDArray[np.int64], others: Ranges
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (row, other): each `[low, high)` with each of the sorted, disjoint ranges it meets.

    In the order of the rows, and for each row in that of the others.
    """
    first = np.searchsorted(others[:, 1], low, side="right")
    count = np.maximum(np.searchsorted(others[:, 0], high, side="left") - first, 0)
    return spread(first, count)


def spread(
    first: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (row, place): each row with each of its `count` places from `first` on."""
    row = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    return row, first[row] + within


def bytes_inside(
    ranges: Ranges, start: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many bytes of each `[start, end)` are in the sorted, disjoint `ranges`."""
    before = np.concatenate([[0], np.cumsum(ranges[:, 1] - ranges[:, 0])])

    def up_to(place: NDArray[np.int64]) -> NDArray[np.int64]:
        row = np.searchsorted(ranges[:, 0], place, side="right")
        last_end = np.concatenate([[0], ranges[:, 1]])[row]
        return before[row] - np.maximum(0, last_end - place)

    return up_to(end) - up_to(start)


def overlap_of_sorted(ranges: Ranges) -> int:
    """Return the row of the first range that begins before its predecessor ends, or -1."""
    clashes = np.flatnonzero(ranges[1:, 0] < ranges[:-1, 1])
    return int(clashes[0]) + 1 if len(clashes) else -1
