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
    being fetched for 20 kB when a mirror has the 20 kB.
    """
    wanted = set(rows.tolist())
    sizes = size.tolist()
    units = [unit for number, one in enumerate(offers) for unit in _units(number, one, wanted)]
    gain = [sum(sizes[row] for row in unit.members) for unit in units]
    heap = [
        (unit.cost_bytes / gain[number], unit.source, number)
        for number, unit in enumerate(units)
        if gain[number]
    ]
    heapq.heapify(heap)
    chosen: list[list[int]] = [[] for _ in offers]
    cost = [0] * len(offers)
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
        chosen[source].extend(still)
        cost[source] += units[number].cost_bytes
        wanted.difference_update(still)
    return Plan(
        tuple(np.array(sorted(one), dtype=np.int64) for one in chosen),
        tuple(cost),
        np.array(sorted(wanted), dtype=np.int64),
    )


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
