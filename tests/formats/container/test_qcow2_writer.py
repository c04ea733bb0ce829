from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from formats.container import c_qcow2 as c
from formats.container.qcow2 import BackingRequired, Qcow2, read_header
from formats.container.qcow2_writer import (
    MAX_CLUSTERS,
    SMALLEST_CLUSTER_BITS,
    Image,
    clusters_inside,
    fitting_cluster_bits,
)
from formats.errors import Unsupported
from formats.ranges import as_ranges
from formats.source import FileSource
from tests.formats.container.qemu import KIB, MIB, guest_bytes, guest_map, qemu_img

ODD_SIZE = 9 * MIB + 3 * 512
TIB = 1 << 40


def content_of(size: int) -> bytes:
    """Bytes that tell where they belong, and differ from zeros everywhere."""
    return (np.arange(-(-size // 8), dtype="<u8") + 0x8000_0000_0000_0001).tobytes()[:size]


def written(path: Path, image: Image, disk: bytes) -> Path:
    with path.open("wb") as file:
        file.truncate(image.file_size)
        for offset, data in image.head():
            file.seek(offset)
            file.write(data)
        for guest, place, length in image.runs().tolist():
            file.seek(place)
            file.write(disk[guest : guest + length])
    return path


def checked(path: Path) -> dict[str, int]:
    found = json.loads(qemu_img("check", "-f", "qcow2", "--output=json", path))
    assert isinstance(found, dict)
    return found


def scattered(size: int, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The first, the last, and some clusters in between, single and in runs."""
    last = -(-size >> bits) - 1
    some = {0, last, *range(last // 3, last // 3 + 5), *range(last // 2, last, 7)}
    return np.array(sorted(some), dtype=np.int64)


@pytest.mark.parametrize("bits", [9, 12, 13, 16, 21])
@pytest.mark.parametrize("size", [ODD_SIZE, 16 * MIB, 512])
def test_qemu_finds_nothing_wrong_and_reads_what_was_written(
    tmp_path: Path, bits: int, size: int
) -> None:
    disk = content_of(size)
    clusters = scattered(size, bits)
    image = Image(size, clusters, bits)
    path = written(tmp_path / "disk.qcow2", image, disk)

    assert checked(path)["check-errors"] == 0
    expected = bytearray(size)
    for cluster in clusters.tolist():
        place = slice(cluster << bits, (cluster + 1) << bits)
        expected[place] = disk[place]
    assert guest_bytes(path) == expected
    with FileSource(path) as file:
        assert Qcow2(file).pread(0, size) == expected


def test_the_rest_comes_from_the_backing_file(tmp_path: Path) -> None:
    disk = content_of(ODD_SIZE)
    base = tmp_path / "base.raw"
    base.write_bytes(disk)
    image = Image(ODD_SIZE, np.array([3, 4, 100]), 12, str(base), "raw")
    path = written(tmp_path / "disk.qcow2", image, b"\xee" * ODD_SIZE)

    expected = bytearray(disk)
    expected[3 * 4096 : 5 * 4096] = b"\xee" * 8192
    expected[100 * 4096 : 101 * 4096] = b"\xee" * 4096
    assert guest_bytes(path) == expected
    checked(path)
    own = [(row["start"], row["length"]) for row in guest_map(path) if row["depth"] == 0]
    assert own == [(3 * 4096, 8192), (100 * 4096, 4096)]
    with FileSource(path) as file, pytest.raises(BackingRequired) as raised:
        Qcow2(file)
    assert (raised.value.name, raised.value.format) == (str(base), "raw")


def test_an_image_without_any_cluster_is_its_backing_file(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(content_of(MIB))
    image = Image(MIB, np.empty(0, dtype=np.int64), 12, str(base), "raw")
    path = written(tmp_path / "disk.qcow2", image, b"")
    checked(path)
    assert guest_bytes(path) == base.read_bytes()
    assert len(image.runs()) == 0


def test_reference_counts_of_a_file_that_needs_many_blocks(tmp_path: Path) -> None:
    """With clusters of 512 bytes a block counts 256, and a cluster of the table has 64 blocks."""
    size = 16 * MIB
    clusters = np.arange(size >> 9, dtype=np.int64)
    path = written(tmp_path / "disk.qcow2", Image(size, clusters, 9), content_of(size))
    found = checked(path)
    assert found["allocated-clusters"] == len(clusters)
    with FileSource(path) as file:
        assert read_header(file).refcount_table_clusters > 1
    assert guest_bytes(path) == content_of(size)


def test_a_guest_may_write_to_it(tmp_path: Path) -> None:
    image = Image(MIB, np.array([1]), 12)
    path = written(tmp_path / "disk.qcow2", image, content_of(MIB))
    size = path.stat().st_size
    qemu_img("resize", "-q", path, str(2 * MIB))
    assert size <= path.stat().st_size
    checked(path)


def test_the_smallest_clusters_that_go() -> None:
    assert fitting_cluster_bits(512) == SMALLEST_CLUSTER_BITS
    assert fitting_cluster_bits(8 * TIB) == SMALLEST_CLUSTER_BITS
    assert fitting_cluster_bits(8 * TIB + 512) == SMALLEST_CLUSTER_BITS + 1
    with pytest.raises(Unsupported):
        fitting_cluster_bits(1 << 62)


def test_a_disk_that_does_not_go_into_its_clusters_is_refused() -> None:
    none = np.empty(0, dtype=np.int64)
    Image(8 * TIB, none)
    with pytest.raises(Unsupported):
        Image(8 * TIB + 512, none)


def test_a_backing_name_that_does_not_fit_is_refused() -> None:
    none = np.empty(0, dtype=np.int64)
    Image(MIB, none, backing="n" * c.MAX_BACKING_NAME_BYTES, backing_format="raw")
    with pytest.raises(Unsupported):
        Image(MIB, none, backing="ä" * (c.MAX_BACKING_NAME_BYTES // 2 + 1), backing_format="raw")


def test_the_longest_backing_name_fits_into_the_first_cluster(tmp_path: Path) -> None:
    name = "n" * c.MAX_BACKING_NAME_BYTES
    image = Image(MIB, np.array([0]), SMALLEST_CLUSTER_BITS, name, "raw")
    path = written(tmp_path / "disk.qcow2", image, content_of(MIB))
    assert json.loads(qemu_img("info", "-U", "--output=json", path))["backing-filename"] == name


KNOWN = [
    ([(0, 4096)], [(0, 10)], [0]),  # all of it is known, a part is wanted
    ([(0, 4095)], [(0, 10)], []),  # one byte is not
    ([(0, 8192)], [(4095, 4097)], [0, 1]),
    ([(100, 9000)], [(100, 9000)], [1]),
    ([(0, 20480)], [(8192, 12288)], [2]),
    ([(0, 20480)], [], []),
    ([(16384, 18000)], [(17000, 17001)], [4]),  # the disk ends there
    ([(16384, 17999)], [(17000, 17001)], []),
]


@pytest.mark.parametrize(("known", "wanted", "clusters"), KNOWN)
def test_a_cluster_is_written_only_if_all_of_it_is_known(
    known: list[tuple[int, int]], wanted: list[tuple[int, int]], clusters: list[int]
) -> None:
    found = clusters_inside(as_ranges(known), as_ranges(wanted), 18000, 12)
    assert found.tolist() == clusters


def test_the_header_of_a_whole_image_reads_back(tmp_path: Path) -> None:
    image = Image(64 * KIB, np.array([2, 3]), 12)
    path = written(tmp_path / "disk.qcow2", image, content_of(64 * KIB))
    with FileSource(path) as file:
        header = read_header(file)
    assert (header.version, header.size, header.cluster_size) == (3, 64 * KIB, 4096)
    assert path.stat().st_size == image.file_size


def test_more_clusters_than_memory_holds_are_refused() -> None:
    """A map of a few rows may say that one content lies on all of an enormous disk."""
    everything = as_ranges([(0, 8 * TIB)])
    with pytest.raises(Unsupported, match=f"at most {MAX_CLUSTERS} clusters of its own"):
        clusters_inside(everything, everything, 8 * TIB, SMALLEST_CLUSTER_BITS)
