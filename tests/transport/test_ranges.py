"""What travels together: every range once, in requests that are worth it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.transport.ranges import (
    BATCH_BYTES,
    GAP_BYTES,
    LEAST_BATCH_BYTES,
    MOST_RANGES,
    PART_BYTES,
    Asked,
    batches,
    cut_ranges,
    gap_of,
    join_ranges,
    within,
)

DATA = random.Random(1).randbytes(500)
MIB = 1 << 20
ranges_of = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), min_size=1, max_size=20)


def rows_of(ranges: list[tuple[int, int]]) -> list[Asked]:
    return sorted((start, start + length, row) for row, (start, length) in enumerate(ranges))


@given(ranges_of, st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_ranges_are_cut_exactly_whatever_the_pieces(
    ranges: list[tuple[int, int]], sizes: list[int]
) -> None:
    asked = rows_of(ranges)
    start = asked[0][0]
    pieces: list[bytes] = []
    position = start
    while position < len(DATA):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(DATA[position : position + size])
        position += size
    found = dict(cut_ranges(pieces, start, asked))
    assert found == {row: DATA[o : o + length] for row, (o, length) in enumerate(ranges)}


@given(
    st.lists(st.tuples(st.integers(0, 1 << 26), st.integers(1, 1 << 22)), min_size=1),
    st.sampled_from([1, 2, 8, MOST_RANGES]),
    st.integers(1, 6),
)
def test_batches_keep_every_range_once_in_order_and_stay_small(
    ranges: list[tuple[int, int]], most: int, connections: int
) -> None:
    asked = rows_of(ranges)
    found = batches(asked, most, connections)
    assert [one for batch in found for one in batch] == asked
    for batch in found:
        spans = join_ranges(batch, gap_of(most))
        assert len(spans) <= most
        assert len(batch) == 1 or sum(end - start for start, end in spans) <= BATCH_BYTES
        wanted = sum(end - start for start, end, _ in batch)
        received = sum(end - start for start, end in spans)
        assert received <= wanted + gap_of(most) * (len(batch) - 1)


@given(
    st.lists(st.tuples(st.integers(1, 1 << 20), st.integers(0, 1 << 22)), min_size=1, max_size=400),
    st.integers(1, 6),
)
def test_requests_for_several_ranges_bring_at_least_a_mebibyte_each(
    frames: list[tuple[int, int]], connections: int
) -> None:
    """Of frames of up to 1 MiB, at most 128 a request, unless there is less than that in all."""
    position, asked = 0, []
    for row, (length, gap) in enumerate(frames):
        asked.append((position, position + length, row))
        position += length + gap
    found = batches(asked, MOST_RANGES, connections)
    whole = sum(length for length, _ in frames)
    full = len(frames) // MOST_RANGES  # batches that are full of small ranges
    assert len(found) <= max(1, whole // MIB + 1) + full


@given(ranges_of, st.integers(0, 500), st.integers(0, 500))
def test_what_lies_within_a_part_is_found(
    ranges: list[tuple[int, int]], start: int, end: int
) -> None:
    asked = rows_of(ranges)
    assert within(asked, start, end) == [one for one in asked if start <= one[0] and one[1] <= end]


@pytest.mark.parametrize("connections", [1, 4])
def test_work_is_divided_among_connections_if_there_is_enough(connections: int) -> None:
    small = [(row * 10, row * 10 + 10, row) for row in range(1000)]
    assert len(batches(small, MOST_RANGES, connections)) == 1
    large = [(row * MIB, (row + 1) * MIB, row) for row in range(12)]
    assert len(batches(large, MOST_RANGES, 1)) == 2  # 8 MiB and the rest
    assert len(batches(large, MOST_RANGES, 4)) == 4
    assert LEAST_BATCH_BYTES < 3 * MIB


def test_what_a_part_of_an_answer_costs_is_not_paid_for_less_between_two_ranges() -> None:
    near = [(0, 10, 0), (10 + PART_BYTES, 300, 1)]
    far = [(0, 10, 0), (11 + PART_BYTES, 300, 1)]
    assert join_ranges(near, gap_of(MOST_RANGES)) == [(0, 300)]
    assert join_ranges(far, gap_of(MOST_RANGES)) == [(0, 10), (11 + PART_BYTES, 300)]
    assert join_ranges(far, gap_of(1)) == [(0, 300)]
    assert gap_of(1) == GAP_BYTES
