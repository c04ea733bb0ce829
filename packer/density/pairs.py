"""Which units are worth comparing, and the requests that follow from that; pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from formats.ranges import spread
from packer.columns import Column
from packer.density.dedupe_range import MAX_BYTES
from packer.density.file_extents import NOWHERE
from packer.density.overlap import overlaps
from packer.density.units import Units

PIECE_BYTES = MAX_BYTES // 2
"""What a request has at most. A run takes in none that begins later, so it fits one call."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Ranges of files that may be equal, whole blocks each; int64[k] in bytes but for `slack`.

    source_disk, source; target_disk, target: where; length; unit: of the target. slack: bool[k],
    whether the last block reaches past the end of the unit, where anything may lie.
    """

    source_disk: Column
    source: Column
    target_disk: Column
    target: Column
    length: Column
    unit: Column
    slack: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.length)

    def only(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Requests:
        """Return some of the requests."""
        return Requests(
            self.source_disk[rows],
            self.source[rows],
            self.target_disk[rows],
            self.target[rows],
            self.length[rows],
            self.unit[rows],
            self.slack[rows],
        )

    def runs(self) -> Column:
        """Return int64[r + 1]: requests [runs[i], runs[i + 1]) follow each other in both files, and
        are at most MAX_BYTES together.
        """
        if len(self) == 0:
            return np.zeros(1, dtype=np.int64)
        new = np.ones(len(self), dtype=bool)
        new[1:] = (
            (np.diff(self.source_disk) != 0)
            | (np.diff(self.target_disk) != 0)
            | (np.diff(self.source) != self.length[:-1])
            | (np.diff(self.target) != self.length[:-1])
        )
        first = np.maximum.accumulate(np.where(new, np.arange(len(self)), 0))
        nth_piece = (self.source - self.source[first]) // PIECE_BYTES
        new[1:] |= np.diff(nth_piece) != 0
        return np.append(np.flatnonzero(new), len(self))

    def without_slack(self, rows: Column, block: int) -> Requests:
        """Return some requests that have slack, one block shorter."""
        some = self.only(rows)
        return replace(some, length=some.length - block, slack=np.zeros_like(some.slack))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask of the kernel. unit, shared: int64[k] each, targets and how many bytes of them
    share blocks with their source already; a target may stand there several times.
    """

    requests: Requests
    unit: Column
    shared: Column


def pair_up(
    keys: Sequence[Column], units: Column, known: NDArray[np.bool_]
) -> tuple[Column, Column]:
    """Return (sources, targets): units whose keys are all equal, each with the first of its kind.

    keys: int64[k] each, for `units`, k rows. known: bool[k], what was compared with all others
    that are known before: where nobody else is, there is nothing to do.
    """
    if len(units) == 0:
        return units, units
    order = np.lexsort((units, *keys))
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    first = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    all_known = np.logical_and.reduceat(known[order], first)
    is_target = ~new & ~all_known[group]
    return units[order][first[group]][is_target], units[order][is_target]


def alike(keys: Sequence[Column], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rows have keys that another row has as well; see pair_up."""
    rows = np.arange(len(known))
    sources, targets = pair_up(keys, rows, known)
    found = np.zeros(len(rows), dtype=bool)
    found[sources] = found[targets] = True
    return found


def phase(units: Units, block: int) -> Column:
    """Return by how many bytes the blocks of units miss those of their file: int64[u].

    Only those that miss them by the same can be shared. The first extent speaks for all. -1: the
    unit lies in no block at all.
    """
    bounds = units.bounds()
    found = np.full(len(units.size), -1, dtype=np.int64)
    some = np.flatnonzero(bounds[1:] > bounds[:-1])
    first = bounds[:-1][some]
    found[some] = (units.host[first] - units.at[first]) % block
    return found


def plan(units: Units, sources: Column, targets: Column, block: int) -> Plan:
    """Return what to ask for pairs of units that may be equal.

    block: of the file system, in bytes. A target stands in one pair at most.
    """
    span = -(-units.size // block) * block + block
    # Each source gets coordinates of its own, in which the extents of its targets lie as well.
    origin = np.zeros(len(span), dtype=np.int64)
    wanted = np.unique(sources)
    origin[wanted] = np.cumsum(span[wanted]) - span[wanted]
    source_of = np.full(len(span), -1, dtype=np.int64)
    source_of[targets] = sources
    there = np.flatnonzero(np.isin(units.unit, wanted))
    rows = np.flatnonzero(source_of[units.unit] >= 0)
    there_start = origin[units.unit[there]] + units.at[there]
    start = origin[source_of[units.unit[rows]]] + units.at[rows]
    both = overlaps(
        start, start + units.length[rows], there_start, there_start + units.length[there]
    )
    source_row, target_row = there[both.other], rows[both.row]
    source_skip = both.start - there_start[both.other]
    target_skip = both.start - start[both.row]
    source = units.host[source_row] + source_skip
    target = units.host[target_row] + target_skip
    unit = units.unit[target_row]
    same = (units.place[source_row] != NOWHERE) & (
        units.place[source_row] + source_skip == units.place[target_row] + target_skip
    )
    length = both.end - both.start
    skip = -source % block
    whole = (length - skip) // block * block
    some = ~same & ((source - target) % block == 0) & (whole > 0)
    end = both.start + skip + whole - origin[source_of[unit]]
    requests = Requests(
        units.disk[units.unit[source_row]],
        source + skip,
        units.disk[unit],
        target + skip,
        whole,
        unit,
        end > units.size[unit],
    ).only(some)
    return Plan(_ordered(_cut(requests)), unit[same], length[same])


def _cut(requests: Requests) -> Requests:
    """Return requests of at most PIECE_BYTES each."""
    count = -(-requests.length // PIECE_BYTES)
    row, nth = spread(np.zeros_like(count), count)
    parts = requests.only(row)
    return replace(
        parts,
        source=parts.source + nth * PIECE_BYTES,
        target=parts.target + nth * PIECE_BYTES,
        length=np.minimum(parts.length - nth * PIECE_BYTES, PIECE_BYTES),
        slack=parts.slack & (nth == count[row] - 1),
    )


def _ordered(requests: Requests) -> Requests:
    """Return requests run by run, and the runs by where on which disk their sources lie."""
    keys = (requests.target, requests.source, requests.target_disk, requests.source_disk)
    requests = requests.only(np.lexsort(keys))
    bounds = requests.runs()
    head = bounds[:-1]
    order = np.lexsort((requests.source[head], requests.source_disk[head]))
    _, row = spread(head[order], np.diff(bounds)[order])
    return requests.only(row)
