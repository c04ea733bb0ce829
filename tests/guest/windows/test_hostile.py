"""Whatever a guest's hives, menus and programs say, judging it ends soon and raises nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.windows import bcd
from fixtures.windows.registry import Place
from packer.guest.judge import judge
from packer.guest.windows.closure import MAX_ROUNDS
from tests.formats.damage import damaged
from tests.formats.windows.make_pe import Form, program
from tests.guest.material import DirectExaminer
from tests.guest.windows.material import (
    CONFIG,
    DRIVERS,
    SYSTEM32,
    Disk,
    Key,
    Vol,
    bios,
    driver,
    dword,
    hive_of,
    multi_sz,
    system,
    sz,
    windows,
    xp,
)

SECONDS = 10.0
"""What one guest may take on a busy machine; it takes less than one."""

ODD_NAMES = (
    *("..", ".", "", "a\\b", "../../etc/passwd", "x" * 250, "\u202etxt", "\x00", "\x1b[2J"),
    *("C:", "\\\\?\\", "%SystemRoot%", '"', "CON", "ß" * 100, "ﬁ", "İ"),
)


DEEP = "deep\\"


class Timed:
    """Demands that what is done within it takes no longer than SECONDS."""

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self.start < SECONDS


def test_ten_thousand_services() -> None:
    services = {
        f"service{number}": driver(
            image=f"\\SystemRoot\\System32\\{number % 7}\\{DEEP * (number % 30)}x.sys",
            error=number % 4,
            BootFlags=dword(number),
        )
        for number in range(10_000)
    }
    with Timed():
        judged = xp(services).judged()
    assert 0 < len(judged.judgement.errors) < 20
    assert all(len(one) < 2000 for one in judged.judgement.warnings)


def test_imports_that_go_in_circles_and_never_end() -> None:
    names = [f"m{number}.sys" for number in range(300)]
    files = {
        f"{DRIVERS}/{name}": program(Form(imports=(names[number - 1], name, names[0], "M5.SYS")))
        for number, name in enumerate(names)
    }
    with Timed():
        judged = xp({"first": driver(image="system32\\drivers\\m250.sys")}, files).judged()
    inside = sum(bool(judged.group(path)) for path in files)
    assert MAX_ROUNDS < inside <= len(names)
    assert "not all imports" in judged.warning("imports of the boot set")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_and_paths(name: str) -> None:
    control = Key()
    control.key("Class\\{4d36e967-e325-11ce-bfc1-08002be10318}").values["UpperFilters"] = sz(name)
    control.key("Nls\\CodePage").values["ACP"] = sz(name)
    memory = control.key("Session Manager\\Memory Management")
    memory.values["PagingFiles"] = multi_sz([name or "x"])
    for number, value in enumerate((name, f"..\\{name}", f"C:\\{name}", f"\\??\\{name}\\{name}")):
        control.put(f"CriticalDeviceDatabase\\{number}", Service=sz(value))
    services = {"odd": driver(image=name), "path": driver(image=f"\\??\\C:\\{name}\\{name}.sys")}
    found = xp(services, {"/etc/passwd": b"p" * 900})
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = hive_of(system(services, control=control))
    judged = found.judged()
    assert judged.group("/etc/passwd") == ""
    assert all(one.isprintable() for one in judged.judgement.warnings)


@pytest.mark.parametrize(
    "pattern",
    ["*" * 2000, "*a" * 500, "?" * 3000, "[" * 300, "\\" * 300, "*\\*" * 200, "(?P<x>", "\0*"],
)
def test_a_list_of_absurd_patterns(pattern: str) -> None:
    lines = "".join(f"{pattern}{number}\r\n" for number in range(1000))
    files = {f"/folder/{'a' * 200}{number}.bin": b"x" for number in range(3000)}
    files[f"{SYSTEM32}/WimBootCompress.ini"] = f"[PrepopulateList]\r\n{lines}".encode()[: 200 << 10]
    with Timed():
        bios(windows(files=files)).judged()


MENU_WORDS = (
    *("[boot loader]\r\n", "[operating systems]\r\n", "default=", "timeout=99999999999\r\n", "="),
    *("multi(0)disk(0)rdisk(0)partition(1)", "signature(ffffffff)disk(0)rdisk(0)partition(0)"),
    *("\\WINDOWS", "\\..\\..\\x", '"', "/KERNEL=..\\x.exe", "/HAL=", "/DEBUGPORT=\\\\x", "\r\n"),
    *("C:\\", "C:\\..\\..\\etc\\passwd=", "\0", "\x1a", "é" * 100),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(MENU_WORDS), max_size=40).map("".join))
def test_whatever_a_boot_ini_says(text: str) -> None:
    judged = xp({}, {"/etc/passwd": b"p" * 900}, ini=text.encode("cp1252", "replace")).judged()
    assert judged.judgement.guest.family == "windows"
    assert judged.group("/etc/passwd") == ""


def test_damaged_hives_and_stores_end_in_warnings_or_right_answers() -> None:
    store = bcd.store(bcd.Boot(Place(1, 9), Place(2, 9), "\\bootmgr", "exe", "Windows"))
    hive = hive_of(system({f"d{number}": driver() for number in range(60)}))
    software = windows()[f"{CONFIG}/SOFTWARE"]
    copies = (damaged(one, [(0, len(one))], 60) for one in (hive, software, store))
    with Timed():
        for broken in zip(*copies, strict=True):
            files = windows()
            files[f"{CONFIG}/SYSTEM"], files[f"{CONFIG}/SOFTWARE"], files["/Boot/BCD"] = broken
            judged = bios(files).judged()
            assert judged.judgement.guest.family == "windows"
            assert all(one.isprintable() for one in judged.judgement.warnings)


def test_damaged_programs_are_passed_over() -> None:
    whole = program(Form(imports=("a.sys", "b.sys"), delay_imports=("c.sys",), forwarders=("d.x",)))
    copies = damaged(whole, [(0, len(whole))], 200)
    files = {f"{DRIVERS}/{number}.sys": data for number, data in enumerate(copies)}
    services = {str(number): driver() for number in range(200)}
    with Timed():
        judged = xp(services, files).judged()
    assert {f"{DRIVERS}/{number}.sys" for number in range(200)} <= judged.boot()


def test_many_windows_on_many_volumes() -> None:
    volumes = [Vol({**windows(), "/ntldr": b"n" * 900, "/Boot/BCD": b"b" * 900}) for _ in range(60)]
    with Timed():
        judged = Disk(volumes).judged()
    assert len(judged.judgement.warnings) < 120


def test_a_hundred_thousand_names_in_system32() -> None:
    files = {f"{SYSTEM32}/folder{number % 100}/{number}.dll": b"" for number in range(100_000)}
    survey, source = bios(windows(files=files)).survey()
    with Timed():
        judge(survey, source, DirectExaminer(survey, source))
