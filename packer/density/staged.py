"""The folder of a VM while it is made of a disk, which takes a while; and how it becomes durable.

STATE/vms/.new-…/lock   held by who makes it; without a holder it was left behind by a killed
                        process, and goes when the next disk is adopted
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packer.durable import sync_directory, sync_file_system
from packer.errors import Error
from packer.run.vm.vm import prepare_folder, vms_folder

_NEW = ".new-*"
_LOCK = "lock"
_SECTOR_BYTES = 512  # st_blocks, stat(2)


@contextmanager
def staged(state: Path | None) -> Iterator[Path]:
    """Give a new folder for a VM; removed at the end, unless it was given a name. Raises Error."""
    folder = prepare_folder(state)
    with _alone(vms_folder(state)):
        _remove_left_behind(vms_folder(state))
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep others from looking for what was left behind."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_left_behind(folder: Path) -> None:
    """Remove folders whose maker is gone. Those of other verbs have no lock, and take no time."""
    for place in folder.glob(_NEW):
        with suppress(OSError):
            fd = os.open(place / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(fd)


@contextmanager
def durable(folder: Path) -> Iterator[None]:
    """Make durable what is written meanwhile to the file system of a folder. Raises Error."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
        _sync(folder, fd)
    finally:
        os.close(fd)


def _sync(folder: Path, fd: int) -> None:
    try:
        sync_file_system(fd)
        sync_directory(folder)
    except OSError as error:
        raise Error(f"{folder}: cannot be made durable: {error.strerror or error}") from error


def taken_bytes(folder: Path) -> int:
    """Return how many bytes the files of a folder take, and the folder itself."""
    files = [folder, *folder.rglob("*")]
    return sum(one.lstat().st_blocks for one in files) * _SECTOR_BYTES
