"""A disk that takes part in sharing: its file, open to be read, and where the disk lies in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packer.density.dedupe_range import why_not
from packer.density.file_extents import file_extents
from packer.density.units import Names, Units, find_units
from packer.errors import InputError, UsageError
from packer.file_system import file_system_type
from packer.sources.memory import stamp_of
from packer.survey.disk import Disk, OverlayError, open_disk
from packer.survey.model import Survey
from packer.survey.survey import survey
from packer.survey.wire import FlatFile, unpack_table

SHARING = "XFS (made with reflink=1, the default since 2018) and btrfs can share blocks"
_MAX_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """path: as the user names it. fd: open to be read. block: of its file system, in bytes."""

    path: Path
    fd: int
    block: int

    def stamp(self) -> tuple[int, int, int, int, int]:
        """Return what changes when somebody writes to it; see packer.sources.memory."""
        return stamp_of(os.fstat(self.fd))


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a member holds."""

    survey: Survey
    units: Units


def open_members(paths: Sequence[Path], stack: ExitStack) -> list[Member]:
    """Open the files of disks; the stack closes them.

    Raises UsageError for one that is named twice, InputError for what is no file, or lies where
    no blocks can be shared.
    """
    members: list[Member] = []
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        member, status = _open(path, stack)
        key = (status.st_dev, status.st_ino)
        if key in seen:
            raise UsageError(f"{path} and {seen[key]} are the same file")
        seen[key] = path
        members.append(member)
    return members


def _open(path: Path, stack: ExitStack) -> tuple[Member, os.stat_result]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    stack.callback(os.close, fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            f"{path} is no regular file",
            hint="only files share blocks: name disk images, not devices or folders",
        )
    number = why_not(fd, fd)
    if number:
        kind = file_system_type(fd) or "unknown"
        raise InputError(
            f"{path}: its file system ({kind}) cannot share blocks of files: {os.strerror(number)}"
            if number not in (errno.EPERM, errno.EACCES, errno.EROFS)
            else f"{path}: blocks of it cannot be shared: {os.strerror(number)}",
            hint="who shares blocks of a file must own it or may write to it"
            if number in (errno.EPERM, errno.EACCES)
            else f"{SHARING}; copy the disks there",
        )
    return Member(path, fd, _block_of(fd)), status


def _block_of(fd: int) -> int:
    """Return the block of the file system, where it says something that can be one."""
    size = os.fstatvfs(fd).f_bsize
    usable = size & (size - 1) == 0 and 4096 <= size <= _MAX_BLOCK_BYTES
    return size if usable else 4096


def islands(members: Sequence[Member]) -> list[list[int]]:
    """Return which members can share blocks with each other: their numbers, in order."""
    found: list[list[int]] = []
    for number, member in enumerate(members):
        for island in found:
            if why_not(members[island[0]].fd, member.fd) == 0:
                island.append(number)
                break
        else:
            found.append([number])
    return found


def look_at(member: Member, names: Names) -> Surveyed:
    """Survey a disk, in use or not, and return what of it may be equal to something else.

    Raises InputError when it cannot be read, or lies in a container whose blocks are not known.
    """
    with _opened(member.path) as disk:
        if disk.container not in ("raw", "qcow2"):
            raise InputError(
                f"{member.path} is a {disk.container} image; blocks of raw and qcow2 images can be "
                "shared",
                hint="qemu-img convert -O qcow2 …",
            )
        runs = np.array([[0, 0, os.fstat(member.fd).st_size]], dtype=np.int64)
        if isinstance(disk.opening, FlatFile):
            runs = unpack_table(disk.opening.columns.runs, "runs", 3)
        found = survey(disk, at_once=True)
        return Surveyed(found, find_units(found, disk.source, runs, file_extents(member.fd), names))


def _opened(path: Path) -> Disk:
    try:
        return open_disk(path, allow_in_use=True)
    except OverlayError as error:
        raise InputError(
            f"{path} is an overlay: overlays on another file take no part",
            hint="qemu-img convert makes one file of both",
        ) from error
