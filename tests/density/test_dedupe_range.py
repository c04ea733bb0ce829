"""What the kernel shares, asked directly."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.density.dedupe_range import DIFFERS, SAME, share, why_not
from packer.density.file_extents import NOWHERE, file_extents
from tests.density.places import BLOCK, BTRFS, XFS, sharing
from tests.host import ROOT, as_nobody, run, shared_bytes

pytestmark = [*ROOT]
DATA = os.urandom(64 * BLOCK)


@pytest.fixture(scope="module", params=[XFS, BTRFS], ids=["xfs", "btrfs"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with sharing(tmp_path_factory.mktemp("sharing"), 400, request.param) as point:
        yield point


@pytest.fixture
def files(place: Path) -> Iterator[list[int]]:
    """Three files of the same bytes; in the last one a single byte differs."""
    paths = [place / f"file-{number}" for number in range(3)]
    for path in paths:
        path.write_bytes(DATA)
    with paths[2].open("r+b") as file:
        file.seek(10 * BLOCK + 7)
        file.write(bytes([DATA[10 * BLOCK + 7] ^ 1]))
    run("sync", "-f", place)
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    yield fds
    for fd, path in zip(fds, paths, strict=True):
        os.close(fd)
        path.unlink()


def test_equal_ranges_share_their_blocks_and_others_do_not(place: Path, files: list[int]) -> None:
    one, two, three = files
    assert share(one, 0, two, 0, 64 * BLOCK) == SAME
    assert share(one, 0, three, 0, 64 * BLOCK) == DIFFERS
    assert shared_bytes(place / "file-1") == 64 * BLOCK
    assert shared_bytes(place / "file-2") == 0
    assert share(one, 11 * BLOCK, three, 11 * BLOCK, 4 * BLOCK) == SAME
    assert shared_bytes(place / "file-2") == 4 * BLOCK
    assert (place / "file-1").read_bytes() == DATA
    assert (place / "file-2").read_bytes()[: 10 * BLOCK] == DATA[: 10 * BLOCK]


def test_blocks_are_shared_within_a_file(place: Path) -> None:
    path = place / "within"
    path.write_bytes(DATA + DATA)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert share(fd, 0, fd, 64 * BLOCK, 64 * BLOCK) == SAME
        assert shared_bytes(path) == 128 * BLOCK
    finally:
        os.close(fd)
        path.unlink()


def test_extents_say_what_is_shared_already(place: Path, files: list[int]) -> None:
    one, two, _ = files
    before, other = file_extents(one), file_extents(two)
    assert (before.start[0], before.end[-1]) == (0, 64 * BLOCK)
    assert not set(before.place.tolist()) & set(other.place.tolist())
    assert share(one, 0, two, 0, 64 * BLOCK) == SAME
    assert file_extents(two).place.tolist() == file_extents(one).place.tolist()


def test_holes_and_blocks_that_were_never_written_are_no_extents(place: Path) -> None:
    path = place / "holes"
    with path.open("wb") as file:
        file.truncate(10 * BLOCK)
        file.seek(2 * BLOCK)
        file.write(DATA[:BLOCK])
        file.flush()
        os.posix_fallocate(file.fileno(), 6 * BLOCK, 2 * BLOCK)
        os.fsync(file.fileno())
        found = file_extents(file.fileno())
    assert (found.start.tolist(), found.end.tolist()) == ([2 * BLOCK], [3 * BLOCK])
    assert NOWHERE not in found.place.tolist()


def test_where_blocks_can_be_shared_nothing_stands_against_it(files: list[int]) -> None:
    assert why_not(files[0], files[0]) == 0
    assert why_not(files[0], files[1]) == 0


def test_asking_changes_nothing(place: Path, files: list[int]) -> None:
    why_not(files[0], files[1])
    assert shared_bytes(place / "file-0") == shared_bytes(place / "file-1") == 0


def test_another_file_system_and_one_without_are_told_apart(
    files: list[int], tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    stranger.write_bytes(DATA)
    fd = os.open(stranger, os.O_RDONLY)
    try:
        assert why_not(files[0], fd) == errno.EXDEV
        assert why_not(fd, fd) == errno.EOPNOTSUPP, "the tests' folder shares blocks"
        assert NOWHERE not in file_extents(fd).place.tolist()
    finally:
        os.close(fd)


def test_a_range_that_is_not_aligned_is_an_error_of_its_own(files: list[int]) -> None:
    one, two, _ = files
    assert share(one, 0, two, 512, BLOCK) == -errno.EINVAL


def test_the_owner_may_share_a_file_and_others_may_not(files: list[int]) -> None:
    one, two, three = files
    os.fchown(two, 65534, 65534)

    def ask() -> None:
        assert why_not(one, two) == 0
        assert why_not(one, three) == errno.EPERM
        assert share(one, 0, two, 0, BLOCK) == SAME
        assert share(one, 0, three, 0, BLOCK) == -errno.EPERM

    as_nobody(ask)
