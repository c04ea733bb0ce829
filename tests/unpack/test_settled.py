"""A change that the times of a file do not show would become a wrong disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packer.clone import Cloner
from packer.file_system import file_system_type
from packer.sources.memory import RACY_NS
from packer.unpack.settled import TYPES, is_still, settled_stamp
from tests.host import needs_root, sharing_file_system

SIZE = 16 * 4096
MAKERS = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}


@pytest.fixture(scope="module", params=sorted(TYPES))
def folder(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    with sharing_file_system(tmp_path_factory.mktemp("fs"), MAKERS[request.param]) as place:
        fd = os.open(place, os.O_RDONLY)
        assert file_system_type(fd) == request.param
        os.close(fd)
        yield place


def write(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def store_through_an_old_mapping(path: Path) -> None:
    """As test_every_change_shows prepares it: its page was dirty when the blocks were shared."""
    MAPPINGS[path][0:5] = b"other"


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def punch(path: Path) -> None:
    with path.open("r+b") as file:
        punched = ctypes.CDLL(None, use_errno=True).fallocate(
            file.fileno(), 3, ctypes.c_longlong(0), ctypes.c_longlong(4096)
        )
        assert punched == 0, os.strerror(ctypes.get_errno())


def clone_another_file_into_it(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(os.urandom(SIZE))
    with other.open("rb") as source, path.open("r+b") as file:
        assert Cloner().clone_blocks(source.fileno(), 0, file.fileno(), 0, SIZE)


def write_and_set_the_times_back(path: Path) -> None:
    status = path.stat()
    write(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def copy_within_the_kernel(path: Path) -> None:
    other = path.with_name("another")
    other.write_bytes(os.urandom(SIZE))
    with other.open("rb") as source, path.open("r+b") as file:
        assert os.copy_file_range(source.fileno(), file.fileno(), 4096, 100, 4096) == 4096


MAPPINGS: dict[Path, mmap.mmap] = {}
CHANGES: list[Callable[[Path], None]] = [
    write,
    store_through_an_old_mapping,
    truncate,
    punch,
    clone_another_file_into_it,
    write_and_set_the_times_back,
    copy_within_the_kernel,
]


@needs_root
def test_every_change_shows(folder: Path) -> None:
    paths = {change: folder / change.__name__ for change in CHANGES}
    for path in paths.values():
        path.write_bytes(os.urandom(SIZE))
        with path.open("r+b") as file:
            MAPPINGS[path] = mmap.mmap(file.fileno(), SIZE)
        MAPPINGS[path][0:5] = b"dirty"
    time.sleep(RACY_NS / 1e9 + 0.5)
    with (folder / "disk").open("w+b") as disk:
        for number, (change, path) in enumerate(paths.items()):
            with path.open("rb") as file:
                state = settled_stamp(file.fileno())
                assert state is not None
                assert Cloner().clone_blocks(file.fileno(), 0, disk.fileno(), number * SIZE, SIZE)
                assert is_still(file.fileno(), state), "sharing its blocks is no change"
                before = file.read()
                assert is_still(file.fileno(), state), "nor is reading it"
                change(path)
                file.seek(0)
                assert file.read() != before
                assert not is_still(file.fileno(), state), change.__name__
    for mapping in MAPPINGS.values():
        mapping.close()
    MAPPINGS.clear()


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(12345, 0o644), (0, 0o664), (0, 0o646)])
def test_a_file_that_strangers_may_write_to_is_not_settled(
    folder: Path, owner: int, mode: int
) -> None:
    """Pages that the kernel has pinned for them change without a new time."""
    path = folder / f"theirs-{owner}-{mode:o}"
    path.write_bytes(b"x")
    path.chmod(0o644)
    time.sleep(RACY_NS / 1e9 + 0.5)
    with path.open("rb") as file:
        assert settled_stamp(file.fileno()) is not None
        os.chown(path, owner, 0)
        path.chmod(mode)
        time.sleep(RACY_NS / 1e9 + 0.5)
        assert settled_stamp(file.fileno()) is None


@needs_root
def test_a_file_that_was_changed_just_now_is_not_settled(folder: Path) -> None:
    path = folder / "fresh"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert settled_stamp(file.fileno()) is None
