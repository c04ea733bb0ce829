"""Real volumes: what mkntfs and ntfs-3g wrote, what libfsntfs and ntfs-3g's tools see in it."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from formats.filesystem import ntfs
from formats.filesystem.model import DATA, PLAIN, STORED, FileSystem
from formats.filesystem.ntfs.boot import read_boot
from formats.filesystem.ntfs.small import read_small_files
from formats.ranges import total, union
from formats.source import FileSource
from tests.formats.filesystem.ext_images import overwrite
from tests.formats.filesystem.ntfs_content import (
    LINKS,
    Stream,
    fill,
    seen_by_libfsntfs,
    unused,
)
from tests.formats.filesystem.ntfs_images import (
    STREAMS,
    make,
    mounted,
)
from tests.host import ROOT, run

pytestmark = [*ROOT]

MIB = 1 << 10  # in KiB
KINDS = {
    "256-byte clusters": (100 * MIB, "-s 256 -c 256"),
    "512-byte clusters": (100 * MIB, "-c 512"),
    "4 KiB clusters": (200 * MIB, "-c 4096"),
    "64 KiB clusters": (400 * MIB, "-c 65536"),
    "2 MiB clusters": (4096 * MIB, "-c 2097152"),
    "4 KiB sectors": (200 * MIB, "-s 4096 -c 4096"),
    "4 KiB sectors, 64 KiB clusters": (400 * MIB, "-s 4096 -c 65536"),
}
COMPRESSING = ("512-byte clusters", "4 KiB clusters", "4 KiB sectors")


@dataclass(frozen=True)
class Volume:
    image: Path
    compressed: bool
    system: FileSystem

    @property
    def rows(self) -> dict[str, int]:
        return {path: row for row, path in self.system.names}

    def stream(self, path: str) -> Stream:
        streams, row = self.system.streams, self.rows[path]
        mine = streams.stream == row
        columns = (streams.file_offset, streams.disk_offset, streams.length)
        runs = tuple(zip(*(column[mine].tolist() for column in columns), strict=True))
        return Stream(int(streams.size[row]), runs)

    def form(self, path: str) -> int:
        return int(self.system.streams.form[self.rows[path]])


def read(image: Path) -> FileSystem:
    with FileSource(image) as source:
        return ntfs.read(source)


@pytest.fixture(scope="module", params=KINDS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    size_kib, options = KINDS[request.param]
    image = make(tmp_path_factory.mktemp("ntfs") / "volume", size_kib, *options.split())
    compressing = request.param in COMPRESSING
    with mounted(image, f"{STREAMS},compression" if compressing else STREAMS) as root:
        fill(root, 1, compression=compressing)
    return Volume(image, compressing, read(image))


def test_the_volume_is_known_by_its_first_sector(volume: Volume) -> None:
    with FileSource(volume.image) as source:
        assert ntfs.probe(source)
    facts = run("blkid", "-p", "-o", "export", volume.image)
    system = volume.system
    assert f"UUID={system.uuid}" in facts
    assert system.label == "Volume ☃"
    assert (system.kind, system.state, system.state_reason) == ("ntfs", "clean", "")
    assert system.unread == ()
    assert f"Cluster Size: {system.block_size}\n" in run("ntfsinfo", "-m", volume.image)


def test_every_stream_that_libfsntfs_finds_is_listed_and_no_other(volume: Volume) -> None:
    assert set(volume.rows) == set(seen_by_libfsntfs(volume.image))


def test_runs_and_sizes_are_those_of_libfsntfs(volume: Volume) -> None:
    compared = 0
    for path, expected in seen_by_libfsntfs(volume.image).items():
        found = volume.stream(path)
        if volume.form(path) == PLAIN:
            assert found == expected, path
            compared += 1
        elif path != "/WOF":  # for which libfsntfs gives the runs of its other stream
            assert [run[1:] for run in found.runs] == [run[1:] for run in expected.runs], path
            assert found.size == sum(length for _, _, length in expected.runs)
    assert compared > 50


def test_only_streams_that_mean_something_else_to_a_reader_are_stored(volume: Volume) -> None:
    stored = {path for path in volume.rows if volume.form(path) == STORED}
    expected = {"/WOF", "/WOF:WofCompressedData", "/deduplicated"}
    if volume.compressed:
        expected |= {f"/compressed/{name}" for name in ("text", "noise", "mixed")}
    assert stored == expected
    streams = volume.system.streams
    rows = streams.form == STORED
    assert (streams.size[rows] == streams.valid[rows]).all()
    assert (streams.size[rows] % volume.system.block_size == 0).all()


def test_contents_are_those_that_a_mount_shows(volume: Volume) -> None:
    """Read through our runs; holes, and what lies behind the valid bytes, are zeros."""
    streams = volume.system.streams
    with FileSource(volume.image) as source, mounted(volume.image, f"ro,{STREAMS}") as root:
        for path, row in volume.rows.items():
            if volume.form(path) == STORED:
                continue
            content = bytearray(int(streams.size[row]))
            for offset, place, length in volume.stream(path).runs:
                length = min(length, len(content) - offset)
                content[offset : offset + length] = source.pread(place, length)
            valid = int(streams.valid[row])
            content[valid:] = bytes(len(content) - valid)
            assert Path(f"{root}{path}").read_bytes() == content, path


def test_all_names_of_a_file_are_known(volume: Volume) -> None:
    rows = volume.rows
    names = ("/second name", "/Folder 1/third name", "/käse ☃ 𝄞/ünïcode")
    assert len({rows[name] for name in names}) == 1
    assert len({rows[f"{name}:a large stream"] for name in names}) == 1
    inode = volume.system.streams.inode
    assert inode[rows["/second name"]] == inode[rows["/second name:a large stream"]]
    assert "/Folder 2:of a folder" in rows
    assert "/second name:Zone.Identifier" not in rows  # resident


def test_data_ends_where_the_file_was_made_longer(volume: Volume) -> None:
    streams, row = volume.system.streams, volume.rows["/longer than its data"]
    assert (streams.size[row], streams.valid[row]) == (200003, 70001)


def test_symbolic_links_and_junctions_lead_to_paths_of_the_volume(volume: Volume) -> None:
    assert dict(volume.system.symlinks) == LINKS


def test_what_lies_in_the_record_is_read_by_path(volume: Volume) -> None:
    """As `boot.ini` is; a path may be in any case."""
    asked = ["/FOLDER 4/tiny.ini", "/second name", "/Folder 4/not there.ini"]
    with FileSource(volume.image) as source:
        assert dict(read_small_files(source, asked)) == {asked[0]: b"[boot loader]" * 30}


def test_columns_are_in_order(volume: Volume) -> None:
    streams = volume.system.streams
    order = np.lexsort((streams.file_offset, streams.stream))
    assert (order == np.arange(len(order))).all()
    assert (streams.kind == DATA).all()
    assert (streams.valid <= streams.size).all()
    assert (streams.inode >= 24).all()


def test_free_clusters_are_as_many_as_ntfs_3g_counts(volume: Volume) -> None:
    counted = re.search(r"Free Clusters: (\d+)", run("ntfsinfo", "-m", volume.image))
    assert counted is not None
    assert total(volume.system.free) == int(counted[1]) * volume.system.block_size


def test_neither_the_boot_sector_nor_its_copy_is_free(volume: Volume) -> None:
    size = volume.image.stat().st_size
    with FileSource(volume.image) as source:
        sector_size = read_boot(source).sector_size
        if sector_size >= 512:  # mkntfs makes no copy with smaller ones
            assert source.pread(0, 512) == source.pread(size - sector_size, 512)
    free = volume.system.free
    assert int(free.min()) >= 8192
    assert int(free.max()) <= size - sector_size


def test_noise_in_unused_bytes_changes_nothing(volume: Volume, tmp_path: Path) -> None:
    """Free clusters, slack, and what lies behind valid data: no reader may see any of it."""
    noisy = tmp_path / "noisy"
    run("cp", "--sparse=always", volume.image, noisy)
    before = seen_by_a_mount(noisy)
    ranges = unused(volume.system)
    assert total(ranges) > total(volume.system.free) > 20 << 20
    # Of a large volume, the first and the last of each range is enough.
    limit = 4 << 20
    ends = ranges[:, 1] - ranges[:, 0] > 2 * limit
    parts = [
        ranges[~ends],
        np.stack([ranges[ends, 0], ranges[ends, 0] + limit], axis=1),
        np.stack([ranges[ends, 1] - limit, ranges[ends, 1]], axis=1),
    ]
    overwrite(noisy, union(*parts), seed=7)
    assert checked(noisy) == checked(volume.image)
    assert seen_by_a_mount(noisy) == before
    assert read(noisy).names == volume.system.names


def checked(image: Path) -> str:
    """Let ntfs-3g's own programs look for damage, and return what they say of the volume.

    ntfsfix does not find the copy of the boot sector that mkntfs makes with sectors of 256 bytes.
    """
    small_sectors = "Sector Size: 256\n" in run("ntfsinfo", "-m", image)
    fixed = run("ntfsfix", "-n", image, check=not small_sectors)
    assert "Processing of $MFT and $MFTMirr completed successfully" in fixed
    accounted = run("ntfsresize", "-i", "-f", image)  # every cluster of every record
    assert "You might resize" in accounted, accounted
    return (fixed + accounted).replace(str(image), "")


def seen_by_a_mount(image: Path) -> dict[str, tuple[object, ...]]:
    """What a reader sees: of every path its status, digest of content, streams and reparse data."""
    seen: dict[str, tuple[object, ...]] = {}
    options = "ro,streams_interface=xattr"
    with mounted(image, options) as root:
        for folder, folders, files in os.walk(root):
            for path in (Path(folder, name) for name in (*folders, *files)):
                status = path.lstat()
                content = b""
                if stat.S_ISREG(status.st_mode):
                    content = path.read_bytes()
                streams = {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in (
                        *os.listxattr(path, follow_symlinks=False),
                        "system.ntfs_attrib_be",
                    )
                }
                facts = (status.st_mode, status.st_ino, status.st_nlink, status.st_size)
                seen[str(path.relative_to(root))] = (facts, content, streams)
    assert len(seen) > 50
    return seen
