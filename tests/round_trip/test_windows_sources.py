"""A thin copy of a Windows-shaped guest, and a Linux host that has no Windows of its own.

What the copy lacks comes from another Windows-shaped disk, a symbol server, an installation medium,
a mounted volume. The other disk is the guest's own image at another patch level: some programs have
other bytes, at the same paths, with the same sizes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fixtures.web import nginx
from packer.artifact.contents import Class
from packer.artifact.opened import OpenedPack
from packer.sources.base import Wanted
from packer.sources.open import open_pack
from packer.sources.symbols import symbol_paths
from packer.unpack.places import Places
from tests.host import let_others_enter, needs_root, run
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import Packed
from tests.sources.ntfs_volume import mounted

pytestmark = pytest.mark.guest
Pack = Callable[[str], Packed]


@dataclass(frozen=True)
class Setting:
    """bytes of shared contents: of the programs that were patched, and of all the others."""

    pack: Packed
    other_disk: Path
    store: Path
    patched_bytes: int
    other_bytes: int


def read(image: Path, places: Places, row: int) -> bytes:
    """A content as a disk holds it."""
    whole = bytearray(places.sizes[row])
    with image.open("rb") as disk:
        for target, low, high in places.targets(row, 0, len(whole)):
            disk.seek(target)
            whole[low:high] = disk.read(high - low)
    return bytes(whole)


def patch(image: Path, places: Places, row: int) -> None:
    """Give a program other bytes, as an update does."""
    with image.open("r+b") as disk:
        for target, low, high in places.targets(row, 0, places.sizes[row]):
            disk.seek(target)
            data = disk.read(high - low)
            disk.seek(target)
            disk.write(bytes(byte ^ 0x5A for byte in data))


def shared_programs(pack: OpenedPack) -> dict[int, list[str]]:
    """Rows of programs that a thin copy lacks, with their places in a symbol store."""
    contents = pack.map.contents
    rows = np.flatnonzero(contents.classes == Class.SHARED)
    return symbol_paths(Wanted(contents, rows, pack.hints))


@pytest.fixture(scope="module")
def setting(pack_guest: Pack, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Every second program was patched; the symbol store has those."""
    packed = pack_guest("windows-10-uefi")
    folder = tmp_path_factory.mktemp("windows")
    let_others_enter(folder)
    disk, store = folder / "other.raw", folder / "symbols"
    shutil.copyfile(packed.guest.image, disk)
    with closing(open_pack(str(packed.full))) as pack:
        places = Places(pack.map)
        programs = dict(list(shared_programs(pack).items())[::2])
        for row, paths in programs.items():
            file = store / paths[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read(packed.guest.image, places, row))
            patch(disk, places, row)
        sizes = pack.map.contents.size
        everything = int(sizes[pack.map.contents.classes == Class.SHARED].sum())
        patched = int(sizes[list(programs)].sum())
    run("qemu-img", "convert", "-O", "qcow2", disk, folder / "other.qcow2")
    disk.unlink()
    return Setting(packed, folder / "other.qcow2", store, patched, everything - patched)


def rebuilt(vmpack: Vmpack, setting: Setting, room: Path, *sources: str) -> dict[str, int]:
    """Unpack the thin copy, prove the disk; return the bytes of contents by source."""
    disk = room / "rebuilt.raw"
    named = [word for source in sources for word in ("--from", source)]
    report = vmpack.json("unpack", setting.pack.thin, "-o", disk, "--no-store", *named)
    assert vmpack.json("verify", disk, setting.pack.boot, "--exact")["right"]
    return {one["source"]: one["content_bytes"] for one in report["supplied"]}


def test_a_disk_and_a_symbol_server_rebuild_a_thin_copy(
    run_vmpack: Vmpack, setting: Setting, room: Path
) -> None:
    """Nothing else: no store, no mirror, no tree of this host."""
    disk = f"disk:{setting.other_disk}"
    with nginx(setting.store, room / "nginx") as url:
        supplied = rebuilt(run_vmpack, setting, room, disk, f"symbols:{url}")
        asked = (room / "nginx" / "access.log").read_text().splitlines()
    assert setting.patched_bytes > 10_000_000
    assert setting.other_bytes > 10_000_000
    assert supplied[f"symbols:{url}"] == setting.patched_bytes
    assert supplied[disk] >= setting.other_bytes, "boot files, too, come from there"
    programs = {line.split()[6] for line in asked}
    assert len(asked) == len(programs), "each was asked for once"
    assert len(programs) == len(list(setting.store.glob("*/*/*")))
    assert all(" 200 " in line for line in asked)


def test_bytes_by_source_are_shown_before_and_after(
    run_vmpack: Vmpack, setting: Setting, room: Path
) -> None:
    with nginx(setting.store, room / "nginx") as url:
        sources = ("--no-store", "--from", f"disk:{setting.other_disk}", "--from", f"symbols:{url}")
        command = ("unpack", setting.pack.thin, "-o", room / "rebuilt.raw", *sources)
        planned = run_vmpack.good(*command, "--dry-run")
        assert not (room / "nginx" / "access.log").read_text(), "a plan asks nobody"
        done = run_vmpack.good(*command)
    for shown in (planned, done):
        assert f"symbols:{url}" in shown
        assert f"disk:{setting.other_disk}" in shown


def test_without_the_symbol_server_the_programs_are_missing(
    run_vmpack: Vmpack, setting: Setting, room: Path
) -> None:
    disk = room / "rebuilt.raw"
    sources = ("--no-store", "--from", f"disk:{setting.other_disk}")
    command = ("unpack", setting.pack.thin, "-o", disk, *sources)
    planned = run_vmpack(*command, "--dry-run", "--json")
    missing = json.loads(planned.stdout)["missing"]
    assert {Path(one["path"]).suffix.lower() for one in missing} >= {".dll", ".exe"}
    assert sum(one["bytes"] for one in missing) == setting.patched_bytes
    assert run_vmpack(*command).returncode == planned.returncode == 5
    assert not disk.exists()


def test_a_folder_in_the_layout_of_a_server_will_do(
    run_vmpack: Vmpack, setting: Setting, room: Path
) -> None:
    sources = (f"disk:{setting.other_disk}", f"symbols:{setting.store}")
    supplied = rebuilt(run_vmpack, setting, room, *sources)
    assert supplied[f"symbols:{setting.store}"] == setting.patched_bytes


@pytest.fixture(scope="module")
def windows_volume(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's Windows volume as a file of its own."""
    volume = tmp_path_factory.mktemp("volume") / "windows.ntfs"
    start, end = setting.pack.guest.partition("root")
    with setting.pack.guest.image.open("rb") as disk, volume.open("wb") as file:
        file.truncate(end - start)
        disk.seek(start)
        for offset in range(0, end - start, 1 << 20):
            if any(data := disk.read(min(1 << 20, end - start - offset))):
                file.seek(offset)
                file.write(data)
    return volume


@pytest.mark.root
@needs_root
def test_a_mounted_windows_volume_has_everything(
    run_vmpack: Vmpack, setting: Setting, windows_volume: Path, room: Path
) -> None:
    (room / "c").mkdir()
    with mounted(windows_volume, room / "c", "ro") as folder:
        supplied = rebuilt(run_vmpack, setting, room, f"dir:{folder}")
    everything = setting.patched_bytes + setting.other_bytes
    assert supplied[f"dir:{folder}"] >= everything


@pytest.mark.root
@needs_root
def test_an_installation_medium_has_everything(
    run_vmpack: Vmpack, setting: Setting, windows_volume: Path, room: Path
) -> None:
    """An ISO image with a UDF file system and an install.wim, captured from the guest's volume."""
    medium = room / "medium" / "sources"
    medium.mkdir(parents=True)
    (room / "c").mkdir()
    with mounted(windows_volume, room / "c", "ro") as folder:
        run("wimlib-imagex", "capture", folder, medium / "install.wim", "--compress=XPRESS")
    run("genisoimage", "-quiet", "-udf", "-o", room / "windows.iso", room / "medium")
    shutil.rmtree(room / "medium")
    source = f"medium:{room / 'windows.iso'}"
    supplied = rebuilt(run_vmpack, setting, room, source)
    assert supplied[source] >= setting.patched_bytes + setting.other_bytes
    assert not list((run_vmpack.home / "cache" / "media").iterdir()), "the copy has vanished"
