"""Whether a Windows was shut down, and what it can lose without harm."""

from __future__ import annotations

import numpy as np
import pytest

from formats.ranges import as_ranges
from tests.guest.windows.material import (
    CONFIG,
    WINDOWS,
    Disk,
    Key,
    Seen,
    Vol,
    bios,
    hive_of,
    mounted_mbr,
    multi_sz,
    system,
    windows,
)

PAGE = 4096
PAGES = b"pages!!!" * (3 * PAGE // 8)
SLEEP = "/hiberfil.sys"


def with_hibernation_file(start: bytes, state: str = "clean") -> Seen:
    files = {**windows(), SLEEP: start + b"\x11" * (3 * PAGE)}
    reason = "" if state == "clean" else "$LogFile has version 2"
    found = Disk([Vol({"/bootmgr": b"m" * 900, **files}, state=state, reason=reason)])
    return found.judged()


@pytest.mark.parametrize("start", [b"hibr", b"HIBR", b"RSTR", b"HORM", b"link"])
@pytest.mark.parametrize("state", ["clean", "dirty"])
def test_a_guest_that_sleeps_is_refused_and_both_cures_are_named(start: bytes, state: str) -> None:
    judged = with_hibernation_file(start, state)
    (refusal,) = judged.judgement.refusals
    assert refusal.startswith("Windows on partition 1 is hibernated, or was shut down for a fast")
    assert repr(start.decode()) in refusal
    for cure in ("shutdown /s /f /t 0", "Shift", "powercfg /h off"):
        assert cure in refusal
    assert judged.dropped() == {}


def test_a_hibernation_file_whose_first_page_is_zero_holds_nothing() -> None:
    judged = with_hibernation_file(bytes(PAGE))
    assert judged.judgement.refusals == ()
    assert judged.dropped() == {"hiberfil.sys on partition 1": 4 * PAGE}


@pytest.mark.parametrize("start", [b"wake", b"WAKE"])
def test_a_restart_from_it_is_over_if_the_volume_was_left_cleanly_since(start: bytes) -> None:
    clean, dirty = (with_hibernation_file(start, state) for state in ("clean", "dirty"))
    assert clean.judgement.refusals == ()
    assert list(clean.dropped()) == ["hiberfil.sys on partition 1"]
    assert "is hibernated" in dirty.judgement.refusals[0]
    assert dirty.dropped() == {}


def test_a_hibernation_file_that_begins_otherwise_stays() -> None:
    judged = with_hibernation_file(b"what")
    assert (judged.judgement.refusals, judged.dropped()) == ((), {})
    assert "packed as it is" in judged.warning("begins with something unknown")


def test_nothing_is_dropped_from_a_volume_that_is_not_clean() -> None:
    files = {**windows(), SLEEP: bytes(4 * PAGE), "/pagefile.sys": PAGES}
    found = Disk([Vol(files, state="dirty", reason="$Volume has the flags 0x0001")])
    judged = found.judged()
    assert (judged.dropped(), judged.judgement.refusals) == ({}, ())
    said = judged.warning("is not clean")
    assert "shutdown /s /f /t 0" in said
    assert "powercfg /h off" in said


def test_a_hibernation_file_that_cannot_be_read_in_a_volume_that_is_not_clean_is_refused() -> None:
    files = {**windows(), SLEEP: PAGES}
    found = Disk([Vol(files, state="dirty", reason="fast startup")], stored=(SLEEP,))
    assert "cannot be read" in found.judged().judgement.refusals[0]
    found.volumes[0].state = "clean"
    assert found.judged().judgement.refusals == ()
    assert found.judged().dropped() == {}


def test_a_sleeping_windows_beside_a_linux_is_refused_too() -> None:
    linux = {"/etc/os-release": b"ID=debian\n", "/boot/vmlinuz": b"k" * 900}
    found = Disk([Vol({**windows(), SLEEP: b"HIBR" + PAGES}), Vol(linux, "ext4", "83")])
    assert found.judged().judgement.guest.family == "linux"
    assert "partition 1 is hibernated" in found.judged().judgement.refusals[0]


def test_page_and_swap_files_are_dropped_where_windows_keeps_them() -> None:
    judged = bios(windows(files={"/pagefile.sys": PAGES, "/swapfile.sys": PAGES})).judged()
    assert judged.dropped() == {
        "pagefile.sys on partition 1": 3 * PAGE,
        "swapfile.sys on partition 1": 3 * PAGE,
    }


def paging(value: str, *texts: str) -> Disk:
    """C: and D:; each has page files in the root and in a folder."""
    files = {"/pagefile.sys": PAGES, "/pages/my.sys": PAGES}
    second = Vol({**files})
    first = Vol({"/bootmgr": b"m" * 900, **windows(files=files)})
    found = Disk([first, second])
    start = found.survey()[0].volumes[1].start
    control = Key()
    control.key("Session Manager\\Memory Management").values[value] = multi_sz(texts)
    devices = {"\\DosDevices\\D:": mounted_mbr(start)}
    first.files[f"{CONFIG}/SYSTEM"] = hive_of(system(control=control, devices=devices))
    assert found.survey()[0].volumes[1].start == start
    return found


@pytest.mark.parametrize(
    ("value", "texts", "dropped"),
    [
        ("PagingFiles", ("D:\\pagefile.sys 64 128",), {"pagefile.sys on partition 2"}),
        ("PagingFiles", ("C:\\Pages\\MY.sys 0 0",), {"pages/my.sys on partition 1"}),
        ("PagingFiles", ("?:\\pagefile.sys",), {"pagefile.sys on partition 2"}),
        ("ExistingPageFiles", ("\\??\\D:\\pages\\my.sys",), {"pages/my.sys on partition 2"}),
        ("PagingFiles", ("E:\\pagefile.sys", "..\\x", ""), set()),
        ("PagingFiles", ("C:\\Windows\\System32\\ntoskrnl.exe",), set()),  # it starts from that
    ],
)
def test_the_registry_says_where_page_files_are(
    value: str, texts: tuple[str, ...], dropped: set[str]
) -> None:
    found = {name.casefold() for name in paging(value, *texts).judged().dropped()}
    assert found == {"pagefile.sys on partition 1"} | dropped


@pytest.mark.parametrize("start", [b"PAGEDUMP", b"PAGEDU64"])
def test_a_page_file_with_a_memory_dump_stays_and_is_warned_of(start: bytes) -> None:
    judged = bios(windows(files={"/pagefile.sys": start + PAGES})).judged()
    assert judged.dropped() == {}
    assert "not saved yet" in judged.warning("memory dump")


def test_a_compressed_page_file_stays() -> None:
    files = windows(files={"/pagefile.sys": PAGES})
    judged = bios(files, stored=("/pagefile.sys",)).judged()
    assert judged.dropped() == {}


STORE = (
    "/System Volume Information/"
    "{1b0e6f6c-0000-11e0-8d3f-000c29a1b2c3}{3808876b-c176-4e48-b7ae-04046e6cc752}"
)


def with_shadow_copies() -> Disk:
    files = {**windows(), STORE: b"s" * (3 * PAGE), f"{WINDOWS}/x.txt": b"x" * 900}
    found = Disk([Vol({"/bootmgr": b"m" * 900, **files})])
    end = found.survey()[0].volumes[0].end
    found.held = ((0, as_ranges([(end - 8 * PAGE, end - 2 * PAGE)])),)
    found.snapshots = ((0, as_ranges([(MIB_START + 0x1E30, MIB_START + 0x1E38)])),)
    return found


MIB_START = 1 << 20


def test_shadow_copies_are_kept_whole_and_what_that_costs_is_said() -> None:
    judged = with_shadow_copies().judged()
    assert judged.dropped() == {}
    said = judged.warning("shadow copies on partition 1 are kept")
    assert "up to 36.9 kB" in said
    assert "--drop-snapshots" in said


def test_what_shadow_copies_may_read_below_a_page_file_stays_with_them() -> None:
    """A page file takes clusters over without writing: an older copy reads them where they lie."""
    found = with_shadow_copies()
    found.volumes[0].files.update({"/pagefile.sys": PAGES, SLEEP: bytes(4 * PAGE)})
    end = found.survey()[0].volumes[0].end
    found.held = ((0, as_ranges([(end - 2 * PAGE, end - PAGE)])),)
    assert found.judged().dropped() == {}
    assert set(found.judged(drop_snapshots=True).dropped()) == {
        "pagefile.sys on partition 1",
        "hiberfil.sys on partition 1",
        "shadow copies on partition 1",
    }


def test_shadow_copies_of_one_volume_hold_no_page_file_of_another() -> None:
    found = paging("PagingFiles", "D:\\pagefile.sys 64 128")
    found.snapshots = ((0, as_ranges([(MIB_START + 0x1E30, MIB_START + 0x1E38)])),)
    assert set(found.judged().dropped()) == {"pagefile.sys on partition 2"}


@pytest.mark.parametrize("path", ["/pagefile.sys", SLEEP])
def test_a_file_with_another_name_is_more_than_pages(path: str) -> None:
    found = Disk(
        [Vol({"/bootmgr": b"m" * 900, **windows(files={path: bytes(PAGE) + PAGES})})],
        hard_links={"/Users/kim/thesis.doc": path},
    )
    assert found.judged().dropped() == {}


def test_shadow_copies_are_dropped_whole_on_request() -> None:
    found = with_shadow_copies()
    judged = found.judged(drop_snapshots=True)
    assert judged.dropped() == {"shadow copies on partition 1": 8 + 6 * PAGE + 3 * PAGE}
    assert not [one for one in judged.judgement.warnings if "shadow" in one]
    (dropped,) = judged.judgement.dropped
    assert (dropped.ranges[1:, 0] >= dropped.ranges[:-1, 1]).all()
    assert np.isin(0x1E30 + MIB_START, dropped.ranges)
