"""One source after the other: whatever some of them do, the disk is right or says what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packer.artifact.contents import Class
from packer.sources.base import Offers, Piece, SourceError, Wanted
from packer.unpack.dry_run import dry_run
from packer.unpack.gather import DEEP_SEARCH_BYTES, MOST_TRIES, Gathering, gather
from tests.artifact.real_packs import no_hints, write_pack
from tests.unpack.simulated import (
    CLASSES,
    DATA,
    MISDEEDS,
    SILENT,
    Bench,
    Fickle,
    Files,
    Simulated,
    breaks_after,
    numbered,
)

ALL = list(range(len(DATA)))
SIZES = [len(data) for data in DATA]
NOTHING: dict[int, bytes] = {}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "disk")
    yield bench
    bench.close()


def fill(bench: Bench, carrier: Simulated, *sources: Simulated) -> Gathering:
    gathering = gather(bench.assembler, no_hints(), carrier, sources, SILENT)
    bench.check_proven()
    assert gathering.missing.tolist() == bench.assembler.missing().tolist()
    if len(gathering.missing) == 0:
        assert bench.written() == bench.disk
    return gathering


def some(*rows: int) -> dict[int, bytes]:
    return {row: DATA[row] for row in rows}


class Broken(Simulated):
    """A source that cannot even be asked."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        super().find(wanted, deep=deep)
        raise SourceError(f"{self.uri} is not there")


class Deep(Simulated):
    """A source that finds what it has only when it looks at everything."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        offers = super().find(wanted, deep=deep)
        none = np.empty(0, dtype=np.int64)
        return offers if deep else Offers(none, none, none, none)


class Greedy(Simulated):
    """A source that offers everything, whatever it has."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        super().find(wanted, deep=deep)
        zero = np.full(len(wanted.rows), self.cost)
        return Offers(wanted.rows, zero, zero * 0 - 1, np.empty(0, dtype=np.int64))

    def fetch(self, rows: np.ndarray) -> Iterator[object]:  # type: ignore[override]
        return super().fetch(np.array([r for r in rows.tolist() if r in self.held], dtype=np.int64))


def test_a_full_pack_is_enough(bench: Bench) -> None:
    gathering = fill(bench, Simulated("pack:"))
    assert gathering.supplied["pack:"].proven_bytes == sum(SIZES)
    assert gathering.fetched.tolist() == []


def test_this_hosts_own_files_come_before_the_pack_and_the_pack_before_the_network(
    bench: Bench,
) -> None:
    local, network = Simulated("dir:", some(0, 2)), Simulated("https:", local=False, cost=1)
    gathering = fill(bench, Simulated("pack:", some(0, 1, 2, 3)), network, local)
    proven = {uri: one.proven_bytes for uri, one in gathering.supplied.items()}
    assert proven == {
        "dir:": SIZES[0] + SIZES[2],
        "pack:": SIZES[1] + SIZES[3],
        "https:": SIZES[4] + SIZES[5],
    }
    assert network.asked == [([4, 5], False)]  # it is told of nothing else
    assert gathering.fetched.tolist() == [4, 5]
    assert gathering.supplied["https:"].fetched_bytes == 2


def neighbour(uri: str, *rows: int, cost: int = 1, kind: type[Simulated] = Simulated) -> Simulated:
    return kind(uri, some(*rows), local=False, near=True, cost=cost)


@pytest.mark.parametrize("carrier_local", [True, False], ids=["carried", "pack on a mirror"])
def test_neighbours_come_after_this_host_and_before_everybody_far_away(
    bench: Bench, carrier_local: bool
) -> None:
    """However cheap that is, and in whatever order they are named."""
    far = Simulated("https:", local=False, cost=0)
    near = neighbour("store://", 0, 1, 2, 3, cost=DEEP_SEARCH_BYTES // len(ALL) - 1)
    here = Simulated("dir:", some(0))
    carrier = Simulated("pack:", some(0, 1) if carrier_local else some(*ALL), local=carrier_local)
    gathering = fill(bench, carrier, far, near, here)
    left = [2, 3] if carrier_local else [1, 2, 3]
    assert near.fetched == [left]
    asked = [2, 3, 4, 5] if carrier_local else [1, 2, 3, 4, 5]
    assert near.asked == [(asked, False)]
    assert far.asked == [([4, 5], False)]  # it is told of nothing else
    assert gathering.fetched.tolist() == [*left, 4, 5]  # kept, so that it travels once
    assert gathering.missing.tolist() == []


def test_a_neighbour_that_lies_or_breaks_is_replaced_by_the_next_one_then_by_the_internet(
    bench: Bench,
) -> None:
    liar = neighbour("store://a", *ALL)
    liar.twist = MISDEEDS["lies in the first byte"]
    broken = Broken("store://b", local=False, near=True)
    good = neighbour("store://c", 0, 1, 2, cost=2)
    far = Simulated("https:", local=False, cost=1)
    gathering = fill(bench, Simulated("pack:", NOTHING), far, liar, broken, good)
    assert good.fetched == [[0, 1, 2]]
    assert far.fetched == [[3, 4, 5]]
    assert gathering.supplied["store://b"].complaints == ["store://b is not there"]
    assert gathering.missing.tolist() == []


def test_trees_are_searched_before_much_is_asked_of_neighbours_and_not_for_little(
    bench: Bench,
) -> None:
    tree = Deep("dir:", some(2))
    near = neighbour("store://", *ALL, cost=DEEP_SEARCH_BYTES)
    fill(bench, Simulated("pack:", NOTHING), tree, near)
    assert tree.asked == [(ALL, False), (ALL, True)]
    assert near.fetched == [[0, 1, 3, 4, 5]]


def test_what_neighbours_lack_is_no_reason_to_search_trees(bench: Bench) -> None:
    tree, near = Deep("dir:", some(2)), neighbour("store://", 0, 1, 2, 3)
    far = Simulated("https:", local=False, cost=1)
    gathering = fill(bench, Simulated("pack:", NOTHING), tree, near, far)
    assert tree.asked == [(ALL, False)]
    assert gathering.missing.tolist() == []


def test_a_neighbours_running_disk_is_searched_when_nobody_else_has_it(bench: Bench) -> None:
    disk = neighbour("disk:nbd://", 2, 3, kind=Deep)
    gathering = fill(bench, Simulated("pack:", some(0, 1, 4, 5)), disk)
    assert disk.asked == [([2, 3], False), ([2, 3], True)]
    assert gathering.missing.tolist() == []


def test_a_dry_run_counts_on_neighbours_before_everybody_far_away(tmp_path: Path) -> None:
    with write_pack(tmp_path / "a.vmpack", DATA, CLASSES, carried=[Class.BOOT]) as pack:
        far = Simulated("https:", local=False, cost=0)
        near = neighbour("store://", 0, 1, 2, cost=7)
        gone = Broken("store://gone", local=False, near=True)
        plan = dry_run(pack, [far, gone, near])
    assert plan.steps[1:] == (
        ("store://", 2, SIZES[1] + SIZES[2], 14),
        ("https:", 3, sum(SIZES[3:]), 0),
    )
    assert plan.complaints == ("store://gone is not there",)


def test_sources_are_asked_in_the_order_of_preference(bench: Bench) -> None:
    first, second = Simulated("a:"), Simulated("b:")
    fill(bench, Simulated("pack:", NOTHING), first, second)
    assert first.fetched == [ALL]
    assert second.asked == []
    assert second.fetched == []


def test_the_network_is_not_asked_when_nothing_is_missing(bench: Bench) -> None:
    network = Simulated("https:", local=False)
    fill(bench, Simulated("pack:"), network)
    assert network.asked == []


def test_a_pack_on_the_network_is_weighed_against_other_mirrors(bench: Bench) -> None:
    carrier = Simulated("https://far/", local=False, cost=100)
    near = Simulated("https://near/", some(2, 3), local=False, cost=10)
    gathering = fill(bench, carrier, near)
    assert near.fetched == [[2, 3]]
    assert carrier.fetched == [[0, 1, 4, 5]]
    assert gathering.fetched.tolist() == ALL


@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_after_a_source_that_does_wrong_the_next_one_is_asked(
    bench: Bench, misdeed: str, local: bool
) -> None:
    bad = Simulated("bad:", twist=MISDEEDS[misdeed], local=local, cost=0 if local else 1)
    good = Simulated("good:", local=local, cost=0 if local else 50)
    gathering = fill(bench, Simulated("pack:", some(0)), bad, good)
    assert gathering.missing.tolist() == []
    assert len(bad.fetched) == 1  # who did not deliver is not asked again


@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_when_all_sources_do_wrong_what_is_missing_is_said(
    bench: Bench, misdeed: str, local: bool
) -> None:
    sources = [Simulated(f"{n}:", twist=MISDEEDS[misdeed], local=local, cost=n) for n in range(3)]
    gathering = fill(bench, Simulated("pack:", NOTHING), *sources)
    assert all(len(source.fetched) <= 2 for source in sources)  # quickly, and after a search
    if misdeed not in ("sends backwards and twice", "sends right ones, then wrong ones"):
        assert len(gathering.missing) > 0


def test_what_nobody_has_is_missing_and_all_the_rest_is_there(bench: Bench) -> None:
    gathering = fill(bench, Simulated("pack:", some(0, 1)), Simulated("dir:", some(3)))
    assert gathering.missing.tolist() == [2, 4, 5]


@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
def test_complaints_are_kept_with_the_source_that_made_them(bench: Bench, local: bool) -> None:
    gathering = fill(
        bench,
        Simulated("pack:", some(0)),
        Broken("gone:", local=local),
        Simulated("cut:", twist=breaks_after(1), local=local),
        Simulated("good:", local=local),
    )
    assert gathering.supplied["gone:"].complaints == ["gone: is not there"]
    assert gathering.supplied["cut:"].complaints == ["the cable was pulled"]
    assert gathering.supplied["good:"].complaints == []
    assert gathering.missing.tolist() == []


def test_a_source_that_offers_what_it_has_not_does_not_hide_those_that_have_it(
    bench: Bench,
) -> None:
    boaster = Greedy("boaster:", some(4), local=False)
    gathering = fill(bench, Simulated("pack:", NOTHING), boaster, Simulated("good:", local=False))
    assert gathering.missing.tolist() == []
    assert gathering.supplied["boaster:"].proven_bytes == SIZES[4]


@pytest.mark.parametrize("wrong", [0, 1, 3, MOST_TRIES - 1])
def test_a_source_with_several_candidates_is_asked_again_while_it_has_another(
    bench: Bench, wrong: int
) -> None:
    fickle = Fickle("dir:", wrong)
    gathering = fill(bench, Simulated("pack:", some(0)), fickle)
    assert gathering.missing.tolist() == []
    assert fickle.learned[-2:] == [(ALL, True), ([], False)]
    assert len(fickle.fetched) == wrong + 1


def test_a_source_whose_candidates_never_end_is_given_up(bench: Bench) -> None:
    endless = Fickle("dir:", 10**9)
    gathering = fill(bench, Simulated("pack:", some(0)), endless, Simulated("good:", some(1, 2)))
    assert gathering.missing.tolist() == [3, 4, 5]
    assert len(endless.fetched) <= 2 * MOST_TRIES  # quickly, and after a deep search


def test_asking_a_source_again_does_not_forget_what_else_it_has_offered(bench: Bench) -> None:
    """It offers 3 as well, which the cheaper liar was chosen for."""
    fickle = Fickle("https://fickle/", 1, some(2, 3))
    fickle.local, fickle.cost = False, 50
    liar = Simulated("https://liar/", {3: numbered(SIZES[3], 60)}, local=False, cost=1)
    gathering = fill(bench, Simulated("pack:", some(0, 1, 4, 5)), fickle, liar)
    assert gathering.missing.tolist() == []
    assert not any(deep for _, deep in fickle.asked)  # it was not found again only by a search


def test_trees_are_searched_only_when_all_have_been_asked_quickly(bench: Bench) -> None:
    tree, last = Deep("dir:", some(2)), Simulated("store:", some(3))
    gathering = fill(bench, Simulated("pack:", some(0, 1, 4, 5)), tree, last)
    assert tree.asked == [(ALL, False), ([2], True)]
    assert gathering.missing.tolist() == []


def test_trees_are_not_searched_for_a_little_that_the_network_has(bench: Bench) -> None:
    tree = Deep("dir:")
    mirror = Simulated("https:", local=False, cost=DEEP_SEARCH_BYTES // len(ALL) - 1)
    fill(bench, Simulated("pack:", NOTHING), tree, mirror)
    assert tree.asked == [(ALL, False)]
    assert mirror.fetched == [ALL]


def test_trees_are_searched_before_much_is_fetched(bench: Bench) -> None:
    tree = Deep("dir:", some(1, 2, 3, 5))
    mirror = Simulated("https:", local=False, cost=DEEP_SEARCH_BYTES)
    gathering = fill(bench, Simulated("pack:", NOTHING), tree, mirror)
    assert tree.asked[-1] == (ALL, True)
    assert mirror.fetched == [[0, 4]]
    assert gathering.missing.tolist() == []


def test_trees_are_searched_when_a_mirror_promises_all_and_then_breaks(bench: Bench) -> None:
    tree = Deep("dir:", some(3, 4))
    mirror = Simulated("https:", local=False, cost=1, twist=breaks_after(0))
    gathering = fill(bench, Simulated("pack:", some(0, 1, 2)), mirror, tree)
    assert tree.asked == [(ALL, False), ([3, 4, 5], True)]
    assert gathering.missing.tolist() == [5]


def test_a_mirror_that_breaks_at_one_content_is_asked_for_the_others_again(bench: Bench) -> None:
    """Its complaint may be about one file of many."""

    class BreaksAtRow1(Simulated):
        def fetch(self, rows: np.ndarray) -> Iterator[Piece]:
            self.fetched.append(rows.tolist())
            if 1 in rows:
                raise SourceError("https: one bundle is gone")
            return self._pieces(rows)

    mirror = BreaksAtRow1("https:", some(1, 2), local=False, cost=1)
    other = Simulated("apt:", some(1), local=False, cost=5)
    gathering = fill(bench, Simulated("pack:", some(0, 3, 4, 5)), mirror, other)
    assert gathering.missing.tolist() == []


def test_a_mirror_whose_lists_must_be_fetched_first_is_asked_when_nobody_else_has_it(
    bench: Bench,
) -> None:
    mirror = Deep("apt:", some(2, 3), local=False, cost=1)
    gathering = fill(bench, Simulated("pack:", some(0, 1, 4, 5)), mirror)
    assert mirror.asked == [([2, 3], False), ([2, 3], True)]
    assert gathering.missing.tolist() == []


def test_wrong_files_on_this_host_cost_nothing_but_the_try(bench: Bench, tmp_path: Path) -> None:
    wrong = {row: numbered(size, 30 + row) for row, size in enumerate(SIZES)}
    gathering = fill(bench, Simulated("pack:"), Files(tmp_path / "other-version", wrong))
    assert gathering.missing.tolist() == []
    assert gathering.supplied["files:"].proven_bytes == 0


def test_a_disk_that_is_complete_already_asks_nobody(bench: Bench) -> None:
    bench.place(Simulated())
    carrier, other = Simulated("pack:"), Simulated("dir:")
    fill(bench, carrier, other)
    assert carrier.asked == other.asked == []


@st.composite
def crowds(draw: st.DrawFn) -> list[Callable[[], Simulated]]:
    """A few sources, each with some contents, some of them wrong, and a misdeed or none."""

    def make(
        number: int, held: dict[int, bytes], twist: str, place: str, cost: int, kind: int
    ) -> Callable[[], Simulated]:
        classes = [Simulated, Deep, Greedy, Broken]
        return lambda: classes[kind](
            f"{number}:",
            held,
            local=place == "here",
            near=place == "near",
            twist=MISDEEDS.get(twist),
            cost=cost,
        )

    return [
        make(
            number,
            {
                row: numbered(SIZES[row], 99) if draw(st.booleans()) else DATA[row]
                for row in draw(st.sets(st.sampled_from(ALL)))
            },
            draw(st.sampled_from(["", "", *MISDEEDS])),
            draw(st.sampled_from(["here", "near", "far"])),
            draw(st.integers(0, DEEP_SEARCH_BYTES)),
            draw(st.sampled_from([0, 0, 0, 1, 2, 3])),
        )
        for number in range(draw(st.integers(0, 4)))
    ]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(crowds(), st.booleans(), st.sets(st.sampled_from(ALL)))
def test_any_crowd_of_sources_gives_the_right_disk_or_names_what_is_missing(
    tmp_path: Path, crowd: list[Callable[[], Simulated]], carrier_local: bool, carried: set[int]
) -> None:
    bench = Bench(tmp_path / "disk")
    sources = [make() for make in crowd]
    carrier = Simulated("pack:", some(*carried), local=carrier_local)
    try:
        gathering = fill(bench, carrier, *sources)
        honest = [one for one in sources if one.twist is None and type(one) in (Simulated, Deep)]
        had = carried | {
            row for one in honest for row, data in one.held.items() if data == DATA[row]
        }
        assert not had & set(gathering.missing.tolist())
        assert bench.written()[:512] in (DATA[0], bytes(512))
    finally:
        bench.close()
        bench.output.discard()


def test_a_dry_run_goes_on_when_a_source_breaks(tmp_path: Path) -> None:
    with write_pack(tmp_path / "a.vmpack", DATA, CLASSES, carried=[Class.BOOT]) as pack:
        broken = Simulated("cut:", twist=breaks_after(0))
        plan = dry_run(pack, [broken, Simulated("good:", some(1, 2, 3))])
    assert [uri for uri, *_ in plan.steps] == ["good:", f"pack:{tmp_path}/a.vmpack"]
    assert [name for name, _, _ in plan.missing] == [pack.map.contents.name(n) for n in (4, 5)]


def test_a_dry_run_counts_on_what_a_mirror_has_once_its_lists_are_there(tmp_path: Path) -> None:
    with write_pack(tmp_path / "a.vmpack", DATA, CLASSES, carried=[Class.BOOT]) as pack:
        plan = dry_run(pack, [Deep("apt:", some(1, 2, 3, 4, 5), local=False, cost=7)])
    assert plan.missing == ()
    assert plan.steps[-1] == ("apt:", 5, sum(SIZES[1:]), 35)


def test_the_sample_has_contents_of_every_class() -> None:
    assert {one.name for one in CLASSES} == {"BOOT", "PRIVATE", "SHARED"}
