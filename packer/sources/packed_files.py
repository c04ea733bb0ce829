"""Source: the compressed files of an old installation medium: I386/NTDLL.DL_ is system32/ntdll.dll.

Media up to Windows Server 2003 hold most files in cabinets of their own, in one folder, under the
name that the file will have (KB Q132913, "expand"). What a cabinet holds is recognised by that name
and the size in its header; in which folder of the guest it ends does not matter.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.sources.base import Offers, Piece, SourceError, Wanted, free_offers
from packer.sources.cabinet import expanded_bytes, most_cabinet_bytes
from packer.sources.symbols import Cabinets

Rows = NDArray[np.int64]
Read = Callable[[int, int], bytes]
"""(offset, length) -> bytes of a file, fewer at its end. Raises SourceError."""

HEAD_BYTES = 4096
COPY_BYTES = 1 << 24
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file whose name ends in "_"."""

    path: str
    size: int
    read: Read


class PackedFiles:
    """Compressed files by name. uri: names the medium in notes."""

    local = True

    def __init__(self, uri: str, files: Iterable[PackedFile]) -> None:
        self.uri = uri
        self._files: dict[str, list[PackedFile]] = {}
        for file in files:
            name = file.path.rpartition("/")[2].casefold()
            self._files.setdefault(name, []).append(file)
        self._cabinets = Cabinets(uri)
        self._contents: Contents | None = None
        self._candidates: dict[int, list[PackedFile]] = {}

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return the wanted contents that are whole files of a packed file's name and size."""
        if wanted.contents is not self._contents:
            self._contents = wanted.contents
            self._candidates = self._look(wanted)
        rows = [row for row in wanted.rows.tolist() if self._candidates.get(row)]
        return free_offers(np.array(rows, dtype=np.int64))

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the pieces of expanded files. Raises SourceError when they cannot be read."""
        for row in rows.tolist():
            if self._contents is None or not self._candidates.get(row):
                continue
            with self._copied(self._candidates[row][0]) as copy:
                yield from self._cabinets.pieces(self._contents, row, copy.fileno())

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note that contents fetched from here were wrong: the next file is tried."""
        for row in () if ok else rows.tolist():
            del self._candidates.get(row, [])[:1]

    def close(self) -> None:
        """Nothing is open."""

    def _copied(self, file: PackedFile) -> IO[bytes]:
        """Return a copy without a name, which vanishes when it is closed. Raises SourceError."""
        try:
            with ExitStack() as on_error:
                copy = on_error.enter_context(tempfile.TemporaryFile())
                copy_file(file.read, file.size, copy)
                on_error.pop_all()
        except OSError as error:
            where = tempfile.gettempdir()
            raise SourceError(f"{self.uri}: {where}: {error.strerror or error}") from error
        return copy

    def _look(self, wanted: Wanted) -> dict[int, list[PackedFile]]:
        hints, size = wanted.hints, wanted.contents.size
        whole = (hints.file_offset == 0) & (hints.file_size == size[hints.content])
        expanded: dict[str, int | None] = {}
        found: dict[int, list[PackedFile]] = {}
        for place in np.flatnonzero(whole).tolist():
            row = int(hints.content[place])
            for file in self._files.get(packed_name(hints.path[place]), ()):
                if file.path not in expanded:
                    expanded[file.path] = self._expanded(file)
                known = found.setdefault(row, [])
                if expanded[file.path] == int(size[row]) and file not in known:
                    known.append(file)
        if any(found.values()) and not self._cabinets.usable():
            return {}
        return found

    def _expanded(self, file: PackedFile) -> int | None:
        try:
            size = expanded_bytes(file.read(0, HEAD_BYTES))
        except SourceError as error:
            _log.warning("%s", error)
            return None
        return size if size is not None and file.size <= most_cabinet_bytes(size) else None


def copy_file(read: Read, size: int, copy: IO[bytes]) -> None:
    """Copy the first `size` bytes of a file, some at a time. Raises SourceError, OSError."""
    for start in range(0, size, COPY_BYTES):
        copy.write(read(start, min(COPY_BYTES, size - start)))
    copy.flush()


def packed_name(path: str) -> str:
    """Return the name of a guest's file on such a medium, in lower case: "ntdll.dl_", "a.c_"."""
    name = path.rpartition("/")[2].casefold()
    stem, dot, ending = name.rpartition(".")
    if not dot:
        return f"{name}._"
    return f"{stem}.{ending[:2]}_" if len(ending) == 3 else f"{name}_"
