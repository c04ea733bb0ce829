"""A disk that is to be adopted: whether it can go afterwards, and how it goes."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from packer.durable import sync_directory
from packer.errors import Error, InputError, InUseError, UsageError
from packer.sources.memory import stamp_of
from packer.sources.partial import SECTOR_BYTES
from packer.survey.disk import Disk
from packer.survey.in_use import refuse_if_replaced_under_somebody
from packer.survey.overlays import overlays_on

NOTE = "adopted.json"
_MAX_NOTE_BYTES = 1 << 16
_OVERLAYS_SHOWN = 5
_KEEP = "--keep adopts it and leaves the original where it is"

# qcow2 header (qemu docs/interop/qcow2.txt): magic, nb_snapshots u32 big-endian at 60.
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_SNAPSHOTS = slice(60, 64)
_QCOW2_HEAD_BYTES = 64

_Stamp = tuple[int, int, int, int, int]


class _Note(msgspec.Struct, frozen=True):
    """Which disk a VM was made of. stamp: see packer.sources.memory.stamp_of."""

    path: str
    stamp: _Stamp


@dataclass(frozen=True, slots=True)
class Original:
    """The file of a disk. path: as the user names it; real: without links.

    stamp: what changes when somebody writes to it. folders: where else overlays are looked for.
    """

    path: Path
    real: Path
    stamp: _Stamp
    folders: tuple[Path, ...] = ()

    @classmethod
    def of(cls, path: Path, folders: Sequence[Path] = ()) -> Original:
        """Return the disk at a path. Raises UsageError for what is no file."""
        try:
            real = path.resolve(strict=True)
            status = real.stat()
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
            raise UsageError(f"{path}: expected a disk image, found none: {error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"{path}: expected a disk image, found no regular file",
                hint="vmpack pack reads devices, and vmpack run makes a VM of the pack",
            )
        return cls(path, real, stamp_of(status), tuple(folders))

    def taken_bytes(self) -> int:
        """Return how many bytes the file takes."""
        return self.real.stat().st_blocks * SECTOR_BYTES

    # -- whether it can go -----------------------------------------------------------------------

    def demand_unused(self) -> None:
        """Raise InUseError when somebody uses it, InputError when it may not be read."""
        try:
            refuse_if_replaced_under_somebody(self.real)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from error

    def demand_expendable(self, disk: Disk | None = None) -> None:
        """Raise InUseError when something would be lost with it that is not in its VM.

        disk: the same one, open; None if that was looked at before.
        """
        overlays = overlays_on(self.path, self.folders)
        if overlays.found:
            names = ", ".join(str(one) for one in overlays.found[:_OVERLAYS_SHOWN])
            raise InUseError(f"{self.path}: overlays stand on it: {names}", hint=_KEEP)
        if overlays.unseen:
            raise InUseError(
                f"{self.path}: whether an overlay stands on it cannot be told: "
                f"{overlays.unseen[0]}",
                hint=_KEEP,
            )
        if disk is None:
            return
        if disk.container not in ("raw", "qcow2") and len(disk.files) > 1:
            raise InUseError(
                f"{self.path} is a {disk.container} image of {len(disk.files)} files", hint=_KEEP
            )
        snapshots = self._snapshots()
        if snapshots:
            raise InUseError(
                f"{self.path} holds {snapshots} snapshots, which would be lost", hint=_KEEP
            )

    def _snapshots(self) -> int:
        """Return how many states of the disk a qcow2 holds beside the last one."""
        with self.real.open("rb") as file:
            head = file.read(_QCOW2_HEAD_BYTES)
        return int.from_bytes(head[_QCOW2_SNAPSHOTS], "big") if head[:4] == _QCOW2_MAGIC else 0

    def demand_unchanged(self) -> None:
        """Raise InUseError when somebody has written to it, or put another file in its place."""
        try:
            now = stamp_of(self.real.stat())
        except OSError as error:
            raise InUseError(f"{self.path} is gone: {error.strerror}") from error
        if now != self.stamp:
            raise InUseError(
                f"{self.path} was changed meanwhile",
                hint="it is kept; remove its VM with vmpack rm if there is one, and adopt it again",
            )

    def remove(self) -> None:
        """Remove the file, if it is still what was adopted and nobody needs it. Raises Error."""
        self.demand_unused()
        self.demand_expendable()
        self.demand_unchanged()
        try:
            self.real.unlink()
            sync_directory(self.real.parent)
        except OSError as error:
            raise Error(f"{self.path}: cannot be removed: {error.strerror}") from error

    # -- which VM was made of it -----------------------------------------------------------------

    def note_in(self, folder: Path) -> None:
        """Note in the folder of a VM that it was made of this disk. Raises Error."""
        path = folder / NOTE
        try:
            with path.open("wb") as file:
                file.write(msgspec.json.encode(_Note(str(self.real), self.stamp)))
                os.fsync(file.fileno())
        except OSError as error:
            raise Error(f"{path}: cannot be written: {error.strerror}") from error

    def is_noted_in(self, folder: Path) -> bool:
        """Return whether a VM was made of this disk as it is now."""
        with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            with (folder / NOTE).open("rb") as file:
                data = file.read(_MAX_NOTE_BYTES)
            return msgspec.json.decode(data, type=_Note).stamp == self.stamp
        return False
