"""Logs of hives are replayed as Windows does it, and nothing else is taken for one."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from formats.errors import Corrupt, FormatError, Truncated
from formats.windows.hive import Hive
from formats.windows.hive_log import CLEAN, REPLAYED, STALE, Replay, replay
from tests.formats.windows import hivex
from tests.formats.windows.corpus import corpus, dirty_logs, needs_corpus
from tests.formats.windows.make_hive import (
    NEW,
    SEQUENCE,
    WRITTEN,
    at_rest,
    in_the_middle,
    log_head,
    new_log,
    old_log,
    with_services,
)

NEXT = SEQUENCE + 1
SERVICES = "ControlSet001\\Services"


def torn() -> bytes:
    """The hive at rest, marked as being written."""
    return in_the_middle(at_rest(), NEXT, SEQUENCE)


def services(hive: bytes) -> set[str]:
    key = Hive(hive).key(SERVICES)
    assert key is not None
    return {one.name for one in key.subkeys()}


def added(replayed: Replay) -> set[str]:
    """The services that the replay has brought."""
    return services(replayed.data) - services(at_rest())


def assert_is(replayed: Replay, after: bytes) -> None:
    """The replayed hive is the one that Windows was writing, and in order."""
    assert replayed.state == REPLAYED
    assert replayed.data[4096:] == after[4096:]
    assert_in_order(replayed.data)


def assert_in_order(hive: bytes) -> None:
    primary, secondary = struct.unpack_from("<II", hive, 4)
    assert primary == secondary
    total = 0
    for (word,) in struct.iter_unpack("<I", hive[:512]):
        total ^= word
    assert total == 0  # the checksum is the XOR of what precedes it
    assert hive[28:32] == bytes(4)  # a hive, no log


class TestCleanHive:
    def test_is_returned_as_it_is(self) -> None:
        hive = at_rest()
        assert replay(hive, []) == Replay(hive, CLEAN)

    def test_ignores_its_logs(self) -> None:
        log = new_log([at_rest(), with_services("late")], SEQUENCE)
        assert replay(at_rest(), [log]).data is at_rest()


class TestEntries:
    @pytest.mark.parametrize("first", [SEQUENCE, NEXT, NEXT + 480])
    def test_are_applied_from_the_second_sequence_number_on(self, first: int) -> None:
        """A real hive had 1621 and 1622, and logs that begin at 2107."""
        log = new_log([at_rest(), with_services("late")], first)
        replayed = replay(torn(), [log])
        assert_is(replayed, with_services("late"))
        assert replayed.done == (f"log 1: entries {first} to {first} applied",)
        assert not replayed.warnings

    def test_go_on_in_the_other_log(self) -> None:
        one = new_log([at_rest(), with_services("late")], NEXT)
        two = new_log([with_services("late"), with_services("late", "later")], NEXT + 1)
        for logs in ([one, two], [two, one], [b"", one, two]):
            assert_is(replay(torn(), logs), with_services("late", "later"))

    def test_several_in_one_log(self) -> None:
        states = [with_services(*"abcd"[:count]) for count in range(5)]
        assert_is(replay(torn(), [new_log(states, NEXT)]), states[-1])

    def test_left_over_from_before_are_not_applied(self) -> None:
        fresh = new_log([at_rest(), with_services("late")], NEXT)
        stale = new_log([at_rest(), with_services("wrong")], SEQUENCE - 5)
        assert_is(replay(torn(), [fresh + stale[512:]]), with_services("late"))
        replayed = replay(torn(), [stale, fresh])
        assert_is(replayed, with_services("late"))
        assert "log 1 is not applied: it begins at 16, expected 21 or later" in replayed.warnings

    def test_after_a_gap_are_not_applied(self) -> None:
        one = new_log([at_rest(), with_services("late")], NEXT)
        two = new_log([with_services("late"), with_services("late", "later")], NEXT + 2)
        replayed = replay(torn(), [one, two])
        assert_is(replayed, with_services("late"))
        assert replayed.warnings == ("log 2 is not applied: it begins at 24, expected 23",)

    def test_damaged_ends_the_replay(self) -> None:
        states = [with_services(*"abc"[:count]) for count in range(4)]
        log = bytearray(new_log(states, NEXT))
        second = 512 + struct.unpack_from("<I", log, 516)[0]
        for place in (second + 8, second + 24, second + 32, second + 44, second + 5000):
            broken = bytearray(log)
            broken[place] ^= 4
            replayed = replay(torn(), [bytes(broken)])
            assert_is(replayed, with_services("a"))
            assert "only up to entry 22" in replayed.warnings[0]

    @pytest.mark.parametrize("missing", [1, 512, 4096])
    def test_cut_off_ends_the_replay(self, missing: int) -> None:
        states = [with_services(*"abc"[:count]) for count in range(4)]
        replayed = replay(torn(), [new_log(states, NEXT)[:-missing]])
        assert_is(replayed, with_services("a", "b"))
        assert "only up to entry 23" in replayed.warnings[0]

    def test_restore_a_damaged_base_block_from_the_latest_log(self) -> None:
        broken = bytearray(torn())
        broken[40] ^= 0xFF
        early = new_log([at_rest(), with_services("late")], NEXT)
        latest = new_log([at_rest(), with_services("late", "later")], NEXT + 1)
        for logs in ([early, latest], [latest, early]):
            assert_is(replay(bytes(broken), logs), with_services("late", "later"))

    def test_that_make_no_hive_are_not_applied(self) -> None:
        """The log of another hive whose numbers fit by chance: its bins begin elsewhere."""
        other = bytearray(with_services("late"))
        struct.pack_into("<I", other, 4096 + 4, 0x7000)
        replayed = replay(torn(), [new_log([at_rest(), bytes(other)], NEXT)])
        assert replayed.state == STALE
        assert "that makes no hive" in replayed.warnings[0]
        assert replayed.data[4096:] == at_rest()[4096:]

    def test_win_over_a_log_of_the_old_format(self) -> None:
        old = old_log(at_rest(), with_services("wrong"), NEXT)
        new = new_log([at_rest(), with_services("late")], NEXT)
        assert_is(replay(torn(), [old, new]), with_services("late"))


class TestDirtySectors:
    @pytest.mark.parametrize("sectors", [1, 8])
    def test_are_applied(self, sectors: int) -> None:
        after = with_services("late")
        replayed = replay(torn(), [old_log(at_rest(), after, NEXT, sectors=sectors)])
        assert_is(replayed, after)
        assert added(replayed) == {"late"}
        assert not replayed.warnings

    def test_of_single_sectors_are_applied(self) -> None:
        """Windows 2000 marks sectors, later ones whole pages."""
        before, after = at_rest(), bytearray(at_rest())
        at = after.index("driver3".encode("utf-16-le"))
        after[at] = ord("D")
        bit = (at - 4096) // 512
        vector = bytearray(512)
        vector[:4] = b"DIRT"
        vector[4 + bit // 8] = 1 << bit % 8
        sector = bytes(after[4096 + bit * 512 : 4096 + bit * 512 + 512])
        log = old_log(before, before, NEXT)[:512] + bytes(vector) + sector
        replayed = replay(torn(), [log])
        assert_is(replayed, bytes(after))
        assert replayed.done == ("log 1: 1 sectors applied",)

    def test_are_taken_from_the_first_log_of_this_state(self) -> None:
        other_time = old_log(at_rest(), with_services("wrong"), NEXT, written=WRITTEN + 1)
        fitting = old_log(at_rest(), with_services("late"), NEXT)
        second = old_log(at_rest(), with_services("second"), NEXT)
        replayed = replay(torn(), [other_time, fitting, second])
        assert_is(replayed, with_services("late"))
        assert "log 1 is not applied: it belongs to the hive as of" in replayed.warnings[0]

    def test_restore_a_damaged_base_block(self) -> None:
        broken = b"\xff" * 512 + at_rest()[512:]
        assert_is(
            replay(broken, [old_log(at_rest(), with_services("late"), NEXT)]),
            with_services("late"),
        )

    def test_cut_off_are_not_applied_at_all(self) -> None:
        log = old_log(at_rest(), with_services("late"), NEXT)
        for length in (600, len(log) - 1):
            replayed = replay(torn(), [log[:length]])
            assert replayed.state == STALE
            assert added(replayed) == set()
            assert "log 1 is not applied" in replayed.warnings[0]

    def test_of_an_unfinished_log_are_not_applied(self) -> None:
        log = bytearray(old_log(at_rest(), with_services("late"), NEXT))
        head = in_the_middle(bytes(log[:512]).ljust(4096, b"\0"), NEXT, NEXT - 1)
        replayed = replay(torn(), [head[:512] + bytes(log[512:])])
        assert replayed.state == STALE
        assert "it was being written itself" in replayed.warnings[0]


class TestWithoutUsableLog:
    @pytest.mark.parametrize(
        "logs",
        [[], [b""], [bytes(8192)], [b"\xff" * 8192], [b"regf"], [log_head(at_rest(), NEW, 5)]],
        ids=["none", "empty", "zeros", "noise", "short", "no entries"],
    )
    def test_is_stale_and_can_be_read(self, logs: Sequence[bytes]) -> None:
        replayed = replay(torn(), logs)
        assert replayed.state == STALE
        assert replayed.data[4096:] == at_rest()[4096:]
        assert_in_order(replayed.data)
        assert "sequence numbers 22 and 21" in replayed.warnings[-1]
        assert services(replayed.data) == services(at_rest())


class TestNoHive:
    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"", Truncated),
            (at_rest()[:511], Truncated),
            (at_rest()[:-1], Truncated),
            (bytes(8192), Corrupt),
            (b"\xff" * 8192, Corrupt),
            (new_log([at_rest(), with_services("late")], 1), Corrupt),
            (in_the_middle(at_rest()[:-4096], 2, 1), Truncated),
        ],
        ids=["empty", "short", "one byte less", "zeros", "noise", "log", "dirty and cut off"],
    )
    def test_is_refused(self, data: bytes, kind: type[FormatError]) -> None:
        with pytest.raises(kind):
            replay(data, [])

    def test_a_gap_between_bins_is_refused(self) -> None:
        hive = bytearray(with_services("late"))
        second = 4096 + struct.unpack_from("<I", hive, 4096 + 8)[0]
        hive[second] ^= 1
        with pytest.raises(Corrupt, match=f"hive bin at byte {second}: expected one at"):
            replay(bytes(hive), [])


@needs_corpus
class TestRealHive:
    def test_of_windows_10_is_replayed_from_both_logs(self) -> None:
        replayed = replay(corpus("SYSTEM_win10_dirty"), dirty_logs())
        assert replayed.state == REPLAYED
        assert replayed.done == (
            "log 1: entries 2107 to 2110 applied",
            "log 2: entries 2111 to 2130 applied",
        )
        assert not replayed.warnings
        assert_in_order(replayed.data)

    def test_shows_other_services_after_the_replay(self) -> None:
        """A service registered shortly before is in the logs alone."""
        before = services(corpus("SYSTEM_win10_dirty"))
        replayed = replay(corpus("SYSTEM_win10_dirty"), dirty_logs())
        assert services(replayed.data) - before == {"ad_driver"}
        assert before - services(replayed.data) == set()

    def test_is_read_by_hivex_with_the_same_services(self) -> None:
        data = replay(corpus("SYSTEM_win10_dirty"), dirty_logs()).data
        assert set(hivex.subkeys(data, "\\ControlSet001\\Services")) == services(data)
        assert len(services(data)) == 656

    def test_is_replayed_as_far_as_its_logs_go(self) -> None:
        first, second = dirty_logs()
        replayed = replay(corpus("SYSTEM_win10_dirty"), [first, second[: 0x3000 + 335872]])
        assert replayed.done[1] == "log 2: entries 2111 to 2112 applied"
        replayed = replay(corpus("SYSTEM_win10_dirty"), [first])
        assert replayed.done == ("log 1: entries 2107 to 2110 applied",)

    def test_of_windows_7_is_clean(self) -> None:
        assert replay(corpus("SYSTEM_win7"), []).state == CLEAN
        assert replay(corpus("BCD"), []).state == CLEAN
