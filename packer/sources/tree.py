"""The part of a file tree of this host that every user can read, safe to look at by hostile paths.

Paths are resolved below ROOT by hand, as if ROOT were "/": a folder that is a symlink inside ROOT
is followed (`/lib` of a merged /usr), nothing leaves ROOT or its file system, and a file is opened
folder by folder from ROOT without following any link. A name that is not there as it is written
is looked for without regard to case: Windows writes paths in any.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import DIGEST_BYTES
from packer.file_system import LOCAL_TYPES, PSEUDO_TYPES, file_system_type
from packer.progress import Advance, ignore
from packer.sources.base import SourceError
from packer.sources.memory import Memory, Stamps, as_stamps, hash_range, stamp_of
from packer.sources.windows_rights import ALL_RIGHTS, Rights, windows_rights

Rows = NDArray[np.int64]

MAX_FOLDERS_DEEP = 128
MAX_LINKS = 40  # as Linux, path_resolution(7)
MAX_SPELLINGS = 1_000_000
"""Names that are kept, so that they can be looked for without regard to case; about 150 MB."""

BATCH_FILES = 256
BATCH_BYTES = 32 << 20

_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_OTHERS_LIST = stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class Files:
    """k files of a tree. path: from ROOT, beginning with "/", free of links. stamp: int64[k, 5]."""

    path: list[str]
    stamp: Stamps

    def take(self, rows: Rows) -> Files:
        """Return some of them."""
        return Files([self.path[row] for row in rows.tolist()], self.stamp[rows])


class Tree:
    """The part of one file system below ROOT that every user can read; any number of threads.

    excluded: folders below ROOT ("/local") that are left out. explicit: the user named this ROOT,
    so that network and FUSE file systems are accepted. On a mounted Windows volume its own access
    lists say what every user can read, elsewhere the modes do. public: everything below ROOT
    may be offered that this process can read, whatever its modes say.
    Raises SourceError when ROOT cannot be used.
    """

    def __init__(
        self, root: Path, *, explicit: bool, excluded: Sequence[str] = (), public: bool = False
    ) -> None:
        self.root = root
        self._rights: Rights | None = ALL_RIGHTS if public else None
        self._excluded = frozenset(excluded)
        self._folders: dict[str, str | None] = {"": ""}
        self._kinds: dict[str, str | None] = {}
        self._spellings: dict[str, dict[str, str]] = {}
        self._names_kept = 0
        try:
            # ROOT itself may be a link: the user's word, unlike everything below.
            self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(f"dir:{root}: {reason}", hint="name a folder of this host") from error
        try:
            self._check_root(explicit)
        except SourceError:
            os.close(self.fd)
            raise

    def _check_root(self, explicit: bool) -> None:
        status = os.fstat(self.fd)
        self._device = status.st_dev
        self._place = _place_of(self.fd)
        self._rights = self._rights or windows_rights(self._place)
        kind = file_system_type(self.fd)
        self._files_elsewhere = kind == "overlay"  # its files may keep their layer's device number
        if self._rights is None and not status.st_mode & stat.S_IXOTH:
            raise SourceError(
                f"dir:{self.root}: only what every user can read is used,"
                f" and others may not enter this folder (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"chmod o+x {self.root}, if its files are no secret to a mirror",
            )
        if kind in PSEUDO_TYPES:
            raise SourceError(f"dir:{self.root}: a {kind} file system holds no stored files")
        if kind not in LOCAL_TYPES and not explicit:
            raise SourceError(
                f"dir:{self.root}: lies on {kind or 'an unknown file system'}, which may hang"
                " or belong to somebody else",
                hint=f"name it to use it all the same: --from dir:{self.root}",
            )

    def close(self) -> None:
        """Close ROOT."""
        os.close(self.fd)

    def forget(self) -> None:
        """Look at folders anew; nobody uses the tree at this time."""
        self._folders, self._kinds, self._spellings = {"": ""}, {}, {}
        self._names_kept = 0

    def names_of(self, path: str) -> tuple[str, ...]:
        """Return the paths below ROOT where a guest path may lie, the likelier one first."""
        inside = str(self.root).rstrip("/") + "/"
        if len(inside) > 1 and path.startswith(inside):
            return path[len(inside) - 1 :], path
        first, slash, rest = path[1:].partition("/")
        if slash and first.casefold() == self.root.name.casefold():  # /Windows of /mnt/c/windows
            return path, f"/{rest}"
        return (path,)

    def look_up(self, path: str) -> tuple[str, os.stat_result] | None:
        """Return a file's path without links and its status; None for what is not offered.

        path: from ROOT, beginning with "/"; anything at all, it may come from a pack.
        """
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._resolve(folder)
        real = self._folders[folder]
        if real is None or name in ("", ".", ".."):
            return None
        here = path if real == folder else f"{real}/{name}"
        status = self._status(here)
        if status is None and (spelled := self._spelled(real, name)) is not None:
            here = f"{real}/{spelled}"
            status = self._status(here)
        if status is None or not self.is_open_to_all(status, self._place + here):
            return None
        return here, status

    def is_open_to_all(self, status: os.stat_result, place: str) -> bool:
        """Return whether this is a regular file of this file system that others may read.

        place: where the file is, for this process.
        """
        if not stat.S_ISREG(status.st_mode):
            return False
        if status.st_dev != self._device and not self._files_elsewhere:
            return False
        if self._rights is not None:
            return self._rights.everybody_may_read(place)
        return bool(status.st_mode & stat.S_IROTH)

    def may_enter(self, status: os.stat_result) -> bool:
        """Return whether this is a folder of this file system that others may enter.

        Windows lets every user pass through any folder (SeChangeNotifyPrivilege).
        """
        if not stat.S_ISDIR(status.st_mode) or status.st_dev != self._device:
            return False
        return self._rights is not None or bool(status.st_mode & stat.S_IXOTH)

    def _may_list(self, status: os.stat_result, fd: int) -> bool:
        if self._rights is not None:
            return self.may_enter(status) and self._rights.everybody_may_read(_place_of(fd))
        return self.may_enter(status) and status.st_mode & _OTHERS_LIST == _OTHERS_LIST

    def walk(self, sizes: Container[int] | None) -> Files:
        """Return all files of the given sizes (None: of any but 0) that everybody can find.

        Folders that others may not list are left out, whatever is in them. Names only: a file is
        opened later and from ROOT, so that a folder that is moved meanwhile leads nowhere.
        """
        paths: list[str] = []
        stamps: array[int] = array("q")
        pending = [""]
        while pending:
            folder = pending.pop()
            if folder in self._excluded or folder.count("/") > MAX_FOLDERS_DEEP:
                continue
            try:
                fd = os.open(folder[1:] or ".", _LIST_FLAGS, dir_fd=self.fd)
            except OSError as error:
                _raise_if_exhausted(self.root, error)
                continue
            try:
                if self._may_list(os.fstat(fd), fd):
                    self._list(fd, folder, sizes, pending, paths, stamps)
            finally:
                os.close(fd)
        return Files(paths, as_stamps(stamps))

    def _list(
        self,
        fd: int,
        folder: str,
        sizes: Container[int] | None,
        pending: list[str],
        paths: list[str],
        stamps: array[int],
    ) -> None:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        size = status.st_size
                        wanted = size > 0 if sizes is None else size in sizes
                        path = f"{folder}/{entry.name}"
                        if wanted and self.is_open_to_all(status, self._place + path):
                            paths.append(path)
                            stamps.extend(stamp_of(status))
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(f"{folder}/{entry.name}")
                except FileNotFoundError:
                    continue

    def _resolve(self, folder: str) -> str | None:
        """Return a folder's path without links, or None where it may not be looked into."""
        parts = folder.split("/")
        if parts[0] or len(parts) > MAX_FOLDERS_DEEP or not {"", ".", ".."}.isdisjoint(parts[1:]):
            return None
        pending, real, links = parts[:0:-1], "", 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not real:
                    return None
                real = real.rpartition("/")[0]
                continue
            here = f"{real}/{part}"
            target = self._kind(here)
            if target is None and (spelled := self._spelled(real, part)) is not None:
                here = f"{real}/{spelled}"
                target = self._kind(here)
            if target == "":
                real = here
                continue
            links += 1
            if target is None or links > MAX_LINKS:
                return None
            if target.startswith("/"):
                real = ""
                target = self.names_of(target)[0]
            pending.extend(reversed(target.split("/")))
        return real

    def _kind(self, here: str) -> str | None:
        """Return "" for a folder that others may enter, the target of a link, else None."""
        if here not in self._kinds:
            self._kinds[here] = self._read_kind(here)
        return self._kinds[here]

    def _read_kind(self, here: str) -> str | None:
        status = self._status(here)
        if status is None or here in self._excluded or here.count("/") > MAX_FOLDERS_DEEP:
            return None
        if not stat.S_ISLNK(status.st_mode):
            return "" if self.may_enter(status) else None
        try:
            return os.readlink(here[1:], dir_fd=self.fd) or None
        except OSError:
            return None

    def _spelled(self, folder: str, name: str) -> str | None:
        """Return the name as this folder has it, if it differs by case alone.

        folder: without links. A folder that others may not list tells no names.
        """
        if folder not in self._spellings:
            names = self._names_in(folder) if self._names_kept < MAX_SPELLINGS else []
            self._names_kept += len(names)
            # Of names that differ by case alone, which only Linux has, one is enough.
            self._spellings[folder] = {one.casefold(): one for one in names}
        spelled = self._spellings[folder].get(name.casefold())
        return None if spelled == name else spelled

    def _names_in(self, folder: str) -> list[str]:
        try:
            fd = os.open(folder[1:] or ".", _LIST_FLAGS, dir_fd=self.fd)
        except OSError as error:
            _raise_if_exhausted(self.root, error)
            return []
        try:
            if not self._may_list(os.fstat(fd), fd):
                return []
            with os.scandir(fd) as entries:
                return [entry.name for entry in entries]
        except OSError:
            return []
        finally:
            os.close(fd)

    def _status(self, here: str) -> os.stat_result | None:
        try:
            return os.stat(here[1:], dir_fd=self.fd, follow_symlinks=False)
        except ValueError:  # a NUL, or letters that no file name of this host can have
            return None
        except OSError as error:
            _raise_if_exhausted(self.root, error)
            return None


class Opener:
    """Opens files of a tree, each folder held open until a file elsewhere is wanted; one thread.

    Sorted paths make this nearly as cheap as opening the paths themselves.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._names: list[str] = []
        self._fds: list[int] = []

    def open(self, path: str, stamp: tuple[int, ...]) -> int | None:
        """Return a descriptor of the file if it is still in the state that the stamp tells."""
        *folders, name = path[1:].split("/")
        try:
            folder = self._enter(folders)
            if folder is None:
                return None
            # Was a regular file when it was looked up; only root could make it a device since.
            fd = os.open(name, _FILE_FLAGS, dir_fd=folder)
        except OSError as error:
            _raise_if_exhausted(self._tree.root, error)
            return None
        status = os.fstat(fd)
        if stamp_of(status) == stamp and self._tree.is_open_to_all(status, _place_of(fd)):
            return fd
        os.close(fd)
        return None

    def _enter(self, folders: list[str]) -> int | None:
        shared = 0
        for ours, theirs in zip(self._names, folders, strict=False):
            if ours != theirs:
                break
            shared += 1
        while len(self._names) > shared:
            self._names.pop()
            os.close(self._fds.pop())
        for name in folders[shared:]:
            fd = os.open(name, _FOLDER_FLAGS, dir_fd=self._fds[-1] if self._fds else self._tree.fd)
            if not self._tree.may_enter(os.fstat(fd)):
                os.close(fd)
                return None
            self._names.append(name)
            self._fds.append(fd)
        return self._fds[-1] if self._fds else self._tree.fd

    def close(self) -> None:
        """Close the folders."""
        self._names.clear()
        while self._fds:
            os.close(self._fds.pop())


def hash_files(
    tree: Tree,
    files: Files,
    start: Rows,
    length: Rows,
    memory: Memory | None,
    advance: Advance = ignore,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return (digest uint8[k, 32], known bool[k]) of the range `[start, start + length)` of files.

    Reads only what the memory does not know, with all processors, and tells it what was read. A
    file that is not in its state any more, or changes while it is read, stays unknown.
    advance: called with the bytes that are done with since the last call.
    """
    digest = np.zeros((len(start), DIGEST_BYTES), dtype=np.uint8)
    known = np.zeros(len(start), dtype=bool)
    if memory is not None and len(start):
        digest, known = memory.recall(files.stamp, start, length)
    advance(int(length[known].sum()))
    unread = np.flatnonzero(~known)
    batches = _batches(np.array(sorted(unread.tolist(), key=files.path.__getitem__)), length)

    def read(rows: Rows) -> list[bytes | None]:
        opener = Opener(tree)
        try:
            return [
                _hash(opener, files.path[row], files.stamp[row], int(start[row]), int(length[row]))
                for row in rows.tolist()
            ]
        finally:
            opener.close()

    if not batches:
        return digest, known
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for rows, found in zip(batches, pool.map(read, batches), strict=True):
            good = rows[[one is not None for one in found]]
            whole = b"".join(one for one in found if one is not None)
            digest[good] = np.frombuffer(whole, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
            known[good] = True
            if memory is not None:
                memory.remember(files.stamp[good], start[good], length[good], digest[good])
            advance(int(length[rows].sum()))
    return digest, known


def _hash(opener: Opener, path: str, stamp: Rows, start: int, length: int) -> bytes | None:
    before = tuple(stamp.tolist())
    fd = opener.open(path, before)
    if fd is None:
        return None
    try:
        digest = hash_range(fd, start, length)
        return digest if stamp_of(os.fstat(fd)) == before else None
    except OSError:  # a bad sector: somebody else may have the bytes
        return None
    finally:
        os.close(fd)


def _batches(rows: Rows, length: Rows) -> list[Rows]:
    """Cut rows into batches of at most 256 files and, beyond one file, about 32 MiB."""
    if len(rows) == 0:
        return []
    by_bytes = np.cumsum(length[rows]) // BATCH_BYTES
    by_files = np.arange(len(rows)) // BATCH_FILES
    cuts = np.flatnonzero((np.diff(by_bytes) > 0) | (np.diff(by_files) > 0)) + 1
    return [part.astype(np.int64) for part in np.split(rows, cuts)]


def _place_of(fd: int) -> str:
    """Return a path of an open file or folder, whatever its names are by now."""
    return f"/proc/self/fd/{fd}"


def _raise_if_exhausted(root: Path, error: OSError) -> None:
    """Raise SourceError for what is this process's trouble and not the file's."""
    if error.errno in _EXHAUSTED:
        raise SourceError(f"dir:{root}: {error.strerror}") from error
