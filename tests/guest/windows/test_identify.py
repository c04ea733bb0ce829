"""Which Windows it is."""

from __future__ import annotations

import pytest

from packer.artifact.config import Guest
from tests.formats.windows.make_pe import Form, program
from tests.guest.windows.material import (
    CONFIG,
    SYSTEM32,
    TEN,
    XP,
    Key,
    bios,
    dword,
    hive_of,
    system,
    sz,
    version,
    windows,
    xp,
)


def guest(software: Key) -> Guest:
    return bios(windows(software=software)).judged().judgement.guest


def build(product: str, number: str, **values: str) -> Key:
    found = version(product, "6.3", CurrentMajorVersionNumber=dword(10))
    key = found.key("Microsoft\\Windows NT\\CurrentVersion")
    key.values["CurrentBuildNumber"] = sz(number)
    key.values |= {name: sz(value) for name, value in values.items()}
    return found


@pytest.mark.parametrize(
    ("software", "expected"),
    [
        (
            version("Windows 7 Professional", "6.1", CSDVersion=sz("Service Pack 1")),
            ("windows-7", "6.1.7601", "Windows 7 Professional Service Pack 1"),
        ),
        (TEN, ("windows-10", "10.0.7601.2965", "Windows 10 Pro 22H2")),
        (
            build("Windows 10 Pro", "22631", DisplayVersion="23H2"),
            ("windows-11", "10.0.22631", "Windows 11 Pro 23H2"),
        ),
        (
            build("Windows Server 2019 Standard", "17763", InstallationType="Server Core"),
            ("windows-server-2019", "10.0.17763", "Windows Server 2019 Standard"),
        ),
        (
            build("Windows Server 2016", "14393"),
            ("windows-server-2016", "10.0.14393", "Windows Server 2016"),
        ),
        (
            version("Windows Server (R) 2008 Standard", "6.0"),
            ("windows-server-2008", "6.0.7601", "Windows Server (R) 2008 Standard"),
        ),
        (version("Windows 8.1 Pro", "6.3"), ("windows-8.1", "6.3.7601", "Windows 8.1 Pro")),
        (version("Windows 99", "99.1"), ("windows", "99.1.7601", "Windows 99")),
    ],
)
def test_a_windows_is_named_by_its_hive(software: Key, expected: tuple[str, str, str]) -> None:
    found = guest(software)
    assert (found.id, found.release, found.name) == expected
    assert (found.family, found.architecture, found.firmware) == ("windows", "x86_64", "bios")


def test_xp_is_named_by_its_hive() -> None:
    found = xp({}).judged().judgement.guest
    assert found.line == "Microsoft Windows XP Service Pack 3, x86_64, bios"
    assert found.id == "windows-xp"


@pytest.mark.parametrize("words", [("x86", "i686"), ("AMD64", "x86_64"), ("ARM64", "aarch64")])
def test_without_a_readable_kernel_the_registry_says_the_machine(words: tuple[str, str]) -> None:
    control = Key()
    control.put("Session Manager\\Environment", PROCESSOR_ARCHITECTURE=sz(words[0]))
    files = windows(system(control=control))
    files[f"{SYSTEM32}/ntoskrnl.exe"] = files[f"{SYSTEM32}/hal.dll"] = b"no program" * 99
    assert bios(files).judged().judgement.guest.architecture == words[1]


def test_a_kernel_of_32_bits() -> None:
    kernel = program(Form(is_64_bit=False))
    files = windows(files={f"{SYSTEM32}/ntoskrnl.exe": kernel})
    assert bios(files).judged().judgement.guest.architecture == "i686"


@pytest.mark.parametrize("data", [b"", b"regf" * 2000, bytes(9000)])
@pytest.mark.parametrize(
    ("further", "missing", "name"),
    [
        ({}, f"{SYSTEM32}/winload.exe", "Windows 2000, XP or Server 2003"),
        ({}, "", "Windows Vista or 7"),
        ({f"{CONFIG}/BBI": b"b" * 9000}, "", "Windows 8 or later"),
    ],
)
def test_without_readable_hives_names_and_programs_tell_what_they_can(
    data: bytes, further: dict[str, bytes], missing: str, name: str
) -> None:
    files = windows(files=further)
    files[f"{CONFIG}/SOFTWARE"] = files[f"{CONFIG}/SYSTEM"] = data
    files.pop(missing, None)
    judged = bios(files).judged()
    found = judged.judgement.guest
    assert found == Guest("windows", "windows", "", name, "x86_64", "bios")
    assert judged.group(f"{SYSTEM32}/ntoskrnl.exe") == "kernel"
    assert judged.group(f"{CONFIG}/SYSTEM") == "registry"


def test_what_a_hive_says_cannot_steer_a_terminal() -> None:
    found = guest(version("Windows \x1b[2J7" + "x" * 500, "6.1", CSDVersion=sz("\u202e")))
    assert found.name.isprintable()
    assert len(found.name) < 402


def test_a_folder_called_windows_makes_no_windows() -> None:
    files = {f"{SYSTEM32}/ntoskrnl.exe": b"MZ" * 999, "/bootmgr": b"x" * 900}
    assert bios(files).judged().judgement.guest.family == "unknown"


@pytest.mark.parametrize("folder", ["/WINNT", "/winxp"])
def test_windows_may_lie_in_another_folder(folder: str) -> None:
    files = {path.replace("/Windows", folder, 1): data for path, data in windows().items()}
    files[f"{folder}/System32/config/SOFTWARE"] = hive_of(XP)
    judged = bios(files).judged()
    assert judged.judgement.guest.id == "windows-xp"
    assert judged.group(f"{folder}/System32/hal.dll") == "HAL"
