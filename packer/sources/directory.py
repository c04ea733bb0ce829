"""A file tree of this host as a source: `dir:/usr`.

What is offered is what every user of this host could read: regular files with the read bit for
others, below folders that others may enter. A fetch that does not happen tells a mirror what the
host has, and the paths to look at come from the pack: a private file must never answer.
"""

from __future__ import annotations

import logging
import os
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from formats.ranges import spread
from packer.artifact.contents import Contents
from packer.sources.base import FileRange, Offers, SourceError, Wanted, free_offers
from packer.sources.memory import Memory, Stamps, as_stamps, find_rows, stamp_of
from packer.sources.tree import Files, Opener, Tree, hash_files

Rows = NDArray[np.int64]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Files that may hold a content, sorted by row, the likelier one first within a row.

    start: int64[k], where in the file the content begins.
    """

    row: Rows
    start: Rows
    files: Files

    def only(self, which: NDArray[np.bool_]) -> _Candidates:
        return self if which.all() else self.take(np.flatnonzero(which))

    def take(self, rows: Rows) -> _Candidates:
        return _Candidates(self.row[rows], self.start[rows], self.files.take(rows))

    def of(self, rows: Rows) -> _Candidates:
        """Return the candidates for some contents."""
        rows = np.unique(rows)
        first = np.searchsorted(self.row, rows, side="left")
        count = np.searchsorted(self.row, rows, side="right") - first
        return self.take(spread(first, count)[1])

    def without(self, keys: NDArray[np.int64]) -> _Candidates:
        """Return all but those of these keys."""
        doubtful = np.flatnonzero(np.isin(self.row, keys[:, 0]))
        gone = find_rows(keys, self.take(doubtful).keys()) >= 0
        keep = np.ones(len(self.row), dtype=bool)
        keep[doubtful[gone]] = False
        return self.only(keep)

    def followed_by(self, others: _Candidates) -> _Candidates:
        """Return all candidates of both; within a row, those of `self` come first.

        Sorts the others; `self` is sorted.
        """
        if len(others.row) == 0:
            return self
        row = np.concatenate([self.row, others.row])
        order = np.argsort(row, kind="stable")
        paths = self.files.path + others.files.path
        stamp = np.concatenate([self.files.stamp, others.files.stamp])
        start = np.concatenate([self.start, others.start])
        return _Candidates(row, start, Files(paths, stamp)).take(order)

    def keys(self) -> NDArray[np.int64]:
        """Return int64[k, 7]: row, start, stamp."""
        return np.column_stack([self.row, self.start, self.files.stamp])


def _no_candidates() -> _Candidates:
    none = np.empty(0, dtype=np.int64)
    return _Candidates(none, none, Files([], as_stamps(array("q"))))


class DirectorySource:
    """`dir:ROOT`. One object answers for one table of contents (one pack).

    memory: remembers digests of files between runs. explicit, excluded, public: see Tree.
    Raises SourceError when ROOT cannot be used.
    """

    local = True

    def __init__(
        self,
        root: Path,
        memory: Memory | None = None,
        *,
        explicit: bool = True,
        excluded: Sequence[str] = (),
        public: bool = False,
    ) -> None:
        self.uri = f"dir:{root}"
        self._tree = Tree(root, explicit=explicit, excluded=excluded, public=public)
        self._memory = memory
        self._lock = threading.Lock()
        self._contents: Contents | None = None
        self._candidates = _no_candidates()
        self._served: array[int] = array("q")  # rows of _Candidates.keys, one after the other
        self._refuted: set[tuple[int, ...]] = set()

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Return what files at the hints' paths with the hints' size may hold.

        No file is read; what the memory knows to hold something else is left out. deep: every
        file of the tree with a wanted size is hashed, once and for all runs.
        """
        with self._lock:
            if wanted.contents is not self._contents:
                self._contents = wanted.contents
                self._candidates, self._refuted = _no_candidates(), set()
                self._served = array("q")
        found = self._search(wanted) if deep else _no_candidates()
        found = found.followed_by(self._guess(wanted.only(np.setdiff1d(wanted.rows, found.row))))
        with self._lock:
            if self._refuted:
                keys = map(tuple, found.keys().tolist())
                found = found.only(np.array([key not in self._refuted for key in keys], dtype=bool))
            others = self._candidates.only(~np.isin(self._candidates.row, wanted.rows))
            self._candidates = others.followed_by(found)
        return free_offers(np.unique(found.row))

    def prove(self, rows: Rows) -> Rows:
        """Return which of the offered contents are really there: int64, sorted.

        Reads what the memory does not know. What is disproved is not offered any more.
        """
        with self._lock:
            found, contents = self._candidates.of(rows), self._contents
        if contents is None or len(found.row) == 0:
            return np.empty(0, dtype=np.int64)
        size = contents.size[found.row]
        digest, known = hash_files(self._tree, found.files, found.start, size, self._memory)
        proven = found.only(known & (digest == contents.digest[found.row]).all(axis=1))
        with self._lock:
            others = self._candidates.only(~np.isin(self._candidates.row, rows))
            self._candidates = others.followed_by(proven)
        return np.unique(proven.row)

    def fetch(self, rows: Rows) -> Iterator[FileRange]:
        """Yield the files' ranges; what is not in the state that was offered is left out."""
        with self._lock:
            found = self._candidates.of(rows)
        if len(found.row) == 0:
            return
        # As lists: taking single numbers out of arrays costs more than opening a file.
        path, key = found.files.path, [tuple(one) for one in found.keys().tolist()]
        first = np.flatnonzero(np.diff(found.row, prepend=-1))
        end = dict(zip(first.tolist(), [*first[1:].tolist(), len(found.row)], strict=True))
        opener = Opener(self._tree)
        try:
            for place in sorted(end, key=path.__getitem__):
                candidates = range(place, end[place])
                yield from self._open_first(opener, ((path[one], key[one]) for one in candidates))
        finally:
            opener.close()

    def _open_first(
        self, opener: Opener, candidates: Iterable[tuple[str, tuple[int, ...]]]
    ) -> Iterator[FileRange]:
        """Yield the range of the first candidate, (path, row of keys), that is as it was."""
        for path, key in candidates:
            row, start, *stamp = key
            state = tuple(stamp)
            fd = opener.open(path, state)
            if fd is None:
                continue
            try:
                yield FileRange(row, fd, start)
                if stamp_of(os.fstat(fd)) == state:
                    with self._lock:
                        self._served.extend(key)
            finally:
                os.close(fd)
            return

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note of what the receiver found out about contents fetched from here.

        ok: their digests are right, so the next run knows these files without reading them; else
        these files are not offered for these contents again and the next candidate is.
        """
        with self._lock:
            served = np.array(self._served, dtype=np.int64).reshape(-1, 7)
            told = np.isin(served[:, 0], rows)
            self._served = array("q", served[~told].tobytes())
            contents = self._contents
        served = served[told]
        if contents is None or len(served) == 0:
            return
        row, start, stamp = served[:, 0], served[:, 1], served[:, 2:]
        if not ok:
            with self._lock:
                self._refuted.update(map(tuple, served.tolist()))
                self._candidates = self._candidates.without(served)
        elif self._memory is not None:
            self._memory.remember(stamp, start, contents.size[row], contents.digest[row])

    def renew(self) -> None:
        """Look at folders anew: files may have come."""
        self._tree.forget()

    def close(self) -> None:
        """Close ROOT; the memory belongs to the caller."""
        self._tree.close()

    def _guess(self, wanted: Wanted) -> _Candidates:
        """Return the files that lie where the hints say and have the size they say."""
        hints, contents = wanted.hints, wanted.contents
        which = np.flatnonzero(np.isin(hints.content, wanted.rows))
        content, start = hints.content[which], hints.file_offset[which]
        # Hints may contradict the contents: they are as untrusted as any other part of a pack.
        sane = (start >= 0) & (start <= hints.file_size[which] - contents.size[content])
        places, paths = array("q"), []
        stamps: array[int] = array("q")
        sizes = hints.file_size.tolist()
        for place in which[sane].tolist():
            for name in self._tree.names_of(hints.path[place]):
                looked = self._tree.look_up(name)
                if looked is not None and looked[1].st_size == sizes[place]:
                    places.append(place)
                    paths.append(looked[0])
                    stamps.extend(stamp_of(looked[1]))
                    break
        place_column = np.array(places, dtype=np.int64)
        found = _Candidates(
            hints.content[place_column],
            hints.file_offset[place_column],
            Files(paths, as_stamps(stamps)),
        )
        return self._without_disproved(found, contents)

    def _without_disproved(self, found: _Candidates, contents: Contents) -> _Candidates:
        """Sort candidates by row, those that the memory confirms first; drop what it disproves."""
        if self._memory is None or len(found.row) == 0:
            return _no_candidates().followed_by(found)
        size = contents.size[found.row]
        digest, known = self._memory.recall(found.files.stamp, found.start, size)
        equal = (digest == contents.digest[found.row]).all(axis=1)
        confirmed = _no_candidates().followed_by(found.only(known & equal))
        return confirmed.followed_by(found.only(~known))

    def _search(self, wanted: Wanted) -> _Candidates:
        """Return the files of the whole tree that hold wanted contents, by their digests."""
        rows, contents = whole_files(wanted), wanted.contents
        files = self._tree.walk(frozenset(contents.size[rows].tolist()))
        files = files.take(_first_names(files.stamp))
        size = files.stamp[:, 2]
        digest, known = hash_files(self._tree, files, np.zeros_like(size), size, self._memory)
        place = find_rows(contents.digest[rows], digest)
        hit = known & (place >= 0)
        found = _Candidates(rows[place], np.zeros_like(place), files).only(hit)
        return _no_candidates().followed_by(found)


def whole_files(wanted: Wanted) -> Rows:
    """Return the wanted rows that are a whole file somewhere, all rows if there are no hints."""
    hints = wanted.hints
    if len(hints.content) == 0:
        return wanted.rows
    whole = (hints.file_offset == 0) & (hints.file_size == wanted.contents.size[hints.content])
    return wanted.rows[np.isin(wanted.rows, hints.content[whole])]


def _first_names(stamp: Stamps) -> Rows:
    """Return one row for each inode: a file with several names is read once."""
    order = np.lexsort((stamp[:, 1], stamp[:, 0]))
    inode = stamp[order, :2]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (inode[1:] != inode[:-1]).any(axis=1)
    return order[new]


def package_owned_roots() -> tuple[tuple[Path, tuple[str, ...]], ...]:
    """Return (root, folders below it to leave out) of the trees that packages own on this host.

    /usr without /usr/local, the same folders where /usr is not merged, /boot, and the package
    records. /etc, /opt, /srv and /home are left out: what is in them is mostly the host's own,
    and a mirror would learn which of it the host has; what packages bring there is little.
    """
    candidates = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot", "/var/lib/dpkg/info")
    return tuple(
        (path, ("/local",) if name == "/usr" else ())
        for name in candidates
        if (path := Path(name)).is_dir() and not path.is_symlink()
    )


def default_sources(memory: Memory | None) -> list[DirectorySource]:
    """Return sources of the host's package-owned trees.

    One that cannot be used (a /usr on a network file system) is left out with a line in the log.
    """
    sources: list[DirectorySource] = []
    for root, excluded in package_owned_roots():
        try:
            sources.append(DirectorySource(root, memory, explicit=False, excluded=excluded))
        except SourceError as error:
            _log.warning("%s", error)
    return sources
