"""Exports to serve: a raw file, ones whose bytes come late or never, and an endless one."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from packer.run.disk.export import Export, FilePart, Part, UnavailableError
from packer.run.disk.kept import FILE_PART_BYTES
from packer.run.disk.page_cache import is_in_memory


class FileExport:
    """A raw file, its holes as zeros. What is not in the page cache is read in a thread."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_now(self, offset: int, length: int) -> list[Part] | None:
        if any(zero for _, zero in self.extents(offset, length)):
            return self._parts(offset, length)
        if length >= FILE_PART_BYTES and is_in_memory(self._fd, offset, length):
            return [FilePart(self._fd, offset, length, self)]
        buffer = np.empty(length, np.uint8).data
        try:
            found = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        return [buffer] if found == length else None

    async def read(self, offset: int, length: int) -> list[Part]:
        return await asyncio.to_thread(self._parts, offset, length)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        end = offset + length
        while offset < end:
            start = _seek(self._fd, offset, os.SEEK_DATA, end)
            if start > offset:
                yield start - offset, True
                offset = start
            stop = _seek(self._fd, offset, os.SEEK_HOLE, end)
            if stop > offset:
                yield stop - offset, False
                offset = stop

    def _parts(self, offset: int, length: int) -> list[Part]:
        parts: list[Part] = []
        for size, zero in self.extents(offset, length):
            parts.append(size if zero else os.pread(self._fd, size, offset))
            offset += size
        return parts


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """The next data or hole, `end` if there is none before."""
    try:
        return min(os.lseek(fd, offset, whence), end)
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data behind
            raise
        return end


class OpenFileExport(FileExport):
    """A raw file whose bytes the kernel sends, wherever they are."""

    def read_now(self, offset: int, length: int) -> list[Part] | None:
        return [FilePart(self._fd, offset, length, self)]


class LateExport:
    """Another export, of which nothing is at hand: bytes come after up to `seconds`, later as long
    as their MiB is `held`, not at all as long as it is `gone`.
    """

    def __init__(self, export: Export, seconds: float) -> None:
        self._export = export
        self._seconds = seconds
        self._chance = random.Random(1)
        self.size = export.size
        self.gone: set[int] = set()
        self.held: set[int] = set()
        self.waiting = 0
        """How many reads are under way."""

    def read_now(self, offset: int, length: int) -> list[Part] | None:
        return None

    async def read(self, offset: int, length: int) -> list[Part]:
        self.waiting += 1
        try:
            await asyncio.sleep(self._chance.uniform(0, self._seconds))
            while offset >> 20 in self.held:
                await asyncio.sleep(0.01)
            if offset >> 20 in self.gone:
                raise UnavailableError(f"nobody has the bytes at {offset}")
            return await self._export.read(offset, length)
        finally:
            self.waiting -= 1

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._export.extents(offset, length)


class PatternExport:
    """A disk of any size whose bytes follow from their place; every other stretch is zero."""

    def __init__(self, size: int, stretch_bytes: int) -> None:
        self.size = size
        self._stretch_bytes = stretch_bytes

    def read_now(self, offset: int, length: int) -> list[Part] | None:
        return self._parts(offset, length)

    async def read(self, offset: int, length: int) -> list[Part]:
        return self._parts(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        end = offset + length
        while offset < end:
            number = offset // self._stretch_bytes
            stop = min((number + 1) * self._stretch_bytes, end)
            yield stop - offset, number % 2 == 1
            offset = stop

    def expected(self, offset: int, length: int) -> bytes:
        return b"".join(bytes(part) for part in self._parts(offset, length))

    def _parts(self, offset: int, length: int) -> list[Part]:
        parts: list[Part] = []
        for size, zero in self.extents(offset, length):
            parts.append(size if zero else pattern(offset, size))
            offset += size
        return parts


def pattern(offset: int, length: int) -> bytes:
    """Bytes that are never zero, and differ with their place."""
    return (np.arange(offset, offset + length) % 251 + 1).astype(np.uint8).tobytes()
