from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.container.flat import Columns, FlatDisk, no_compressed, no_runs
from formats.container.raw import open_raw
from formats.errors import Corrupt, Truncated, Unsupported
from formats.ranges import Ranges, as_ranges
from formats.source import Memory

BLOCK = 512
FILE = Memory(b"".join(bytes([i]) * BLOCK for i in range(64)))


def columns(*rows: tuple[int, ...]) -> Columns:
    return np.array(rows, dtype=np.int64)


def flat(size: int, runs: Columns) -> FlatDisk:
    return FlatDisk(FILE, size, runs, no_compressed(), BLOCK, "deflate")


def test_each_run_comes_from_its_place_and_the_rest_is_zero() -> None:
    disk = flat(5 * BLOCK, columns((BLOCK, 7 * BLOCK, BLOCK), (3 * BLOCK, 9 * BLOCK, BLOCK)))
    whole = disk.pread(0, disk.size)
    assert [whole[i * BLOCK] for i in range(5)] == [0, 7, 0, 9, 0]
    assert disk.data_ranges(0, disk.size).tolist() == [
        [BLOCK, 2 * BLOCK],
        [3 * BLOCK, 4 * BLOCK],
    ]


def test_the_holes_of_a_backing_are_asked_for_once() -> None:
    """A long overlay over a long base would otherwise take hours."""

    class Counting(Memory):
        asked = 0

        def data_ranges(self, start: int, end: int) -> Ranges:
            self.asked += 1
            return super().data_ranges(start, end)

    base = Counting(bytes(range(1, 101)))
    backed = as_ranges((start, start + 1) for start in range(0, 100, 2))
    disk = FlatDisk(FILE, 100, no_runs(), no_compressed(), BLOCK, "zstd", base, backed)
    assert disk.data_ranges(3, 97).tolist() == [[start, start + 1] for start in range(4, 97, 2)]
    assert base.asked == 1


@given(st.data())
def test_any_columns_read_like_the_disk_they_describe(data: st.DataObject) -> None:
    size = 40
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=12)))
    model = bytearray(size)
    base = bytes(range(1, 21))
    rows, backed = [], []
    for start, end in pairwise(cuts):
        kind = data.draw(st.sampled_from(["run", "hole", "backed"]))
        if kind == "run":
            host = data.draw(st.integers(0, FILE.size - (end - start)))
            rows.append((start, host, end - start))
            model[start:end] = FILE.data[host : host + end - start]
        elif kind == "backed":
            backed.append((start, end))
            part = base[start:end]
            model[start : start + len(part)] = part
    runs = np.array(rows, dtype=np.int64).reshape(-1, 3)
    disk = FlatDisk(FILE, size, runs, no_compressed(), 16, "zstd", Memory(base), as_ranges(backed))
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    assert disk.pread(start, end - start) == bytes(model[start:end])
    listed = np.zeros(size, dtype=bool)
    for first, last in disk.data_ranges(start, end).tolist():
        assert start <= first < last <= end
        listed[first:last] = True
    assert not any(model[i] for i in range(start, end) if not listed[i])


@pytest.mark.parametrize(
    "runs",
    [
        columns((0, 0, BLOCK), (BLOCK - 1, 0, BLOCK)),
        columns((BLOCK, 0, BLOCK), (0, 0, BLOCK)),
        columns((9 * BLOCK, 0, 2 * BLOCK)),
        columns((-1, 0, BLOCK)),
        columns((0, 0, 0)),
        columns((0, 0, -5)),
    ],
)
def test_contradicting_rows_are_corrupt(runs: Columns) -> None:
    with pytest.raises(Corrupt):
        flat(10 * BLOCK, runs)


@pytest.mark.parametrize("host", [-1, 63 * BLOCK + 1, 1 << 62, (1 << 63) - 1])
def test_rows_outside_the_file_are_truncated(host: int) -> None:
    with pytest.raises(Truncated):
        flat(10 * BLOCK, columns((0, host, BLOCK)))


def test_an_unknown_compression_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        FlatDisk(FILE, BLOCK, no_runs(), no_compressed(), BLOCK, "lz4")


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-12)
    return packer.compress(data) + packer.flush()


def test_a_cluster_that_unpacks_to_too_little_is_corrupt() -> None:
    packed = raw_deflate(b"x" * 100)
    row = columns((0, 0, len(packed), BLOCK))
    disk = FlatDisk(Memory(packed), BLOCK, no_runs(), row, BLOCK, "deflate")
    with pytest.raises(Corrupt, match="unpacked to 100"):
        disk.pread(0, 1)


def test_a_cluster_that_unpacks_to_too_much_stops_at_its_size() -> None:
    packed = raw_deflate(b"x" * 50_000_000)
    row = columns((0, 0, len(packed), BLOCK))
    disk = FlatDisk(Memory(packed), BLOCK, no_runs(), row, BLOCK, "deflate")
    assert disk.pread(0, BLOCK) == b"x" * BLOCK


def test_a_cluster_cut_by_the_end_of_the_file_is_truncated() -> None:
    packed = raw_deflate(bytes(range(256)) * 2)[:20]
    row = columns((0, 0, BLOCK, BLOCK))
    disk = FlatDisk(Memory(packed), BLOCK, no_runs(), row, BLOCK, "deflate")
    with pytest.raises(Truncated):
        disk.pread(0, 1)


def test_a_raw_file_is_its_own_disk() -> None:
    disk = open_raw(FILE)
    assert disk.size == FILE.size
    assert disk.pread(5 * BLOCK, 3) == b"\5\5\5"


def test_a_raw_file_that_ends_inside_a_sector_is_filled_up_with_zeros() -> None:
    disk = open_raw(Memory(b"a" * 1000))
    assert disk.size == 1024
    assert disk.pread(990, 34) == b"a" * 10 + bytes(24)
    assert disk.data_ranges(0, 1024).tolist() == [[0, 1000]]
