"""Real hives, asked in the same way as those of a guest that is packed.

The hives are not ours: VMPACK_CORPUS names the folder that holds them, and without it nothing
here runs.
"""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from formats.windows.bcd import BOOT_MANAGER
from packer.guest.windows.guest import Windows, find_windows
from packer.guest.windows.registry import MEMORY
from packer.guest.windows.services import BOOT_FLAGS, BOOT_SERVICE, FILE_SYSTEM, find_drivers
from tests.guest.material import DirectExaminer
from tests.guest.windows.material import CONFIG, Disk, Vol, windows

CORPUS = os.environ.get("VMPACK_CORPUS", "")
pytestmark = pytest.mark.skipif(
    not CORPUS, reason="real hives: VMPACK_CORPUS names no folder with them"
)


def real(name: str) -> bytes:
    return lzma.decompress(Path(CORPUS, f"{name}.xz").read_bytes())


def guest_with(files: dict[str, bytes]) -> Windows:
    survey, source = Disk([Vol({"/bootmgr": b"m" * 900, **windows(), **files})]).survey()
    found = find_windows(survey, source, DirectExaminer(survey, source))
    assert found is not None
    assert found.system is not None
    return found


@pytest.fixture(scope="module")
def seven() -> Windows:
    return guest_with({f"{CONFIG}/SYSTEM": real("SYSTEM_win7")})


@pytest.fixture(scope="module")
def ten() -> Windows:
    logs = {f"{CONFIG}/SYSTEM.{log}": real(f"SYSTEM_win10_dirty.{log}") for log in ("LOG1", "LOG2")}
    return guest_with({f"{CONFIG}/SYSTEM": real("SYSTEM_win10_dirty"), **logs})


@pytest.mark.parametrize(("name", "count"), [("seven", 36), ("ten", 86)])
def test_the_services_that_start_at_boot_are_as_many_as_others_count(
    name: str, count: int, request: pytest.FixtureRequest
) -> None:
    windows: Windows = request.getfixturevalue(name)
    assert windows.system is not None
    current = [one for one in windows.system.services() if one.is_current]
    assert sum(one.start == 0 for one in current) == count
    drivers = find_drivers(windows.system, "ntfs")
    assert sum(one.rule == BOOT_SERVICE for one in drivers) == count


def test_the_hive_that_was_being_written_is_replayed(ten: Windows) -> None:
    assert ten.system is not None
    assert ten.system.view.state == "replayed"
    assert ten.tree.warnings == []


@pytest.mark.parametrize("name", ["seven", "ten"])
def test_the_rules_find_what_a_person_finds_in_these_hives(
    name: str, request: pytest.FixtureRequest
) -> None:
    windows: Windows = request.getfixturevalue(name)
    assert windows.system is not None
    drivers = {one.service.name.casefold(): one for one in find_drivers(windows.system, "ntfs")}
    assert drivers["ntfs"].rule == FILE_SYSTEM
    assert drivers["fs_rec"].image_path == r"System32\drivers\Fs_Rec.sys"
    assert drivers["vhdmp"].rule == BOOT_FLAGS
    places = [windows.drives.locate(one.image_path) for one in drivers.values()]
    assert all(one is not None and one.path.endswith((".sys", ".SYS")) for one in places)
    assert windows.system.texts(MEMORY, "ExistingPageFiles") == (r"\??\C:\pagefile.sys",)


def test_devices_that_only_other_hardware_has_bring_their_drivers(seven: Windows) -> None:
    assert seven.system is not None
    rules = {one.service.name.casefold(): one.rule for one in find_drivers(seven.system, "ntfs")}
    assert rules["storvsc"] == "drives a critical device"
    assert len(rules) > 100


def test_a_real_boot_store_is_read() -> None:
    files = {**windows(), "/bootmgr": b"m" * 900, "/Boot/BCD": real("BCD")}
    survey, source = Disk([Vol(files)]).survey()
    found = find_windows(survey, source, DirectExaminer(survey, source))
    assert found is not None
    (offer, *_) = [one for one in found.loaders.offers if one.is_default]
    assert BOOT_MANAGER
    assert offer.folder.casefold() == "/windows"
    assert offer.files[0].casefold() == "/windows/system32/winload.efi"
