"""Contents in this host's store as they are served: opened, and each block proven before use."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from packer.artifact.contents import Class, Contents
from packer.sources.memory import stamp_of
from packer.sources.partial import block_is_there
from packer.sources.store import Store
from packer.sources.store_files import store_errors

_log = logging.getLogger(__name__)


class Held:
    """An open file of the store that holds a content, or some blocks of it.

    fd: closed when nobody refers to this any more, so that no thread reads from another file.
    proven: one byte a block, 1 when this process has hashed it. partial: where the file lies if it
    is a partial object.
    """

    __slots__ = ("fd", "partial", "proven", "used")

    def __init__(self, fd: int, blocks: int, partial: Path | None) -> None:
        self.fd = fd
        self.proven = bytearray(blocks)
        self.partial = partial
        self.used = 0

    def __del__(self) -> None:
        os.close(self.fd)

    def has(self, first: int, end: int) -> bool:
        """Return whether blocks [first, end) are proven."""
        return self.proven.find(0, first, end) < 0


class Shelf:
    """The files of a store that hold a pack's contents. Any thread.

    most_open: how many files are open at a time; the ones used least recently are closed. What was
    proven in them counts further if nothing has changed them by then.
    """

    def __init__(self, store: Store, contents: Contents, most_open: int) -> None:
        self.store = store
        self._contents = contents
        self._most_open = most_open
        self._lock = threading.Lock()
        self._held: dict[int, Held] = {}
        self._closed: dict[int, tuple[tuple[int, ...], bytes]] = {}
        """Of closed files: their stamp and what was proven in them."""
        self._clock = 0

    def held(self, row: int) -> Held | None:
        """Return a content's open file, if it has one: some of its blocks may be proven."""
        held = self._held.get(row)
        if held is not None:
            self._clock += 1
            held.used = self._clock
        return held

    def look(self, row: int, block: int) -> Held | None:
        """Return the open file in which a block was proven, now or before; None: not there.

        An object that is not what its name says is removed. Raises StoreError.
        """
        held = self.held(row)
        if held is not None and held.proven[block]:
            return held
        if held is not None and held.partial is not None and self._is_object(row):
            held = None  # somebody else has brought all of it
        held = held or self._open(row)
        if held is None or self._prove(held, row, block):
            return held
        if held.partial is None:
            self.forget(row)
            _log.warning("store: %s is damaged and removed", self._contents.name(row))
            fd = self.store.open_verified(self._digest(row), self._size(row))
            if fd is not None:  # another one has taken its place meanwhile
                os.close(fd)
        return None

    def keep(self, row: int, block: int, data: bytes | memoryview) -> Held | None:
        """Put a proven block into the store; return the file in which it was proven again.

        None when the file system does not give back what was written. Raises StoreError.
        """
        digest, size = self._digest(row), self._size(row)
        if self._contents.classes[row] == Class.SHARED and len(data) == size:
            self.store.put(digest, size, [data])
        else:
            held = self.held(row) or self._open(row) or self._create(row)
            if held.partial is not None:
                start, _ = self._contents.block_bounds(row, block)
                with store_errors(self.store.folder):
                    _pwrite_all(held.fd, data, start)
        return self.look(row, block)

    def add_proven(self, row: int, fd: int) -> None:
        """Take an open object of the store, all of which was hashed just now."""
        held = self._add(row, fd, None)
        if held.fd == fd:  # else another thread was quicker
            held.proven[:] = b"\x01" * len(held.proven)

    def settle(self, row: int) -> bool:
        """Return whether all of a content is here, proven; a complete one becomes an object."""
        held = self.held(row) or self._open(row)
        if held is None or not held.has(0, len(held.proven)):
            return False
        if held.partial is not None and self._contents.classes[row] == Class.SHARED:
            digest, size = self._digest(row), self._size(row)
            if self.store.take_in(held.partial, held.fd, digest, size):
                held.partial = None
        return True

    def forget(self, row: int) -> None:
        """Close a content's file when nobody reads from it any more."""
        with self._lock:
            self._held.pop(row, None)

    def remove(self, row: int) -> None:
        """Remove what cannot be read from the medium any more. Raises StoreError."""
        held = self._held.get(row)
        self.forget(row)
        with store_errors(self.store.folder):
            if held is not None and held.partial is not None:
                held.partial.unlink(missing_ok=True)
            else:
                self.store.path_of(self._digest(row)).unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files that nobody reads from just now."""
        with self._lock:
            self._held.clear()

    def _digest(self, row: int) -> bytes:
        return bytes(self._contents.digest[row])

    def _size(self, row: int) -> int:
        return int(self._contents.size[row])

    def _is_object(self, row: int) -> bool:
        return self.store.holds(self._digest(row), self._size(row))

    def _open(self, row: int) -> Held | None:
        fd = self.store.open_object(self._digest(row), self._size(row))
        if fd is not None:
            return self._add(row, fd, None)
        partials = self.store.partials
        fd = partials.open(self._contents, row, create=False)
        return None if fd is None else self._add(row, fd, partials.path_of(self._contents, row))

    def _create(self, row: int) -> Held:
        partials = self.store.partials
        fd = partials.open(self._contents, row, create=True)
        assert fd is not None  # it was to be made
        return self._add(row, fd, partials.path_of(self._contents, row))

    def _add(self, row: int, fd: int, partial: Path | None) -> Held:
        new = Held(fd, self._contents.block_count(row), partial)
        with self._lock:
            known = self._held.get(row)
            if known is not None and (known.partial is None or partial is not None):
                return known  # another thread was quicker
            stamp, proven = self._closed.pop(row, (None, b""))
            if stamp == stamp_of(os.fstat(fd)):
                new.proven[:] = proven
            self._held[row] = new
            self._clock += 1
            new.used = self._clock
            if len(self._held) > self._most_open:
                self._close_oldest()
        return new

    def _close_oldest(self) -> None:
        by_use = sorted(self._held, key=lambda row: self._held[row].used)
        for row in by_use[: len(by_use) // 4 + 1]:
            held = self._held.pop(row)
            self._closed[row] = stamp_of(os.fstat(held.fd)), bytes(held.proven)

    def _prove(self, held: Held, row: int, block: int) -> bool:
        try:
            there = block_is_there(held.fd, self._contents, row, block)
        except OSError as error:
            _log.warning("store: %s cannot be read: %s", self._contents.name(row), error)
            there = False
        if there:
            held.proven[block] = 1
        return there


def _pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
