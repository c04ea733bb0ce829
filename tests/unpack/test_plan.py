"""The plan against every possible plan, for cases small enough to try them all."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.sources.base import Offers
from packer.unpack.plan import Plan, choose

NO_GROUP = -1


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def offers(*rows: tuple[int, int, int], groups: tuple[int, ...] = ()) -> Offers:
    """Return the offers of (row, cost, group) triples."""
    table = np.array(sorted(rows), dtype=np.int64).reshape(-1, 3)
    return Offers(table[:, 0], table[:, 1], table[:, 2], column(*groups))


def chosen(plan: Plan) -> list[list[int]]:
    return [rows.tolist() for rows in plan.chosen]


def test_a_package_of_thirty_mb_is_not_fetched_for_twenty_kb_that_a_mirror_has() -> None:
    package = offers((0, 0, 0), groups=(30_000_000,))
    mirror = offers((0, 9_000, NO_GROUP))
    for order in ([package, mirror], [mirror, package]):
        plan = choose(column(0), column(20_000), order)
        assert sum(plan.cost_bytes) == 9_000


def test_a_package_is_fetched_when_all_of_it_is_wanted() -> None:
    rows = range(100)
    package = offers(*[(row, 0, 0) for row in rows], groups=(300_000,))
    mirror = offers(*[(row, 9_000, NO_GROUP) for row in rows])
    plan = choose(column(*rows), np.full(100, 20_000), [mirror, package])
    assert chosen(plan) == [[], list(rows)]
    assert plan.cost_bytes == (0, 300_000)


def test_what_costs_nothing_is_taken_first() -> None:
    network = offers((0, 10, NO_GROUP), (1, 10, NO_GROUP))
    local = offers((1, 0, NO_GROUP))
    plan = choose(column(0, 1), column(5, 5), [network, local])
    assert chosen(plan) == [[0], [1]]
    assert plan.cost_bytes == (10, 0)


def test_among_equals_the_source_that_was_named_first_is_asked() -> None:
    same = offers((0, 10, NO_GROUP), (1, 7, 0), (2, 0, 0), groups=(3,))
    plan = choose(column(0, 1, 2), column(9, 9, 9), [same, same, same])
    assert chosen(plan) == [[0, 1, 2], [], []]


def test_rows_that_are_not_wanted_are_neither_chosen_nor_paid_for() -> None:
    one = offers((0, 10, NO_GROUP), (1, 99, NO_GROUP), (2, 0, 0), (3, 50, 0), groups=(3,))
    plan = choose(column(0, 2), column(9, 9, 9, 9), [one])
    assert chosen(plan) == [[0, 2]]
    assert plan.cost_bytes == (13,)


def test_what_nobody_offers_is_missing() -> None:
    plan = choose(column(0, 3, 5), column(*[1] * 6), [offers((3, 1, NO_GROUP)), offers()])
    assert plan.missing.tolist() == [0, 5]
    assert chosen(plan) == [[3], []]


def test_without_sources_everything_is_missing() -> None:
    plan = choose(column(0, 1), column(1, 1), [])
    assert (plan.missing.tolist(), chosen(plan)) == ([0, 1], [])


def test_a_source_that_has_all_for_less_than_the_sum_of_bargains_is_preferred() -> None:
    """Step by step, the cheapest next content leads to 11 bytes; the package alone costs 10."""
    package = offers((0, 0, 0), (1, 0, 0), groups=(10,))
    plan = choose(column(0, 1), column(1, 1), [package, offers((0, 4, -1)), offers((1, 7, -1))])
    assert plan.cost_bytes == (10, 0, 0)


def test_a_package_of_which_others_supply_a_part_is_weighed_by_what_is_left() -> None:
    """Once 0 is had for 4, the package's 10 bytes are for 1 alone, which another has for 6."""
    package = offers((0, 0, 0), (1, 0, 0), groups=(10,))
    rest = [offers((0, 4, NO_GROUP)), offers((1, 6, NO_GROUP)), offers((2, 1, NO_GROUP))]
    plan = choose(column(0, 1, 2), column(10, 10, 10), [package, *rest])
    assert plan.cost_bytes == (0, 4, 6, 1)


@st.composite
def questions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[Offers]]:
    count = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    rows = sorted(draw(st.sets(st.integers(0, count - 1))))
    sources = []
    for _ in range(draw(st.integers(1, 3))):
        offered = sorted(draw(st.sets(st.integers(0, count - 1))))
        groups = tuple(draw(st.lists(st.integers(0, 60), min_size=0, max_size=2)))
        group = st.integers(-1, len(groups) - 1)
        sources.append(
            offers(
                *[(row, draw(st.integers(0, 30)), draw(group)) for row in offered], groups=groups
            )
        )
    return column(*rows), column(*sizes), sources


Unit = tuple[int, int]
"""(source, row of its table or group)"""


def units_of(
    rows: np.ndarray, sources: list[Offers]
) -> tuple[dict[Unit, int], list[dict[int, Unit]]]:
    """Return ({unit: what it costs}, for each source {row: its unit})."""
    cost: dict[Unit, int] = {}
    unit_of: list[dict[int, Unit]] = []
    for number, one in enumerate(sources):
        mine: dict[int, Unit] = {}
        for row, price, group in zip(
            one.rows.tolist(), one.cost_bytes.tolist(), one.group.tolist(), strict=True
        ):
            if row not in rows:
                continue
            unit = (number, group) if group >= 0 else (number, 1000 + row)
            cost.setdefault(unit, int(one.group_bytes[group]) if group >= 0 else 0)
            cost[unit] += price
            mine[row] = unit
        unit_of.append(mine)
    return cost, unit_of


def cheapest(rows: list[int], cost: dict[Unit, int], unit_of: list[dict[int, Unit]]) -> int:
    """Return the lowest price of any assignment of rows to sources."""
    ways = [[mine[row] for mine in unit_of if row in mine] for row in rows]
    return min(sum(cost[unit] for unit in set(way)) for way in itertools.product(*ways))


@settings(max_examples=500, deadline=None)
@given(questions())
def test_no_plan_is_much_dearer_than_the_best_and_none_leaves_out_what_is_offered(
    question: tuple[np.ndarray, np.ndarray, list[Offers]],
) -> None:
    rows, sizes, sources = question
    plan = choose(rows, sizes, sources)
    cost, unit_of = units_of(rows, sources)
    offered = {row for mine in unit_of for row in mine}

    given_out = [row for part in chosen(plan) for row in part]
    assert sorted(given_out) == sorted(offered)  # each once, all that is offered
    assert plan.missing.tolist() == sorted(set(rows.tolist()) - offered)
    for part, mine, price in zip(chosen(plan), unit_of, plan.cost_bytes, strict=True):
        assert part == sorted(part)
        assert set(part) <= set(mine)
        assert price == sum(cost[unit] for unit in {mine[row] for row in part})

    total = sum(plan.cost_bytes)
    best = cheapest(sorted(offered), cost, unit_of)
    weight = sum(int(sizes[row]) for row in offered)
    assert best <= total <= best * (1 + math.log(max(1, weight)))
    for mine in unit_of:
        if set(mine) == offered:
            assert total <= sum(cost[unit] for unit in set(mine.values()))
    for source, part in enumerate(chosen(plan)):
        for row in part:
            free = any(row in mine and cost[mine[row]] == 0 for mine in unit_of)
            assert not (free and cost[unit_of[source][row]] > 0)


@settings(max_examples=100, deadline=None)
@given(questions())
def test_a_second_copy_of_a_source_is_never_asked(
    question: tuple[np.ndarray, np.ndarray, list[Offers]],
) -> None:
    rows, sizes, sources = question
    twice = choose(rows, sizes, [*sources, *sources])
    assert chosen(twice)[: len(sources)] == chosen(choose(rows, sizes, sources))
    assert not any(chosen(twice)[len(sources) :])
