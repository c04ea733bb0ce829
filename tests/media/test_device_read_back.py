"""A disk is proven by what its medium holds: every damage is seen, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packer.artifact.map import Kind, Map
from packer.media.read_back import WINDOW_BYTES, Damage, mismatch, read_back
from packer.progress import Silent
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, no_hints
from tests.host import needs_root
from tests.survey.disks import MIB, loop_device, write_at
from tests.unpack.simulated import DATA, numbered, sample_map

JOBS = 3


def damage_of(path: Path, disk_map: Map, head: bytes = b"", end: int | None = None) -> list[Damage]:
    with path.open("rb") as file:
        return read_back(file.fileno(), disk_map, head=head, end=end, jobs=JOBS, progress=Silent())


def large_map() -> tuple[Map, list[bytes]]:
    """A disk of several windows whose borders lie within contents, and a content in parts that lie
    far from each other.
    """
    data = [numbered(size, size) for size in (MIB // 2, 20 * MIB + 777, 3 * MIB, 40_000)]
    tail = -len(data[1]) % 4096
    rows = [
        (Kind.CONTENT, MIB // 2, 0, 0),
        (Kind.CONTENT, 20 * MIB + 777, 1, 0),
        (Kind.UNUSED, tail, -1, 0),
        (Kind.CONTENT, MIB + 512, 2, 2 * MIB - 512),  # its end, long before its beginning
        (Kind.ZERO, 24 * MIB, -1, 0),
        (Kind.CONTENT, 2 * MIB - 512, 2, 0),
        (Kind.DROPPED, 4096, -1, 0),
        (Kind.CONTENT, 40_000, 3, 0),
        (Kind.ZERO, 2 * MIB - 80_000, -1, 0),
        (Kind.CONTENT, 40_000, 3, 0),  # a twin at the very end
    ]
    return map_of(contents_of(data), rows), data


LARGE, LARGE_DATA = large_map()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(disk_of(LARGE, LARGE_DATA))
    return path


def test_what_is_right_is_right(disk: Path, tmp_path: Path) -> None:
    assert LARGE.size > 3 * WINDOW_BYTES
    assert damage_of(disk, LARGE) == []
    (tmp_path / "sample").write_bytes(disk_of(sample_map(), DATA))
    assert damage_of(tmp_path / "sample", sample_map()) == []


def test_a_disk_without_contents_and_one_that_is_longer(tmp_path: Path) -> None:
    empty = map_of(contents_of([]), [(Kind.ZERO, MIB, -1, 0)])
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB) + b"not of the disk")
    assert damage_of(path, empty) == []


def every_range() -> list[tuple[int, int, int]]:
    """(start, end, row) of each range of the large disk."""
    return list(zip(LARGE.start.tolist(), LARGE.end.tolist(), LARGE.content.tolist(), strict=True))


@pytest.mark.parametrize("number", range(len(LARGE.end)))
@pytest.mark.parametrize("at_end", [False, True])
def test_one_wrong_bit_anywhere_is_seen_and_named(disk: Path, number: int, at_end: bool) -> None:
    start, end, row = every_range()[number]
    place = end - 1 if at_end else start
    right = disk.read_bytes()[place]
    write_at(disk, place, bytes([right ^ 1]))
    damage = damage_of(disk, LARGE)
    assert any(one.start <= place < one.end and one.row == row for one in damage), damage
    assert {one.row for one in damage} == {row}
    assert sum(one.end - one.start for one in damage) <= 2 * MIB


def test_noise_everywhere_is_damage_everywhere(disk: Path) -> None:
    disk.write_bytes(numbered(LARGE.size, 99))
    damage = damage_of(disk, LARGE)
    covered = np.zeros(LARGE.size, dtype=bool)
    for one in damage:
        covered[one.start : one.end] = True
    assert covered.all()


def test_neighbouring_zeros_are_one_damage(disk: Path) -> None:
    start, end, _ = next(one for one in every_range() if one[2] < 0 and one[1] - one[0] > 8 * MIB)
    write_at(disk, start, b"x" * (end - start))
    assert damage_of(disk, LARGE) == [Damage(start, end, -1)]


def test_a_head_that_is_not_on_the_medium_yet_counts_as_it_is_given(disk: Path) -> None:
    head = disk.read_bytes()[:MIB]
    write_at(disk, 0, bytes(MIB))
    assert damage_of(disk, LARGE) != []
    assert damage_of(disk, LARGE, head) == []
    assert damage_of(disk, LARGE, b"\1" + head[1:]) == [Damage(0, MIB // 2, 0)]


def test_only_what_begins_before_the_end_is_looked_at(disk: Path) -> None:
    write_at(disk, 2 * MIB, b"x")
    assert damage_of(disk, LARGE, end=MIB) == []
    write_at(disk, 100, b"x")
    assert damage_of(disk, LARGE, end=MIB) == [Damage(0, MIB // 2, 0)]


def test_holes_of_a_file_are_not_read(tmp_path: Path) -> None:
    huge = map_of(
        contents_of([b"x" * 512]), [(Kind.ZERO, 1 << 36, -1, 0), (Kind.CONTENT, 512, 0, 0)]
    )
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.seek(1 << 36)
        file.write(b"x" * 512)
    assert damage_of(path, huge) == []
    write_at(path, 1 << 35, b"x")
    (damage,) = damage_of(path, huge)
    assert damage.start <= 1 << 35 < damage.end


def test_a_medium_that_ends_early_is_damage_from_there(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.truncate(40 * MIB)
    damage = damage_of(disk, LARGE)
    assert damage
    assert all(one.end > 40 * MIB for one in damage if one.row != 2)
    assert {one.row for one in damage} >= {2, 3}


@needs_root
def test_what_the_kernel_remembers_of_a_device_proves_nothing(disk: Path) -> None:
    """The cache of the loop device holds the right bytes, the medium below does not any more."""
    with loop_device(disk) as path, path.open("rb") as file:
        right = file.read(LARGE.size)
        start = int(LARGE.start[1])
        write_at(disk, start + 5 * MIB, b"damage")
        file.seek(0)
        assert file.read(LARGE.size) == right, "the device's cache was dropped by itself"
        assert damage_of(path, LARGE) == [Damage(start + 5 * MIB, start + 6 * MIB, 1)]


def test_the_error_names_place_content_and_path(disk: Path) -> None:
    hints = no_hints()
    damage = [Damage(4096, 8192, 1), Damage(1 << 33, (1 << 33) + 512, -1)]
    error = mismatch("/dev/sdb", damage, LARGE, hints)
    assert error.exit_code == 7
    first, *rest = error.message.split("\n")
    assert first == (
        "/dev/sdb: 4,608 bytes do not read back as they were written, the first at byte 4,096"
    )
    assert rest == [
        f"  [4096, 8192)  expected {LARGE.contents.name(1)}  (file-system metadata)",
        "  [8589934592, 8589935104)  expected zeros",
    ]
    assert "smaller than it says" in error.hint


def test_a_long_list_is_cut() -> None:
    damage = [Damage(number * 4096, number * 4096 + 512, -1) for number in range(500)]
    lines = mismatch("/dev/sdb", damage, LARGE, no_hints()).message.split("\n")
    assert len(lines) == 22
    assert lines[-1] == "  … and 480 more"
