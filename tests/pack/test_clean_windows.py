"""`pack --clean` of a Windows guest: libguestfs removes files from NTFS, in an overlay."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.guests.register import build
from formats.filesystem.ntfs.c_ntfs import VOLUME_IS_DIRTY
from packer.artifact.contents import Class
from packer.artifact.layout.open import open_layout
from packer.artifact.opened import OpenedPack
from packer.errors import InputError, UsageError
from packer.pack.clean import open_cleaned
from packer.pack.pack import PackOptions, PackReport, pack
from packer.progress import Silent
from packer.survey.disk import open_disk
from packer.survey.survey import survey
from packer.unpack.unpack import unpack
from tests.formats.filesystem.ntfs_editor import Editor
from tests.formats.filesystem.ntfs_images import make, mounted
from tests.guest.material import write_tree
from tests.host import run
from tests.pack.test_clean import NO_KVM, files_of, needs_guestfish, state_of, use_guestfish

pytestmark = pytest.mark.guest

VOLUME = 3
"""The record of $Volume."""
VOLUME_INFORMATION, FLAGS_AT = 0x70, 10
TEMPORARY = "/Users/Anna/AppData/Local/Temp/"
OTHERS = {
    "/$Recycle.Bin/S-1-5-21-1004336348-1177238915-682003330-1000/$RA1B2C3.avi",
    "/Windows/Logs/CBS/CBS.log",
    "/Windows/MEMORY.DMP",
    "/Windows/SoftwareDistribution/Download/9d0c/update.cab",
    "/Windows/Temp/MpCmdRun.log",
}
"""What goes besides TEMPORARY. Small files lie in the master file table: no survey has them."""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exists once guestfish has been started, which does nothing else."""
    mark = tmp_path / "started"
    use_guestfish(tmp_path / "bin", monkeypatch, f"touch {mark}; exit 1")
    return mark


def clean(image: Path, what: str = "default") -> None:
    with open_cleaned(image, what, backing=None, progress=Silent()):
        pass


def test_shadow_copies_are_not_damaged_unasked(started: Path) -> None:
    """What they keep of a file is in clusters that removing the file gives away."""
    with pytest.raises(InputError, match="partition 2 has shadow copies") as caught:
        clean(build("windows-7"))
    assert "--drop-snapshots" in caught.value.hint
    assert not started.exists()


def test_what_is_for_linux_alone_is_refused(started: Path) -> None:
    with pytest.raises(UsageError, match="identity is for Linux"):
        clean(build("windows-10-uefi"), "default,identity")
    assert not started.exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="ntfs-3g mounts through FUSE")
def test_nothing_is_removed_from_a_volume_that_is_not_clean(tmp_path: Path, started: Path) -> None:
    image = make(tmp_path / "dirty.raw", 16 << 10)
    with mounted(image) as root:
        write_tree(root, {"/Windows/System32/config/SYSTEM": b"regf" * 4096}, {})
    volume = Editor(image).record(VOLUME)
    volume.put(volume.value(VOLUME_INFORMATION) + FLAGS_AT, "H", VOLUME_IS_DIRTY)
    volume.save()
    with pytest.raises(InputError, match="ntfs on the disk is not clean") as caught:
        clean(image)
    assert "shut" in caught.value.hint
    assert not started.exists()


@dataclass(frozen=True, slots=True)
class Packed:
    image: Path
    before: tuple[str, int]
    report: PackReport
    rebuilt: Path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("clean-windows")
    image, rebuilt = build("windows-10-uefi"), folder / "rebuilt.raw"
    before = state_of(image)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NO_KVM.items():
            patch.setenv(name, value)
        what = "default,/windows/installer/$patchcache$/OLD1.dll"
        options = PackOptions("demo", clean=what, levels=dict.fromkeys(Class, 1))
        report = pack(image, folder / "demo.vmpack", options, [])
    unpack(OpenedPack(open_layout(folder / "demo.vmpack")), rebuilt, [])
    return Packed(image, before, report, rebuilt)


@needs_guestfish
@pytest.mark.slow
def test_what_was_named_is_gone_and_all_other_files_are_the_same(packed: Packed) -> None:
    old, new = files_of(packed.image), files_of(packed.rebuilt)
    gone = old.keys() - new.keys()
    assert {path for path in gone if not path.startswith(TEMPORARY)} == {
        *OTHERS,
        "/Windows/Installer/$PatchCache$/old1.dll",
    }
    assert not any(path.startswith(TEMPORARY) for path in new)
    assert new.keys() <= old.keys()
    dropped = {"/pagefile.sys", "/swapfile.sys", "/hiberfil.sys"}
    assert {path for path in new if new[path] != old[path]} <= dropped


@needs_guestfish
@pytest.mark.slow
def test_ntfsfix_and_ntfs_3g_agree(packed: Packed, tmp_path: Path) -> None:
    with open_disk(packed.rebuilt) as disk:
        volume = next(one for one in survey(disk).volumes if one.kind == "ntfs")
    assert volume.state == "clean"
    part = tmp_path / "root.ntfs"
    place = ("iflag=skip_bytes,count_bytes", f"skip={volume.start}")
    length = f"count={volume.end - volume.start}"
    run("dd", f"if={packed.rebuilt}", f"of={part}", "bs=1M", "conv=sparse", *place, length)
    assert "processed successfully" in run("ntfsfix", "-n", part)
    assert run("ntfsls", "-f", "-p", "/Windows/Temp", part).split() == [".", ".."]


@needs_guestfish
@pytest.mark.slow
def test_the_report_says_what_went_in_the_words_of_the_guest(packed: Packed) -> None:
    tmp, cache, logs, trash, own = packed.report.removed
    assert tmp.startswith("tmp: 201 files, ")
    assert cache.startswith("cache: 1 file, 4.2 MB below /Windows/SoftwareDistribution/Download")
    assert logs.startswith("logs: 2 files, ")
    assert trash.startswith("trash: 2 files, 2.1 MB below /$Recycle.Bin/S-1-5-21-")
    assert own.startswith("/windows/installer/$patchcache$/OLD1.dll: 1 file, ")


@needs_guestfish
@pytest.mark.slow
def test_the_image_is_untouched_to_the_byte_and_the_time(packed: Packed) -> None:
    assert state_of(packed.image) == packed.before
