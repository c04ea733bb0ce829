from __future__ import annotations

import random

import numpy as np

from packer.density.overlap import overlaps


def column(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def test_each_common_piece_is_found_once() -> None:
    found = overlaps(column(0, 25), column(20, 40), column(5, 10, 30), column(10, 28, 99))
    assert found.row.tolist() == [0, 0, 1, 1]
    assert found.other.tolist() == [0, 1, 1, 2]
    assert found.start.tolist() == [5, 10, 25, 30]
    assert found.end.tolist() == [10, 20, 28, 40]


def test_nothing_meets_nothing() -> None:
    none = column()
    assert len(overlaps(none, none, none, none).row) == 0
    assert len(overlaps(column(1), column(2), none, none).row) == 0
    assert len(overlaps(column(1), column(2), column(2), column(3)).row) == 0


def test_it_agrees_with_comparing_every_pair() -> None:
    chance = random.Random(5)
    for _ in range(200):
        edges = sorted(chance.sample(range(100), 12))
        table = list(zip(edges[::2], edges[1::2], strict=True))
        asked = [sorted(chance.sample(range(100), 2)) for _ in range(6)]
        expected = [
            (row, other, max(start, low), min(end, high))
            for row, (start, end) in enumerate(asked)
            for other, (low, high) in enumerate(table)
            if max(start, low) < min(end, high)
        ]
        starts, ends = np.array(asked).T
        lows, highs = np.array(table).T
        found = overlaps(starts, ends, lows, highs)
        columns = (found.row, found.other, found.start, found.end)
        assert list(zip(*(one.tolist() for one in columns), strict=True)) == expected
