"""The seam between a disk that is made up of contents and whoever serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from packer.errors import MissingError

Part = bytes | bytearray | memoryview | int
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
