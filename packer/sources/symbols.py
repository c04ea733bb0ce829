"""Where programs lie in a symbol store, and a folder in that layout as a source (symbols:/folder).

Who publishes Windows programs keeps them for debuggers, under name, TimeDateStamp and SizeOfImage:
what the hints of a pack know of each program. A file is there as it is, or in a cabinet of its own
("ntdll.dl_"). Every other file of a Windows guest has to come from elsewhere.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from formats.errors import Unsupported
from formats.windows.symbols import compressed_path, symbol_path
from packer.artifact.contents import Class, Contents
from packer.sources.base import Bytes, FileRange, Offers, Piece, Wanted, free_offers
from packer.sources.cabinet import HINT, MISSING, expand, find_cabextract, most_cabinet_bytes
from packer.sources.memory import stamp_of
from packer.sources.tree import Opener, Tree
from packer.transport.ranges import cut_ranges

Rows = NDArray[np.int64]

MOST_NAMES = 4
"""Names of one program that are asked for: a HAL or kernel is installed under another one."""

MAX_NAME_CHARACTERS = 255

_log = logging.getLogger(__name__)


def symbol_paths(wanted: Wanted) -> dict[int, list[str]]:
    """Return {row: paths in a symbol store} of the wanted contents that are whole programs.

    Not of private ones: what only this guest has is nowhere, and its name nobody's business.
    """
    hints, contents = wanted.hints, wanted.contents
    rows = np.intersect1d(wanted.rows, hints.programs.content)
    rows = rows[contents.classes[rows] != Class.PRIVATE]
    found: dict[int, list[str]] = {}
    for row in rows.tolist():
        key = hints.programs.of(row)
        names = {hints.path[place].rpartition("/")[2].lower(): None for place in hints.of(row)}
        paths = [path for name in names if key and (path := _path(name, *key))]
        if paths:
            found[row] = paths[:MOST_NAMES]
    return found


def _path(name: str, timestamp: int, size_of_image: int) -> str | None:
    """Return where a program lies in a store, None for a name that no store can have."""
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        return None
    try:
        return symbol_path(name, timestamp, size_of_image)
    except Unsupported:
        return None


def cut(contents: Contents, row: int, chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Yield the pieces of a content from its bytes as they come."""
    bounds = [
        (*contents.block_bounds(row, block), block) for block in range(contents.block_count(row))
    ]
    for block, data in cut_ranges(chunks, 0, bounds):
        yield Bytes(row, block, data)


class Cabinets:
    """What expands cabinets on this host; that there is nothing is said once."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._program = find_cabextract()
        self._told = False

    def usable(self) -> bool:
        """Return whether a cabinet that was found can be opened; say so if not."""
        if self._program is None and not self._told:
            self._told = True
            _log.warning("%s: holds compressed files, and %s; %s", self._uri, MISSING, HINT)
        return self._program is not None

    def pieces(self, contents: Contents, row: int, fd: int) -> Iterator[Piece]:
        """Yield the pieces of the content in a cabinet; what cannot be had is left out."""
        assert self._program is not None
        try:
            yield from cut(contents, row, expand(self._program, fd, int(contents.size[row])))
        except OSError as error:
            _log.warning("%s: cabextract: %s", self._uri, error.strerror or error)


class Candidates:
    """Where each content may lie, and what turned out not to be right. Any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: Contents | None = None
        self._paths: dict[int, list[str]] = {}
        self._useless: set[str] = set()

    def note(self, wanted: Wanted) -> dict[int, list[str]]:
        """Return the paths of the wanted contents that are still worth a question."""
        paths = symbol_paths(wanted)
        with self._lock:
            if wanted.contents is not self._contents:
                self._contents, self._paths, self._useless = wanted.contents, {}, set()
            self._paths |= paths
            return {row: left for row, some in paths.items() if (left := self._left(some))}

    def of(self, rows: Rows) -> tuple[Contents | None, list[tuple[int, list[str]]]]:
        """Return the contents, and the paths of some of them."""
        with self._lock:
            jobs = [(row, self._left(self._paths.get(row, []))) for row in rows.tolist()]
            return self._contents, [job for job in jobs if job[1]]

    def drop(self, path: str) -> None:
        """Note that a path leads to nothing or to something else."""
        with self._lock:
            self._useless.add(path)

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note of what the receiver found out: a wrong file is not fetched again."""
        if not ok:
            with self._lock:
                for row in rows.tolist():
                    self._useless.update(self._left(self._paths.get(row, []))[:1])

    def _left(self, paths: Sequence[str]) -> list[str]:
        return [path for path in paths if path not in self._useless]


class SymbolFolder:
    """A folder in the layout of a symbol server: programs as they are, or in cabinets.

    What every user of this host can read is offered; names are compared without regard to case.
    Raises SourceError when the folder cannot be used.
    """

    local = True

    def __init__(self, root: Path) -> None:
        self.uri = f"symbols:{root}"
        self._tree = Tree(root, explicit=True)
        self._cabinets = Cabinets(self.uri)
        self._candidates = Candidates()

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return the wanted programs that have a file of their size, or a cabinet, here."""
        size = wanted.contents.size
        found = [
            row
            for row, paths in self._candidates.note(wanted).items()
            if any(self._look_up(path, int(size[row])) for path in paths)
        ]
        return free_offers(np.array(sorted(found), dtype=np.int64))

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield files as ranges, what is in cabinets in pieces."""
        contents, jobs = self._candidates.of(rows)
        if contents is None:
            return
        opener = Opener(self._tree)
        try:
            for row, paths in sorted(jobs, key=lambda job: job[1]):
                yield from self._first(opener, contents, row, paths)
        finally:
            opener.close()

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note of what the receiver found out about contents fetched from here."""
        self._candidates.learn(rows, ok=ok)

    def close(self) -> None:
        """Close the folder."""
        self._tree.close()

    def _first(
        self, opener: Opener, contents: Contents, row: int, paths: Sequence[str]
    ) -> Iterator[Piece]:
        """Yield the first of the paths that is there; those before it are dropped."""
        size = int(contents.size[row])
        for path in paths:
            found = self._look_up(path, size)
            fd = opener.open(found[0], stamp_of(found[1])) if found else None
            if found is None or fd is None:
                self._candidates.drop(path)
                continue
            try:
                if found[2]:
                    yield from self._cabinets.pieces(contents, row, fd)
                else:
                    yield FileRange(row, fd, 0)
            finally:
                os.close(fd)
            return

    def _look_up(self, path: str, size: int) -> tuple[str, os.stat_result, bool] | None:
        """Return (path below the folder, status, whether it is a cabinet) of what may hold it."""
        found = self._tree.look_up(f"/{path}")
        if found is not None and found[1].st_size == size:
            return *found, False
        found = self._tree.look_up(f"/{compressed_path(path)}")
        if found is None or found[1].st_size > most_cabinet_bytes(size):
            return None
        return (*found, True) if self._cabinets.usable() else None
