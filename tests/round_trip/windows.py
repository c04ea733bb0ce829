"""The Windows-shaped guests, as programs of others see their volumes; not our own reader."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from functools import cache
from pathlib import Path

from fixtures.windows.symbols import copy_out
from tests.round_trip.disks import Range, joined
from tests.round_trip.ntfs_oracle import clusters_of, unseen_of_ntfs
from tests.round_trip.oracle import esp_free
from tests.round_trip.packs import Guest
from tests.sources.ntfs_volume import mounted

NAMES = ("windows-xp", "windows-7", "windows-10-uefi")
PAGE = 4096
DROPPED_KINDS = ("page file", "swap file", "hibernation file")
NTFS_ATTRIBUTES = (
    "system.ntfs_acl",
    "system.ntfs_attrib_be",
    "system.ntfs_crtime_be",
    "system.ntfs_dos_name",
    "system.ntfs_ea",
    "system.ntfs_reparse_data",
    "system.ntfs_times_be",
)
"""What ntfs-3g tells of a file beyond POSIX; man 8 ntfs-3g, "extended attributes"."""

Entry = tuple[object, ...]


def volumes_of(guest: Guest) -> tuple[str, ...]:
    """The roles of its NTFS volumes."""
    return tuple(guest.facts["volumes"])


def take_out(guest: Guest, disk: Path, role: str, volume: Path) -> Path:
    """An NTFS volume of a disk as a file of its own."""
    copy_out(disk, *guest.partition(role), volume)
    return volume


def planted(guest: Guest, kind: str) -> list[str]:
    """Paths in the root volume of what was planted there, by the beginning of the kind."""
    rows = guest.facts["volumes"]["root"]["planted"]
    return [row["path"] for row in rows if row["kind"].startswith(kind)]


def dropped_files(guest: Guest) -> list[str]:
    """Page, swap and hibernation files of the root volume."""
    return [path for kind in DROPPED_KINDS for path in planted(guest, kind)]


def unseen_of(guest: Guest, room: Path) -> list[Range]:
    """Free clusters and file tails of all its volumes, in bytes of the disk."""
    found = esp_free(guest)
    for role in volumes_of(guest):
        found += _on_disk(guest, role, _unseen(guest.image, *guest.partition(role), room))
    return joined(found)


@cache
def _unseen(image: Path, start: int, end: int, room: Path) -> tuple[Range, ...]:
    volume = room / f"{image.stem}-{start}.ntfs"
    copy_out(image, start, end, volume)
    found = unseen_of_ntfs(volume)
    volume.unlink()
    assert found.free
    assert found.tails
    return tuple(found.all())


def files_on_disk(guest: Guest, paths: list[str], volume: Path) -> list[Range]:
    """The clusters of files of the root volume, in bytes of the disk."""
    found = [one for path in paths for one in clusters_of(volume, path)]
    return joined(_on_disk(guest, "root", tuple(found)))


def pages_of(guest: Guest, volume: Path) -> list[Range]:
    """Page, swap and hibernation files behind their first page, which says what they hold."""
    found: list[Range] = []
    for path in dropped_files(guest):
        (first, end), *more = clusters_of(volume, path)
        found += _on_disk(guest, "root", ((first + PAGE, end), *more))
    return joined(found)


def _on_disk(guest: Guest, role: str, ranges: tuple[Range, ...]) -> list[Range]:
    start, _ = guest.partition(role)
    return [(start + low, start + high) for low, high in ranges]


def seen_through_ntfs_3g(volume: Path, folder: Path) -> dict[str, Entry]:
    """Files, folders and links by path, named streams by path:stream, with all that is said of
    them; through two mounts, since one lists the streams and the other reads large ones.
    """
    folder.mkdir(exist_ok=True)
    with mounted(volume, folder, "ro", "streams_interface=xattr") as root:
        streams = [one for path in _paths(root) for one in _streams(root, path)]
    with mounted(volume, folder, "ro", "streams_interface=windows") as root:
        found = {path: _entry(root / path) for path in _paths(root)}
        for stream in streams:
            data = Path(f"{root}/{stream}").read_bytes()
            found[stream] = (len(data), hashlib.sha256(data).digest())
    return found


def _paths(root: Path) -> list[str]:
    return [
        str(Path(folder, name).relative_to(root))
        for folder, folders, files in os.walk(root)
        for name in (*folders, *files)
    ]


def _streams(root: Path, path: str) -> list[str]:
    names = os.listxattr(root / path, follow_symlinks=False)
    return [f"{path}:{name.removeprefix('user.')}" for name in names if name.startswith("user.")]


def _entry(path: Path) -> Entry:
    facts = path.lstat()
    data: bytes | Path = b""
    if stat.S_ISREG(facts.st_mode):
        with path.open("rb") as file:
            data = hashlib.file_digest(file, "sha256").digest()
    elif stat.S_ISLNK(facts.st_mode):
        data = path.readlink()
    seen = (facts.st_ino, facts.st_mode, facts.st_nlink, facts.st_size, facts.st_blocks)
    return (*seen, data, _attributes(path))


def _attributes(path: Path) -> dict[str, bytes]:
    found = {}
    for name in NTFS_ATTRIBUTES:
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
    return found
