"""What tests ask of the host: programs, root, another user, a file system that shares blocks."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

EXTENT = r"^ *\d+: +\d+\.\. *\d+: +\d+\.\. *\d+: +(\d+):(.*)$"
"""A line of filefrag -v: length and flags of an extent, after where it lies."""

_Test = TypeVar("_Test", bound=Callable[..., object])

ROOT = (
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, loop devices, other users: needs root"),
)


def needs_root(test: _Test) -> _Test:
    """Mark a test as one for root, skipped for others. For a whole module: pytestmark, *ROOT."""
    for mark in ROOT:
        test = mark(test)
    return test


def run(*command: str | Path, stdin: str = "", check: bool = True) -> str:
    """What a program prints; the test fails with what it complains about."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def in_processes(work: Callable[..., None], each: Iterable[tuple[object, ...]]) -> None:
    """Run `work(*arguments)` for each arguments, all at once in new processes; none may fail."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=arguments) for arguments in each]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def let_others_enter(folder: Path) -> None:
    """Open a test's folder and all above it, which pytest makes for its own user alone."""
    for path in (folder, *folder.parents):
        mode = path.stat().st_mode & 0o777
        if mode & 0o005 != 0o005:
            path.chmod(mode | 0o055)


def as_nobody(work: Callable[[], None]) -> None:
    """Run something in a child process of an ordinary user; its failure is ours."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
        except BaseException:  # noqa: BLE001 - a forked child must not run the parent's tests
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextmanager
def sharing_file_system(
    folder: Path, maker: Sequence[str] = ("mkfs.xfs", "-q", "-m", "reflink=1")
) -> Iterator[Path]:
    """A file system mounted below a folder on which files can share blocks."""
    image, point = folder / "sharing.img", folder / "sharing"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    point.mkdir()
    run(*maker, image)
    run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        run("umount", point)


def shared_bytes(path: Path) -> int:
    """How many bytes of a file share their blocks with another, by filefrag of e2fsprogs."""
    extents = re.findall(EXTENT, run("filefrag", "-v", "-b1", path), re.M)
    return sum(int(length) for length, flags in extents if "shared" in flags)
