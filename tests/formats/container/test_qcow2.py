from __future__ import annotations

import struct
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from formats.container import c_qcow2
from formats.container.flat import FlatDisk
from formats.container.qcow2 import MAX_ROWS, BackingRequired, Qcow2, read_header
from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.ranges import as_ranges, subtract, total, union
from formats.source import FileSource, Memory, Source
from tests.formats.container.qemu import (
    KIB,
    MIB,
    create,
    guest_bytes,
    guest_map,
    qemu_img,
    qemu_io,
)
from tests.formats.damage import at_most_one_gib, damaged

ODD_SIZE = 9 * MIB + 3 * 512
LAYOUTS = [
    ("compat=0.10", "cluster_size=512"),
    ("compat=0.10", "cluster_size=64k"),
    ("compat=1.1", "cluster_size=512"),
    ("compat=1.1", "cluster_size=4k"),
    ("compat=1.1", "cluster_size=64k"),
    ("compat=1.1", "cluster_size=2M"),
    ("compat=1.1", "cluster_size=64k", "lazy_refcounts=on"),
    ("compat=1.1", "cluster_size=16k", "extended_l2=on"),
    ("compat=1.1", "cluster_size=64k", "extended_l2=on"),
    ("compat=1.1", "cluster_size=2M", "extended_l2=on"),
    ("compat=1.1", "cluster_size=64k", "refcount_bits=1"),
]
COMPRESSED_LAYOUTS = [
    ("compat=0.10", "cluster_size=64k"),
    ("compat=1.1", "cluster_size=512", "compression_type=zlib"),
    ("compat=1.1", "cluster_size=64k", "compression_type=zlib"),
    ("compat=1.1", "cluster_size=2M", "compression_type=zlib"),
    ("compat=1.1", "cluster_size=4k", "compression_type=zstd"),
    ("compat=1.1", "cluster_size=64k", "compression_type=zstd"),
    ("compat=1.1", "cluster_size=2M", "compression_type=zstd"),
    ("compat=1.1", "cluster_size=64k", "compression_type=zstd", "extended_l2=on"),
]


def whole(disk: Source, step: int = 777_777) -> bytes:
    """Read the disk in pieces that fit no cluster."""
    return b"".join(
        disk.pread(start, min(step, disk.size - start)) for start in range(0, disk.size, step)
    )


def patterned(image: Path) -> Path:
    """Write recognisable bytes at places that begin, end and cross clusters."""
    qemu_io(
        image,
        "write -P 1 0 3k",
        f"write -P 2 {64 * KIB - 512} 1k",
        f"write -P 3 {MIB} 1M",
        f"write -P 4 {3 * MIB + 5 * 512} 100k",
        f"write -P 5 {ODD_SIZE - 512} 512",
        f"write -z {MIB + 256 * KIB} 128k",
        f"write -z -u {MIB + 512 * KIB} 64k",
        f"discard {MIB + 640 * KIB} 64k",
        f"write -P 6 {5 * MIB + 1536} 512",
    )
    return image


@pytest.fixture(params=LAYOUTS, ids=",".join)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return patterned(create(tmp_path / "disk.qcow2", ODD_SIZE, *request.param))


def test_every_byte_is_what_qemu_reads(image: Path) -> None:
    disk = Qcow2(FileSource(image))
    assert whole(disk) == guest_bytes(image)


def test_runs_lie_where_qemu_says(image: Path) -> None:
    runs = Qcow2(FileSource(image)).runs
    for extent in guest_map(image):
        if extent["data"] and not extent["zero"]:
            row = int(np.searchsorted(runs[:, 0], extent["start"], side="right")) - 1
            guest, host, length = runs[row].tolist()
            assert host - guest == extent["offset"] - extent["start"]
            assert extent["start"] + extent["length"] <= guest + length


def test_what_is_not_data_reads_as_zeros(image: Path) -> None:
    disk = Qcow2(FileSource(image))
    rest = subtract(as_ranges([(0, disk.size)]), disk.data_ranges(0, disk.size))
    assert total(rest) > 3 * MIB
    data = guest_bytes(image)
    assert not any(any(data[start:end]) for start, end in rest.tolist())


def test_runs_are_merged_and_sorted(image: Path) -> None:
    runs = Qcow2(FileSource(image)).runs
    ends = runs[:-1] + runs[:-1, 2:]
    assert (runs[1:, 0] >= ends[:, 0]).all()
    assert not ((runs[1:, 0] == ends[:, 0]) & (runs[1:, 1] == ends[:, 1])).any()


def test_the_columns_alone_read_the_same_disk(image: Path) -> None:
    parsed = Qcow2(FileSource(image))
    flat = FlatDisk(
        FileSource(image),
        parsed.size,
        parsed.runs,
        parsed.compressed,
        parsed.cluster_size,
        parsed.compression,
    )
    assert whole(flat) == whole(parsed)


@pytest.mark.parametrize("layout", COMPRESSED_LAYOUTS, ids=",".join)
def test_compressed_images_read_as_qemu_reads_them(tmp_path: Path, layout: tuple[str, ...]) -> None:
    raw = tmp_path / "disk.raw"
    blocks = [bytes([block % 250 + 1]) * 512 for block in range(ODD_SIZE // 512)]
    raw.write_bytes(b"".join(blocks))
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-c", "-O", "qcow2", "-o", ",".join(layout), raw, image)
    disk = Qcow2(FileSource(image))
    assert len(disk.compressed) > 0
    assert disk.compression == ("zstd" if "compression_type=zstd" in layout else "deflate")
    assert whole(disk) == guest_bytes(image)
    assert total(disk.data_ranges(0, disk.size)) == disk.size


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_compressed_and_plain_clusters_mix(tmp_path: Path, compression: str) -> None:
    image = create(tmp_path / "disk.qcow2", ODD_SIZE, f"compression_type={compression}")
    qemu_io(image, "write -c -P 7 0 1M", "write -P 8 100k 10k", "write -c -P 9 4M 64k")
    disk = Qcow2(FileSource(image))
    assert whole(disk) == guest_bytes(image)


def test_snapshots_inside_do_not_disturb_the_active_disk(tmp_path: Path) -> None:
    image = patterned(create(tmp_path / "disk.qcow2", ODD_SIZE))
    qemu_img("snapshot", "-c", "before", image)
    qemu_io(image, "write -P 77 0 2M", "write -P 78 8M 64k")
    qemu_img("snapshot", "-c", "after", image)
    assert whole(Qcow2(FileSource(image))) == guest_bytes(image)


def test_a_chain_of_backing_files_reads_through(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(i % 256 for i in range(4 * MIB)))
    middle = create(tmp_path / "middle.qcow2", 6 * MIB, base=(base, "raw"))
    qemu_io(middle, "write -P 50 1M 1M", "write -z 2M 512k")
    top = create(tmp_path / "top.qcow2", ODD_SIZE, "extended_l2=on", base=(middle, "qcow2"))
    qemu_io(top, "write -P 60 1500k 3k", "write -z 3M 4k", "write -P 61 5M 64k")
    opened = Qcow2(FileSource(top), Qcow2(FileSource(middle), FileSource(base)))
    assert whole(opened) == guest_bytes(top)
    data = opened.data_ranges(0, opened.size)
    assert total(data) == total(union(data))
    zeros = subtract(as_ranges([(0, opened.size)]), data)
    assert not any(any(opened.pread(start, end - start)) for start, end in zeros.tolist())


def test_a_missing_backing_file_is_named_and_not_opened(tmp_path: Path) -> None:
    base = create(tmp_path / "base.qcow2", MIB)
    top = create(tmp_path / "top.qcow2", MIB, base=(base, "qcow2"))
    with pytest.raises(BackingRequired) as caught:
        Qcow2(FileSource(top))
    assert caught.value.name == str(base)
    assert caught.value.format == "qcow2"


def test_zero_clusters_are_told_from_unallocated_ones(tmp_path: Path) -> None:
    base = create(tmp_path / "base.qcow2", 4 * MIB)
    top = create(tmp_path / "top.qcow2", 4 * MIB, base=(base, "qcow2"))
    qemu_io(top, "write -P 1 0 1M", "write -z 1M 1M")
    disk = Qcow2(FileSource(top), Qcow2(FileSource(base)))
    assert disk.zeros.tolist() == [[MIB, 2 * MIB]]
    assert disk.backed.tolist() == [[2 * MIB, 4 * MIB]]


def test_preallocated_clusters_that_are_holes_are_not_data(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 64 * MIB, "preallocation=metadata")
    qemu_io(image, "write -P 1 10M 64k")
    disk = Qcow2(FileSource(image))
    assert total(disk.data_ranges(0, disk.size)) < MIB
    assert disk.pread(10 * MIB, 64 * KIB) == b"\1" * 64 * KIB


def test_a_disk_without_bytes_can_be_opened(tmp_path: Path) -> None:
    disk = Qcow2(FileSource(create(tmp_path / "disk.qcow2", 0)))
    assert disk.size == 0
    assert disk.pread(0, 0) == b""
    assert disk.data_ranges(0, 0).shape == (0, 2)


def test_reads_outside_the_disk_are_refused(tmp_path: Path) -> None:
    disk = Qcow2(FileSource(create(tmp_path / "disk.qcow2", MIB)))
    for offset, length in ((-1, 1), (MIB, 1), (MIB - 1, 2), (0, -1)):
        with pytest.raises(Truncated):
            disk.pread(offset, length)


def test_a_tebibyte_with_a_gibibyte_in_it_opens_within_a_second(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 1 << 40)
    step = 1000 * MIB
    qemu_io(image, *(f"write -q -P {i % 255 + 1} {i * step} 1M" for i in range(1024)))
    began = time.process_time()
    disk = Qcow2(FileSource(image))
    assert time.process_time() - began < 1
    assert total(disk.data_ranges(0, disk.size)) == 1 << 30
    for i in (0, 1, 511, 1023):
        assert disk.pread(i * step, MIB) == bytes([i % 255 + 1]) * MIB


def test_threads_read_compressed_clusters_at_once(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"".join(bytes([block % 256]) * 64 * KIB for block in range(512)))
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-c", "-O", "qcow2", raw, image)
    disk = Qcow2(FileSource(image))
    wrong: list[int] = []

    def read(first: int) -> None:
        for block in [*range(first, 512), *range(first)]:
            if disk.pread(block * 64 * KIB + 5, 100) != bytes([block % 256]) * 100:
                wrong.append(block)

    threads = [threading.Thread(target=read, args=(i * 64,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def header_with(image: bytes, offset: int, layout: str, value: int) -> Memory:
    changed = bytearray(image)
    struct.pack_into(layout, changed, offset, value)
    return Memory(bytes(changed))


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    image = create(tmp_path / "disk.qcow2", 4 * MIB)
    qemu_io(image, "write -P 1 0 64k", "write -c -P 2 1M 64k", "write -z 2M 64k")
    return image.read_bytes()


def test_a_dirty_image_can_be_read(good: bytes) -> None:
    disk = Qcow2(header_with(good, 72, ">Q", c_qcow2.INCOMPATIBLE_DIRTY))
    assert disk.pread(0, 4) == b"\1\1\1\1"


@pytest.mark.parametrize(
    ("offset", "layout", "value", "error"),
    [
        (0, ">I", 0x12345678, Corrupt),
        (4, ">I", 4, Unsupported),
        (8, ">Q", 1 << 60, Corrupt),
        (20, ">I", 8, Corrupt),
        (20, ">I", 22, Corrupt),
        (24, ">Q", 1 << 62, Corrupt),
        (32, ">I", 2, Unsupported),
        (36, ">I", 0, Corrupt),
        (36, ">I", 0xFFFF_FFFF, Unsupported),
        (40, ">Q", 1 << 50, Corrupt),
        (40, ">Q", 12345, Corrupt),
        (72, ">Q", c_qcow2.INCOMPATIBLE_CORRUPT, Corrupt),
        (72, ">Q", c_qcow2.INCOMPATIBLE_EXTERNAL_DATA, Unsupported),
        (72, ">Q", c_qcow2.INCOMPATIBLE_COMPRESSION_TYPE, Corrupt),
        (72, ">Q", 1 << 40, Unsupported),
        (96, ">I", 7, Corrupt),
        (100, ">I", 72, Corrupt),
        (104, ">B", 9, Unsupported),
    ],
)
def test_an_impossible_header_is_refused(
    good: bytes, offset: int, layout: str, value: int, error: type[FormatError]
) -> None:
    with pytest.raises(error):
        Qcow2(header_with(good, offset, layout, value))


def l1_and_l2(good: bytes) -> tuple[int, int]:
    """Return where the first L1 entry and the first L2 entry lie."""
    header = read_header(Memory(good))
    (entry,) = struct.unpack_from(">Q", good, header.l1_table_offset)
    return header.l1_table_offset, entry & c_qcow2.L1_OFFSET_MASK


@pytest.mark.parametrize("value", [1 << 40, 0x10200])
def test_an_l2_table_outside_the_file_or_misaligned_is_corrupt(good: bytes, value: int) -> None:
    l1, _ = l1_and_l2(good)
    with pytest.raises(Corrupt, match="L1 table"):
        Qcow2(header_with(good, l1, ">Q", value))


def test_a_misaligned_cluster_is_corrupt(good: bytes) -> None:
    _, l2 = l1_and_l2(good)
    with pytest.raises(Corrupt, match="not aligned") as caught:
        Qcow2(header_with(good, l2 + 8, ">Q", 0x10200))
    assert caught.value.offset == l2 + 8


def test_data_past_the_end_of_the_file_is_truncated(good: bytes) -> None:
    _, l2 = l1_and_l2(good)
    with pytest.raises(Truncated):
        Qcow2(header_with(good, l2, ">Q", 1 << 40))


def test_a_host_cluster_named_twice_is_read_twice(good: bytes) -> None:
    _, l2 = l1_and_l2(good)
    (entry,) = struct.unpack_from(">Q", good, l2)
    disk = Qcow2(header_with(good, l2 + 8, ">Q", entry))
    assert disk.pread(64 * KIB, 64 * KIB) == b"\1" * 64 * KIB


def test_an_l2_table_named_twice_is_corrupt(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 1 << 30)
    qemu_io(image, "write 0 64k")
    good = image.read_bytes()
    l1, _ = l1_and_l2(good)
    (entry,) = struct.unpack_from(">Q", good, l1)
    with pytest.raises(Corrupt, match="share"):
        Qcow2(header_with(good, l1 + 8, ">Q", entry))


def test_a_damaged_compressed_cluster_is_corrupt_when_it_is_read(good: bytes) -> None:
    _, host, _, _ = Qcow2(Memory(good)).compressed[0].tolist()
    disk = Qcow2(header_with(good, host, ">Q", 0xFFFF_FFFF_FFFF_FFFF))
    assert disk.pread(0, 4) == b"\1\1\1\1"
    with pytest.raises(Corrupt, match="deflate"):
        disk.pread(MIB, 1)


def scattered(image: Path, clusters: int) -> Path:
    """Write an image whose clusters lie in the file in reverse order; its data is one hole."""
    cluster_size = 64 * KIB
    tables = clusters // 8192
    data_start = (2 + tables) * cluster_size
    fields = (b"QFI\xfb", 2, 0, 0, 16, clusters * cluster_size, 0, tables, cluster_size)
    l1 = np.arange(2, 2 + tables, dtype=np.uint64) * np.uint64(cluster_size)
    l2 = np.arange(clusters, dtype=np.uint64)[::-1] * np.uint64(cluster_size)
    with image.open("wb") as file:
        file.write(c_qcow2.HEADER_V2.pack(*fields, 0, 0, 0, 0))
        file.seek(cluster_size)
        file.write(l1.astype(">u8").tobytes())
        file.seek(2 * cluster_size)
        file.write((l2 + np.uint64(data_start)).astype(">u8").tobytes())
        file.truncate(data_start + clusters * cluster_size)
    return image


def test_the_most_scattered_disk_that_is_read_stays_below_a_gibibyte(tmp_path: Path) -> None:
    image = scattered(tmp_path / "disk.qcow2", MAX_ROWS)
    with at_most_one_gib():
        disk = Qcow2(FileSource(image))
        assert len(disk.runs) == MAX_ROWS
        assert len(disk.data_ranges(0, disk.size)) == 0


def test_a_disk_in_too_many_pieces_is_unsupported(tmp_path: Path) -> None:
    image = scattered(tmp_path / "disk.qcow2", 2 * MAX_ROWS)
    with at_most_one_gib(), pytest.raises(Unsupported, match="pieces"):
        Qcow2(FileSource(image))


def read_everything(image: bytes) -> None:
    disk = Qcow2(Memory(image))
    ranges = disk.data_ranges(0, disk.size)
    for start, end in ranges[:50].tolist():
        disk.pread(start, min(end - start, 4 * MIB))


@pytest.mark.parametrize(
    "options",
    [
        ("compat=0.10",),
        ("cluster_size=4k", "compression_type=zstd"),
        ("cluster_size=16k", "extended_l2=on"),
    ],
    ids=",".join,
)
def test_damage_is_an_error_or_a_disk(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = create(tmp_path / "disk.qcow2", 2 * MIB, *options)
    qemu_io(image, "write -P 1 0 200k", "write -c -P 2 1M 64k", "write -z 1536k 64k")
    good = image.read_bytes()
    l1, l2 = l1_and_l2(good)
    data = int(Qcow2(Memory(good)).compressed[0, 1])
    areas = [(0, 112), (l1, l1 + 8), (l2, l2 + 2048), (data, data + 64), (0, len(good))]
    refused = 0
    with at_most_one_gib():
        for broken in damaged(good, areas, 800):
            try:
                read_everything(broken)
            except FormatError:
                refused += 1
    assert 100 < refused < 800


def test_where_both_read_a_damaged_table_they_read_the_same(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 2 * MIB)
    qemu_io(image, "write -P 1 0 200k", "write -c -P 2 1M 64k", "write -z 1536k 64k")
    good = image.read_bytes()
    l1, l2 = l1_and_l2(good)
    compared = 0
    for broken in damaged(good, [(l1, l1 + 8), (l2, l2 + 256)], 80, seed=2):
        try:
            ours = whole(Qcow2(Memory(broken)))
        except FormatError:
            continue
        image.write_bytes(broken)
        try:
            theirs = guest_bytes(image)
        except subprocess.CalledProcessError:
            continue
        assert ours == theirs
        compared += 1
    assert compared >= 10
