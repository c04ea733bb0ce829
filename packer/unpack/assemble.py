"""Write contents into their ranges and prove each piece by its digest.

Bytes that are copied are hashed in memory before they are written. Blocks that are shared are
shared first and hashed afterwards: in the file they come from if its times prove that it has not
changed since, else as the output holds them. So a wrong byte is never left behind as done.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from formats.ranges import intersect, total, union
from packer.artifact.contents import BLOCK_BYTES
from packer.artifact.map import Kind, Map
from packer.clone import CLONE_UNIT_BYTES
from packer.progress import Advance, Progress
from packer.sources.base import Bytes, FileRange, Piece, Source, SourceError, is_sequential
from packer.sources.store import Store
from packer.unpack.output import Target
from packer.unpack.places import Places
from packer.unpack.settled import is_still, settled_stamp

Rows = NDArray[np.int64]
CHUNK_BYTES = 16 << 20
CHUNK_ROWS = 512
CLEAR_BYTES = 64 << 20
"""How much is cleared between two steps of the bar."""


class Assembler:
    """Puts contents into an output; knows which pieces are proven to be there."""

    def __init__(self, disk_map: Map, output: Target, jobs: int) -> None:
        self.map = disk_map
        self.output = output
        self.places = Places(disk_map)
        self._jobs = jobs
        count = np.maximum(1, np.diff(disk_map.contents.block_start))
        first = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        self._first_piece: list[int] = first.tolist()
        self._proven = bytearray(self._first_piece[-1])
        """One byte a piece, 1 when it is in place."""
        self._lock = threading.Lock()

    def missing(self) -> Rows:
        """Return the contents that are not wholly proven yet, sorted."""
        if len(self._proven) == 0:
            return np.empty(0, dtype=np.int64)
        proven = np.frombuffer(self._proven, dtype=bool)
        whole = np.logical_and.reduceat(proven, self._first_piece[:-1])
        return np.flatnonzero(~whole)

    def clear_rest(self, progress: Progress) -> None:
        """Make ranges that hold no content read as zeros, whatever the output has there."""
        bounds = np.stack([self.map.start, self.map.end], axis=1)
        empty = union(bounds[self.map.kind != Kind.CONTENT])
        filled = intersect(self.output.data_ranges(), empty)
        if len(filled) == 0:
            return
        with progress.stage("clearing", total(filled)) as advance:
            for low, high in filled.tolist():
                for start in range(low, high, CLEAR_BYTES):
                    end = min(start + CLEAR_BYTES, high)
                    self.output.clear(start, end)
                    advance(end - start)

    def take_up(self, advance: Advance) -> int:
        """Prove by re-hashing what an interrupted run has left in the output.

        Returns the bytes of contents that were proven.
        """
        holding = self.output.data_ranges()
        if len(holding) == 0:
            return 0
        first = self.places.first_offset
        at = np.minimum(np.searchsorted(holding[:, 1], first, side="right"), len(holding) - 1)
        present = (holding[at, 0] <= first) & (first < holding[at, 1])
        proven = _Counter(advance)
        self._each_chunk(np.flatnonzero(present), lambda chunk: self._prove_all(chunk, proven))
        return proven.total_bytes

    def place_all(self, source: Source, rows: Rows, advance: Advance) -> tuple[int, list[str]]:
        """Fetch `rows` from a source and put them in place.

        Returns (bytes of contents that were proven, complaints of the source). What is missing
        afterwards was not to be had there. Errors of the output are raised.
        """
        complaints: list[str] = []
        proven = _Counter(advance)

        def take(chunk: Rows) -> None:
            try:
                for piece in self._pieces(source, chunk):
                    proven.add(self._place(piece))
            except SourceError as error:
                complaints.append(str(error))

        if source.local and not is_sequential(source):
            self._each_chunk(rows, take)
        else:
            self._place_ahead(source, rows, proven, complaints)
        return proven.total_bytes, complaints

    def keep(self, row: int, store: Store) -> None:
        """Put a proven content into a store, sharing its blocks with the output if it lies there
        in one piece. Raises StoreError.
        """
        contents, size = self.map.contents, self.places.sizes[row]
        digest = bytes(contents.digest[row])
        targets = list(self.places.targets(row, 0, size))
        if targets[0][2] == size and self.output.shared_fd is not None:
            store.put_clone(self.output.shared_fd, targets[0][0], size, digest)
        else:
            store.put(digest, size, self._read(row))

    def _read(self, row: int) -> Iterator[bytes]:
        for _, start, end in self.places.blocks(row):
            whole = bytearray(end - start)
            for target, low, high in self.places.targets(row, start, end):
                whole[low - start : high - start] = self.output.pread(target, high - low)
            yield bytes(whole)

    def _place_ahead(
        self, source: Source, rows: Rows, proven: _Counter, complaints: list[str]
    ) -> None:
        """Take all rows from one stream, so that its fetches are joined, and hash behind it."""
        waiting: deque[Future[int]] = deque()
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                for piece in self._pieces(source, rows):
                    if isinstance(piece, FileRange):
                        proven.add(self._place(piece))  # its descriptor is ours until the next
                        continue
                    waiting.append(pool.submit(self._place, piece))
                    if len(waiting) > 4 * self._jobs:
                        proven.add(waiting.popleft().result())
            except SourceError as error:
                complaints.append(str(error))
            for one in waiting:
                proven.add(one.result())

    def _pieces(self, source: Source, rows: Rows) -> Iterator[Piece]:
        """Yield what a source sends of `rows`; what it sends of others belongs to other threads."""
        asked = set(rows.tolist())
        for piece in source.fetch(rows):
            if piece.row not in asked:
                continue
            if isinstance(piece, FileRange) or 0 <= piece.block < self._pieces_of(piece.row):
                yield piece

    def _pieces_of(self, row: int) -> int:
        return self._first_piece[row + 1] - self._first_piece[row]

    def _each_chunk(self, rows: Rows, work: Callable[[Rows], None]) -> None:
        """Do work on the rows in groups small enough to keep every thread busy."""
        if len(rows) == 0:
            return
        filled = np.cumsum(self.map.contents.size[rows]) // CHUNK_BYTES
        group = filled + np.arange(len(rows)) // CHUNK_ROWS
        chunks = np.split(rows, np.flatnonzero(np.diff(group)) + 1)
        with ThreadPoolExecutor(self._jobs) as pool:
            for _ in pool.map(work, chunks):
                pass

    def _place(self, piece: Piece) -> int:
        """Put one piece in place; return how many bytes of content it proved (0: it was wrong)."""
        if isinstance(piece, Bytes):
            return self._place_bytes(piece.row, piece.block, piece.data)
        shared = self._share(piece)
        return self._copy_file(piece) if shared is None else shared

    def _place_bytes(self, row: int, block: int, data: bytes | memoryview) -> int:
        number = self._first_piece[row] + block
        start = block * BLOCK_BYTES
        expected = min(BLOCK_BYTES, self.places.sizes[row] - start)
        if self._proven[number] or len(data) != expected:
            return 0
        if hashlib.sha256(data).digest() != self.places.digest(row, block):
            return 0
        view = memoryview(data)
        for target, low, high in self.places.targets(row, start, start + len(data)):
            self.output.pwrite(target, view[low - start : high - start])
        return self._mark(number, len(data))

    def _copy_file(self, piece: FileRange) -> int:
        proven = 0
        for block, start, end in self.places.blocks(piece.row):
            try:
                data = os.pread(piece.fd, end - start, piece.offset + start)
            except OSError:
                break  # the medium gave up; another source is asked for the rest
            proven += self._place_bytes(piece.row, block, data)
        return proven

    def _share(self, piece: FileRange) -> int | None:
        """Share the whole blocks of a content's ranges, copy what is left of the last one, prove.

        Returns how many bytes of content that proved; None when it has to be copied. Never done to
        a content of which a part is proven already, because what is shared is not compared before
        it replaces what is there.
        """
        first, end = self._first_piece[piece.row : piece.row + 2]
        size = self.places.sizes[piece.row]
        if size < CLONE_UNIT_BYTES or 1 in self._proven[first:end]:
            return None
        targets = list(self.places.targets(piece.row, 0, size))
        if any(
            (piece.offset + low) % CLONE_UNIT_BYTES or target % CLONE_UNIT_BYTES
            for target, low, _ in targets
        ):
            return None
        stamp = settled_stamp(piece.fd) if self.output.keeps_times else None
        tails: list[tuple[int, int, int]] = []
        for target, low, high in targets:
            body = (high - low) // CLONE_UNIT_BYTES * CLONE_UNIT_BYTES
            if body and not self.output.clone(piece.fd, piece.offset + low, target, body):
                return None
            if low + body < high:
                tails.append((target + body, low + body, high))
        if stamp is None:
            return self._prove(piece.row) if self._copy_tails(piece, tails) else None
        right = self._read_shared(piece, tails)
        if not is_still(piece.fd, stamp):
            return self._prove(piece.row)
        return sum(self._mark(first + block, length) for block, length in right)

    def _copy_tails(self, piece: FileRange, tails: Sequence[tuple[int, int, int]]) -> bool:
        """Write what could not be shared; False when the file cannot be read."""
        for target, low, high in tails:
            try:
                data = os.pread(piece.fd, high - low, piece.offset + low)
            except OSError:
                return False
            self.output.pwrite(target, data)
        return True

    def _read_shared(
        self, piece: FileRange, tails: Sequence[tuple[int, int, int]]
    ) -> list[tuple[int, int]]:
        """Read a file whose blocks are shared by now; return (block, bytes) of what is right in it.

        tails: (disk offset, low, high) of what could not be shared; it is written from what is
        read.
        """
        right = []
        for block, start, end in self.places.blocks(piece.row):
            try:
                data = os.pread(piece.fd, end - start, piece.offset + start)
            except OSError:
                break  # the medium gave up; another source is asked for the rest
            if hashlib.sha256(data).digest() == self.places.digest(piece.row, block):
                right.append((block, end - start))
            for target, low, high in tails:
                part = data[max(low - start, 0) : max(high - start, 0)]
                if part:
                    self.output.pwrite(target + max(start - low, 0), part)
        return right

    def _prove_all(self, rows: Rows, proven: _Counter) -> None:
        for row in rows.tolist():
            proven.add(self._prove(row))

    def _prove(self, row: int) -> int:
        """Hash a content as the output holds it, in every place; return the bytes proven."""
        proven = 0
        for block, start, end in self.places.blocks(row):
            try:
                held = self.places.held(self.output.pread, row, block, start, end)
            except OSError:
                continue  # a bad block, perhaps of the file that it is shared with
            if held:
                proven += self._mark(self._first_piece[row] + block, end - start)
        return proven

    def _mark(self, number: int, length: int) -> int:
        with self._lock:
            if self._proven[number]:
                return 0
            self._proven[number] = 1
            return length


class _Counter:
    """Adds up proven bytes and passes them on, from several threads."""

    def __init__(self, advance: Advance) -> None:
        self.total_bytes = 0
        self._advance = advance
        self._lock = threading.Lock()

    def add(self, length: int) -> None:
        with self._lock:
            self.total_bytes += length
            if length:
                self._advance(length)
