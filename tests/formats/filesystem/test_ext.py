"""ext2, ext3, ext4: read here, judged by e2fsprogs and the kernel."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import struct
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.filesystem import ext
from formats.filesystem.ext_checksum import crc16, crc32c, crc32c_of
from formats.filesystem.ext_space import clear_runs, read_layout, read_superblock
from formats.filesystem.model import DATA, UNWRITTEN, FileSystem
from formats.ranges import complement, intersect, total
from formats.source import FileSource, Memory, Window
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.filesystem.ext_images import (
    age,
    make,
    mounted,
    overwrite,
    seen_by_the_kernel,
    unused,
)
from tests.host import needs_root, run

MOUNTABLE = [
    "-t ext2",
    "-t ext2 -b 4096",
    "-t ext2 -r 0",
    "-t ext3 -b 1024",
    "-t ext3 -b 4096",
    "-t ext4 -b 1024",
    "-t ext4 -b 2048",
    "-t ext4 -b 4096",
    "-b 4096 -g 2048",
    "-b 4096 -O bigalloc -C 65536",
    "-b 1024 -O bigalloc -C 16384",
    "-b 1024 -O meta_bg,^resize_inode",
    "-b 4096 -g 1024 -O meta_bg,^resize_inode",
    "-b 1024 -O ^64bit",
    "-b 1024 -O ^flex_bg",
    "-b 1024 -O ^metadata_csum,uninit_bg",
    "-b 1024 -O ^metadata_csum,uninit_bg,^64bit",
    "-b 1024 -O ^metadata_csum,^uninit_bg",
    "-b 1024 -O sparse_super2",
    "-b 1024 -O ^sparse_super,^resize_inode",
    "-b 4096 -O inline_data",
    "-b 4096 -I 1024 -O inline_data",
    "-b 4096 -O encrypt,verity,ea_inode,large_dir,stable_inodes",
    "-b 4096 -O mmp",
    "-b 4096 -O orphan_file",
    "-b 4096 -O metadata_csum_seed",
    "-b 4096 -I 128",
    "-b 4096 -O ^has_journal",
    "-b 4096 -O fast_commit",
]
NOT_MOUNTABLE_EVERYWHERE = [
    "-b 65536",
    "-b 16384 -O casefold",
    "-b 4096 -O quota,project",
    "-b 4096 -O quota,project,casefold",
]

Aged = Callable[[str], Path]


def read(image: Path) -> FileSystem:
    with FileSource(image) as source:
        assert ext.probe(source)
        return ext.read(source)


@functools.cache
def aged_once(folder: Path, options: str) -> Path:
    image = make(folder / f"aged {options}", 100, options)
    with mounted(image) as root:
        age(root, seed=1)
    with mounted(image) as root:
        age(root / "folder0", seed=2, files=90)
    return image


@pytest.fixture
def aged(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Aged:
    """Return a function from mke2fs options to a fresh copy of a much-used image."""

    def copy(options: str) -> Path:
        image = aged_once(tmp_path_factory.getbasetemp(), options)
        run("cp", "--sparse=always", image, tmp_path / "image")
        return tmp_path / "image"

    return copy


def dumped(image: Path, field: str) -> int:
    header = run("dumpe2fs", "-h", image)
    found = re.search(rf"^{field}:\s+(\d+)", header, re.MULTILINE)
    return int(found[1]) if found else 0


@needs_root
@pytest.mark.parametrize("options", MOUNTABLE)
def test_noise_over_everything_unused_is_seen_by_nobody(aged: Aged, options: str) -> None:
    image = aged(options)
    with mounted(image, "loop,ro") as root:
        before = seen_by_the_kernel(root)
    found = read(image)
    assert (found.state, found.state_reason) == ("clean", "")
    overwrite(image, unused(found), seed=7)
    run("e2fsck", "-fn", image)
    with mounted(image, "loop,ro") as root:
        assert seen_by_the_kernel(root) == before
    assert read(image).names == found.names


@needs_root
@pytest.mark.parametrize("options", MOUNTABLE[2:-1:4])
def test_a_file_system_without_its_unused_bytes_can_be_written_on(aged: Aged, options: str) -> None:
    image = aged(options)
    with mounted(image, "loop,ro") as root:
        before = seen_by_the_kernel(root)
    overwrite(image, unused(read(image)), seed=None)
    with mounted(image) as root:
        assert seen_by_the_kernel(root) == before
        (root / "later").mkdir()
        age(root / "later", seed=3)
        written = seen_by_the_kernel(root)
    run("e2fsck", "-fn", image)
    with mounted(image, "loop,ro") as root:
        after = seen_by_the_kernel(root)
    assert {path: seen.content for path, seen in after.items()} == {
        path: seen.content for path, seen in written.items()
    }


@needs_root
@pytest.mark.parametrize("options", MOUNTABLE)
def test_free_blocks_are_those_that_dumpe2fs_counts(aged: Aged, options: str) -> None:
    image = aged(options)
    found = read(image)
    journal = dumped(image, "Total journal blocks")
    expected = dumped(image, "Free blocks") + max(journal - 1, 0)
    assert total(found.free) // found.block_size == expected


@needs_root
@pytest.mark.parametrize("options", MOUNTABLE)
def test_extents_are_those_that_the_kernel_reports(aged: Aged, options: str) -> None:
    image = aged(options)
    found = read(image)
    with mounted(image, "loop,ro") as root:
        expected = kernel_extents(root, found)
    for row, path in found.names:
        assert extents_of(found, row) == expected[path], path


Extent = tuple[int, int, int, int]
"""File offset, disk offset, length, kind."""


def extents_of(found: FileSystem, row: int) -> list[Extent]:
    streams = found.streams
    chosen = streams.stream == row
    columns = (streams.file_offset, streams.disk_offset, streams.length, streams.kind)
    return joined(
        [tuple(extent) for extent in zip(*(c[chosen].tolist() for c in columns), strict=True)]
    )


def joined(extents: list[Extent]) -> list[Extent]:
    """Return the extents with neighbours made one."""
    result: list[Extent] = []
    for at, disk, length, kind in extents:
        if result:
            last_at, last_disk, last_length, last_kind = result[-1]
            follows = last_at + last_length == at and last_disk + last_length == disk
            if follows and last_kind == kind:
                result[-1] = (last_at, last_disk, last_length + length, kind)
                continue
        result.append((at, disk, length, kind))
    return result


def kernel_extents(root: Path, found: FileSystem) -> dict[str, list[Extent]]:
    """The kernel's FIEMAP as filefrag prints it, data cut at the last block of the file."""
    rows = {path: row for row, path in found.names}
    result: dict[str, list[Extent]] = {path: [] for path in rows}
    path, end = "", 0
    for line in run("filefrag", "-v", "-b1", *(f"{root}{path}" for path in rows)).splitlines():
        if header := re.match(r"File size of (.*) is (\d+) \(", line):
            path = header[1].removeprefix(str(root))
            end = -(-int(header[2]) // found.block_size) * found.block_size
            assert int(header[2]) == found.streams.size[rows[path]]
        elif match := re.match(r"\s*\d+:\s+(\d+)\.\.\s*\d+:\s+(\d+)\.\.\s*\d+:\s+(\d+):(.*)", line):
            at, disk, length = (int(value) for value in match.groups()[:3])
            kind = UNWRITTEN if "unwritten" in match[4] else DATA
            length = min(length, max(end - at, 0)) if kind == DATA else length
            if length:
                result[path].append((at, disk, length, kind))
    return {path: joined(extents) for path, extents in result.items()}


@needs_root
def test_names_links_and_symlinks_are_all_there(aged: Aged) -> None:
    image = aged("-b 4096")
    found = read(image)
    names = [path for _, path in found.names]
    rows = {path: row for row, path in found.names}
    assert rows["/sparse"] == rows["/folder1/second name of sparse"]
    assert rows["/sparse"] != rows["/folder0/sparse"]
    assert "/bytes \udcff\udcfe" in names
    assert "/ünïcode" in names
    assert "/" + "n" * 255 in names
    assert ("/short link", "sparse") in found.symlinks
    assert ("/long link", "x" * 200) in found.symlinks
    assert found.streams.size[rows["/beyond 4 GiB"]] == (4 << 30) + 12345 + 20000
    assert len(set(found.streams.inode.tolist())) == len(found.streams.inode)
    assert len(found.streams.inode) == len(set(rows.values()))


@pytest.mark.parametrize("options", NOT_MOUNTABLE_EVERYWHERE)
def test_noise_is_harmless_where_only_e2fsprogs_can_read(tmp_path: Path, options: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(60):
        (tree / f"file{number}").write_bytes(b"%d" % number * 3000 * (number % 5))
    image = make(tmp_path / "image", 200, f"{options} -d {tree}")
    run("e2fsck", "-fy", image, check=False)  # mke2fs -d leaves the quota of its files at zero
    found = read(image)
    assert found.state == "clean"
    assert len(found.names) == 60
    overwrite(image, unused(found), seed=5)
    run("e2fsck", "-fn", image)
    out = tmp_path / "out"
    out.mkdir()
    run("debugfs", "-R", f"rdump / {out}", image)
    for number in range(60):
        name = f"file{number}"
        assert (out / name).read_bytes() == (tree / name).read_bytes()


@needs_root
@pytest.mark.parametrize("options", ["-t ext3", "-t ext4", "-b 1024", "-b 4096 -O fast_commit"])
def test_a_journal_with_an_emptied_body_still_replays_after_a_crash(
    aged: Aged, tmp_path: Path, options: str
) -> None:
    image = aged(options)
    found = read(image)
    journal = dumped(image, "Total journal blocks") * found.block_size
    assert total(found.free) - dumped(image, "Free blocks") * found.block_size == (
        journal - found.block_size
    )
    overwrite(image, found.free, seed=None)
    crashed = tmp_path / "crashed"
    with mounted(image) as root:
        for number in range(200):
            (root / f"late{number}").write_bytes(b"%d" % number * 2000)
        run("sync", "-f", root)
        expected = seen_by_the_kernel(root)
        shutil.copyfile(image, crashed)
    dirty = read(crashed)
    assert dirty.state == "dirty"
    assert "INCOMPAT_RECOVER" in dirty.state_reason
    assert len(dirty.free) == 0
    assert not (dirty.streams.kind == UNWRITTEN).any()
    assert "needs_recovery" in run("dumpe2fs", "-h", crashed)
    by_kernel = tmp_path / "by kernel"
    shutil.copyfile(crashed, by_kernel)
    run("e2fsck", "-fy", crashed, check=False)
    for image in (crashed, by_kernel):
        with mounted(image) as root:
            assert seen_by_the_kernel(root) == expected
        run("e2fsck", "-fn", image)
        assert read(image).state == "clean"


@needs_root
def test_a_mounted_file_system_without_journal_is_dirty(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64, "-t ext2")
    copy = tmp_path / "copy"
    with mounted(image) as root:
        (root / "file").write_bytes(b"x" * 5000)
        run("sync", "-f", root)
        shutil.copyfile(image, copy)
    found = read(copy)
    assert (found.state, len(found.free)) == ("dirty", 0)
    assert "VALID_FS" in found.state_reason


@pytest.mark.parametrize(
    "options", ["-J size=4", "-J size=4 -O ^flex_bg", "-J size=4 -O ^metadata_csum,^uninit_bg"]
)
def test_the_free_blocks_of_a_tebibyte_are_counted(tmp_path: Path, options: str) -> None:
    image = make(tmp_path / "image", 1 << 20, f"-N 100000 -E lazy_itable_init=1 {options}")
    found = read(image)
    expected = dumped(image, "Free blocks") + dumped(image, "Total journal blocks") - 1
    assert (found.state, total(found.free) // 4096) == ("clean", expected)


def poke(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_block_bitmap_with_a_wrong_checksum_frees_nothing(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64, "-b 4096")
    block = int(re.findall(r"Block bitmap at (\d+)", run("dumpe2fs", image))[0])
    poke(image, block * 4096 + 4000, b"\0")
    found = read(image)
    assert (found.state, len(found.free)) == ("dirty", 0)
    assert "checksum" in found.state_reason


def test_a_bitmap_that_frees_metadata_is_not_believed(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64, "-b 4096 -O ^metadata_csum,^uninit_bg")
    block = int(re.findall(r"Block bitmap at (\d+)", run("dumpe2fs", image))[0])
    bitmap = bytearray(image.read_bytes()[block * 4096 : block * 4096 + 4096])
    bitmap[0] = 0
    last = bitmap.rindex(b"\0", 0, 2048)
    bitmap[last] = 0xFF  # the group's count of free blocks stays right
    poke(image, block * 4096, bytes(bitmap))
    found = read(image)
    assert (found.state, len(found.free)) == ("dirty", 0)
    assert "metadata free" in found.state_reason


@pytest.mark.parametrize("options", ["-b 1024", "-b 1024 -O bigalloc -C 16384", "-b 4096"])
def test_the_boot_sector_is_never_free(tmp_path: Path, options: str) -> None:
    """Not even if no bitmap tells: a partition table may lie in it."""
    with FileSource(make(tmp_path / "image", 16, options)) as source:
        layout = read_layout(source, read_superblock(source))
    assert layout.metadata[0, 0] == 0


def test_a_descriptor_with_a_wrong_checksum_frees_nothing(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64, "-b 4096")
    poke(image, 4096 + 0x0C, b"\1\1")
    found = read(image)
    assert (found.state, len(found.free)) == ("dirty", 0)
    assert "checksum" in found.state_reason


def test_a_journal_that_is_not_empty_frees_nothing(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64, "-b 4096")
    first = int(re.findall(r"\(0-\d+\):(\d+)-", run("debugfs", "-R", "stat <8>", image))[0])
    poke(image, first * 4096 + 0x1C, struct.pack(">I", 1))
    found = read(image)
    assert (found.state, len(found.free)) == ("dirty", 0)
    assert "its log begins at block 1" in found.state_reason


def test_files_that_share_blocks_are_not_listed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abc":
        (tree / name).write_bytes(name.encode() * 9000)
    image = make(tmp_path / "image", 64, f"-b 4096 -O ^metadata_csum -d {tree}")
    for name in "ab":
        run("debugfs", "-w", "-R", f"set_inode_field /{name} block[5] 5000", image)
    found = read(image)
    assert [path for _, path in found.names] == ["/c"]
    assert any("share blocks" in text for text in found.unread)


def test_a_file_inside_metadata_is_not_listed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "ab":
        (tree / name).write_bytes(name.encode() * 9000)
    image = make(tmp_path / "image", 64, f"-b 4096 -O ^metadata_csum -d {tree}")
    run("debugfs", "-w", "-R", "set_inode_field /a block[5] 1", image)
    found = read(image)
    assert [path for _, path in found.names] == ["/b"]
    assert any("inside metadata" in text for text in found.unread)


def test_encrypted_and_inline_files_are_not_listed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "plain").write_bytes(b"p" * 9000)
    (tree / "secret").write_bytes(b"s" * 9000)
    (tree / "tiny").write_bytes(b"t" * 20)
    image = make(tmp_path / "image", 64, f"-b 4096 -O encrypt,inline_data -d {tree}")
    run("debugfs", "-w", "-R", "set_inode_field /secret flags 0x80800", image)
    assert [path for _, path in read(image).names] == ["/plain"]


def test_blocks_behind_the_end_are_not_listed(tmp_path: Path) -> None:
    """fs-verity keeps its hash tree there."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"v" * 40960)
    image = make(tmp_path / "image", 64, f"-b 4096 -O verity -d {tree}")
    run("debugfs", "-w", "-R", "set_inode_field /file size 8193", image)
    run("debugfs", "-w", "-R", "set_inode_field /file flags 0x180000", image)
    found = read(image)
    assert found.streams.length.tolist() == [12288]
    assert len(intersect(found.free, complement(found.free, 0, 64 << 20))) == 0


@pytest.mark.parametrize("flag", ["0x20000", "0x20000000", "0x40000000", "0x1000"])
def test_a_directory_with_flags_that_libfsext_refuses_is_entered(tmp_path: Path, flag: str) -> None:
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    (tmp_path / "tree" / "folder" / "file").write_bytes(b"f" * 5000)
    image = make(tmp_path / "image", 64, f"-b 4096 -d {tmp_path / 'tree'}")
    flags = hex(int(flag, 16) | 0x80000)
    run("debugfs", "-w", "-R", f"set_inode_field /folder flags {flags}", image)
    assert [path for _, path in read(image).names] == ["/folder/file"]


def test_an_external_journal_device_is_no_file_system(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 16, "-O journal_dev")
    with FileSource(image) as source:
        assert not ext.probe(source)


def test_a_volume_shorter_than_its_file_system_is_corrupt(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64, "-b 4096")
    with FileSource(image) as source, pytest.raises(Corrupt):
        ext.read(Window(source, 0, 32 << 20))


def test_too_few_bytes_are_truncated() -> None:
    assert not ext.probe(Memory(bytes(1500)))
    with pytest.raises(Truncated):
        ext.read(Memory(bytes(1500)))


def test_unknown_incompatible_features_are_unsupported(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 16, "-b 4096 -O ^metadata_csum")
    poke(image, 1024 + 0x60, struct.pack("<I", 0x80000000))
    with FileSource(image) as source, pytest.raises(Unsupported):
        ext.read(source)


def test_checksums_have_their_published_check_values() -> None:
    assert crc32c_of(0xFFFFFFFF, b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    row = np.frombuffer(b"123456789", dtype=np.uint8).reshape(1, -1)
    assert int(crc16(np.array([0], dtype=np.uint32), row)[0]) == 0xBB3D


def test_the_checksum_of_long_rows_is_that_of_their_pieces() -> None:
    rows = np.random.default_rng(1).integers(0, 256, (5, 4096), dtype=np.uint8)
    start = np.arange(5, dtype=np.uint32)
    halfway = crc32c(start, rows[:, :63])
    assert (crc32c(start, rows) == crc32c(halfway, rows[:, 63:])).all()


def test_runs_of_clear_bits_are_those_of_a_plain_loop() -> None:
    dice = np.random.default_rng(1)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        bits = dice.random(4096) < density
        packed = np.packbits(bits, bitorder="little")
        expected = [number for number in range(4096) if not bits[number]]
        runs = clear_runs(packed)
        assert [bit for start, end in runs.tolist() for bit in range(start, end)] == expected
        assert (runs[1:, 0] > runs[:-1, 1]).all()


def test_a_wrong_superblock_checksum_is_corrupt(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 16, "-b 4096")
    poke(image, 1024 + 0x3FC, b"\0\0\0\0")
    with FileSource(image) as source, pytest.raises(Corrupt, match="checksum"):
        ext.read(source)


@pytest.mark.parametrize(
    "options",
    [
        "-t ext2 -b 1024",
        "-b 1024 -O ^metadata_csum",
        "-b 1024",
        "-b 4096 -O meta_bg,^resize_inode,^metadata_csum",
    ],
)
def test_damage_gives_a_result_or_a_format_error(tmp_path: Path, options: str) -> None:
    """Each damaged image is read in a process of its own, because a C library may crash."""
    tree = tmp_path / "tree"
    for number in range(60):
        (tree / f"folder{number % 4}").mkdir(parents=True, exist_ok=True)
        (tree / f"folder{number % 4}" / f"file{number}").write_bytes(b"%d" % number * 400 * number)
    with (tree / "sparse").open("wb") as file:
        for number in range(200):
            file.seek(number * 16384)
            file.write(b"x")
    (tree / "link").symlink_to("y" * 100)
    image = make(tmp_path / "image", 12, f"{options} -d {tree}")
    areas = [(1024, 2048), (2048, 8192), *metadata_areas(image)]
    outcomes = Counter(outcome(data) for data in damaged(image.read_bytes(), areas, 150))
    assert set(outcomes) <= {"result", "FormatError"}, outcomes
    assert outcomes["result"] > 10
    assert outcomes["FormatError"] > 10


def metadata_areas(image: Path) -> list[tuple[int, int]]:
    """Bitmaps and the used part of the inode tables, folders, extent nodes."""
    text = run("dumpe2fs", image)
    block = dumped(image, "Block size")
    inode = dumped(image, "Inode size")
    bitmaps = [int(at) for at in re.findall(r"[bB]itmap at (\d+)", text)]
    tables = [int(at) for at in re.findall(r"Inode table at (\d+)", text)]
    areas = [(at * block, (at + 1) * block) for at in bitmaps[:2]]
    areas += [(at * block, at * block + 90 * inode) for at in tables[:1]] * 3
    for path in ("/", "/folder0", "/folder1", "/sparse"):
        blocks = [int(at) for at in run("debugfs", "-R", f"blocks {path}", image).split()][:2]
        areas += [(at * block, at * block + 512) for at in blocks if at]
    return areas


def outcome(data: bytes) -> str:
    """Read the bytes in a child process; return how that ended."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.alarm(60)
            with at_most_one_gib():
                ext.read(Memory(data))
            code = 0
        except FormatError:
            code = 1
        except BaseException:  # noqa: BLE001 - whatever else escapes is the finding
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {0: "result", 1: "FormatError"}.get(os.waitstatus_to_exitcode(status), "other error")
