"""Choose who supplies which content, by the bytes that must travel. Pure: columns in, rows out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.sources.base import Offers

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """chosen: for each source the rows it shall supply (int64, sorted). cost_bytes: what each
    source must send for them. missing: rows that nobody offers.
    """

    chosen: tuple[Rows, ...]
    cost_bytes: tuple[int, ...]
    missing: Rows


@dataclass(frozen=True, slots=True)
class _Unit:
    """Contents that travel together (a package, a mixed frame) or one content alone."""

    source: int
    cost_bytes: int
    members: list[int]


def choose(rows: Rows, size: NDArray[np.int64], offers: Sequence[Offers]) -> Plan:
    """Return the plan that fetches `rows` for few bytes.

    rows: int64[k], sorted. size: of every content of the pack, bytes. offers: one per source, in
    the order of preference among equals.

    This is weighted set cover; the greedy choice (the unit with the fewest bytes to send for each
    byte still wanted, again and again) is within a factor ln(n) of the best and, with packages
    and frames that hardly overlap, practically the best. It is what keeps a 30 MB package from
    being fetched for 20 kB when a mirror has the 20 kB. No plan costs more than one source that
    has everything: that one is taken instead.
    """
    if len(offers) == 1:
        return _all_of(offers[0], rows)
    wanted = set(rows.tolist())
    sizes = size.tolist()
    units = [unit for number, one in enumerate(offers) for unit in _units(number, one, wanted)]
    best = _cover(units, wanted, sizes)
    offered = {row for unit in units for row in unit.members}
    for number in range(len(offers)):
        some = [unit for unit in units if unit.source == number or unit.cost_bytes == 0]
        if len({row for unit in some for row in unit.members}) == len(offered):
            best = min(best, _cover(some, wanted, sizes), key=_cost)
    chosen: list[list[int]] = [[] for _ in offers]
    cost = [0] * len(offers)
    for unit, taken in best:
        chosen[unit.source].extend(taken)
        cost[unit.source] += unit.cost_bytes
    return Plan(
        tuple(np.array(sorted(one), dtype=np.int64) for one in chosen),
        tuple(cost),
        np.array(sorted(wanted - offered), dtype=np.int64),
    )


def _all_of(offers: Offers, rows: Rows) -> Plan:
    """Return the plan of a source that is asked alone: there is nothing to weigh."""
    chosen = np.isin(offers.rows, rows)
    groups = np.unique(offers.group[chosen])
    cost = offers.cost_bytes[chosen].sum() + offers.group_bytes[groups[groups >= 0]].sum()
    missing = np.setdiff1d(rows, offers.rows)
    return Plan((offers.rows[chosen],), (int(cost),), missing)


_Cover = list[tuple[_Unit, list[int]]]
"""Units, each with the rows that it supplies."""


def _cover(units: Sequence[_Unit], rows: set[int], sizes: Sequence[int]) -> _Cover:
    """Return units that have together all of `rows` that any has, by the greedy choice."""
    wanted = set(rows)
    gain = [sum(sizes[row] for row in unit.members) for unit in units]
    heap = [
        (unit.cost_bytes / gain[number], unit.source, number) for number, unit in enumerate(units)
    ]
    heapq.heapify(heap)
    cover: _Cover = []
    while heap and wanted:
        _, source, number = heapq.heappop(heap)
        still = [row for row in units[number].members if row in wanted]
        worth = sum(sizes[row] for row in still)
        if worth == 0:
            continue
        if worth < gain[number]:
            # Others took a part since this price was worked out: queue again at the true price.
            gain[number] = worth
            heapq.heappush(heap, (units[number].cost_bytes / worth, source, number))
            continue
        cover.append((units[number], still))
        wanted.difference_update(still)
    return cover


def _cost(cover: _Cover) -> int:
    return sum(unit.cost_bytes for unit, _ in cover)


def _units(source: int, offers: Offers, wanted: set[int]) -> list[_Unit]:
    alone: list[_Unit] = []
    groups: dict[int, list[int]] = {}
    extra: dict[int, int] = {}
    for row, cost, group in zip(
        offers.rows.tolist(), offers.cost_bytes.tolist(), offers.group.tolist(), strict=True
    ):
        if row not in wanted:
            continue
        if group < 0:
            alone.append(_Unit(source, cost, [row]))
        else:
            groups.setdefault(group, []).append(row)
            extra[group] = extra.get(group, 0) + cost
    together = [
        _Unit(source, int(offers.group_bytes[group]) + extra[group], members)
        for group, members in groups.items()
    ]
    return alone + together
