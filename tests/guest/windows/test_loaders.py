"""Boot managers, what boot.ini and the BCD say, and which of several Windows it is."""

from __future__ import annotations

from uuid import UUID

import pytest

from fixtures.windows import bcd
from fixtures.windows.registry import Place
from packer.guest.windows.file_lists import GROUPS
from tests.guest.windows.material import (
    C_GUID,
    CONFIG,
    DISK_GUID,
    DRIVERS,
    ESP_TYPE,
    SIGNATURE,
    SYSTEM32,
    TEN,
    WINDOWS,
    Disk,
    Key,
    Vol,
    bios,
    driver,
    hive_of,
    multi_sz,
    system,
    version,
    windows,
    xp,
)
from tests.guest.windows.material import sz as text

MENU = b"""[boot loader]\r
timeout=30\r
default=multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS\r
[operating systems]\r
multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS="XP" /fastdetect\r
multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS="d" /KERNEL=ntkrnlmp.dbg /HAL=my.dll /DEBUGPORT=1394\r
C:\\CMDCONS\\BOOTSECT.DAT="Recovery Console" /cmdcons\r
"""


def boot(windows: Place, system: Place, suffix: str = "exe", name: str = "Windows") -> bytes:
    manager = "\\bootmgr" if suffix == "exe" else "\\EFI\\Microsoft\\Boot\\bootmgfw.efi"
    return bcd.store(bcd.Boot(system, windows, manager, suffix, name))


def family(disk: Disk) -> str:
    return disk.judged().judgement.guest.family


def test_ntldr_reads_its_files_and_those_that_boot_ini_names() -> None:
    files = {
        "/NTDETECT.COM": b"d" * 900,
        "/bootfont.bin": b"f" * 900,
        "/CMDCONS/BOOTSECT.DAT": b"s" * 900,
        "/readme.txt": b"r" * 900,
        f"{SYSTEM32}/ntkrnlmp.dbg": b"k" * 900,
        f"{SYSTEM32}/my.dll": b"h" * 900,
        f"{SYSTEM32}/kd1394.dll": b"t" * 900,
        f"{SYSTEM32}/other.dll": b"o" * 900,
    }
    judged = xp({}, files, ini=MENU).judged()
    groups = {path: judged.group(path) for path in files}
    assert groups == {
        "/NTDETECT.COM": "loader",
        "/bootfont.bin": "loader",
        "/CMDCONS/BOOTSECT.DAT": "boot sector",
        "/readme.txt": "",
        f"{SYSTEM32}/ntkrnlmp.dbg": "kernel",
        f"{SYSTEM32}/my.dll": "HAL",
        f"{SYSTEM32}/kd1394.dll": "kernel",
        f"{SYSTEM32}/other.dll": "",
    }
    assert judged.rule("/CMDCONS/BOOTSECT.DAT") == "offered by boot.ini: /CMDCONS/BOOTSECT.DAT"
    assert judged.rule(f"{SYSTEM32}/my.dll") == "named by boot.ini on partition 1"
    assert judged.judgement.guest.firmware == "bios"


def test_boot_ini_may_be_a_file_with_clusters_of_its_own() -> None:
    padded = MENU + b";" * 900
    judged = xp({}, {"/boot.ini": padded, f"{SYSTEM32}/my.dll": b"h" * 900}).judged()
    assert judged.group(f"{SYSTEM32}/my.dll") == "HAL"
    assert judged.group("/boot.ini") == "loader"


def test_boot_ini_says_which_partition_holds_windows() -> None:
    second = MENU.replace(b"partition(1)", b"partition(2)")
    first = Vol({"/ntldr": b"n" * 900, **windows(system(), software=version("First", "5.1"))})
    other = Vol(windows(system(), software=version("Second", "5.1")))
    judged = Disk([first, other], small={"/boot.ini": second}).judged()
    assert judged.judgement.guest.name == "Second"
    said = judged.warning("holds another Windows")
    assert said.startswith("/Windows on partition 1 holds another Windows, which is not looked")


@pytest.mark.parametrize(
    "target",
    [
        b"multi(0)disk(0)rdisk(1)partition(2)",
        b"multi(0)disk(0)rdisk(0)partition(99)",
        b"signature(00000001)disk(0)rdisk(0)partition(2)",
    ],
)
def test_a_windows_on_another_disk_is_not_taken_for_this_one(target: bytes) -> None:
    menu = MENU.replace(b"multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS", target + b"\\ELSEWHERE")
    first = Vol({"/ntldr": b"n" * 900, **windows(system(), software=version("First", "5.1"))})
    judged = Disk([first], small={"/boot.ini": menu}).judged()
    assert judged.judgement.guest.name == "First"


def test_a_bios_reads_the_boot_manager_and_its_whole_folder() -> None:
    layout = [Vol({}), Vol({})]
    place = [one.start for one in Disk(layout).survey()[0].volumes]
    store = boot(Place(place[1] + (1 << 20), SIGNATURE), Place(place[0], SIGNATURE))
    system_files = {
        "/bootmgr": b"m" * 900,
        "/BOOTNXT": b"x",
        "/Boot/BCD": store,
        "/Boot/de-DE/bootmgr.exe.mui": b"d" * 900,
        "/data.txt": b"t" * 900,
    }
    files = {f"{SYSTEM32}/winresume.exe": b"r" * 900, "/bootmgr.bak": b"b" * 900}
    judged = Disk([Vol(system_files), Vol(windows(files=files))]).judged()
    assert judged.judgement.guest.firmware == "bios"
    for path in ("/bootmgr", "/BOOTNXT", "/Boot/BCD", "/Boot/de-DE/bootmgr.exe.mui"):
        assert judged.group(path) == "loader"
    assert judged.group("/data.txt") == judged.group("/bootmgr.bak") == ""
    assert judged.rule(f"{SYSTEM32}/winload.exe") == "named by the BCD on partition 1"
    assert judged.rule(f"{SYSTEM32}/winresume.exe") == "named by the BCD on partition 1"


def uefi_disk(files: dict[str, bytes] | None = None, loader: str = "winload.efi") -> Disk:
    guid = UUID(C_GUID)
    windows_place = Place(0, 0, UUID(DISK_GUID), guid)
    store = boot(windows_place, Place(0, 0, UUID(DISK_GUID), UUID(int=7)), "efi")
    esp = {
        "/EFI/Microsoft/Boot/BCD": store,
        "/EFI/Microsoft/Boot/bootmgfw.efi": b"m" * 900,
        "/EFI/vendor/anything.bin": b"a" * 900,
    }
    c = windows(files=files, software=TEN)
    c[f"{SYSTEM32}/{loader}"] = c.pop(f"{SYSTEM32}/winload.exe")
    return Disk(
        [
            Vol(esp, "vfat", ESP_TYPE),
            Vol({"/other.txt": b"o" * 900}, guid="bbbbbbbb-0000-4000-8000-00000000000d"),
            Vol(c, guid=C_GUID),
        ],
        "gpt",
    )


def test_uefi_reads_its_whole_system_partition() -> None:
    judged = uefi_disk().judged()
    assert judged.judgement.guest.firmware == "uefi"
    assert judged.group("/EFI/vendor/anything.bin") == "loader"
    assert judged.rule("/EFI/Microsoft/Boot/BCD") == "EFI system partition"
    assert judged.rule(f"{SYSTEM32}/winload.efi") == "named by the BCD on partition 1"
    assert judged.group("/other.txt") == ""
    assert "another Windows" not in "".join(judged.judgement.warnings)


def test_a_loader_that_the_bcd_names_and_nobody_has_is_warned_of() -> None:
    judged = uefi_disk(loader="renamed.efi").judged()
    assert "winload.efi, named by the BCD on partition 1, is not there" in judged.warning("winload")


def test_a_bcd_of_other_identifiers_still_tells_the_folder() -> None:
    """A disk that was cloned has other identifiers; Windows mends its store later."""
    c = windows(software=version("Odd", "6.1"))
    moved = {path.replace(WINDOWS, "/WIN7", 1): data for path, data in c.items()}
    store = boot(Place(1, 99), Place(2, 99)).replace(
        "\\Windows\0".encode("utf-16-le"), "\\WIN7\0\0\0\0".encode("utf-16-le")
    )
    judged = bios({**windows(), **moved, "/Boot/BCD": store}).judged()
    assert judged.judgement.guest.name == "Odd"


@pytest.mark.parametrize("data", [b"", b"regf" + bytes(5000), b"no hive" * 999])
def test_a_store_that_cannot_be_read_is_warned_of(data: bytes) -> None:
    judged = bios({**windows(), "/Boot/BCD": data}).judged()
    assert "the BCD on partition 1 is not read" in judged.warning("the BCD")
    assert judged.judgement.guest.family == "windows"
    assert judged.rule(f"{SYSTEM32}/winload.exe") == "loader of Windows"


def test_a_disk_without_boot_manager_is_packed_with_a_warning() -> None:
    judged = Disk([Vol(windows())]).judged()
    assert judged.judgement.errors == judged.judgement.refusals == ()
    assert judged.warning("would not boot").startswith(
        "this disk would not boot by itself: no boot manager of Windows was found"
    )


def test_of_two_windows_without_a_boot_manager_it_is_the_first() -> None:
    vols = [Vol(windows(software=version(name, "6.1"))) for name in ("First", "Second")]
    judged = Disk(vols).judged()
    assert judged.judgement.guest.name == "First"
    assert "/Windows on partition 2" in judged.warning("another Windows")


def test_a_windows_that_was_moved_away_is_none() -> None:
    old = {f"/Windows.old{path}": data for path, data in windows().items()}
    assert family(Disk([Vol(old)])) == "unknown"


def test_paths_are_those_of_c_and_other_volumes_keep_their_own() -> None:
    judged = uefi_disk({f"{WINDOWS}/x.txt": b"x" * 900}).judged()
    assert f"{WINDOWS}/x.txt" in judged.judgement.path
    assert "/EFI/vendor/anything.bin" in judged.judgement.path


def test_a_linux_beside_a_windows_is_the_guest_that_is_looked_into() -> None:
    linux = {"/etc/os-release": b"ID=debian\n", "/etc/fstab": b"", "/boot/vmlinuz": b"k" * 900}
    assert family(Disk([Vol(windows()), Vol(linux, "ext4", "83")])) == "linux"


def test_the_groups_are_those_that_people_know() -> None:
    expected = ("boot sector", "loader", "kernel", "HAL", "registry", "drivers", "code pages")
    assert expected == GROUPS


def test_code_pages_of_xp_are_those_that_the_registry_names() -> None:
    control = Key()
    control.put("Nls\\CodePage", ACP=text("1252"), OEMCP=text("850"), OEMHAL=text("vgaoem.fon"))
    control.put("Nls\\Language", Default=text("0407"))
    codes = control.key("Nls\\CodePage")
    codes.values["1252"] = text("c_1252.nls")
    codes.values["850"] = text("..\\c_850.nls")
    control.key("Nls\\Language").values["0407"] = text("l_intl.nls")
    names = ("c_1252.nls", "c_850.nls", "c_437.nls", "l_intl.nls", "vgaoem.fon")
    found = xp({}, {f"{SYSTEM32}/{name}": b"n" * 900 for name in names})
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = hive_of(system(control=control))
    judged = found.judged()
    inside = {name for name in names if judged.group(f"{SYSTEM32}/{name}") == "code pages"}
    assert inside == {"c_1252.nls", "l_intl.nls", "vgaoem.fon"}
    assert judged.rule(f"{SYSTEM32}/c_1252.nls") == "named by the registry: CodePage ACP"


LIST = """; comment
[CompressionExclusionList]
ntoskrnl.exe

[PrepopulateList]
bootstat.dat
*winload.*
wof.sys
\\Windows\\System32\\PlatformManifest\\*

[ExclusionList]
\\hiberfil.sys
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_guests_own_list_of_what_its_loaders_read_is_followed(encoding: str) -> None:
    files = {
        f"{SYSTEM32}/WimBootCompress.ini": LIST.encode(encoding),
        f"{SYSTEM32}/PlatformManifest/deep/one.txt": b"m" * 900,
        "/Elsewhere/x86winload.mui": b"w" * 900,
        "/Elsewhere/wof.sys": b"w" * 900,
        "/Elsewhere/data.sys": b"w" * 900,
    }
    judged = bios(windows(files=files)).judged()
    named = "named by WimBootCompress.ini"
    assert judged.rule(f"{SYSTEM32}/PlatformManifest/deep/one.txt") == named
    assert judged.rule("/Elsewhere/x86winload.mui") == named
    assert judged.group("/Elsewhere/x86winload.mui") == "loader"
    assert judged.group("/Elsewhere/wof.sys") == "drivers"
    assert judged.group("/Elsewhere/data.sys") == ""


def test_drivers_of_a_bios_guest_are_multi_strings_or_strings() -> None:
    control = Key()
    path = "Class\\{71a27cdd-812a-11d0-bec7-08002be2092f}"
    control.key(path).values["UpperFilters"] = text("single")
    control.key(path).values["LowerFilters"] = multi_sz([])
    found = xp({}, {f"{DRIVERS}/single.sys": b"d" * 900})
    root = system({"single": driver(3)}, control=control)
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = hive_of(root)
    assert found.judged().group(f"{DRIVERS}/single.sys") == "drivers"
