"""What a running disk has proven and keeps: pieces in the store and in memory. Used in threads."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Class, Contents
from packer.errors import Error
from packer.run.disk.blocks import BlockCache, Piece
from packer.run.disk.export import FilePart, Part
from packer.run.disk.page_cache import is_in_memory
from packer.run.disk.shelf import Held, Shelf
from packer.run.disk.status import FromSource
from packer.sources.base import FileRange, Wanted
from packer.sources.store import Store

Block = Held | memoryview
"""Where a proven piece can be read: in a file of the store, or in memory."""

Span = tuple[int, int, int]
"""(row, offset, length): a part of a content, in bytes; row -1: so many zeros."""

Deliver = Callable[[Piece, Block], None]
"""Tells whoever waits for a piece. Any thread."""

Count = Callable[[int], None]
"""Is told of a piece that came how many bytes of it are new, before anybody gets to see it."""

FILE_PART_BYTES = 32 << 10
"""From here on it is quicker to have the kernel send a part of a file than to read it."""

MOST_UNWRITTEN_BYTES = 32 << 20
"""Of pieces that wait until there is time to put them into the store."""

MOST_COMPLAINTS = 20
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class Kept:
    """The proven pieces of one pack's contents. Any thread.

    at_hand: bool[n], the contents that need nobody else. unwritten: what `write` is to put into the
    store. memory_bytes, most_open: see Resolver.
    """

    def __init__(
        self,
        store: Store,
        contents: Contents,
        deliver: Deliver,
        *,
        memory_bytes: int,
        most_open: int,
    ) -> None:
        self.store = store
        self.at_hand: NDArray[np.bool_] = np.zeros(len(contents), dtype=bool)
        self._contents = contents
        self._deliver = deliver
        self._cache = BlockCache(memory_bytes)
        self._shelf = Shelf(store, contents, most_open)
        self._nowait = hasattr(os, "RWF_NOWAIT")
        self._lock = threading.Lock()
        self._brought: set[Piece] = set()
        self._found: set[Piece] = set()
        self._found_bytes = 0
        self._complaints: dict[str, None] = {}
        self.unwritten: dict[Piece, memoryview] = {}
        self._unwritten_bytes = 0

    def record(self) -> FromSource:
        """Return what the store gave, and what ails it."""
        return FromSource(self.store.uri, self._found_bytes, 0, tuple(self._complaints.copy()))

    def find(self, wanted: Wanted) -> None:
        """See which contents the store has."""
        try:
            self.at_hand[self.store.find(wanted, deep=False).rows] = True
        except Error as error:
            self._complain(error)

    def lacking(self) -> NDArray[np.int64]:
        """Return the contents that are not wholly at hand, sorted."""
        return np.flatnonzero(~self.at_hand)

    # -- to read -----------------------------------------------------------------------------------

    def proven(self, piece: Piece) -> Block | None:
        """Return where a piece can be read if it was proven before; never waits."""
        row, block = piece
        held = self._shelf.held(row)
        if held is not None and held.proven[block]:
            return held
        return self.unwritten.get(piece) or self._cache.get(piece)

    def read_now(self, row: int, offset: int, length: int) -> list[Part] | None:
        """Return a part of a content if it is proven and in memory; never waits."""
        first, end = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1
        held = self._shelf.held(row)
        if held is None or not held.has(first, end):
            return self._from_memory(row, offset, length)
        if length >= FILE_PART_BYTES and is_in_memory(held.fd, offset, length):
            return [FilePart(held.fd, offset, length, held)]
        if not self._nowait:
            return None
        buffer = np.empty(length, dtype=np.uint8).data  # unlike a bytearray not filled with zeros
        try:
            if os.preadv(held.fd, [buffer], offset, os.RWF_NOWAIT) == length:
                return [buffer]
        except BlockingIOError:
            pass  # not in the page cache
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                self._nowait = False  # this file system cannot tell
        return None

    def read(self, spans: Sequence[Span]) -> list[Part] | None:
        """Return parts of contents, one after the other, if all of them are kept; else None."""
        blocks: dict[Piece, Block] = {}
        for piece in pieces_of(spans):
            if piece not in blocks:
                block = self.proven(piece) or self._look(piece)
                if block is None:
                    return None
                blocks[piece] = block
        return self.gather(spans, blocks)

    def gather(self, spans: Sequence[Span], blocks: dict[Piece, Block]) -> list[Part] | None:
        """Return parts of contents out of pieces; None, and they are kept no more, if they cannot
        be read: the medium below gave up, or somebody cut a file of the store.
        """
        parts: list[Part] = []
        for row, offset, length in spans:
            if row < 0:
                parts.append(length)
                continue
            for block, low, high in _blocks_of(offset, length):
                data = _read(blocks[row, block], block * BLOCK_BYTES, low, high)
                if data is None:
                    self._lose(row)
                    return None
                parts.append(data)
        return parts

    def look(self, pieces: Sequence[Piece]) -> None:
        """Deliver those pieces that the store holds."""
        for piece in pieces:
            held = self._look(piece)
            if held is not None:
                self._deliver(piece, held)

    # -- to keep -----------------------------------------------------------------------------------

    def take_carried(self, row: int, block: int, data: bytes | memoryview, count: Count) -> None:
        """Keep a piece that the pack itself carries: in memory."""
        count(self._note_brought([(row, block)]))
        self._deliver((row, block), self._cache.put((row, block), data))

    def take(self, row: int, block: int, data: bytes | memoryview, count: Count) -> None:
        """Keep a proven piece in the store, or in memory when the store takes no more."""
        count(self._note_brought([(row, block)]))
        held = self._keep(row, block, data)
        self._deliver((row, block), held or self._cache.put((row, block), data))
        if held is not None:
            self._settle(row)

    def take_besides(self, row: int, block: int, data: bytes | memoryview, count: Count) -> None:
        """Keep a proven piece of a content that nobody has asked for: in memory, until `write`."""
        if self._unwritten_bytes + len(data) > MOST_UNWRITTEN_BYTES:
            self.take(row, block, data, count)
            return
        count(self._note_brought([(row, block)]))
        view = memoryview(bytes(data))
        with self._lock:
            if (row, block) not in self.unwritten:
                self.unwritten[row, block] = view
                self._unwritten_bytes += len(view)
        if self._contents.block_count(row) == 1:
            self.at_hand[row] = True
        self._deliver((row, block), view)

    def write(self, most: int | None = None) -> None:
        """Put what waits for it into the store, so many pieces of it at most."""
        for piece, data in list(islice(self.unwritten.copy().items(), most)):
            row, block = piece
            if self._keep(row, block, data) is not None:
                self._settle(row)
            else:
                self._cache.put(piece, data)
                self.at_hand[row] = False
            with self._lock:
                if self.unwritten.pop(piece, None) is not None:
                    self._unwritten_bytes -= len(data)

    def take_file(self, sent: FileRange, blocks: Sequence[int], count: Count) -> bool:
        """Keep a whole shared content that lies in a file, and deliver some blocks of it.

        Returns False when it is not that content, or cannot be kept as a whole.
        """
        row, contents = sent.row, self._contents
        if contents.classes[row] != Class.SHARED:
            return False
        digest, size = bytes(contents.digest[row]), int(contents.size[row])
        try:
            if not self.store.holds(digest, size):
                fd = self.store.open_clone(sent.fd, sent.offset, size, digest)
                if fd is None:
                    return False
                self._shelf.add_proven(row, fd)
        except Error as error:
            self._complain(error)
            return False
        count(self._note_brought([(row, block) for block in range(contents.block_count(row))]))
        self.at_hand[row] = True
        for block in blocks:
            if (held := self._open(row, block)) is not None:
                self._deliver((row, block), held)
        return True

    def close(self) -> None:
        """Close the files of the store."""
        self._shelf.close()

    # -- below -------------------------------------------------------------------------------------

    def _note_brought(self, pieces: Iterable[Piece]) -> int:
        """Return how many bytes of pieces are here for the first time."""
        with self._lock:
            new = [one for one in pieces if one not in self._brought and one not in self._found]
            self._brought.update(new)
        bounds = (self._contents.block_bounds(row, block) for row, block in new)
        return sum(end - start for start, end in bounds)

    def _from_memory(self, row: int, offset: int, length: int) -> list[Part] | None:
        parts: list[Part] = []
        for block, low, high in _blocks_of(offset, length):
            data = self.unwritten.get((row, block)) or self._cache.get((row, block))
            if data is None:
                return None
            parts.append(data[low:high])
        return parts

    def _look(self, piece: Piece) -> Held | None:
        """Return the file of the store in which a piece is; what was brought there counts not."""
        row, block = piece
        held = self._open(row, block)
        if held is not None:
            self._note_found(piece)
        if held is not None and held.partial is None:
            self.at_hand[row] = True
        elif held is not None and held.has(0, len(held.proven)):
            self._settle(row)  # whoever brought the rest of it was killed before
        return held

    def _note_found(self, piece: Piece) -> None:
        with self._lock:
            if piece not in self._brought and piece not in self._found:
                self._found.add(piece)
                start, end = self._contents.block_bounds(*piece)
                self._found_bytes += end - start

    def _open(self, row: int, block: int) -> Held | None:
        try:
            return self._shelf.look(row, block)
        except Error as error:
            self._complain(error)
            return None

    def _keep(self, row: int, block: int, data: bytes | memoryview) -> Held | None:
        try:
            return self._shelf.keep(row, block, data)
        except Error as error:
            self._complain(error)
            return None

    def _settle(self, row: int) -> None:
        """Note whether all of a content is in the store by now."""
        try:
            if self._shelf.settle(row):
                self.at_hand[row] = True
        except Error as error:
            self._complain(error)

    def _lose(self, row: int) -> None:
        self.at_hand[row] = False
        try:
            self._shelf.remove(row)
        except Error as error:
            self._complain(error)

    def _complain(self, error: Error) -> None:
        if len(self._complaints) < MOST_COMPLAINTS:
            self._complaints[str(error)] = None


def pieces_of(spans: Iterable[Span]) -> Iterable[Piece]:
    """Yield the pieces in which parts of contents lie."""
    for row, offset, length in spans:
        if row >= 0:
            for block in range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1):
                yield row, block


def _blocks_of(offset: int, length: int) -> Iterable[tuple[int, int, int]]:
    """Yield (block, low, high): which bytes of which blocks a part of a content is."""
    end = offset + length
    for block in range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
        start = block * BLOCK_BYTES
        yield block, max(offset - start, 0), min(end - start, BLOCK_BYTES)


def _read(block: Block, start: int, low: int, high: int) -> bytes | memoryview | None:
    """Return bytes [low, high) of a block that begins at `start` of its content."""
    if isinstance(block, memoryview):
        part = block[low:high]
        # A client that is slow to take a few bytes would keep all of it in memory.
        return part if len(part) == len(block) else bytes(part)
    try:
        data = os.pread(block.fd, high - low, start + low)
    except OSError:
        return None
    return data if len(data) == high - low else None
