"""Images of other people's tools, and images that lie."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.filesystem import iso9660
from formats.filesystem.iso9660 import SECTOR_BYTES, Entry, Iso9660, probe
from formats.source import FileSource, Memory
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.filesystem.iso_images import PRIMARY, Image

DIGEST = "0123456789abcdef" * 4
FILES = {
    "oci-layout": b"{}",
    "index.json": b"x" * 5000,
    "empty": b"",
    f"blobs/sha256/{DIGEST}": bytes(range(256)) * 40,
    **{f"blobs/sha256/{number:064x}": b"%d" % number for number in range(100)},
}
ODD = {
    "Capital and blank": b"1",
    "käse ☃.dat": b"2",
    "two.dots.in.it": b"3",
    "a/b/c/d/e/f/g/h/nine-deep": b"4",
}
LONG = {"long-" + "x" * 200: b"its Rock Ridge name lies in a continuation area"}

GENISOIMAGE = ("genisoimage", "-quiet", "-o")
XORRISO = ("xorriso", "-as", "mkisofs", "-quiet", "-o")
MADE = {
    "genisoimage-rock-ridge": ((*GENISOIMAGE,), ("-R", "-D"), FILES | ODD | LONG),
    "genisoimage-joliet": ((*GENISOIMAGE,), ("-J", "-D"), FILES | ODD),
    "genisoimage-both": ((*GENISOIMAGE,), ("-R", "-J", "-joliet-long", "-D"), FILES | ODD),
    "genisoimage-plain": ((*GENISOIMAGE,), ("-iso-level", "4", "-D"), FILES),
    "xorriso-rock-ridge": ((*XORRISO,), ("-R",), FILES | ODD | LONG),
    "xorriso-both": ((*XORRISO,), ("-R", "-J", "-joliet-long"), FILES | ODD),
}


def build(folder: Path, name: str) -> tuple[Path, dict[str, bytes]]:
    """An image that a tool made of these files, and the files."""
    command, options, files = MADE[name]
    for path, data in files.items():
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / path).write_bytes(data)
    image = folder / "image.iso"
    subprocess.run([*command, image, *options, folder / "tree"], check=True, capture_output=True)
    return image, files


def walk(volume: Iso9660, folder: Entry, path: str = "") -> Iterator[tuple[str, Entry]]:
    for name, entry in volume.entries(folder).items():
        if entry.is_folder:
            yield from walk(volume, entry, f"{path}{name}/")
        else:
            yield path + name, entry


def read(source: Memory | FileSource, entry: Entry, offset: int = 0, length: int = -1) -> bytes:
    length = entry.size - offset if length < 0 else length
    return b"".join(source.pread(*span) for span in entry.spans(offset, length))


@pytest.mark.parametrize("name", MADE)
def test_what_other_tools_wrote_is_read_to_the_byte(tmp_path: Path, name: str) -> None:
    image, files = build(tmp_path, name)
    with FileSource(image) as source:
        assert probe(source)
        volume = Iso9660(source)
        assert {path: read(source, entry) for path, entry in walk(volume, volume.root)} == files
        blobs = volume.entries(volume.entries(volume.entries(volume.root)["blobs"])["sha256"])
        assert read(source, blobs[DIGEST], 1000, 3000) == FILES[f"blobs/sha256/{DIGEST}"][1000:4000]


def test_what_is_no_volume_is_not_taken_for_one() -> None:
    for data in (b"", b"CD001" * 8000, bytes(40_000), bytes(32769) + b"CD001"):
        assert not probe(Memory(data))


@pytest.fixture(scope="module")
def plain_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image with plain names of level 4 and Rock Ridge, no Joliet."""
    folder = tmp_path_factory.mktemp("plain")
    for path in ("blobs/sha256/one", "blobs/sha256/two", "first", "other"):
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / path).write_bytes(path.encode() * 1000)
    tree, image = folder / "tree", folder / "image.iso"
    subprocess.run([*GENISOIMAGE, image, "-iso-level", "4", "-R", tree], check=True)
    return image.read_bytes()


@pytest.fixture
def image(plain_bytes: bytes) -> Image:
    found = Image(plain_bytes)
    assert set(found.entries()) == {"blobs", "first", "other"}
    return found


def test_a_loop_of_folders_leads_nowhere(image: Image) -> None:
    """Only who descends for ever would notice."""
    blobs, root = image.record("blobs"), PRIMARY + 156
    image.put(blobs + 2, bytes(image.data[root + 2 : root + 18]))
    for depth in range(5):
        assert set(image.entries(*["blobs"] * depth)) == {"blobs", "first", "other"}


@pytest.mark.parametrize(("offset", "what"), [(2, "extent"), (10, "length")])
def test_numbers_must_be_the_same_in_both_byte_orders(image: Image, offset: int, what: str) -> None:
    image.data[image.record("first") + offset] ^= 1
    with pytest.raises(Corrupt, match="the same in both byte orders"):
        image.entries()


def test_data_beyond_the_volume_is_refused(image: Image) -> None:
    image.put_both(image.record("first") + 2, image.both(PRIMARY + 80))
    with pytest.raises(Corrupt, match="data within a volume"):
        image.entries()


def test_a_volume_that_is_larger_than_its_file_is_incomplete(image: Image) -> None:
    del image.data[-SECTOR_BYTES:]
    with pytest.raises(Truncated, match="the source ends at byte"):
        image.open()


@pytest.mark.parametrize("length", [0xFFFFF800, (16 << 20) + SECTOR_BYTES])
def test_a_huge_folder_is_not_read(image: Image, length: int) -> None:
    image.data += bytes(32 << 20)
    image.put_both(PRIMARY + 80, len(image.data) // SECTOR_BYTES)
    image.put_both(image.record("blobs") + 10, length)
    with pytest.raises(Corrupt, match=r"whole blocks, at most|data within a volume"):
        image.entries("blobs")


def test_a_folder_of_too_many_entries_is_refused_soon(image: Image) -> None:
    count = iso9660.MAX_ENTRIES + 1
    sectors = []
    for first in range(0, count, 40):
        records = b""
        for number in range(first, min(first + 40, count)):
            name = b"%08d" % number
            records += bytes([33 + len(name) + 1]) + bytes(31) + bytes([len(name)]) + name + b"\0"
        sectors.append(records.ljust(SECTOR_BYTES, b"\0"))
    start = len(image.data) // SECTOR_BYTES
    image.data += b"".join(sectors)
    image.put_both(PRIMARY + 80, len(image.data) // SECTOR_BYTES)
    blobs = image.record("blobs")
    image.put_both(blobs + 2, start)
    image.put_both(blobs + 10, len(sectors) * SECTOR_BYTES)
    began = time.monotonic()
    with pytest.raises(Corrupt, match="at most 65536 entries"):
        image.entries("blobs")
    assert time.monotonic() - began < 10


def test_a_name_that_is_there_twice_is_refused(image: Image) -> None:
    """Two systems could show two different files."""
    image.rename("other", "first")
    with pytest.raises(Corrupt, match="'first' twice"):
        image.entries()


def test_records_stay_in_their_sector(image: Image) -> None:
    root = image.both(PRIMARY + 158) * SECTOR_BYTES
    end = root + SECTOR_BYTES - 10
    position = root
    while image.data[position]:
        position += image.data[position]
    while position + 254 < end:  # empty records, so long as they may be
        image.put(position, bytes([254]) + bytes(31) + b"\1\0")
        position += 254
    image.data[position] = 254
    with pytest.raises(Corrupt, match="crosses its sector"):
        image.entries()


def test_a_name_reaches_no_further_than_its_record(image: Image) -> None:
    image.data[image.record("other") + 32] = 0xFF
    with pytest.raises(Corrupt, match="do not hold its name"):
        image.entries()


@pytest.mark.parametrize("offset", [1, 26, 27], ids=["attribute blocks", "unit", "gap"])
def test_interleaved_files_are_not_supported(image: Image, offset: int) -> None:
    image.data[image.record("first") + offset] = 1
    with pytest.raises(Unsupported):
        image.entries()


def test_files_of_several_extents_are_one_file(image: Image) -> None:
    """As files of 4 GiB and more are written; here the second extent lies elsewhere."""
    first, second = image.record("first"), image.record("other")
    image.rename("other", "first")
    image.data[first + 25] |= 0x80
    image.put_both(first + 10, 2 * SECTOR_BYTES)
    entry = image.entries()["first"]
    assert len(entry.runs) == 2
    data = read(Memory(bytes(image.data)), entry)
    assert data == (b"first" * 1000)[: 2 * SECTOR_BYTES] + b"other" * 1000
    assert read(Memory(bytes(image.data)), entry, 4000, 200) == data[4000:4200]
    image.data[second + 25] |= 0x80
    image.put_both(second + 10, SECTOR_BYTES)
    with pytest.raises(Corrupt, match="lacks its last extent"):
        image.entries()


def test_another_extent_belongs_to_the_same_name(image: Image) -> None:
    first = image.record("first")
    image.data[first + 25] |= 0x80
    with pytest.raises(Corrupt, match="an extent of whole blocks"):
        image.entries()
    image.put_both(first + 10, SECTOR_BYTES)
    with pytest.raises(Corrupt, match="another extent of the file before it"):
        image.entries()


def test_a_chain_of_continuations_that_is_a_loop_ends(tmp_path: Path) -> None:
    path, _ = build(tmp_path, "genisoimage-rock-ridge")
    image = Image(path.read_bytes())
    loops = 0
    for match in re.finditer(rb"CE\x1c\x01", bytes(image.data)):
        block, offset, length = (image.both(match.start() + place) for place in (4, 12, 20))
        area = block * SECTOR_BYTES + offset
        if b"x" * 30 in image.data[area : area + length]:  # the rest of the long name
            image.put_both(match.start() + 20, 28)
            image.put(area, bytes(image.data[match.start() : match.end() + 24]))
            loops += 1
    assert loops == 1
    with pytest.raises(Corrupt, match="at most 4 continuation areas"):
        image.entries()


def test_blocks_are_sectors(image: Image) -> None:
    image.put(PRIMARY + 128, b"\x00\x02\x02\x00")
    with pytest.raises(Unsupported, match="found 512"):
        image.open()


def test_descriptors_end(image: Image) -> None:
    terminator = image.data.index(b"\xffCD001")
    image.data[terminator] = 3
    with pytest.raises(Corrupt, match="expected CD001"):
        image.open()
    image.data[PRIMARY:] = (b"\x03CD001" + bytes(SECTOR_BYTES - 6)) * 100
    with pytest.raises(Corrupt, match="expected a terminator"):
        image.open()
    image.data[PRIMARY] = 0xFF
    with pytest.raises(Corrupt, match="expected a primary one"):
        image.open()


def test_a_file_is_no_folder(image: Image) -> None:
    with pytest.raises(Corrupt, match="'first': expected a folder"):
        image.entries("first")
    image.data[PRIMARY + 156 + 25] = 0
    with pytest.raises(Corrupt, match="the root folder"):
        image.open()


@pytest.mark.parametrize("name", ["genisoimage-rock-ridge", "genisoimage-joliet", "xorriso-both"])
def test_damage_is_an_error_or_harmless_and_costs_little(tmp_path: Path, name: str) -> None:
    path, _ = build(tmp_path, name)
    data = path.read_bytes()
    areas = [(PRIMARY, PRIMARY + 6 * SECTOR_BYTES), (PRIMARY + 8 * SECTOR_BYTES, 60 * SECTOR_BYTES)]
    slowest = 0.0
    with at_most_one_gib():
        for broken in damaged(data, areas, 700, seed=len(name)):
            began = time.monotonic()
            try:
                volume = Iso9660(Memory(broken))
                folder = volume.entries(volume.root)
                for part in ("blobs", "sha256"):
                    if part in folder:
                        folder = volume.entries(folder[part])
                for entry in folder.values():
                    read(Memory(broken), entry)
            except FormatError:
                pass
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < 2
