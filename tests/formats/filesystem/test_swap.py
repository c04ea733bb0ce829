from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.filesystem import swap
from formats.source import FileSource, Memory
from tests.formats.damage import at_most_one_gib, damaged

KIB = 1 << 10
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def mkswap(path: Path, size: int, *options: str) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    path.chmod(0o600)
    subprocess.run(["mkswap", "-q", *options, str(path)], check=True, capture_output=True)
    return path


@pytest.mark.parametrize("page_size", [4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB])
def test_everything_after_the_first_page_may_be_dropped(tmp_path: Path, page_size: int) -> None:
    size = 16 * 64 * KIB
    image = mkswap(tmp_path / "swap", size, "-p", str(page_size), "-U", UUID, "-L", "my swap")
    area = swap.read(FileSource(image))
    assert swap.probe(FileSource(image))
    assert area.dropped.tolist() == [[page_size, size]]
    assert (area.kind, area.state, area.block_size) == ("swap", "clean", page_size)
    assert (area.label, area.uuid) == ("my swap", UUID)
    assert len(area.free) == 0


def test_what_follows_the_last_page_is_kept(tmp_path: Path) -> None:
    image = mkswap(tmp_path / "swap", 64 * KIB)
    with image.open("r+b") as file:
        file.truncate(64 * KIB + 3000)
    assert swap.read(FileSource(image)).dropped.tolist() == [[4 * KIB, 64 * KIB]]


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    return mkswap(tmp_path / "swap", 64 * KIB, "-U", UUID).read_bytes()


def with_signature(image: bytes, signature: bytes) -> Memory:
    return Memory(image[:4086] + signature.ljust(10, b"\0") + image[4096:])


@pytest.mark.parametrize(
    "signature",
    [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"],
)
def test_a_suspended_system_is_not_dropped(good: bytes, signature: bytes) -> None:
    source = with_signature(good, signature)
    area = swap.read(source)
    assert swap.probe(source)
    assert area.state == "hibernated"
    assert len(area.dropped) == 0
    assert area.uuid == UUID


def test_an_area_of_a_big_endian_machine_is_read(good: bytes) -> None:
    fields = struct.unpack_from("<III", good, 1024)
    swapped = good[:1024] + struct.pack(">III", *fields) + good[1036:]
    assert swap.read(Memory(swapped)).dropped.tolist() == [[4 * KIB, 64 * KIB]]


def test_the_oldest_layout_has_no_label(good: bytes) -> None:
    area = swap.read(with_signature(good, b"SWAP-SPACE"))
    assert (area.label, area.uuid) == ("", "")
    assert area.dropped.tolist() == [[4 * KIB, 64 * KIB]]


def test_an_area_larger_than_its_volume_is_truncated(good: bytes) -> None:
    with pytest.raises(Truncated):
        swap.read(Memory(good[: 60 * KIB]))


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (1024, 2, Unsupported),
        (1028, 0, Corrupt),
        (1028, 0xFFFF_FFFF, Truncated),
        (1032, 638, Corrupt),
    ],
)
def test_an_impossible_header_is_refused(
    good: bytes, offset: int, value: int, error: type[FormatError]
) -> None:
    broken = bytearray(good)
    struct.pack_into("<I", broken, offset, value)
    with pytest.raises(error):
        swap.read(Memory(bytes(broken)))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 70000])
def test_garbage_is_not_swap(size: int) -> None:
    garbage = Memory(random.Random(size).randbytes(size))
    assert not swap.probe(garbage)
    with pytest.raises(Corrupt):
        swap.read(garbage)


def test_damage_is_an_error_or_a_range_inside_the_volume(good: bytes) -> None:
    refused = 0
    with at_most_one_gib():
        for broken in damaged(good, [(1024, 1068), (4086, 4096), (0, len(good))], 600):
            try:
                area = swap.read(Memory(broken))
            except FormatError:
                refused += 1
                continue
            for start, end in area.dropped.tolist():
                assert area.block_size <= start < end <= len(broken)
    assert refused > 100
