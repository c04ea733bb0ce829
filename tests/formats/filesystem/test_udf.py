"""UDF images of genisoimage, and images that lie."""

from __future__ import annotations

import binascii
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.errors import Corrupt, FormatError, Unsupported
from formats.filesystem.iso9660 import SECTOR_BYTES, Entry, Iso9660
from formats.filesystem.udf import Udf, probe
from formats.source import FileSource, Memory
from tests.formats.damage import at_most_one_gib, damaged
from tests.host import run

FILES = {
    "sources/install.wim": bytes(range(256)) * 400,
    "efi/boot/bootx64.efi": b"MZ efi",
    "bootmgr": b"x" * 5000,
    "empty": b"",
    "käse ☃.txt": b"names in 16 bits",
    "a/b/c/d/e/f/g/h/nine-deep": b"4",
    **{f"many/{number:04}": b"%d" % number for number in range(300)},
}
HIDDEN = ("sources", "efi", "bootmgr", "a", "many")
"""From ISO 9660: media of Windows show next to nothing there."""

DESCRIBING = ((20, 60), (256, 310))
"""Sectors with descriptors, from the first to behind the last."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("udf")
    for path, data in FILES.items():
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / path).write_bytes(data)
    image = folder / "image.iso"
    hidden = [word for name in HIDDEN for word in ("-hide", name)]
    run("genisoimage", "-quiet", "-udf", "-D", *hidden, "-o", image, folder / "tree")
    return image


@pytest.fixture
def data(image: Path) -> bytearray:
    return bytearray(image.read_bytes())


def walk(volume: Udf, folder: Entry, path: str = "") -> Iterator[tuple[str, Entry]]:
    for name, entry in volume.entries(folder).items():
        if entry.is_folder:
            yield from walk(volume, entry, f"{path}{name}/")
        else:
            yield path + name, entry


def read(source: Memory | FileSource, entry: Entry) -> bytes:
    return b"".join(source.pread(*span) for span in entry.spans(0, entry.size))


def test_files_are_read_to_the_byte(image: Path) -> None:
    with FileSource(image) as source:
        assert probe(source)
        volume = Udf(source)
        assert {path: read(source, entry) for path, entry in walk(volume, volume.root)} == FILES
        plain = Iso9660(source)
        assert "sources" not in plain.entries(plain.root)


def test_what_is_no_volume_is_not_taken_for_one(data: bytearray) -> None:
    for other in (b"", bytes(40_000), bytes(32768) + b"\0CD001" + bytes(4000)):
        assert not probe(Memory(other))
    data[data.index(b"NSR02") : data.index(b"NSR02") + 5] = b"XXXXX"
    assert not probe(Memory(bytes(data)))


def sealed(data: bytearray, position: int) -> None:
    """Make the checksum and CRC of the descriptor at `position` right again."""
    length = int.from_bytes(data[position + 10 : position + 12], "little")
    crc = binascii.crc_hqx(bytes(data[position + 16 : position + 16 + length]), 0)
    data[position + 8 : position + 10] = crc.to_bytes(2, "little")
    tag = data[position : position + 16]
    data[position + 4] = (sum(tag) - tag[4]) & 0xFF


def descriptor(data: bytearray, kind: int, number: int = 0) -> int:
    """Where the descriptor of a kind begins."""
    found = [
        position
        for position in range(20 * SECTOR_BYTES, len(data), SECTOR_BYTES)
        if data[position : position + 2] == kind.to_bytes(2, "little")
        and (sum(data[position : position + 16]) - data[position + 4]) & 0xFF == data[position + 4]
    ]
    return found[number]


def everything(data: bytearray) -> list[str]:
    volume = Udf(Memory(bytes(data)))
    return [path for path, _ in walk(volume, volume.root)]


@pytest.mark.parametrize(
    ("kind", "offset", "value", "words"),
    [
        (6, 212, 512, "blocks of 512 bytes"),
        (6, 268, 2, "several partitions"),
        (6, 440, 0x4002, "virtual"),
        (6, 444, 7, "expected partition"),
        (5, 192, 1 << 30, "a partition within"),
        (256, 404, 1 << 30, "data in a partition"),
    ],
)
def test_what_is_not_read_says_so(
    data: bytearray, kind: int, offset: int, value: int, words: str
) -> None:
    position = descriptor(data, kind)
    width = 2 if offset in (440, 444) else 4
    data[position + offset : position + offset + width] = value.to_bytes(width, "little")
    sealed(data, position)
    with pytest.raises((Corrupt, Unsupported), match=words):
        everything(data)


def test_a_wrong_checksum_is_noticed(data: bytearray) -> None:
    data[descriptor(data, 261) + 60] ^= 1
    with pytest.raises(Corrupt, match="CRC"):
        everything(data)


def test_a_size_that_its_extents_do_not_have_is_refused(data: bytearray) -> None:
    position = descriptor(data, 261, 1)
    data[position + 56 : position + 64] = (1 << 40).to_bytes(8, "little")
    sealed(data, position)
    with pytest.raises(Corrupt, match="bytes"):
        everything(data)


def test_damage_is_an_error_or_harmless_and_costs_little(data: bytearray) -> None:
    areas = [(first * SECTOR_BYTES, end * SECTOR_BYTES) for first, end in DESCRIBING]
    slowest = 0.0
    with at_most_one_gib():
        for number, broken in enumerate(damaged(bytes(data), areas, 700, seed=7)):
            again = bytearray(broken)
            if number % 2 and len(again) == len(data):  # damage that checksums do not show
                for start, end in areas:
                    for position in range(start, end, SECTOR_BYTES):
                        sealed(again, position)
            began = time.monotonic()
            try:
                source = Memory(bytes(again))
                volume = Udf(source)
                for entry in volume.entries(volume.root).values():
                    assert len(read(source, entry)) == entry.size
            except FormatError:
                pass
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < 2
