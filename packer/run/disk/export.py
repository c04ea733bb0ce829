"""The seam between a disk that is made up of contents and whoever serves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from packer.errors import MissingError


@dataclass(frozen=True, slots=True)
class FilePart:
    """`length` bytes at `offset` of an open file, which are in memory and do not change.

    They can be sent without being read. keeper: holds `fd` open as long as this exists.
    """

    fd: int
    offset: int
    length: int
    keeper: object

    def __len__(self) -> int:
        return self.length

    def rest(self, done: int) -> FilePart:
        """Return what follows after the first `done` bytes."""
        return FilePart(self.fd, self.offset + done, self.length - done, self.keeper)

    def __bytes__(self) -> bytes:
        """Read them. Raises OSError when they are there no more."""
        data = os.pread(self.fd, self.length, self.offset)
        if len(data) != self.length:
            raise OSError(f"a file of the store ended before byte {self.offset + self.length}")
        return data


Part = bytes | bytearray | memoryview | FilePart | int
"""A piece of an answer: bytes, which do not change once they were handed out (they are sent as the
client takes them, and may be asked for again), or how many zeros.
"""


class UnavailableError(MissingError):
    """Contents of a disk that cannot be had now; they may be later."""


class Export(Protocol):
    """A disk to read. All offsets and lengths in bytes; the caller keeps them within `size`.

    Used from one event loop.
    """

    size: int

    def read_now(self, offset: int, length: int) -> list[Part] | None:
        """Return the bytes if they are at hand: verified, and to be had without waiting.

        None when `read` must be asked. The parts add up to `length`.
        """

    async def read(self, offset: int, length: int) -> list[Part]:
        """Return the bytes, brought from wherever they are.

        Raises UnavailableError when nobody has had them for some time.
        """

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, whether it reads as zeros) of what follows each other; they add up to
        `length`, neighbours differ.
        """
