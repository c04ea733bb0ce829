"""What a guest can lose, and what keeps it from being packed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from formats.ranges import total
from packer.guest.droppable import find_droppable
from packer.guest.tree import Tree
from tests.guest.material import (
    LINUX,
    MIB,
    SWAP,
    Part,
    ext4,
    gpt_disk,
    surveyed,
    swap,
    tree_of,
    write_tree,
)
from tests.host import run

PAGE = 4096
SUSPENDED = b"S1SUSPEND\0"


def with_swap_file(folder: Path, swap_file: bytes, *, name: str = "/swapfile") -> Tree:
    files = {
        "/etc/os-release": b"ID=debian\n",
        "/etc/fstab": f"{name} none swap sw 0 0\nUUID=x none swap sw 0 0\n".encode(),
        name: swap_file,
        "/other": b"other" * 5000,
    }
    return tree_of(ext4(folder / "disk.raw", write_tree(folder / "tree", files, {})))


def test_a_swap_file_is_dropped_but_for_its_header(tmp_path: Path) -> None:
    pages = swap(tmp_path / "swap").read_bytes()
    tree = with_swap_file(tmp_path, pages)
    found = find_droppable(tree)
    (dropped,) = found.dropped
    assert dropped.what == "swap file /swapfile"
    assert total(dropped.ranges) == 4 * MIB - PAGE
    bytes_there = b"".join(
        tree.source.pread(start, end - start) for start, end in dropped.ranges.tolist()
    )
    assert bytes_there == pages[PAGE:]
    assert (found.refusals, found.warnings) == ((), ())


def test_of_a_fragmented_swap_file_with_holes_each_piece_is_dropped(tmp_path: Path) -> None:
    pages = bytearray(swap(tmp_path / "swap").read_bytes())
    for page in range(1, 1024, 3):
        pages[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)  # mke2fs -d makes holes of zeros
    tree = with_swap_file(tmp_path, bytes(pages))
    (dropped,) = find_droppable(tree).dropped
    stream = tree.stream_of("/swapfile")
    assert stream is not None
    rows = tree.survey.extents_of(stream)
    start, length = tree.survey.file_offset[rows], tree.survey.length[rows]
    assert total(dropped.ranges) == int(length[start >= PAGE].sum())
    assert len(dropped.ranges) > 1


def test_what_follows_the_area_in_its_file_is_kept(tmp_path: Path) -> None:
    pages = swap(tmp_path / "swap").read_bytes()
    tree = with_swap_file(tmp_path, pages + os.urandom(MIB))
    (dropped,) = find_droppable(tree).dropped
    assert total(dropped.ranges) == 4 * MIB - PAGE


def test_a_hibernated_swap_file_refuses_the_guest_and_names_the_cure(tmp_path: Path) -> None:
    pages = bytearray(swap(tmp_path / "swap").read_bytes())
    pages[PAGE - 10 : PAGE] = SUSPENDED
    found = find_droppable(with_swap_file(tmp_path, bytes(pages)))
    assert found.dropped == ()
    (refusal,) = found.refusals
    assert refusal.startswith("/swapfile holds a hibernated system")
    assert "shut it down" in refusal


@pytest.mark.parametrize("data", [b"", b"no swap" * 5000, bytes(20_000)])
def test_a_file_that_fstab_calls_swap_but_is_none_stays(tmp_path: Path, data: bytes) -> None:
    found = find_droppable(with_swap_file(tmp_path, data))
    assert (found.dropped, found.refusals) == ((), ())
    assert "/swapfile is no swap file that can be emptied" in found.warnings[0]


def test_the_name_of_a_swap_file_cannot_steer_a_terminal(tmp_path: Path) -> None:
    pages = bytearray(swap(tmp_path / "swap").read_bytes())
    for state in (bytes(10), SUSPENDED, b"SWAPSPACE2"):
        pages[PAGE - 10 : PAGE] = state
        folder = tmp_path / state.hex()
        folder.mkdir()
        found = find_droppable(with_swap_file(folder, bytes(pages), name="/\x1b[2J"))
        (said,) = (*found.refusals, *found.warnings, *(one.what for one in found.dropped))
        assert said.isprintable()
        assert "[2J" in said


def test_a_swap_file_that_fstab_does_not_name_stays(tmp_path: Path) -> None:
    pages = swap(tmp_path / "swap").read_bytes()
    tree = with_swap_file(tmp_path, pages)
    tree.fstab = ()
    assert find_droppable(tree).dropped == ()


def test_nothing_of_a_file_is_dropped_from_a_file_system_that_is_not_clean(tmp_path: Path) -> None:
    """Its journal may still give the swap file's blocks to another file."""
    tree = with_swap_file(tmp_path, swap(tmp_path / "swap").read_bytes())
    run("debugfs", "-w", "-R", "feature needs_recovery", tmp_path / "disk.raw")
    found = find_droppable(Tree(*surveyed(tmp_path / "disk.raw")))
    assert tree.stream_of("/swapfile") is not None
    assert (found.dropped, found.refusals) == ((), ())
    (warning,) = found.warnings
    assert "is not clean (INCOMPAT_RECOVER" in warning
    assert "packed whole, including its free space; start the guest" in warning


def parted(folder: Path, swap_image: Path) -> Tree:
    files = write_tree(folder / "tree", {"/etc/os-release": b"ID=x\n"}, {})
    parts = [Part(LINUX, ext4(folder / "root.raw", files)), Part(SWAP, swap_image)]
    return tree_of(gpt_disk(folder / "disk.raw", parts))


def test_the_pages_of_a_swap_partition_are_dropped(tmp_path: Path) -> None:
    tree = parted(tmp_path, swap(tmp_path / "swap"))
    (dropped,) = find_droppable(tree).dropped
    volume = tree.survey.volumes[1]
    assert dropped.what == "swap partition 2"
    assert np.array_equal(dropped.ranges, [[volume.start + PAGE, volume.end]])


def test_a_hibernated_swap_partition_refuses_the_guest(tmp_path: Path) -> None:
    area = swap(tmp_path / "swap")
    with area.open("r+b") as file:
        file.seek(PAGE - 10)
        file.write(SUSPENDED)
    found = find_droppable(parted(tmp_path, area))
    assert found.dropped == ()
    assert found.refusals[0].startswith("partition 2 holds a hibernated system")
