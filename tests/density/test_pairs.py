"""Which units are compared, and what the kernel is asked: pure."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from packer.density.dedupe_range import MAX_BYTES
from packer.density.pairs import alike, pair_up, phase, plan
from packer.density.units import Units
from tests.density.places import BLOCK, MIB


def column(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def units(*rows: tuple[int, int, list[tuple[int, int, int, int]]]) -> Units:
    """(disk, size, extents) each; an extent is (at, host, length, place)."""
    extents = [(number, *one) for number, row in enumerate(rows) for one in row[2]]
    unit, at, host, length, place = np.array(extents, dtype=np.int64).reshape(-1, 5).T
    disk, size = column(*(row[0] for row in rows)), column(*(row[1] for row in rows))
    zero = np.zeros_like(size)
    return Units(disk, zero, zero, size, unit, at, host, length, place)


def asked(one: Units, sources: list[int], targets: list[int]) -> list[tuple[int, ...]]:
    found = plan(one, column(*sources), column(*targets), BLOCK).requests
    columns = (
        found.source_disk, found.source, found.target_disk, found.target, found.length,
        found.slack,
    )  # fmt: skip
    return [tuple(map(int, row)) for row in zip(*(each.tolist() for each in columns), strict=True)]


def test_the_first_of_a_kind_is_the_source_of_all_others() -> None:
    known = np.zeros(5, dtype=bool)
    sources, targets = pair_up([column(7, 8, 7, 9, 7), column(1, 1, 1, 1, 2)], np.arange(5), known)
    assert (sources.tolist(), targets.tolist()) == ([0], [2])


def test_kinds_of_which_all_are_known_are_passed_over() -> None:
    known = np.array([True, True, True, False])
    sources, targets = pair_up([column(1, 1, 2, 2)], column(10, 11, 12, 13), known)
    assert (sources.tolist(), targets.tolist()) == ([12], [13])
    assert alike([column(1, 1, 2, 2)], known).tolist() == [False, False, True, True]


def test_extents_that_are_cut_differently_meet_piece_by_piece() -> None:
    table = units(
        (0, 5 * BLOCK, [(0, 100 * BLOCK, 2 * BLOCK, 1), (2 * BLOCK, 50 * BLOCK, 3 * BLOCK, 2)]),
        (1, 5 * BLOCK, [(0, 7 * BLOCK, 3 * BLOCK, 3), (3 * BLOCK, 90 * BLOCK, 2 * BLOCK, 4)]),
    )
    assert asked(table, [0], [1]) == [
        (0, 50 * BLOCK, 1, 9 * BLOCK, BLOCK, 0),
        (0, 51 * BLOCK, 1, 90 * BLOCK, 2 * BLOCK, 0),
        (0, 100 * BLOCK, 1, 7 * BLOCK, 2 * BLOCK, 0),
    ]


def runs(one: Units, sources: list[int], targets: list[int]) -> list[list[tuple[int, int]]]:
    """Where the sources and targets of each run lie, in blocks."""
    found = plan(one, column(*sources), column(*targets), BLOCK).requests
    places = np.stack([found.source, found.target], axis=1) // BLOCK
    bounds = pairwise(found.runs().tolist())
    return [[tuple(row) for row in places[first:end].tolist()] for first, end in bounds]


def test_files_that_follow_each_other_on_both_disks_are_asked_for_together() -> None:
    sizes = (3, 2, 1)
    here = [(0, size * BLOCK, at) for size, at in zip(sizes, (10, 13, 20), strict=True)]
    there = [(1, size * BLOCK, at) for size, at in zip(sizes, (40, 43, 45), strict=True)]
    table = units(
        *((disk, size, [(0, at * BLOCK, size, -1)]) for disk, size, at in (*here, *there))
    )
    assert runs(table, [0, 1, 2], [3, 4, 5]) == [[(10, 40), (13, 43)], [(20, 45)]]


def test_each_disk_is_asked_for_apart_where_the_source_is_at_hand() -> None:
    table = units(
        *((disk, BLOCK, [(0, at * BLOCK, BLOCK, -1)]) for disk in range(3) for at in (1, 2, 9))
    )
    assert runs(table, [0, 1, 2, 0, 1, 2], [3, 4, 5, 6, 7, 8]) == [
        [(1, 1), (2, 2)],
        [(1, 1), (2, 2)],
        [(9, 9)],
        [(9, 9)],
    ]
    asked_of = [row[2] for row in asked(table, [0, 1, 2, 0, 1, 2], [3, 4, 5, 6, 7, 8])]
    assert asked_of == [1, 1, 2, 2, 1, 2]


def test_what_shares_blocks_already_is_not_asked_for() -> None:
    table = units(
        (0, 4 * BLOCK, [(0, 0, 4 * BLOCK, 1 * MIB)]),
        (1, 4 * BLOCK, [(0, 0, BLOCK, 1 * MIB), (BLOCK, BLOCK, 3 * BLOCK, 9 * MIB)]),
    )
    found = plan(table, column(0), column(1), BLOCK)
    assert asked(table, [0], [1]) == [(0, BLOCK, 1, BLOCK, 3 * BLOCK, 0)]
    assert (found.unit.tolist(), found.shared.tolist()) == ([1], [BLOCK])


def test_no_place_is_not_the_same_place() -> None:
    table = units((0, BLOCK, [(0, 0, BLOCK, -1)]), (1, BLOCK, [(0, 0, BLOCK, -1)]))
    assert len(asked(table, [0], [1])) == 1


def test_a_file_that_ends_inside_a_block_says_so() -> None:
    extents = [(0, 0, 2 * BLOCK, -1)]
    table = units((0, BLOCK + 5, extents), (1, BLOCK + 5, extents))
    assert asked(table, [0], [1]) == [(0, 0, 1, 0, 2 * BLOCK, 1)]
    requests = plan(table, column(0), column(1), BLOCK).requests
    shorter = requests.without_slack(column(0), BLOCK)
    assert (shorter.length.tolist(), shorter.slack.tolist()) == ([BLOCK], [False])


def test_what_lies_unevenly_is_shared_only_with_what_lies_as_unevenly() -> None:
    sector = 512
    uneven = [(0, 63 * sector, 4 * BLOCK, -1)]
    table = units(
        (0, 4 * BLOCK, uneven),
        (1, 4 * BLOCK, uneven),
        (2, 4 * BLOCK, [(0, 0, 4 * BLOCK, -1)]),
    )
    assert phase(table, BLOCK).tolist() == [63 * sector % BLOCK, 63 * sector % BLOCK, 0]
    assert asked(table, [0], [1]) == [(0, 8 * BLOCK, 1, 8 * BLOCK, 3 * BLOCK, 0)]
    assert asked(table, [0], [2]) == []


def test_requests_and_runs_have_a_bound() -> None:
    """Whatever lies beside it."""
    first = MAX_BYTES - 3 * BLOCK
    long = 2 * MAX_BYTES + BLOCK
    table = units(
        *(
            (disk, size, [(0, at, -(-size // BLOCK) * BLOCK, -1)])
            for disk in range(2)
            for at, size in ((0, first), (first, long - BLOCK + 1))
        )
    )
    requests = plan(table, column(0, 1), column(2, 3), BLOCK).requests
    assert int(requests.length.sum()) == first + long
    assert int(requests.length.max()) <= MAX_BYTES // 2
    together = np.add.reduceat(requests.length, requests.runs()[:-1])
    assert MAX_BYTES // 2 <= int(together.max()) <= MAX_BYTES
    assert requests.slack.tolist() == [False] * (len(requests) - 1) + [True]


def test_nothing_makes_no_run() -> None:
    table = units((0, BLOCK, [(0, 0, BLOCK, -1)]))
    assert runs(table, [], []) == []
