"""Records that no tool would write, each made of a real one by a small editor."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.filesystem import ntfs
from formats.filesystem.model import PLAIN, STORED, FileSystem
from formats.filesystem.ntfs.boot import read_boot
from formats.ranges import total
from formats.source import FileSource, Memory
from tests.formats.filesystem.ntfs_editor import Editor, Record
from tests.formats.filesystem.ntfs_images import make, mounted
from tests.host import ROOT

pytestmark = [*ROOT]

ATTRIBUTE_LIST, FILE_NAME, DATA = 0x20, 0x30, 0x80
MFT = 0


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders in each other, files in them, one in several records with a list outside."""
    image = make(tmp_path_factory.mktemp("ntfs") / "original", 16 << 10)
    with mounted(image) as root:
        (root / "outer" / "inner").mkdir(parents=True)
        for name in ("first", "second"):
            (root / "outer" / "inner" / name).write_bytes(name.encode() * 2000)
        (root / "top").write_bytes(b"top" * 20000)
        (root / "top:named").write_bytes(b"named" * 2000)
        with (root / "scattered").open("wb") as file:
            for number in range(900):
                file.seek(number * 12288)
                file.write(b"%8d" % number * 16)
    return image


@pytest.fixture
def image(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "image"))


ALL = {
    "/outer/inner/first",
    "/outer/inner/second",
    "/top",
    "/top:named",
    "/scattered",
}


def read(image: Path) -> FileSystem:
    with FileSource(image) as source:
        return ntfs.read(source)


def listed(system: FileSystem) -> set[str]:
    return {path for _, path in system.names}


def record_of(image: Path, path: str) -> Record:
    system = read(image)
    row = next(row for row, name in system.names if name == path)
    return Editor(image).record(int(system.streams.inode[row]))


def folder_of(image: Path, path: str) -> Record:
    """The record of the folder that a file lies in."""
    record = record_of(image, path)
    return Editor(image).record(record.get(record.value(FILE_NAME), "I"))


def only_lacks(image: Path, *paths: str) -> FileSystem:
    """The volume is not believed about what is free, and lists everything else."""
    system = read(image)
    assert system.state == "dirty"
    assert len(system.free) == 0
    assert listed(system) == ALL - set(paths)
    assert system.state_reason
    return system


def test_the_original_is_sound(original: Path) -> None:
    system = read(original)
    assert system.state == "clean"
    assert system.unread == ()
    assert listed(system) == ALL


SIZES = {"allocated": 40, "size": 48, "initialized": 56}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allocated", 4096),
        ("allocated", 1 << 40),
        ("size", 1 << 40),
        ("size", -1),
        ("initialized", 1 << 30),
        ("initialized", -1),
    ],
)
def test_sizes_that_contradict_each_other(image: Path, field: str, value: int) -> None:
    record = record_of(image, "/top:named")
    record.put(record.attribute(DATA, "named") + SIZES[field], "q", value)
    record.save()
    system = only_lacks(image, "/top", "/top:named")
    assert system.unread == ("/top: parts or sizes that contradict each other",)


def test_a_run_list_that_maps_less_than_its_attribute_says(image: Path) -> None:
    record = record_of(image, "/outer/inner/first")
    record.put(record.attribute(DATA) + 24, "q", 40)
    record.save()
    system = only_lacks(image, "/outer/inner/first")
    assert "damaged records: 1" in system.state_reason


def test_a_run_outside_the_volume(image: Path) -> None:
    record = record_of(image, "/outer/inner/first")
    record.set_runs(DATA, b"\x41\x03" + (1 << 30).to_bytes(4, "little"))
    record.save()
    only_lacks(image, "/outer/inner/first")


def test_a_hole_in_a_file_that_is_not_sparse(image: Path) -> None:
    record = record_of(image, "/outer/inner/first")
    record.set_runs(DATA, b"\x01\x03")
    record.save()
    only_lacks(image, "/outer/inner/first")


@pytest.mark.parametrize("other", ["/outer/inner/second", "/top"])
def test_files_that_share_clusters(image: Path, other: str) -> None:
    place = record_of(image, other).first_run(DATA)
    assert place is not None
    record = record_of(image, "/outer/inner/first")
    clusters = record.get(record.attribute(DATA) + 24, "q") + 1
    record.set_runs(DATA, bytes([0x41, clusters]) + place.to_bytes(4, "little"))
    record.save()
    only_lacks(image, "/outer/inner/first", other, *(["/top:named"] if other == "/top" else []))


def test_a_file_that_lies_in_the_table(image: Path) -> None:
    record = record_of(image, "/outer/inner/first")
    clusters = record.get(record.attribute(DATA) + 24, "q") + 1
    record.set_runs(DATA, bytes([0x41, clusters]) + Editor(image).boot.mft.to_bytes(4, "little"))
    record.save()
    system = only_lacks(image, "/outer/inner/first")
    assert "record 0 and 1 more: clusters that belong to others as well" in system.state_reason


def test_a_part_that_is_missing(image: Path) -> None:
    """One of a file's records is gone: its list names what is not there."""
    record = Editor(image).record(continued(image)[2])
    record.put(22, "H", 0)
    record.save()
    system = only_lacks(image, "/scattered")
    assert "/scattered: other attributes than the list names" in system.unread


def test_a_part_of_another_file(image: Path) -> None:
    record = Editor(image).record(continued(image)[1])
    other = record_of(image, "/top")
    record.put(32, "Q", other.number | other.get(16, "H") << 48)
    record.save()
    only_lacks(image, "/scattered", "/top", "/top:named")


def test_a_part_of_a_file_that_is_gone(image: Path) -> None:
    record = Editor(image).record(continued(image)[1])
    record.put(38, "H", record.get(38, "H") + 1)  # the sequence in the reference of its base
    record.save()
    system = only_lacks(image, "/scattered")
    assert "/scattered: continued by records that do not fit" in system.unread


@pytest.mark.parametrize("number", [1 << 47, 5000, 40])
def test_a_part_whose_file_never_was(image: Path, number: int) -> None:
    record = Editor(image).record(continued(image)[1])
    record.put(32, "Q", number | 1 << 48)
    record.save()
    only_lacks(image, "/scattered")


def continued(image: Path) -> list[int]:
    """The records that continue /scattered."""
    base = record_of(image, "/scattered").number
    editor = Editor(image)
    found = []
    for number in range(editor.records):
        try:
            record = editor.record(number)
        except KeyError:
            continue
        if record.get(32, "Q") & 0xFFFF_FFFF_FFFF == base:
            found.append(number)
    assert len(found) > 3
    return found


def attribute_list(image: Path) -> tuple[int, list[int]]:
    """Where the list of /scattered lies on the disk, and where each entry begins in it."""
    record = record_of(image, "/scattered")
    first = record.first_run(ATTRIBUTE_LIST)
    assert first is not None
    editor = Editor(image)
    start = first * editor.boot.cluster_size
    size = record.get(record.attribute(ATTRIBUTE_LIST) + 48, "q")
    data = editor.read(start, size)
    places, place = [], 0
    while place < size:
        places.append(place)
        place += struct.unpack_from("<H", data, place + 4)[0]
    return start, places


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(4, b"\0\0", id="an entry without a length: a walk that never ends"),
        pytest.param(4, b"\xf0\xff", id="an entry longer than the list"),
        pytest.param(4, b"\x21\0", id="an entry of odd length"),
        pytest.param(6, b"\xff", id="a name longer than its entry"),
        pytest.param(8, b"\1", id="another first cluster"),
        pytest.param(16, b"\xff\xff\xff\xff\xff\xff", id="a record that never was"),
        pytest.param(22, b"\x77\x77", id="a record that has another file now"),
        pytest.param(24, b"\x77", id="another attribute of the record"),
    ],
)
def test_a_list_that_is_wrong(image: Path, offset: int, value: bytes) -> None:
    start, places = attribute_list(image)
    Editor(image).write(start + places[3] + offset, value)
    system = only_lacks(image, "/scattered")
    assert "/scattered: other attributes than the list names" in system.unread


def test_a_list_that_names_an_attribute_twice(image: Path) -> None:
    start, places = attribute_list(image)
    editor = Editor(image)
    entry = editor.read(start + places[3], places[4] - places[3])
    assert len(entry) == places[5] - places[4]
    editor.write(start + places[4], entry)
    only_lacks(image, "/scattered")


def test_a_list_that_is_too_long(image: Path) -> None:
    record = record_of(image, "/scattered")
    for field in ("size", "initialized"):
        record.put(record.attribute(ATTRIBUTE_LIST) + SIZES[field], "q", 1 << 50)
    record.save()
    only_lacks(image, "/scattered")


def test_folders_in_a_circle_are_left_out(image: Path) -> None:
    inner = folder_of(image, "/outer/inner/first")
    outer = Editor(image).record(inner.get(inner.value(FILE_NAME), "I"))
    outer.put(outer.value(FILE_NAME), "Q", inner.number | inner.get(16, "H") << 48)
    outer.save()
    system = read(image)
    assert listed(system) == ALL - {"/outer/inner/first", "/outer/inner/second"}
    assert system.unread == (
        f"record {inner.number + 1} and 1 more: no path leads there from the root",
    )


def test_a_folder_that_is_its_own_parent(image: Path) -> None:
    inner = folder_of(image, "/outer/inner/first")
    inner.put(inner.value(FILE_NAME), "Q", inner.number | inner.get(16, "H") << 48)
    inner.save()
    assert listed(read(image)) == ALL - {"/outer/inner/first", "/outer/inner/second"}


@pytest.mark.parametrize("change", [b"\x77\x77", b"\0\0"])
def test_a_name_in_a_folder_that_has_been_replaced(image: Path, change: bytes) -> None:
    record = record_of(image, "/top")
    start = record.value(FILE_NAME) + 6
    record.data[start : start + 2] = change
    record.save()
    assert listed(read(image)) == ALL - {"/top", "/top:named"}


@pytest.mark.parametrize("character", ["/", "\0"])
def test_a_name_that_no_file_can_have(image: Path, character: str) -> None:
    record = record_of(image, "/top")
    start = record.value(FILE_NAME) + 66
    record.data[start + 2 : start + 4] = character.encode("utf-16-le")
    record.save()
    assert listed(read(image)) == ALL - {"/top", "/top:named"}


def test_a_name_whose_surrogates_are_no_pair(image: Path) -> None:
    """As ntfs-3g shows it: the bytes that UTF-8 would have for it."""
    record = record_of(image, "/top")
    start = record.value(FILE_NAME) + 66
    record.data[start : start + 2] = b"\x00\xd8"
    record.save()
    names = {path.encode("utf-8", "surrogateescape") for path in listed(read(image))}
    assert b"/\xed\xa0\x80op" in names


def test_an_encrypted_stream_is_what_lies_on_the_disk(image: Path) -> None:
    record = record_of(image, "/top")
    record.put(record.attribute(DATA) + 12, "H", 0x4000)
    record.save()
    system = read(image)
    forms = {path: int(system.streams.form[row]) for row, path in system.names}
    assert (forms["/top"], forms["/top:named"]) == (STORED, PLAIN)
    row = next(row for row, path in system.names if path == "/top")
    assert system.streams.size[row] == system.streams.valid[row] == 61440
    assert system.state == "clean"


def test_clusters_behind_the_end_of_a_file_are_not_its_data(image: Path) -> None:
    record = record_of(image, "/top")
    for field in ("size", "initialized"):
        record.put(record.attribute(DATA) + SIZES[field], "q", 5000)
    record.save()
    before, after = read(image), read(image)
    row = next(row for row, path in after.names if path == "/top")
    assert after.streams.length[after.streams.stream == row].tolist() == [8192]
    assert after.state == "clean"
    assert total(after.free) == total(before.free)


@pytest.mark.parametrize(
    ("offset", "value", "kind"),
    [
        (3, b"NTFX", Corrupt),
        (510, b"\0\0", Corrupt),
        (11, struct.pack("<H", 128), Corrupt),
        (11, struct.pack("<H", 513), Corrupt),
        (11, struct.pack("<H", 8192), Corrupt),
        (13, b"\0", Corrupt),
        (13, b"\x03", Corrupt),
        (13, b"\xf3", Unsupported),  # 2^13 sectors
        (13, b"\x81", Unsupported),
        (40, struct.pack("<Q", 1 << 30), Truncated),
        (40, struct.pack("<Q", (1 << 64) - 1), Unsupported),
        (40, struct.pack("<Q", 1), Corrupt),
        (48, struct.pack("<Q", 0), Corrupt),
        (48, struct.pack("<Q", 1 << 63), Corrupt),
        (56, struct.pack("<Q", 1 << 40), Corrupt),
        (64, b"\0", Corrupt),
        (64, b"\x80", Corrupt),
        (64, b"\xf8", Corrupt),  # 256 bytes
        (64, b"\x02", Corrupt),  # 8 KiB
    ],
)
def test_boot_sectors_that_cannot_be(
    original: Path, offset: int, value: bytes, kind: type[FormatError]
) -> None:
    data = bytearray(original.read_bytes())
    data[offset : offset + len(value)] = value
    source = Memory(bytes(data))
    with pytest.raises(kind):
        read_boot(source)
    assert not ntfs.probe(source)
    with pytest.raises(kind):
        ntfs.read(source)


@pytest.mark.parametrize(
    ("byte", "sectors"), [(1, 1), (128, 128), (0xFF, 2), (0xF8, 256), (0xF4, 4096)]
)
def test_sectors_per_cluster_are_a_number_or_a_negative_power(
    original: Path, byte: int, sectors: int
) -> None:
    data = bytearray(original.read_bytes()[:512])
    data[13] = byte
    data[48:64] = struct.pack("<QQ", 1, 2)  # of $MFT and its copy, in clusters
    boot = read_boot(Memory(bytes(data) + bytes(16 << 20)))
    assert boot.cluster_size == sectors * 512


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096])
def test_a_source_that_is_too_short(original: Path, size: int) -> None:
    source = Memory(original.read_bytes()[:size])
    assert not ntfs.probe(source)
    with pytest.raises(Truncated):
        ntfs.read(source)


def test_a_table_that_cannot_be_found(image: Path) -> None:
    editor = Editor(image)
    editor.write(editor.record(MFT).place + 1022, b"\x99\x99")
    with pytest.raises(Corrupt, match="master file table"):
        read(image)


def test_a_table_that_maps_itself_twice(image: Path) -> None:
    """Its runs cover the same clusters again: a large table in a small volume."""
    record = Editor(image).record(MFT)
    attribute = record.attribute(DATA)
    clusters = record.get(attribute + 24, "q") + 1
    first = record.first_run(DATA)
    assert first is not None
    record.put(attribute + 24, "q", 2 * clusters - 1)
    record.set_runs(DATA, bytes([0x11, clusters, first, 0x11, clusters, 0]))
    record.save()
    with pytest.raises(Corrupt, match="overlaps itself"):
        read(image)


def test_columns_of_inodes_are_records(original: Path) -> None:
    system = read(original)
    numbers = {path: int(system.streams.inode[row]) for row, path in system.names}
    assert numbers["/top"] == numbers["/top:named"] == record_of(original, "/top").number
    assert len(np.unique(system.streams.inode)) == len(ALL) - 1
