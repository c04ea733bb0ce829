"""Which disks vmpack wrote on this host, and what they hold unless somebody has written since.

    FOLDER/records/HEX.json     one a disk, named by the SHA-256 of its path
    FOLDER/packs/HEX.vmpack     a bare copy of each pack that a record names, by its identity:
                                config, signature and map, nothing of the disk itself
    FOLDER/lock                 held while something is written

A record saves the user from saying what a disk was. Losing one costs no more than that, and
nothing here is believed without a proof: a stamp that has changed means that the disk is hashed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from packer import host
from packer.artifact import manifest as manifests
from packer.artifact import strict_json
from packer.artifact.config import MAX_VERSION, Name
from packer.artifact.layout.left_behind import temporary_name
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.manifest import Digest, Entry
from packer.artifact.map import Map, encode_map
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.durable import sync_directory
from packer.errors import Error
from packer.file_system import LOCAL_TYPES, file_system_type
from packer.sources.memory import stamp_of

MOST_RECORDS = 256
"""Beyond, what was written longest ago is forgotten."""

MAX_RECORD_BYTES = 1 << 16
TICK_NS = 20_000_000
"""Clocks of file systems go on in steps of up to 10 ms."""

_COARSE_TYPES = frozenset(("exfat", "vfat"))
"""Times of writes go on in steps of two seconds, those of renames in shorter ones or not at all."""

_MAP_LEVEL = 9
_Stamp = tuple[int, int, int, int, int]
_Container = Literal["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "parallels"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was written where. path: percent-encoded. stamp: see packer.sources.memory.stamp_of.

    identity, name, version: of the pack. container: as `unpack --format` calls it.
    """

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    path: str
    container: _Container
    stamp: _Stamp
    identity: Digest
    name: Name
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]

    @property
    def label(self) -> str:
        """Return how the pack is called: "demo:1"."""
        return f"{self.name}:{self.version}"

    def is_unchanged(self, disk: Path) -> bool:
        """Return whether nobody can have written to a disk since it got its name.

        Its last write must lie before the rename that gave it its name by more than a tick of the
        clock: then any later write shows, on file systems whose times are this host's own and as
        exact as those of renames.
        """
        *_, mtime_ns, ctime_ns = self.stamp
        with disk.open("rb") as file:
            exact = file_system_type(file.fileno()) in LOCAL_TYPES - _COARSE_TYPES
            now = stamp_of(os.fstat(file.fileno()))
        return exact and now == self.stamp and mtime_ns + TICK_NS < ctime_ns


class DiskRecords:
    """The records of this host. Any number of processes."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or host.data_dir() / "disks"

    def find(self, disk: Path) -> Record | None:
        """Return what is known of a disk: of its file, should that have been moved, or its path."""
        real = disk.resolve()
        record = _load(self._record_of(real))
        with contextlib.suppress(OSError):
            same = stamp_of(real.stat())[:-1]  # a file that is moved gets another ctime
            if record is None or record.stamp[:-1] != same:
                moved = (one for _, one in self._all() if one.stamp[:-1] == same)
                return next(moved, record)
        return record

    def map_of(self, record: Record) -> Map | None:
        """Return the map of what a disk was, None when it is not kept or is damaged."""
        try:
            with OpenedPack(open_layout(self._pack_of(record.identity))) as pack:
                return pack.map if pack.config_digest == record.identity else None
        except Error:
            return None

    def remember(self, disk: Path, container: str, pack: OpenedPack) -> str:
        """Keep that a disk was written from a pack; return "", or a note why that failed."""
        try:
            real = disk.resolve(strict=True)
            record = Record(
                path=quote_from_bytes(os.fsencode(real)),
                container=msgspec.convert(container, _Container),
                stamp=stamp_of(real.stat()),
                identity=pack.config_digest,
                name=pack.config.name,
                version=pack.config.version,
            )
            with self._locked():
                if self.map_of(record) is None:
                    self._keep(pack)
                _save(self._record_of(real), record)
                self._collect()
        except (OSError, Error) as error:
            return f"{disk} is not remembered, so that an update needs --was: {error}"
        return ""

    def _record_of(self, real: Path) -> Path:
        return self._folder / "records" / _name_of(os.fsencode(real))

    def _pack_of(self, identity: str) -> Path:
        return self._folder / "packs" / f"{identity.removeprefix('sha256:')}.vmpack"

    def _all(self) -> Iterator[tuple[Path, Record]]:
        """Yield all records that can be read and their files, what was written last first."""
        found = sorted((self._folder / "records").glob("*.json"), key=_age_ns)
        for path in found:
            record = _load(path)
            if record is not None:
                yield path, record

    def _keep(self, pack: OpenedPack) -> None:
        """Write the bare copy of a pack."""
        with create_layout(self._pack_of(pack.config_digest), replace=True) as writer:
            manifest = manifests.build(
                config=writer.add(pack.config_bytes),
                maps=[writer.add(compress(encode_map(pack.map), _MAP_LEVEL))],
                signature=writer.add(pack.envelope) if pack.envelope else None,
                bundles={},
            )
            writer.finish([Entry(manifest, pack.config.ref_name)])

    def _collect(self) -> None:
        """Remove records that cannot be read or whose disk is gone, packs without a record, and
        what killed runs have left.
        """
        kept = [(path, one) for path, one in self._all() if not _is_gone(one)][:MOST_RECORDS]
        paths = {path for path, _ in kept} | {self._pack_of(one.identity) for _, one in kept}
        for found in (*self._folder.glob("records/*"), *self._folder.glob("packs/*")):
            if found in paths:
                continue
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        for name in ("records", "packs"):
            (self._folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _is_gone(record: Record) -> bool:
    """Return whether a disk was deleted; one on a medium that is not here now was not."""
    path = Path(os.fsdecode(unquote_to_bytes(record.path)))
    try:
        if stamp_of(path.parent.stat())[0] != record.stamp[0]:  # nothing is mounted there now
            return False
        path.lstat()
    except FileNotFoundError:
        return path.parent.is_dir()
    except OSError:
        return False
    return False


def _load(path: Path) -> Record | None:
    """Return a record, None when there is none of that name or it is damaged."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
        record = strict_json.decode(data, Record, str(path), MAX_RECORD_BYTES)
    except (OSError, Error):
        return None
    return record if _name_of(unquote_to_bytes(record.path)) == path.name else None


def _name_of(path: bytes) -> str:
    """Return the name of the record of a disk."""
    return f"{hashlib.sha256(path).hexdigest()}.json"


def _age_ns(path: Path) -> int:
    """Return what sorts files, those that were written last first, those that are gone last."""
    try:
        return -path.stat().st_mtime_ns
    except OSError:
        return 1


def _save(path: Path, record: Record) -> None:
    """Replace a record whole; whoever reads meanwhile sees the old one or the new one."""
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(strict_json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
