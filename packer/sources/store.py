"""This host's store: verified, read-only contents, shared by all its VMs (`store:`).

    FOLDER/sha256/ab/cdef…      one object a content, mode 0444, named by 2 + 62 hex digits
    FOLDER/tmp/…                objects being written, each locked by its writer
    FOLDER/partial/…            contents of which some blocks are here; see packer.sources.partial
    FOLDER/leases/…             what somebody relies on; see packer.sources.leases
    FOLDER/lock                 taken shared to lease, exclusively to collect

An object gets its name by rename, after its digest was compared: a writer that is killed leaves a
file in tmp/ and nothing under a digest. Nothing is synced to the disk for each object: after a
power cut an object may be short or zeros, and that does no harm because whoever uses one hashes
it (`open_verified`, the assembler), and because losing it costs a fetch. An object that is removed
while a process has it open stays readable there until it is closed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer import host
from packer.artifact.contents import Contents
from packer.clone import Cloner
from packer.sources.base import FileRange, Offers, Wanted, free_offers
from packer.sources.leases import Leases
from packer.sources.memory import hash_range
from packer.sources.partial import PartialObject, Partials
from packer.sources.store_files import (
    CREATE_FLAGS,
    OBJECTS,
    OPEN_FLAGS,
    TEMPORARY,
    check_folder,
    copy_range,
    is_locked,
    locked,
    make_folders,
    named_by_rules,
    names,
    store_errors,
    write_all,
)

Rows = NDArray[np.int64]
_log = logging.getLogger(__name__)

TOUCH_AFTER_SECONDS = 86_400
"""How exactly it is known when an object was last used: its mtime, set at most once a day."""

STALE_SECONDS = 60
"""A file in tmp/ that nobody locks is left behind; a younger one may be about to be locked."""

_PREFIX = re.compile(r"[0-9a-f]{2}")
_REST = re.compile(r"[0-9a-f]{62}")
_TEMPORARY_NAME = re.compile(r"[0-9]+-[0-9]+-[0-9a-f]{8}")
_numbers = count()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One content of the store. used_ns: when it was last used, nanoseconds since 1970."""

    digest: bytes
    size: int
    used_ns: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What was taken out: digests, the sum of their sizes (blocks shared with others count too),
    left-over temporary files; and what is still there.
    """

    digests: tuple[bytes, ...]
    size_bytes: int
    temporary_files: int
    kept: int
    kept_bytes: int


class Store:
    """The store in one folder, which is made when something is put. Threads, processes: any number.

    As a source, one object answers for one table of contents (one pack). Its uri is "store:" where
    this host usually has it, "store:FOLDER" elsewhere.
    """

    local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        usual = folder.absolute() == (host.data_dir() / "store").absolute()
        self.uri = "store:" if usual else f"store:{folder}"
        self.leases = Leases(folder)
        self.partials = Partials(folder)
        self._objects = folder / OBJECTS
        self._temporary = folder / TEMPORARY
        self._cloner = Cloner()
        self._lock = threading.Lock()
        self._contents: Contents | None = None
        self._prefixes_made: set[str] = set()

    # -- objects ---------------------------------------------------------------------------------

    def path_of(self, digest: bytes) -> Path:
        """Return where the object of a digest (32 bytes) lies or would lie."""
        name = digest.hex()
        return self._objects / name[:2] / name[2:]

    def holds(self, digest: bytes, size: int) -> bool:
        """Return whether an object of this name and size (bytes) is there; it is not read."""
        return self.size_of(digest) == size

    def size_of(self, digest: bytes) -> int | None:
        """Return how large the object of this name is, or None; it is not read."""
        with store_errors(self.folder):
            status = _status(self.path_of(digest))
        return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None

    def put(self, digest: bytes, size: int, pieces: Iterable[bytes | memoryview]) -> bool:
        """Keep a content; return False when the pieces are not the bytes of that name and size.

        No more than `size` bytes are taken from `pieces`, none if the object is there already.
        Raises StoreError when the store cannot be written.
        """
        if self.holds(digest, size):
            return True
        hasher, written = hashlib.sha256(), 0
        with self._writing(digest) as (fd, keep):
            for piece in pieces:
                written += len(piece)
                if written > size:
                    return False
                hasher.update(piece)
                write_all(fd, piece)
            if written != size or hasher.digest() != digest:
                return False
            keep()
        return True

    def put_clone(self, fd: int, offset: int, length: int, digest: bytes) -> bool:
        """Keep `length` bytes of an open file, with shared blocks where the file system can.

        What is kept is hashed, not what was read: the file may change at any time. Returns False
        when it is not the content of that name. Raises StoreError when the store cannot be written.
        """
        if self.holds(digest, length):
            return True
        kept = self.open_clone(fd, offset, length, digest)
        if kept is None:
            return False
        os.close(kept)
        return True

    def open_clone(self, fd: int, offset: int, length: int, digest: bytes) -> int | None:
        """Keep it as `put_clone` does; return a descriptor of the object, which was hashed.

        None when it is not the content of that name.
        """
        with self._writing(digest) as (target, keep):
            if copy_range(self._cloner, fd, offset, length, target) != digest:
                return None
            keep()
            kept = self.open_object(digest, length)
            if kept is not None:
                if os.path.samestat(os.fstat(kept), os.fstat(target)):
                    return kept
                os.close(kept)
        return self.open_verified(digest, length)  # another writer has put its own there

    def take_in(self, path: Path, fd: int, digest: bytes, size: int) -> bool:
        """Make a file of the store's own folder, open as `fd`, the object of that name.

        Returns False when it is not that content, or lies there no more.
        """
        with store_errors(self.folder):
            if hash_range(fd, 0, size) != digest:
                return False
            status = _status(path)
            if status is None or not os.path.samestat(status, os.fstat(fd)):
                return False
            make_folders(self.folder)
            self._make_prefix(digest.hex()[:2])
            os.fchmod(fd, 0o444)
            path.rename(self.path_of(digest))
            return True

    def open_object(self, digest: bytes, size: int) -> int | None:
        """Return a descriptor of an object of this name and size, or None; it is not read.

        It was hashed when it was put; who receives its bytes hashes them again. Note of its use is
        taken.
        """
        with store_errors(self.folder):
            try:
                fd = os.open(self.path_of(digest), OPEN_FLAGS)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                    return None  # not an object, whoever put it there
                raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            os.close(fd)
            return None
        if time.time() - status.st_mtime > TOUCH_AFTER_SECONDS:
            _touch(fd)
        return fd

    def open_verified(self, digest: bytes, size: int) -> int | None:
        """Return a descriptor of an object that was read and hashed just now, or None.

        An object that is not what its name says is removed.
        """
        fd = self.open_object(digest, size)
        if fd is None:
            return None
        try:
            if hash_range(fd, 0, size) == digest:
                return fd
        except OSError as error:  # a bad sector: as good as another content
            _log.warning("store: sha256:%s cannot be read: %s", digest.hex(), error)
        os.close(fd)
        self._remove(digest)
        return None

    def list(self) -> Iterator[StoredObject]:
        """Yield all objects by digest; files with other names are none of the store's.

        A folder that is not there is an empty store. Raises StoreError when it is no folder.
        """
        with store_errors(self.folder):
            check_folder(self.folder)
            for prefix in names(self._objects, _PREFIX):
                for rest in names(self._objects / prefix, _REST):
                    status = _status(self._objects / prefix / rest)
                    if status is not None and stat.S_ISREG(status.st_mode):
                        digest = bytes.fromhex(prefix + rest)
                        yield StoredObject(digest, status.st_size, status.st_mtime_ns)

    def verify(self, progress: Callable[[int], None] | None = None) -> tuple[bytes, ...]:
        """Hash every object; remove what is not what its name says and return those digests.

        progress: called with the bytes hashed since the last call.
        """

        def is_good(one: StoredObject) -> bool:
            fd = self.open_verified(one.digest, one.size)
            if fd is not None:
                os.close(fd)
            if progress is not None:
                progress(one.size)
            return fd is not None

        objects = list(self.list())
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            good = list(pool.map(is_good, objects))
        return tuple(one.digest for one, fine in zip(objects, good, strict=True) if not fine)

    # -- the source ------------------------------------------------------------------------------

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002 - the same answer
        """Return which wanted contents are here, by name and size."""
        with self._lock:
            self._contents = wanted.contents
        rows = wanted.rows
        digests = wanted.contents.digest[rows].tobytes().hex()
        sizes = wanted.contents.size[rows].tolist()
        held = np.zeros(len(rows), dtype=bool)
        with store_errors(self.folder):
            try:
                folder = os.open(self._objects, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return free_offers(np.empty(0, dtype=np.int64))  # nothing was put yet
            try:
                for place, size in enumerate(sizes):
                    name = digests[place * 64 : place * 64 + 64]
                    status = _status(f"{name[:2]}/{name[2:]}", folder)
                    if status is not None and stat.S_ISREG(status.st_mode):
                        held[place] = status.st_size == size
            finally:
                os.close(folder)
        return free_offers(rows[held])

    def fetch(self, rows: Rows) -> Iterator[FileRange]:
        """Yield the objects; what vanished is left out."""
        contents = self._contents
        if contents is None:
            return
        for row in rows.tolist():
            fd = self.open_object(contents.digest[row].tobytes(), int(contents.size[row]))
            if fd is None:
                continue
            try:
                yield FileRange(row, fd, 0)
            finally:
                os.close(fd)

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note of what the receiver found out: objects that failed are read and removed."""
        contents = self._contents
        if ok or contents is None:
            return
        for row in rows.tolist():
            fd = self.open_verified(contents.digest[row].tobytes(), int(contents.size[row]))
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """Nothing is held open."""

    # -- collection ------------------------------------------------------------------------------

    def collect(
        self,
        *,
        max_bytes: int | None = None,
        older_than_seconds: float | None = None,
        everything: bool = False,
    ) -> Removed:
        """Remove what nobody leases and a rule names, and what killed writers left behind.

        max_bytes: remove the least recently used until no more is left (leased contents may be
        more than that). older_than_seconds: remove what was not used for so long. everything: all.
        Partial objects are collected like whole ones. Without a rule only left-overs go. Raises
        StoreError.
        """
        with store_errors(self.folder), locked(self.folder, fcntl.LOCK_EX):
            leases = self.leases.leased()
            left_over = self._remove_left_overs()
            self.leases.forget_ended()
            kept = {one.tobytes() for table in leases.values() for one in table}
            objects: list[StoredObject | PartialObject] = [*self.list(), *self.partials.list()]
            objects.sort(key=lambda one: (one.used_ns, one.digest))
            free = [one for one in objects if one.digest not in kept]
            total = sum(one.size for one in objects)
            if not everything:
                free = named_by_rules(free, total, max_bytes, older_than_seconds)
            for one in free:
                if isinstance(one, PartialObject):
                    self.partials.remove(one)
                else:
                    self._remove(one.digest)
        gone = sum(one.size for one in free)
        digests = tuple(one.digest for one in free)
        return Removed(digests, gone, left_over, len(objects) - len(free), total - gone)

    def take_back(self, digests: Iterable[bytes]) -> None:
        """Remove objects that were put in vain, but for those that somebody leases."""
        with store_errors(self.folder), locked(self.folder, fcntl.LOCK_EX):
            leases = self.leases.leased()
            kept = {one.tobytes() for table in leases.values() for one in table}
            for digest in digests:
                if digest not in kept:
                    self._remove(digest)

    # -- below -----------------------------------------------------------------------------------

    def _remove(self, digest: bytes) -> None:
        with store_errors(self.folder):
            self.path_of(digest).unlink(missing_ok=True)

    @contextmanager
    def _writing(self, digest: bytes) -> Iterator[tuple[int, Callable[[], None]]]:
        """Give a locked temporary file and what turns it into the object; else it is removed."""
        path = self._temporary / f"{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}"
        kept = False
        with store_errors(self.folder):
            fd = self._create(path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

                def keep() -> None:
                    nonlocal kept
                    os.fchmod(fd, 0o444)
                    self._make_prefix(digest.hex()[:2])
                    path.rename(self.path_of(digest))
                    kept = True

                yield fd, keep
            finally:
                if not kept:
                    path.unlink(missing_ok=True)
                os.close(fd)

    def _create(self, path: Path) -> int:
        try:
            return os.open(path, CREATE_FLAGS, 0o600)
        except FileNotFoundError:
            make_folders(self.folder)
            self._prefixes_made.clear()
            return os.open(path, CREATE_FLAGS, 0o600)

    def _make_prefix(self, prefix: str) -> None:
        if prefix not in self._prefixes_made:
            (self._objects / prefix).mkdir(mode=0o700, exist_ok=True)
            self._prefixes_made.add(prefix)

    def _remove_left_overs(self) -> int:
        removed = 0
        young = time.time() - STALE_SECONDS
        for name in names(self._temporary, _TEMPORARY_NAME):
            path = self._temporary / name
            try:
                if path.lstat().st_mtime > young or is_locked(path):
                    continue
            except FileNotFoundError:
                continue
            path.unlink(missing_ok=True)
            removed += 1
        return removed


def _status(path: Path | str, folder: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _touch(fd: int) -> None:
    """Note that an object was used; a store that cannot be written is used all the same."""
    with suppress(OSError):
        os.utime(fd)
