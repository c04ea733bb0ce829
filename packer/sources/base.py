"""What every source of contents can do.

A source *offers* contents (tentatively: nothing is believed before its digest was checked by
whoever asked) and then *fetches* them in pieces. Each piece can be verified alone, so that a
source that lies, changes or breaks costs one piece and is replaced by the next source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.artifact.hints import Hints
from packer.errors import Error


class SourceError(Error):
    """A source cannot be used or broke; the next one is tried."""


LazyHints = Hints | Callable[[], Hints]
"""Hints, or what loads them: a pack on a web server sends them only if some source looks."""


class Wanted:
    """Contents that are looked for: `rows` (int64[k], sorted, distinct) of `contents`."""

    def __init__(self, contents: Contents, rows: NDArray[np.int64], hints: LazyHints) -> None:
        self.contents = contents
        self.rows = rows
        self._hints = hints

    @property
    def hints(self) -> Hints:
        """Return where the contents lay in the guest."""
        if callable(self._hints):
            self._hints = self._hints()
        return self._hints

    def only(self, rows: NDArray[np.int64]) -> Wanted:
        """Return the same question for fewer rows."""
        return Wanted(self.contents, rows, self._hints)


@dataclass(frozen=True, slots=True)
class Offers:
    """What a source says it has, as columns.

    rows: int64[k], sorted, distinct rows of the contents. cost_bytes: int64[k], bytes that must
    travel for this content alone (0 for local sources). group: int64[k], row in `group_bytes` of
    a unit that must travel as a whole and is shared by several contents (a package file, a mixed
    frame), -1 for none.
    """

    rows: NDArray[np.int64]
    cost_bytes: NDArray[np.int64]
    group: NDArray[np.int64]
    group_bytes: NDArray[np.int64]


def free_offers(rows: NDArray[np.int64]) -> Offers:
    """Return the offers of a local source: nothing travels."""
    none = np.zeros(len(rows), dtype=np.int64)
    return Offers(rows, none, none - 1, np.empty(0, dtype=np.int64))


def sent_offers(rows: NDArray[np.int64], size: NDArray[np.int64]) -> Offers:
    """Return the offers of a source that sends each content as it is.

    size: of every content of the pack, bytes.
    """
    return Offers(
        rows, size[rows], np.full(len(rows), -1, dtype=np.int64), np.empty(0, dtype=np.int64)
    )


@dataclass(frozen=True, slots=True)
class Bytes:
    """Piece `block` of content `row` in memory: exactly the bytes of `Contents.block_bounds`."""

    row: int
    block: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class FileRange:
    """The whole content `row` as a range of an open file.

    The descriptor belongs to the source and is valid until the next piece is asked for. Who
    receives it may share the file's blocks or read them.
    """

    row: int
    fd: int
    offset: int


Piece = Bytes | FileRange


class Source(Protocol):
    """A place where contents can be had. Methods may be called from several threads."""

    @property
    def uri(self) -> str:
        """How the user names it: "dir:/usr", "https://host/demo/"."""

    @property
    def local(self) -> bool:
        """Whether asking it costs no network traffic."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Return which of the wanted contents this source probably has.

        deep: look further than at the obvious places (read the index of a whole tree), because
        much is missing after everybody was asked quickly.
        Raises SourceError when the source cannot be used at all.
        """

    def fetch(self, rows: NDArray[np.int64]) -> Iterator[Piece]:
        """Yield the pieces of the given contents, which this source has offered, in any order.

        A content that cannot be had after all is left out. Raises SourceError when the source
        breaks; pieces yielded before that stand.
        """

    def close(self) -> None:
        """Give back what is open."""


@runtime_checkable
class Neighbouring(Protocol):
    """A source that may lie on the local network."""

    @property
    def near(self) -> bool:
        """Whether it does: asked after everything on this host, before any server far away."""


def is_near(source: Source) -> bool:
    """Return whether a source lies on the local network."""
    return isinstance(source, Neighbouring) and source.near


@runtime_checkable
class Learning(Protocol):
    """A source that offers several candidates for a content, one after the other."""

    def learn(self, rows: NDArray[np.int64], *, ok: bool) -> None:
        """Take note that what was fetched for these contents was right, or was not."""


@runtime_checkable
class Blockwise(Protocol):
    """A source that can send single pieces of the contents that it has offered."""

    def fetch_blocks(self, rows: NDArray[np.int64], blocks: NDArray[np.int64]) -> Iterator[Bytes]:
        """Yield pieces `blocks[i]` of contents `rows[i]`, in any order.

        Pieces of other wanted contents that travel with them come, too. What cannot be had after
        all is left out. Raises SourceError when the source breaks.
        """

    def cost_of_blocks(self, rows: NDArray[np.int64], blocks: NDArray[np.int64]) -> int:
        """Return how many bytes travel for these pieces of contents that were offered."""


@runtime_checkable
class Renewable(Protocol):
    """A source that remembers what could not be had from it."""

    def renew(self) -> None:
        """Forget that: by now it may be otherwise. Nobody is asking it at this time."""


@runtime_checkable
class Provable(Protocol):
    """A source that can tell for certain, without handing anything over."""

    def prove(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of the offered contents are really there: int64, sorted."""


@runtime_checkable
class Sequential(Protocol):
    """A source on this host that is best asked for everything at once, in its own order."""

    @property
    def sequential(self) -> bool:
        """Whether it is."""


def is_sequential(source: Source) -> bool:
    """Return whether a source is best asked for everything at once."""
    return isinstance(source, Sequential) and source.sequential
