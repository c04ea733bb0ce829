"""Files beside a pack on an ISO image or in a folder: a page for people, a program to unpack."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from packer.artifact.layout.base import Layout

PAGE_NAME = "index.html"
MOST_PARTS = 6
"""How deep an extra file may lie."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}")
_OF_THE_LAYOUT = ("oci-layout", "index.json", "blobs")


@dataclass(frozen=True, slots=True)
class Extra:
    """A file that is written beside a pack.

    name: its relative path, "unpacker/wheels/numpy-2.3.0-….whl". Each part has at most 64 letters,
    digits and "._+-", which is what Joliet (Windows) holds. data: its bytes or where they lie.
    executable: whether it is a program; FAT cannot say so. Raises ValueError for another name.
    """

    name: str
    data: bytes | Path
    executable: bool = False

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        legal = all(_PART.fullmatch(part) for part in parts) and len(parts) <= MOST_PARTS
        if not legal or parts[0].lower() in _OF_THE_LAYOUT:
            raise ValueError(f"not the name of an extra file: {self.name!r}")

    @property
    def size(self) -> int:
        """Return how many bytes it has."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size

    def open(self) -> BinaryIO:
        """Return its bytes as a file."""
        return BytesIO(self.data) if isinstance(self.data, bytes) else self.data.open("rb")


@dataclass(frozen=True, slots=True)
class Page:
    """How the page is made of what a layout holds and of the extra files beside it.

    most_bytes: an upper bound of its size in a layout of so many blobs.
    """

    make: Callable[[Layout, Sequence[Extra]], bytes]
    most_bytes: Callable[[int], int]
