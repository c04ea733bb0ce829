"""Which ranges of a file travel together, and how they are cut out of what arrives. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

GAP_BYTES = 1 << 14
"""Neighbours with at most this much between them become one request: a round trip of 20 ms costs
as much as 64 KiB at 25 Mbit/s, and three other connections work meanwhile. The gap counts as
received."""

SPAN_BYTES = 1 << 23
"""Neighbours are not joined beyond this, so that several connections have work and a span fits
into memory; at 8 MiB the round trip no longer counts."""

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


def join_ranges(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Return sorted ranges as groups, each worth one request."""
    groups: list[list[Asked]] = []
    reached = 0
    for one in asked:
        joins = groups and one[0] - reached <= GAP_BYTES
        if joins and max(reached, one[1]) - groups[-1][0][0] <= SPAN_BYTES:
            groups[-1].append(one)
            reached = max(reached, one[1])
        else:
            groups.append([one])
            reached = one[1]
    return groups


def bounds(asked: Sequence[Asked]) -> tuple[int, int]:
    """Return [start, end) of everything in a sorted list of ranges that is not empty."""
    return asked[0][0], max(end for _, end, _ in asked)
