"""verify finds every byte that matters, and only those."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packer.artifact.map import Kind, Map
from packer.errors import MismatchError
from packer.unpack.verify import VerifyReport, verify
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of
from tests.unpack.simulated import CLASSES, DATA, sample_map

SECTOR = 512


def whole_sectors(disk_map: Map) -> Map:
    """Return the sample's map for a disk that containers can hold: whole sectors."""
    rows = [
        (Kind(int(kind)), int(length), int(content), int(offset))
        for kind, length, content, offset in zip(
            disk_map.kind,
            disk_map.end - disk_map.start,
            disk_map.content,
            disk_map.offset,
            strict=True,
        )
    ]
    rest = -disk_map.size % SECTOR
    return map_of(contents_of(DATA, CLASSES), [*rows, (Kind.UNUSED, rest or SECTOR, -1, 0)])


MAP = whole_sectors(sample_map())
DISK = disk_of(MAP, DATA)
MATTERS = np.isin(MAP.kind, (Kind.CONTENT, Kind.ZERO))


def check(
    folder: Path, disk: bytes, *, exact: bool = False, disk_map: Map = MAP, jobs: int = 2
) -> VerifyReport:
    path = folder / "disk.raw"
    path.write_bytes(disk)
    return verify(path, disk_map, exact=exact, jobs=jobs)


def covers(report: VerifyReport, place: int) -> bool:
    return any(start <= place < end for start, end in report.wrong.tolist())


def kind_at(place: int) -> Kind:
    return Kind(int(MAP.kind[int(np.searchsorted(MAP.end, place, side="right"))]))


@pytest.mark.parametrize("exact", [False, True])
def test_the_right_disk_is_right(tmp_path: Path, exact: bool) -> None:
    report = check(tmp_path, DISK, exact=exact)
    assert report.right
    assert report.proven_bytes == sum(map(len, DATA))
    assert report.zero_bytes == MAP.bytes_of_kind(Kind.ZERO)


def test_a_sparse_disk_and_one_in_a_container_are_right(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(DISK)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"],
        cwd=tmp_path,
        check=True,
    )
    subprocess.run(["cp", "--sparse=always", "disk.raw", "sparse.raw"], cwd=tmp_path, check=True)
    for name in ("disk.qcow2", "sparse.raw"):
        assert verify(tmp_path / name, MAP, exact=True).right


def test_noise_in_unused_and_dropped_ranges_is_ignored_unless_it_must_be_exact(
    tmp_path: Path,
) -> None:
    disk = bytearray(DISK)
    ranges = []
    for kind in (Kind.UNUSED, Kind.DROPPED):
        for start, end in MAP.ranges_of_kind(kind).tolist():
            disk[start:end] = b"\xaa" * (end - start)
            ranges.append([start, end])
    report = check(tmp_path, bytes(disk))
    assert report.right
    assert sorted([*report.unused.tolist(), *report.dropped.tolist()]) == sorted(ranges)
    exact = check(tmp_path, bytes(disk), exact=True)
    assert not exact.right
    for start, end in ranges:
        assert covers(exact, start)
        assert covers(exact, end - 1)
    assert exact.proven_bytes == sum(map(len, DATA))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_flipped_byte_is_found_where_it_matters(tmp_path: Path, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(MAP.end) - 1))
    start, end = int(MAP.start[row]), int(MAP.end[row])
    place = data.draw(
        st.one_of(st.sampled_from([start, end - 1]), st.integers(start, end - 1)), "place"
    )
    disk = bytearray(DISK)
    disk[place] ^= data.draw(st.integers(1, 255))
    report = check(tmp_path, bytes(disk))
    assert report.right == (not MATTERS[row])
    assert covers(report, place) == bool(MATTERS[row])
    assert covers(check(tmp_path, bytes(disk), exact=True), place)


def test_several_wrong_places_are_all_named_with_any_number_of_threads(tmp_path: Path) -> None:
    rng = random.Random(3)
    places = [rng.randrange(len(DISK)) for _ in range(30)]
    disk = bytearray(DISK)
    for place in places:
        disk[place] ^= 0x10
    one, four = (check(tmp_path, bytes(disk), jobs=jobs) for jobs in (1, 4))
    assert one.wrong.tolist() == four.wrong.tolist()
    for place in places:
        assert covers(one, place) == (kind_at(place) in (Kind.CONTENT, Kind.ZERO))
    assert not one.right
    assert one.proven_bytes < sum(map(len, DATA))


@pytest.mark.parametrize("difference", [-SECTOR, SECTOR, 1 << 20])
def test_a_disk_of_another_size_does_not_match(tmp_path: Path, difference: int) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(DISK)
    os.truncate(path, len(DISK) + difference)
    with pytest.raises(MismatchError, match=f"expected a disk of {len(DISK)} bytes"):
        verify(path, MAP)


def test_verify_changes_nothing(tmp_path: Path) -> None:
    check(tmp_path, DISK)
    path = tmp_path / "disk.raw"
    before = path.stat()
    verify(path, MAP, exact=True)
    assert path.read_bytes() == DISK
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_huge_zero_range_is_proven_without_reading_its_holes(tmp_path: Path) -> None:
    size = 1 << 40
    huge = map_of(
        contents_of([b"x" * 4096]), [(Kind.CONTENT, 4096, 0, 0), (Kind.ZERO, size, -1, 0)]
    )
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 4096)
    os.truncate(path, size + 4096)
    assert verify(path, huge).right
    with path.open("r+b") as file:
        file.seek(size - 1)
        file.write(b"\1")
    assert covers(verify(path, huge), size - 1)
