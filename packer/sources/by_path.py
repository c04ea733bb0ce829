"""Where contents may lie in what is listed by path and size, names in any case."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np

from packer.sources.base import Wanted

_FOLDERS_OF_A_MOUNT = 2
"""A volume may be mounted this deep in the guest: /boot/efi."""


@dataclass(frozen=True, slots=True)
class Place:
    """A content as the part of a file that begins at byte `start`."""

    row: int
    start: int


class WantedPaths:
    """The files that hints name, by path and size: what a listing is compared with.

    listed: the only sizes in that listing, where they are known before.
    """

    def __init__(self, wanted: Wanted, listed: Container[int] | None = None) -> None:
        hints, contents = wanted.hints, wanted.contents
        room = hints.file_size - contents.size[hints.content]
        # Hints may contradict the contents: they are as untrusted as any other part of a pack.
        which = np.flatnonzero((hints.file_offset >= 0) & (hints.file_offset <= room))
        sizes, starts = hints.file_size.tolist(), hints.file_offset.tolist()
        rows = hints.content.tolist()
        self._places: dict[tuple[str, int], set[Place]] = {}
        for one in which.tolist():
            if listed is not None and sizes[one] not in listed:
                continue
            place = Place(rows[one], starts[one])
            for name in names_in_volume(hints.path[one]):
                self._places.setdefault((name.casefold(), sizes[one]), set()).add(place)

    def of(self, path: str, size: int) -> set[Place]:
        """Return the contents that a listed file may hold."""
        return self._places.get((path.casefold(), size), set())


def names_in_volume(path: str) -> Iterator[str]:
    """Yield the names that a guest path may have in its volume, the likelier one first."""
    yield path
    for _ in range(_FOLDERS_OF_A_MOUNT):
        cut = path.find("/", 1)
        if cut < 0:
            return
        path = path[cut:]
        yield path
