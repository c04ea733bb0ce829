from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.clone import CLONE_UNIT_BYTES, Cloner
from tests.host import needs_root, run, shared_bytes, sharing_file_system

UNIT = CLONE_UNIT_BYTES
DATA = os.urandom(16 * UNIT + 100)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    with sharing_file_system(tmp_path) as folder:
        (folder / "source").write_bytes(DATA)
        yield folder


def clone(cloner: Cloner, source: Path, target: Path, offset: int, at: int, length: int) -> bool:
    with target.open("ab") as other:
        os.ftruncate(other.fileno(), 32 * UNIT)
    with source.open("rb") as one, target.open("r+b") as other:
        return cloner.clone_blocks(one.fileno(), offset, other.fileno(), at, length)


@needs_root
def test_a_range_is_shared_at_another_offset(xfs: Path) -> None:
    target = xfs / "target"
    assert clone(Cloner(), xfs / "source", target, 3 * UNIT, 5 * UNIT, 4 * UNIT)
    expected = bytes(5 * UNIT) + DATA[3 * UNIT : 7 * UNIT] + bytes(23 * UNIT)
    assert target.read_bytes() == expected
    assert shared_bytes(target) == 4 * UNIT


@needs_root
def test_a_range_that_is_refused_says_nothing_of_the_next(xfs: Path) -> None:
    cloner, target = Cloner(), xfs / "target"
    assert not clone(cloner, xfs / "source", target, 512, 0, UNIT)
    assert not clone(cloner, xfs / "source", target, 0, 0, len(DATA) + UNIT)
    assert clone(cloner, xfs / "source", target, 0, 0, UNIT)


@needs_root
def test_a_swap_file_is_refused_and_says_nothing_of_other_files(xfs: Path) -> None:
    cloner, swap = Cloner(), xfs / "swap"
    swap.write_bytes(bytes(1 << 20))
    swap.chmod(0o600)
    run("mkswap", swap)
    try:
        run("swapon", swap)
    except AssertionError as error:
        pytest.skip(f"may not swap here: {error}")
    try:
        assert not clone(cloner, swap, xfs / "target", 0, 0, UNIT)
    finally:
        run("swapoff", swap)
    assert clone(cloner, xfs / "source", xfs / "target", 0, 0, UNIT)


@needs_root
def test_a_device_whose_blocks_cannot_be_shared_does_not_keep_others_from_it(
    xfs: Path, tmp_path: Path
) -> None:
    cloner, target = Cloner(), xfs / "target"
    (tmp_path / "elsewhere").write_bytes(DATA)
    for _ in range(2):
        assert not clone(cloner, tmp_path / "elsewhere", target, 0, 0, UNIT)
    assert target.read_bytes() == bytes(32 * UNIT)
    assert clone(cloner, xfs / "source", target, 0, 0, UNIT)


@needs_root
def test_a_target_without_room_is_an_error(xfs: Path) -> None:
    target = xfs / "target"
    cloner = Cloner()
    with (xfs / "source").open("rb") as source, target.open("wb") as other:
        with pytest.raises(OSError, match="No space left"):
            fill(xfs / "filler")

        def share_here_and_there() -> None:
            for number in range(100_000):  # the list of extents needs blocks of its own
                at = 2 * number * UNIT
                assert cloner.clone_blocks(source.fileno(), 0, other.fileno(), at, UNIT)

        with pytest.raises(OSError, match="No space left"):
            share_here_and_there()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
