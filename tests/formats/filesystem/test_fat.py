from __future__ import annotations

import random
import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.filesystem import fat
from formats.filesystem.fat_table import read_boot_sector
from formats.filesystem.model import FileSystem
from formats.ranges import total
from formats.source import FileSource, Memory
from tests.formats.damage import at_most_one_gib, damaged

KIB = 1 << 10
MIB = 1 << 20
SIZES = {12: 4 * MIB, 16: 32 * MIB, 32: 40 * MIB}
SUSPECT = re.compile(r"<(\d+)(?:-(\d+))?>")


def mtool(command: str, image: Path, *arguments: str) -> str:
    done = subprocess.run(
        [command, "-i", str(image), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


@dataclass(frozen=True)
class Volume:
    image: Path
    bits: int
    contents: dict[str, bytes]


def build(folder: Path, bits: int) -> Volume:
    """Make a volume with fragments, deleted files, long names and empty files."""
    image = folder / f"fat{bits}"
    with image.open("wb") as file:
        file.truncate(SIZES[bits])
    options = ["-F", str(bits), "-n", "TESTVOL", "-i", "1234abcd"]
    subprocess.run(["mkfs.fat", *options, str(image)], check=True, capture_output=True)
    chance = random.Random(bits)
    contents: dict[str, bytes] = {}

    def put(path: str, size: int) -> None:
        host = folder / "content"
        contents[path] = chance.randbytes(size)
        host.write_bytes(contents[path])
        mtool("mcopy", image, str(host), f"::{path}")

    for number in range(40):
        put(f"/s{number}", 3000)
    for number in range(0, 40, 2):
        mtool("mdel", image, f"::/s{number}")
        del contents[f"/s{number}"]
    put("/A long file name.with dots", 300_000)
    put("/UPPER.BIN", 5000)
    put("/lower.bin", 4096)
    put("/Mixed.Bin", 1)
    put("/empty", 0)
    mtool("mmd", image, "::/sub", "::/sub/deep dir")
    put("/sub/deep dir/käse ☃.dat", 70_000)
    for number in range(60):
        put(f"/sub/a directory of several clusters {number}", 10)
    mtool("mdel", image, "::/lower.bin")
    del contents["/lower.bin"]
    return Volume(image, bits, contents)


@pytest.fixture(scope="module", params=[12, 16, 32], ids=lambda bits: f"FAT{bits}")
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build(tmp_path_factory.mktemp("fat"), request.param)


def extents_of(system: FileSystem, path: str) -> list[tuple[int, int]]:
    row = next(row for row, name in system.names if name == path)
    streams = system.streams
    mine = streams.stream == row
    return list(zip(streams.disk_offset[mine].tolist(), streams.length[mine].tolist(), strict=True))


def test_every_file_that_was_written_is_found_and_no_other(volume: Volume) -> None:
    system = fat.read(FileSource(volume.image))
    assert {path for _, path in system.names} == set(volume.contents)
    assert system.unread == ()


def test_extents_hold_the_bytes_of_their_files(volume: Volume) -> None:
    source = FileSource(volume.image)
    system = fat.read(source)
    for row, path in system.names:
        data = b"".join(source.pread(*extent) for extent in extents_of(system, path))
        assert data[: system.streams.size[row]] == volume.contents[path], path


def test_extents_are_the_clusters_that_mtools_names(volume: Volume) -> None:
    source = FileSource(volume.image)
    system = fat.read(source)
    boot = read_boot_sector(source)
    for _, path in system.names:
        expected = [
            (
                boot.data_start + (int(first) - 2) * boot.cluster_size,
                (int(last or first) - int(first) + 1) * boot.cluster_size,
            )
            for first, last in SUSPECT.findall(mtool("mshowfat", volume.image, f"::{path}"))
        ]
        assert extents_of(system, path) == expected, path


def test_columns_are_in_order(volume: Volume) -> None:
    system = fat.read(FileSource(volume.image))
    streams = system.streams
    order = np.lexsort((streams.file_offset, streams.stream))
    assert (order == np.arange(len(order))).all()
    assert len(set(streams.inode.tolist())) == len(streams.inode)
    for row in range(len(streams.size)):
        mine = streams.stream == row
        ends = np.cumsum(streams.length[mine])
        assert streams.file_offset[mine].tolist() == [0, *ends[:-1].tolist()][: mine.sum()]
        assert ends[-1] >= streams.size[row] if mine.any() else streams.size[row] == 0


def test_free_clusters_are_as_many_as_mtools_counts(volume: Volume) -> None:
    system = fat.read(FileSource(volume.image))
    (line,) = [one for one in mtool("mdir", volume.image, "::").splitlines() if "bytes free" in one]
    counted = int("".join(character for character in line if character.isdigit()))
    assert total(system.free) == counted
    assert system.state == "clean"


def test_noise_in_free_clusters_changes_nothing(volume: Volume, tmp_path: Path) -> None:
    system = fat.read(FileSource(volume.image))
    noisy = tmp_path / "noisy"
    data = bytearray(volume.image.read_bytes())
    for start, end in system.free.tolist():
        data[start:end] = random.Random(start).randbytes(end - start)
    noisy.write_bytes(data)
    checked = subprocess.run(["fsck.fat", "-n", str(noisy)], check=False, capture_output=True)
    assert checked.returncode == 0, checked.stdout
    target = tmp_path / "out"
    for path, content in volume.contents.items():
        mtool("mcopy", noisy, "-n", "-o", f"::{path}", str(target))
        assert target.read_bytes() == content


def test_label_and_volume_id_are_what_blkid_prints(volume: Volume) -> None:
    system = fat.read(FileSource(volume.image))
    assert (system.kind, system.label, system.uuid) == ("vfat", "TESTVOL", "1234-ABCD")


@dataclass(frozen=True)
class Layout:
    """Where things lie in a good image, for changing them."""

    image: bytes
    bits: int

    @property
    def source(self) -> Memory:
        return Memory(self.image)

    def with_bytes(self, offset: int, data: bytes) -> Layout:
        return Layout(self.image[:offset] + data + self.image[offset + len(data) :], self.bits)

    def with_entry(self, cluster: int, value: int, copies: int = 2) -> Layout:
        """Set a FAT entry (FAT16 and FAT32) in so many copies."""
        boot = read_boot_sector(self.source)
        width = self.bits // 8
        changed = self
        for copy in range(copies):
            offset = boot.fat_start + copy * boot.fat_bytes + cluster * width
            changed = changed.with_bytes(offset, value.to_bytes(width, "little"))
        return changed

    def first_cluster(self, path: str) -> int:
        boot = read_boot_sector(self.source)
        start, _ = extents_of(fat.read(self.source), path)[0]
        return (start - boot.data_start) // boot.cluster_size + 2


@pytest.fixture(params=[16, 32], ids=lambda bits: f"FAT{bits}")
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    built = build(tmp_path, request.param)
    return Layout(built.image.read_bytes(), request.param)


def state_and_free(layout: Layout) -> tuple[str, str, int]:
    system = fat.read(layout.source)
    return system.state, system.state_reason, len(system.free)


@pytest.mark.parametrize("flag", [0x8000, 0x4000], ids=["not shut down", "read errors"])
def test_a_cleared_bit_of_the_second_entry_is_dirty(layout: Layout, flag: int) -> None:
    all_ones = 0xFFFF if layout.bits == 16 else 0x0FFF_FFFF
    bit = flag if layout.bits == 16 else flag << 12
    state, reason, free = state_and_free(layout.with_entry(1, all_ones & ~bit))
    assert (state, free) == ("dirty", 0)
    assert "entry 1" in reason


@pytest.mark.parametrize("flags", [1, 2, 3])
def test_flags_in_the_boot_sector_are_dirty(layout: Layout, flags: int) -> None:
    offset = 65 if layout.bits == 32 else 37
    state, reason, free = state_and_free(layout.with_bytes(offset, bytes([flags])))
    assert (state, free) == ("dirty", 0)
    assert "boot sector" in reason


def test_copies_of_the_table_that_differ_are_dirty(layout: Layout) -> None:
    state, reason, free = state_and_free(layout.with_entry(3000, 0xFFF8, copies=1))
    assert (state, free) == ("dirty", 0)
    assert reason == "FAT 2 differs from FAT 1"


def test_a_chain_into_a_free_cluster_is_dirty(layout: Layout) -> None:
    cluster = layout.first_cluster("/sub/deep dir/käse ☃.dat")
    state, reason, free = state_and_free(layout.with_entry(cluster + 5, 0))
    assert (state, free) == ("dirty", 0)
    assert "free cluster" in reason


def test_a_file_whose_only_cluster_is_free_is_dirty(layout: Layout) -> None:
    cluster = layout.first_cluster("/Mixed.Bin")
    state, reason, free = state_and_free(layout.with_entry(cluster, 0))
    assert (state, free) == ("dirty", 0)
    assert "free cluster" in reason


def test_a_root_directory_whose_cluster_is_free_is_dirty(layout: Layout) -> None:
    if layout.bits == 16:  # whose root directory lies before the clusters
        assert read_boot_sector(layout.source).root_cluster == 0
        return
    root = read_boot_sector(layout.source).root_cluster
    state, reason, free = state_and_free(layout.with_entry(root, 0))
    assert (state, free) == ("dirty", 0)
    assert "free cluster" in reason


def test_a_chain_that_loops_leaves_its_file_unread(layout: Layout) -> None:
    path = "/sub/deep dir/käse ☃.dat"
    cluster = layout.first_cluster(path)
    system = fat.read(layout.with_entry(cluster + 5, cluster).source)
    assert path not in [name for _, name in system.names]
    assert system.unread[0].startswith(path)
    assert (system.state, len(system.free)) == ("dirty", 0)


def test_a_chain_that_runs_backwards_is_followed(layout: Layout) -> None:
    boot = read_boot_sector(layout.source)
    where = layout.image.index(b"UPPER   BIN")
    size = 4 * boot.cluster_size - 1
    resized = layout.with_bytes(where + 28, struct.pack("<I", size))
    chain = [layout.first_cluster("/UPPER.BIN"), 5000, 5001, 3000]
    last = 0xFFFF if layout.bits == 16 else 0x0FFF_FFFF
    for cluster, following in zip(chain, [*chain[1:], last], strict=True):
        resized = resized.with_entry(cluster, following)
    found = [
        ((start - boot.data_start) // boot.cluster_size + 2, length // boot.cluster_size)
        for start, length in extents_of(fat.read(resized.source), "/UPPER.BIN")
    ]
    assert found == [(chain[0], 1), (5000, 2), (3000, 1)]


def test_clusters_past_the_end_of_a_file_are_kept_out_of_its_extents(layout: Layout) -> None:
    boot = read_boot_sector(layout.source)
    where = layout.image.index(b"UPPER   BIN")
    system = fat.read(
        layout.with_bytes(where + 28, struct.pack("<I", boot.cluster_size + 1)).source
    )
    assert sum(length for _, length in extents_of(system, "/UPPER.BIN")) == 2 * boot.cluster_size
    assert system.state == "clean"


def test_files_that_share_clusters_are_left_out(layout: Layout) -> None:
    path = "/sub/deep dir/käse ☃.dat"
    target = layout.first_cluster(path)
    broken = layout.with_entry(layout.first_cluster("/UPPER.BIN"), target + 1)
    system = fat.read(broken.source)
    names = [name for _, name in system.names]
    assert path not in names
    assert "/UPPER.BIN" not in names
    assert system.state == "dirty"


def test_a_directory_inside_itself_is_walked_once(layout: Layout) -> None:
    where = layout.image.index(b"DEEPDI~1   \x10")
    parent = layout.image.index(b"SUB        \x10")
    start = layout.image[parent + 20 : parent + 22], layout.image[parent + 26 : parent + 28]
    broken = layout.with_bytes(where + 20, start[0]).with_bytes(where + 26, start[1])
    system = fat.read(broken.source)
    assert system.state == "dirty"
    assert any("reached twice" in sentence for sentence in system.unread)
    assert len(system.unread) < 100


def test_a_size_that_the_chain_does_not_hold_leaves_the_file_unread(layout: Layout) -> None:
    where = layout.image.index(b"UPPER   BIN")
    system = fat.read(layout.with_bytes(where + 28, struct.pack("<I", 500_000)).source)
    assert "/UPPER.BIN: its cluster chain does not hold 500000 bytes" in system.unread


@pytest.mark.parametrize(
    ("offset", "data", "error"),
    [
        (0, b"\x00", Corrupt),
        (11, b"\x00\x03", Corrupt),
        (13, b"\x03", Corrupt),
        (14, b"\x00\x00", Corrupt),
        (16, b"\x00", Corrupt),
        (21, b"\x12", Corrupt),
        (32, b"\xff\xff\xff\xff", Truncated),
        (510, b"\x00\x00", Corrupt),
    ],
)
def test_an_impossible_boot_sector_is_refused(
    layout: Layout, offset: int, data: bytes, error: type[FormatError]
) -> None:
    broken = layout.with_bytes(19, b"\0\0").with_bytes(offset, data)
    assert not fat.probe(broken.source)
    with pytest.raises(error):
        fat.read(broken.source)


def test_a_table_that_is_not_mirrored_is_unsupported(tmp_path: Path) -> None:
    layout = Layout(build(tmp_path, 32).image.read_bytes(), 32)
    with pytest.raises(Unsupported):
        fat.read(layout.with_bytes(40, b"\x81\x00").source)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 100_000])
def test_garbage_is_not_fat(size: int) -> None:
    assert not fat.probe(Memory(random.Random(size).randbytes(size)))
    assert not fat.probe(Memory(bytes(size)))


def small(folder: Path, bits: int) -> bytes:
    """Return a volume of few clusters with a little of everything."""
    image = folder / "small"
    size, cluster = {12: (MIB, "4"), 16: (3 * MIB, "1"), 32: (36 * MIB, "1")}[bits]
    with image.open("wb") as file:
        file.truncate(size)
    options = ["-F", str(bits), "-s", cluster]
    subprocess.run(["mkfs.fat", *options, str(image)], check=True, capture_output=True)
    host = folder / "content"
    host.write_bytes(b"c" * 9000)
    mtool("mmd", image, "::/sub", "::/sub/a long directory name")
    for name in ("/one", "/a long name of a file", "/sub/two", "/sub/a long directory name/three"):
        mtool("mcopy", image, str(host), f"::{name}")
    return image.read_bytes()


@pytest.mark.parametrize(("bits", "count"), [(12, 1200), (16, 800), (32, 150)])
def test_damage_is_an_error_or_a_sound_list(tmp_path: Path, bits: int, count: int) -> None:
    good = small(tmp_path, bits)
    boot = read_boot_sector(Memory(good))
    first = boot.data_start
    root = boot.fat_start + boot.fat_count * boot.fat_bytes
    areas = [
        (0, 90),
        (boot.fat_start, boot.fat_start + 200),
        (root, root + 512),
        (first, first + 8 * KIB),
        (first, first + 8 * KIB),
    ]
    refused = listed = 0
    with at_most_one_gib():
        for broken in damaged(good, areas, count):
            try:
                system = fat.read(Memory(broken))
            except FormatError:
                refused += 1
                continue
            listed += 1
            ends = system.streams.disk_offset + system.streams.length
            assert (ends <= len(broken)).all()
            assert system.state == "clean" or len(system.free) == 0
            assert all(0 <= row < len(system.streams.size) for row, _ in system.names)
    assert refused > 10
    assert listed > 50
