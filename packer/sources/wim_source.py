"""Source: the files in a Windows image, found by path and size in any of its editions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.sources.base import FileRange, Offers, Piece, SourceError, Wanted, free_offers
from packer.sources.by_path import WantedPaths
from packer.sources.wim import Wim, WimFile

Rows = NDArray[np.int64]

MOST_CANDIDATES = 8
"""Different files with the path and size of one content, in the editions of one medium."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A content as the part of a file that begins at byte `start`."""

    file: WimFile
    start: int


class WimSource:
    """Contents out of a Windows image. open_wim: called when the first content is looked for."""

    local = True

    def __init__(self, uri: str, open_wim: Callable[[], Wim]) -> None:
        self.uri = uri
        self._open_wim = open_wim
        self._wim: Wim | None = None
        self._failure: SourceError | None = None
        self._contents: Contents | None = None
        self._candidates: dict[int, list[_Candidate]] = {}

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return what files at the hints' paths with the hints' size may hold.

        All editions are listed, once. Raises SourceError when that cannot be done.
        """
        if self._failure is not None:
            raise self._failure
        if wanted.contents is not self._contents:
            try:
                self._wim = self._wim or self._open_wim()
                self._candidates = _candidates(self._wim, wanted)
            except SourceError as error:
                self._failure = SourceError(f"{self.uri}: {error}", hint=error.hint)
                raise self._failure from error
            self._contents = wanted.contents
        rows = [row for row in wanted.rows.tolist() if self._candidates.get(row)]
        return free_offers(np.array(rows, dtype=np.int64))

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield contents as ranges of extracted files, in the order of the image.

        Raises SourceError when nothing can be extracted any more.
        """
        wanted: dict[WimFile, list[tuple[int, int]]] = {}
        for row in rows.tolist():
            for one in self._candidates.get(row, [])[:1]:
                wanted.setdefault(one.file, []).append((row, one.start))
        if self._wim is None or not wanted:
            return
        try:
            for file, fd in self._wim.extract(list(wanted)):
                for row, start in wanted[file]:
                    yield FileRange(row, fd, start)
        except SourceError as error:
            raise SourceError(f"{self.uri}: {error}", hint=error.hint) from error

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note that contents fetched from here were wrong: the next edition's are tried."""
        for row in () if ok else rows.tolist():
            del self._candidates.get(row, [])[:1]

    def close(self) -> None:
        """Nothing is open."""


def _candidates(wim: Wim, wanted: Wanted) -> dict[int, list[_Candidate]]:
    """Return {row: files that may hold it}: of files that are equal in two editions, one."""
    paths = WantedPaths(wanted)
    found: dict[int, dict[tuple[str, int], _Candidate]] = {}
    for file in wim.files():
        for place in paths.of(file.path, file.size):
            some = found.setdefault(place.row, {})
            if len(some) < MOST_CANDIDATES:
                some.setdefault((file.sha1, place.start), _Candidate(file, place.start))
    return {row: list(some.values()) for row, some in found.items()}
