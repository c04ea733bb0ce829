"""Whether a volume is in order; ntfs-3g, which will not mount others for writing, is the judge."""

from __future__ import annotations

import shutil
import struct
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats.filesystem import ntfs
from formats.filesystem.model import PLAIN, STORED, FileSystem
from formats.filesystem.ntfs import log
from formats.ranges import Ranges
from formats.source import FileSource
from tests.formats.filesystem.ntfs_editor import Editor
from tests.formats.filesystem.ntfs_images import make, mounted
from tests.formats.filesystem.ntfs_log import IS_CLEAN, NO_CLIENT, PAGE, restart_page
from tests.host import ROOT

pytestmark = [*ROOT]

DATA, BITMAP, VOLUME_INFORMATION = 0x80, 0xB0, 0x70
LOG_FILE, VOLUME, BITMAP_FILE, BOOT = 2, 3, 6, 7


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = make(tmp_path_factory.mktemp("ntfs") / "original", 8 << 10)
    with mounted(image) as root:
        for number in range(20):
            (root / f"file{number}").write_bytes(b"%9d" % number * 1000)
    return image


@pytest.fixture
def image(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "image"))


def read(image: Path) -> FileSystem:
    with FileSource(image) as source:
        return ntfs.read(source)


def stream_place(image: Path, number: int) -> tuple[int, int]:
    """Where the first run of a record's data lies, and the bytes of the stream."""
    editor = Editor(image)
    record = editor.record(number)
    first = record.first_run(DATA)
    assert first is not None
    return first * editor.boot.cluster_size, record.get(record.attribute(DATA) + 48, "q")


def write_log(image: Path, *pages: bytes) -> None:
    place, size = stream_place(image, LOG_FILE)
    Editor(image).write(place, b"".join(pages).ljust(size, b"\0"))


def log_bytes(image: Path) -> int:
    return stream_place(image, LOG_FILE)[1]


def mounts(image: Path, tmp_path: Path) -> bool:
    """Whether ntfs-3g mounts the volume for writing, without mending it first."""
    copy = Path(shutil.copy(image, tmp_path / "copy"))
    try:
        with mounted(copy, "rw,norecover") as root:
            (root / "proof").touch()
    except (AssertionError, OSError):
        return False
    return True


def not_clean(image: Path, *words: str) -> None:
    system = read(image)
    assert system.state == "dirty"
    assert len(system.free) == len(system.held) == len(system.snapshots) == 0
    for word in words:
        assert word in system.state_reason


def test_a_new_volume_is_clean(original: Path) -> None:
    system = read(original)
    assert (system.state, system.state_reason) == ("clean", "")
    assert len(system.free) > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [(0x0001, "not cleanly unmounted"), (0x4000, "chkdsk"), (0x0010, "change journal")],
)
def test_flags_of_the_volume_say_that_work_is_unfinished(
    image: Path, flags: int, words: str
) -> None:
    volume = Editor(image).record(VOLUME)
    volume.put(volume.value(VOLUME_INFORMATION) + 10, "H", flags)
    volume.save()
    copy_to_mirror(image)
    not_clean(image, "$Volume", words)


def test_a_version_that_nobody_knows_is_not_believed(image: Path) -> None:
    volume = Editor(image).record(VOLUME)
    volume.put(volume.value(VOLUME_INFORMATION) + 8, "BB", 1, 2)
    volume.save()
    copy_to_mirror(image)
    not_clean(image, "version 1.2")


def copy_to_mirror(image: Path) -> None:
    editor = Editor(image)
    boot = editor.boot
    records = editor.read(boot.mft * boot.cluster_size, 4 * boot.record_size)
    editor.write(boot.mft_mirror * boot.cluster_size, records)


LOGS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "closed": ({"in_use": NO_CLIENT, "flags": 0}, True, ""),
    "open and clean": ({"in_use": 0, "flags": IS_CLEAN}, True, ""),
    "open": ({"in_use": 0, "flags": 0}, False, "not shut down cleanly"),
    "fast startup": ({"version": (2, 0)}, False, "fast startup"),
    "seen by chkdsk": ({"magic": b"CHKD", "in_use": NO_CLIENT, "flags": 0}, True, ""),
}


@pytest.mark.parametrize("kind", LOGS)
def test_the_log_is_judged_as_by_ntfs_3g(image: Path, tmp_path: Path, kind: str) -> None:
    options, clean, words = LOGS[kind]
    page = restart_page(log_bytes(image), **options)
    write_log(image, page, page)
    assert mounts(image, tmp_path) == clean
    if clean:
        assert read(image).state == "clean"
    else:
        not_clean(image, "$LogFile", words)


@pytest.mark.parametrize("newer", [0, 1])
@pytest.mark.parametrize("flags", [0, IS_CLEAN])
def test_the_newer_restart_page_counts(image: Path, tmp_path: Path, newer: int, flags: int) -> None:
    size = log_bytes(image)
    pages = [restart_page(size, lsn=10, flags=IS_CLEAN - flags)] * 2
    pages[newer] = restart_page(size, lsn=11, flags=flags)
    write_log(image, *pages)
    assert mounts(image, tmp_path) == bool(flags)
    assert (read(image).state == "clean") == bool(flags)


@pytest.mark.parametrize("torn", [0, 1])
def test_a_torn_restart_page_is_unfinished_work(image: Path, torn: int) -> None:
    pages = [bytearray(restart_page(log_bytes(image))) for _ in range(2)]
    pages[torn][1534] ^= 1
    write_log(image, *map(bytes, pages))
    not_clean(image, "$LogFile", "restart page")


@pytest.mark.parametrize("content", [b"\0" * PAGE, b"\xff" * PAGE, b"RCRD" * 1024])
def test_a_log_that_is_neither_empty_nor_a_log_is_not_believed(image: Path, content: bytes) -> None:
    write_log(image, content, content)
    not_clean(image, "$LogFile")


def test_a_log_that_one_program_emptied_is_clean(image: Path) -> None:
    place, size = stream_place(image, LOG_FILE)
    assert Editor(image).read(place, size) == b"\xff" * size
    assert read(image).state == "clean"


def test_a_log_that_cannot_be_one_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(b"\xff" * (1 << 20))
        file.truncate((4 << 30) + 1)
    with FileSource(path) as source:
        assert "more than any" in log.unfinished(source)


def test_a_damaged_copy_of_the_first_records_is_noticed(image: Path) -> None:
    editor = Editor(image)
    place = editor.boot.mft_mirror * editor.boot.cluster_size
    editor.write(place + 0x98, b"\x55")
    not_clean(image, "$MFTMirr differs from $MFT in record 0")


def test_a_file_in_a_free_cluster_makes_the_bitmap_unbelievable(image: Path) -> None:
    place, size = stream_place(image, BITMAP_FILE)
    editor = Editor(image)
    before = read(image)
    bits = bytearray(editor.read(place, size))
    cluster = int(before.streams.disk_offset[3]) // before.block_size
    bits[cluster // 8] &= ~(1 << cluster % 8)
    editor.write(place, bytes(bits))
    not_clean(image, "$Bitmap calls 4096 bytes of files free")
    assert read(image).names == before.names  # whose bytes they are needs no bitmap


def test_a_bitmap_that_is_too_short_is_not_believed(image: Path) -> None:
    record = Editor(image).record(BITMAP_FILE)
    attribute = record.attribute(DATA)
    record.put(attribute + 48, "q", 8)
    record.save()
    not_clean(image, "$Bitmap cannot be read")


def test_a_bitmap_with_a_hole_is_not_believed(image: Path) -> None:
    """A hole reads as zeros, which would call every cluster that it stands for free."""
    record = Editor(image).record(BITMAP_FILE)
    record.set_runs(DATA, bytes((0x01, 1, 0)))
    record.save()
    not_clean(image, "$Bitmap cannot be read", "holes")


def test_the_boot_sector_is_never_free(image: Path) -> None:
    place, size = stream_place(image, BITMAP_FILE)
    editor = Editor(image)
    bits = bytearray(editor.read(place, size))
    bits[0] &= ~3
    editor.write(place, bytes(bits))
    boot_file = editor.record(BOOT)
    boot_file.put(22, "H", 0)  # nothing but the format itself says then whose clusters they are
    boot_file.save()
    not_clean(image, "$Bitmap calls 8192 bytes of files free")


def test_a_torn_record_is_damage(image: Path) -> None:
    editor = Editor(image)
    before = read(image)
    number = int(before.streams.inode[5])
    place = editor.record(number).place
    editor.write(place + 1022, b"\x99\x99")
    not_clean(image, f"damaged records: 1, the first is {number}")
    after = read(image)
    assert len(after.names) == len(before.names) - 1
    assert number not in after.streams.inode


def test_an_allocated_record_that_is_none_is_damage(image: Path) -> None:
    editor = Editor(image)
    number = int(read(image).streams.inode[0])
    editor.write(editor.record(number).place, b"lost")
    not_clean(image, f"damaged records: 1, the first is {number}")


VSS = uuid.UUID("3808876b-c176-4e48-b7ae-04046e6cc752")


def write_shadow_header(
    image: Path, catalogue: int, volume: bytes = bytes(16), storage: bytes = bytes(16)
) -> None:
    """As libvshadow's documentation draws it."""
    header = struct.pack("<16sIIQQQQQ", VSS.bytes_le, 1, 1, 0x1E00, 0x1E00, 0, catalogue, 0)
    header += volume + storage
    Editor(image).write(0x1E00, header)


def test_shadow_copies_hold_what_is_free(image: Path) -> None:
    before = read(image)
    write_shadow_header(image, 5 << 20)
    system = read(image)
    assert system.state == "clean"
    assert len(system.free) == 0
    assert same(system.held, before.free)
    assert system.snapshots.tolist() == [[0x1E30, 0x1E38]]
    for start, end in system.snapshots.tolist():
        Editor(image).write(start, bytes(end - start))
    assert same(read(image).free, before.free)


def test_without_a_catalogue_there_are_no_shadow_copies(image: Path) -> None:
    before = read(image)
    write_shadow_header(image, 0)
    system = read(image)
    assert same(system.free, before.free)
    assert len(system.held) == len(system.snapshots) == 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_shadow_copies_may_be_stored_on_another_volume(image: Path, elsewhere: bool) -> None:
    """`vssadmin add shadowstorage /for=C: /on=D:`: what copies read lies on C: all the same."""
    before = read(image)
    write_shadow_header(image, 0, b"C" * 16, (b"D" if elsewhere else b"C") * 16)
    system = read(image)
    assert same(system.held if elsewhere else system.free, before.free)
    assert len(system.free if elsewhere else system.held) == len(system.snapshots) == 0


def test_a_store_of_shadow_copies_is_a_sign_of_them(image: Path) -> None:
    with mounted(image) as root:
        folder = root / "System Volume Information"
        folder.mkdir()
        (folder / f"{{01234567-aaaa-bbbb-cccc-0123456789ab}}{{{VSS}}}").write_bytes(b"1" * 5000)
    system = read(image)
    assert len(system.free) == len(system.snapshots) == 0
    assert len(system.held) > 0


def test_all_of_a_store_comes_from_the_disk_whatever_was_initialized(image: Path) -> None:
    """Windows writes stores where they lie, past the file system and its initialized size."""
    with mounted(image) as root:
        folder = root / "System Volume Information"
        folder.mkdir()
        (folder / f"{{{VSS}}}").write_bytes(b"1" * 5000)
        (root / "other").write_bytes(b"1" * 5000)
    for name in (f"/System Volume Information/{{{VSS}}}", "/other"):
        system = read(image)
        (stream,) = (row for row, path in system.names if path == name)
        record = Editor(image).record(int(system.streams.inode[stream]))
        record.put(record.attribute(DATA) + 56, "q", 0)
        record.save()
        streams = read(image).streams
        is_store = name != "/other"
        assert streams.valid[stream] == (8192 if is_store else 0)
        assert streams.form[stream] == (STORED if is_store else PLAIN)


def same(left: Ranges, right: Ranges) -> bool:
    return np.array_equal(left, right)
