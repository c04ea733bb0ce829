"""Which images in a folder are overlays that stand on a disk: change it, and they are lost.

An overlay names its backing file in its header; here the names are only compared, nothing that
they name is opened. Sources: qemu `docs/interop/qcow2.txt`, `docs/interop/qed_spec.rst`,
`block/qcow.c`, `block/vmdk.c`, `block/vpc.c`, `block/vdi.c`; [MS-VHDX] 2.6.2.6.

    qcow, qcow2   big-endian: u64 at 8, u32 at 16: where the name lies and its length
                  qcow2, version 3: extensions from u32 at 100 on: u32 type, u32 length, data,
                  filled up to 8 bytes; type 0x44415441: the name of the file that holds the data
    qed           little-endian: bit 0 of u64 at 16: it has one; u32 at 56, u32 at 60: the same
    vmdk          a line parentFileNameHint="…" in its descriptor
    vhd           u32 at 60 of its last sector, big-endian, is 4; its name in UTF-16, big-endian
    vhdx          its name in UTF-16, little-endian, in the metadata
    vdi           u32 at 0x4c, little-endian, is 4; the other one's identifier at 0x1a8
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_FILES = 20_000
"""Beyond, a folder is no longer looked at; it says so."""

_HEAD_BYTES = 1 << 16
_VMDK_HEAD_BYTES = 1 << 20
_VHDX_HEAD_BYTES = 8 << 20
"""The region of the metadata lies behind logs of 1 MiB and more."""

_MAX_NAME_BYTES = 4096
_MAX_PLACE = 1 << 62
_SECTOR_BYTES = 512
_SNAPSHOT_FOLDER = "Snapshots"  # of VirtualBox, beside the disk
_PARENT_NAME = re.compile(rb'parentFileNameHint\s*=\s*"([^"\n\r]+)"', re.IGNORECASE)
_PROTOCOL = re.compile(r"[A-Za-z0-9+.-]+:")
_QCOW2_EXTENSIONS = 100
_QCOW2_DATA_FILE = 0x44415441
_DIFFERENCING = 4
_VDI = b"\x7f\x10\xda\xbe"
_VDI_MAGIC = slice(0x40, 0x44)
_VDI_TYPE = slice(0x4C, 0x50)
_VDI_OWN = slice(0x188, 0x198)
_VDI_PARENT = slice(0x1A8, 0x1B8)


@dataclass(frozen=True, slots=True)
class Overlays:
    """found: files that stand on the disk. unseen: what could not be looked at, a clause each."""

    found: tuple[Path, ...]
    unseen: tuple[str, ...]


def overlays_on(disk: Path, folders: Iterable[Path] = ()) -> Overlays:
    """Return the overlays on a disk that lie beside it, or in further folders.

    disk: as the user names it; beside it is where that name lies and where the file lies. Folders
    are not searched deeper. Raises OSError when the disk is not there.
    """
    base = _Base.of(disk)
    beside = (disk.absolute().parent, disk.resolve(strict=True).parent)
    snapshots = (folder / _SNAPSHOT_FOLDER for folder in beside)
    found: list[Path] = []
    unseen: list[str] = []
    further = (*(folder for folder in snapshots if folder.is_dir()), *folders)
    for folder in dict.fromkeys(folder.resolve() for folder in (*beside, *further)):
        try:
            _look(base, folder, found, unseen)
        except OSError as error:
            unseen.append(f"{folder}: {error.strerror}")
    return Overlays(tuple(found), tuple(unseen))


@dataclass(frozen=True, slots=True)
class _Base:
    """What an overlay may call the disk: its file, its names, a VDI's identifier (or b"")."""

    status: os.stat_result
    names: frozenset[str]
    identifier: bytes

    @classmethod
    def of(cls, disk: Path) -> _Base:
        head = _read(disk, 0, _HEAD_BYTES)
        own = head[_VDI_OWN] if head[_VDI_MAGIC] == _VDI else b""
        names = frozenset((disk.name, disk.resolve(strict=True).name))
        return cls(disk.stat(), names, own)

    def is_named(self, name: str, overlay: Path) -> bool:
        """Return whether a name in an overlay's header means this disk."""
        name = name.removeprefix("file:")
        if _PROTOCOL.match(name) is None:
            try:
                return os.path.samestat((overlay.parent / name).stat(), self.status)
            except (OSError, ValueError):
                pass
        # Made elsewhere, or on Windows: hypervisors look for such a file beside the overlay.
        return re.split(r"[/\\]", name)[-1] in self.names and self._is_beside(overlay)

    def is_mentioned(self, text: bytes, encoding: str) -> bool:
        """Return whether a name of this disk stands anywhere in a header."""
        return any(name.encode(encoding, "surrogatepass") in text for name in self.names)

    def is_partial(self, name: str) -> bool:
        """Return whether an update of this disk has begun a file, which has the guest's bytes."""
        return name.endswith(".partial") and any(name.startswith(f"{own}.") for own in self.names)

    def _is_beside(self, overlay: Path) -> bool:
        for name in self.names:
            try:
                if os.path.samestat(overlay.with_name(name).stat(), self.status):
                    return True
            except OSError:
                continue
        return False


def _look(base: _Base, folder: Path, found: list[Path], unseen: list[str]) -> None:
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= MOST_FILES:
                unseen.append(f"{folder} holds more than {MOST_FILES:,} files")
                return
            path = folder / entry.name
            if base.is_partial(entry.name):
                continue
            try:
                if entry.is_file() and _stands_on(base, path):
                    found.append(path)
            except OSError as error:
                unseen.append(f"{path}: {error.strerror}")


def _stands_on(base: _Base, path: Path) -> bool:
    if os.path.samestat(path.stat(), base.status):
        return False
    head = _read(path, 0, _HEAD_BYTES)
    if head[_VDI_MAGIC] == _VDI:
        differs = int.from_bytes(head[_VDI_TYPE], "little") == _DIFFERENCING
        return differs and head[_VDI_PARENT] == base.identifier
    if head.startswith(b"vhdxfile"):
        return base.is_mentioned(_read(path, 0, _VHDX_HEAD_BYTES), "utf-16-le")
    if _is_differencing_vhd(path):
        return base.is_mentioned(head, "utf-16-be")
    return any(base.is_named(name, path) for name in _parents(path, head))


def _is_differencing_vhd(path: Path) -> bool:
    footer = _read(path, max(0, path.stat().st_size - _SECTOR_BYTES), _SECTOR_BYTES)
    kind = int.from_bytes(footer[60:64], "big")
    return footer.startswith(b"conectix") and kind == _DIFFERENCING


def _parents(path: Path, head: bytes) -> Iterator[str]:
    """Yield what an image that begins with `head` calls its backing file."""
    place = length = 0
    if head.startswith(b"QFI\xfb"):
        place, length = int.from_bytes(head[8:16], "big"), int.from_bytes(head[16:20], "big")
        yield from _data_files(head)
    elif head.startswith(b"QED\0") and any(byte & 1 for byte in head[16:17]):
        place, length = int.from_bytes(head[56:60], "little"), int.from_bytes(head[60:64], "little")
    elif head.startswith((b"KDMV", b"COWD", b"#")):
        for name in _PARENT_NAME.findall(_read(path, 0, _VMDK_HEAD_BYTES)):
            yield os.fsdecode(name)
    if place and place < _MAX_PLACE:
        yield from _names_in(_read(path, place, min(length, _MAX_NAME_BYTES)))


def _data_files(head: bytes) -> Iterator[str]:
    """Yield in what other file an image that begins with `head` keeps its data."""
    if head[4:8] != b"\0\0\0\3":
        return
    place = int.from_bytes(head[_QCOW2_EXTENSIONS : _QCOW2_EXTENSIONS + 4], "big")
    while 0 < place <= len(head) - 8:
        kind = int.from_bytes(head[place : place + 4], "big")
        length = int.from_bytes(head[place + 4 : place + 8], "big")
        if kind == 0:
            return
        if kind == _QCOW2_DATA_FILE:
            yield from _names_in(head[place + 8 : place + 8 + min(length, _MAX_NAME_BYTES)])
        place += 8 + -(-length // 8) * 8


def _names_in(named: bytes) -> Iterator[str]:
    """Yield the file names in what a header of QEMU's records: a name, or JSON that holds some."""
    text = os.fsdecode(named)
    if not text.startswith("json:"):
        yield text
        return
    try:
        todo: list[Any] = [json.loads(text.removeprefix("json:"))]
    except (ValueError, RecursionError):
        return
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
            yield from (
                one
                for key, one in value.items()
                if key.rpartition(".")[2] == "filename" and isinstance(one, str)
            )


def _read(path: Path, offset: int, length: int) -> bytes:
    """Return bytes of a regular file, fewer where it ends; b"" for anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.pread(fd, length, offset) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
