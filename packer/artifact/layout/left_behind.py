"""Temporary names beside the final one, their locks, and what runs that were killed left there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from packer.file_system import LOCAL_TYPES, file_system_type

FETCHED = "fetched"
"""The folder of a staging in which blobs grow that come over the network."""

_HEX = re.compile(r"[0-9a-f]{64}")
_SHOWN_CHARACTERS = 50
"""How much of the final name a temporary one shows: both fit into a name of 255 bytes."""


def temporary_name(final: Path) -> Path:
    """Return an unused name beside `final`, on the same file system, that shows what it was."""
    return final.with_name(f"{final.name[:_SHOWN_CHARACTERS]}.{secrets.token_hex(6)}.partial")


def take_left_behind(final: Path, keep: Path) -> None:
    """Remove what runs that were killed have left of writing `final`.

    keep: folder that gets what had come over the network by then. A run that lives holds a lock
    on its folder.
    """
    name = re.compile(re.escape(final.name[:_SHOWN_CHARACTERS]) + r"\.[0-9a-f]{12}\.partial")
    with contextlib.suppress(OSError):
        for entry in os.scandir(final.parent):
            if name.fullmatch(entry.name):
                _take_if_left_behind(Path(entry.path), keep)


def _take_if_left_behind(folder: Path, keep: Path) -> None:
    with contextlib.suppress(OSError):
        fd = lock_folder(folder)
        try:
            own = os.fstat(fd).st_uid == os.geteuid()
            # Elsewhere a lock may reach no further than its host, and another one may write here.
            local = file_system_type(fd) in LOCAL_TYPES
            if own and local:
                if os.path.lexists(folder / FETCHED):
                    for place in (folder / FETCHED, folder / "blobs" / "sha256"):
                        _take_up(place, keep)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)


def _take_up(place: Path, keep: Path) -> None:
    """Move blobs, whole or begun, out of a folder; of two beginnings of one the longer is kept."""
    if place.is_symlink() or not place.is_dir():
        return
    keep.mkdir(exist_ok=True)
    for entry in os.scandir(place):
        found = entry.stat(follow_symlinks=False)
        alone = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if alone and _HEX.fullmatch(entry.name) and found.st_size > size_of(keep / entry.name):
            Path(entry.path).rename(keep / entry.name)


def locked_folder(final: Path) -> tuple[Path, int | None]:
    """Return a new folder beside `final` and its lock; None where folders cannot be locked."""
    while True:
        root = temporary_name(final)
        root.mkdir()
        try:
            fd = lock_folder(root)
        except (BlockingIOError, FileNotFoundError):
            continue  # before it was locked, another run took it for left behind
        except OSError:
            return root, None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), root.lstat()):
                return root, fd
        os.close(fd)


def lock_folder(folder: Path) -> int:
    """Return a descriptor that holds the lock of a folder until it is closed.

    Raises OSError when somebody else holds it, or where folders cannot be locked (NFS).
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0
