"""Which ranges of a file travel together, and how they are cut out of what arrives. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

GAP_BYTES = 1 << 14
"""Neighbours with at most this much between them travel as one where each range costs a request:
a round trip of 20 ms costs as much as 64 KiB at 25 Mbit/s, and three other connections work
meanwhile. The gap counts as received."""

PART_BYTES = 256
"""The same where a request may ask for several ranges: what a part of the answer costs in headers
(nginx 100 to 130 bytes, Caddy 230)."""

BATCH_BYTES = 1 << 23
"""A request asks for at most this much unless one piece is larger, so that several connections have
work; at 8 MiB the round trip no longer counts."""

LEAST_BATCH_BYTES = 1 << 21
"""Less than this is not divided among connections: requests, too, cost a server something."""

MOST_RANGES = 128
"""Ranges in one request: at most 5 KiB of header, where servers accept 8 KiB. Apache answers at
most 200 of them."""

Asked = tuple[int, int, int]
"""start, end, row of what a caller wants; lists of it are sorted."""


@dataclass(slots=True)
class _Active:
    """One range that is being cut out of a stream."""

    row: int
    end: int
    data: bytearray = field(default_factory=bytearray)


def cut_ranges(
    chunks: Iterable[bytes], start: int, asked: Sequence[Asked]
) -> Iterator[tuple[int, bytes]]:
    """Yield (row, bytes) for each asked range of a stream that begins at byte `start`.

    The ranges are sorted by start, lie within the stream and may overlap.
    """
    position, following = start, 0
    active: list[_Active] = []
    for chunk in chunks:
        end = position + len(chunk)
        view = memoryview(chunk)
        for one in active:
            one.data += view[: one.end - position]
        while following < len(asked) and asked[following][0] < end:
            first, last, row = asked[following]
            active.append(_Active(row, last, bytearray(view[first - position : last - position])))
            following += 1
        position = end
        for one in active:
            if one.end <= position:
                yield one.row, bytes(one.data)
        active = [one for one in active if one.end > position]


def join_ranges(asked: Sequence[Asked], gap_bytes: int) -> list[tuple[int, int]]:
    """Return sorted ranges as spans [start, end), sorted, with more than `gap_bytes` between."""
    spans: list[tuple[int, int]] = []
    for start, end, _ in asked:
        if spans and start - spans[-1][1] <= gap_bytes:
            spans[-1] = spans[-1][0], max(spans[-1][1], end)
        else:
            spans.append((start, end))
    return spans


def gap_of(most_ranges: int) -> int:
    """Return how far neighbours may lie apart to travel as one, in bytes.

    most_ranges: how many one request may ask for.
    """
    return PART_BYTES if most_ranges > 1 else GAP_BYTES


def batches(asked: Sequence[Asked], most_ranges: int, connections: int) -> list[list[Asked]]:
    """Return sorted ranges as lists that are worth one request each, in the same order.

    most_ranges: spans that one request may ask for. connections: among how many the work is to be
    divided, as far as it is worth it.
    """
    gap_bytes = gap_of(most_ranges)
    whole = sum(end - start for start, end in join_ranges(asked, gap_bytes))
    most_bytes = min(max(-(-whole // connections), LEAST_BATCH_BYTES), BATCH_BYTES)
    found: list[list[Asked]] = []
    size = spans = reached = 0
    for one in asked:
        joins = bool(found) and one[0] - reached <= gap_bytes
        grown = max(0, one[1] - reached) if joins else one[1] - one[0]
        if found and size + grown <= most_bytes and spans + (not joins) <= most_ranges:
            found[-1].append(one)
            size, spans = size + grown, spans + (not joins)
        else:
            found.append([one])
            size, spans, reached = one[1] - one[0], 1, 0
        reached = max(reached, one[1])
    return found


def bounds(asked: Sequence[Asked]) -> tuple[int, int]:
    """Return [start, end) of everything in a sorted list of ranges that is not empty."""
    return asked[0][0], max(end for _, end, _ in asked)


def within(asked: Sequence[Asked], start: int, end: int) -> list[Asked]:
    """Return those of sorted ranges that lie wholly in [start, end)."""
    low, high = bisect_left(asked, (start,)), bisect_left(asked, (end,))
    return [one for one in asked[low:high] if one[1] <= end]
