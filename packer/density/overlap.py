"""Which rows of one table of ranges meet which rows of another, without a loop over either."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.ranges import meeting
from packer.columns import Column


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Pairs of rows that have bytes in common, and these bytes: int64[k] each.

    row: in the table that was asked; other: in the table that it was held against; start, end: in
    the coordinates of both.
    """

    row: Column
    other: Column
    start: Column
    end: Column


def overlaps(start: Column, end: Column, other_start: Column, other_end: Column) -> Overlaps:
    """Return the overlaps of half-open ranges with those of another table.

    The other table is sorted and disjoint; the first one may be in any order and overlap. The
    result is in the order of the first, then of the other.
    """
    row, other = meeting(start, end, np.stack([other_start, other_end], axis=1))
    return Overlaps(
        row,
        other,
        np.maximum(start[row], other_start[other]),
        np.minimum(end[row], other_end[other]),
    )
