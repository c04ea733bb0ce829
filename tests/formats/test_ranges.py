"""Where ranges meet, compared with sets of bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from formats.ranges import Ranges, as_ranges, bytes_inside, meeting, union

spans = st.tuples(st.integers(0, 40), st.integers(1, 10)).map(lambda one: (one[0], sum(one)))


def sets_of(pairs: list[tuple[int, int]]) -> Ranges:
    return union(as_ranges(pairs))


@given(st.lists(spans, max_size=6), st.lists(spans, max_size=6))
def test_each_range_meets_those_with_which_it_shares_a_byte(
    rows: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    table, disjoint = as_ranges(rows), sets_of(others)
    row, other = meeting(table[:, 0], table[:, 1], disjoint)
    expected = [
        (number, place)
        for number, (low, high) in enumerate(rows)
        for place, (start, end) in enumerate(disjoint.tolist())
        if low < end and start < high
    ]
    assert list(zip(row.tolist(), other.tolist(), strict=True)) == expected


@given(st.lists(spans, max_size=6), st.lists(spans, max_size=6))
def test_bytes_inside_are_those_in_both(
    rows: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    table, disjoint = as_ranges(rows), sets_of(others)
    inside = {byte for start, end in disjoint.tolist() for byte in range(start, end)}
    found = bytes_inside(disjoint, table[:, 0], table[:, 1])
    assert found.tolist() == [len(inside & set(range(*one))) for one in rows]
    assert found.dtype == np.int64
