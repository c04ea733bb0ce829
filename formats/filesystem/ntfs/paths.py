"""Paths of files, put together from the names in their records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.gather import Column, Flags
from formats.filesystem.ntfs.table import Table

MAX_PATH_CHARACTERS = 4096
"""Longer ones are not handed on; Windows itself stops at 32767."""

EXTEND = "/$Extend"
"""What lies below it is the file system's own."""


@dataclass(frozen=True, slots=True)
class Paths:
    """of: record -> the paths of its names. lost: records that cannot be reached from the root."""

    of: dict[int, list[str]]
    lost: list[int]

    @property
    def internal(self) -> list[int]:
        """Records of files that are the file system's own."""
        own = EXTEND + "/"
        return [
            number for number, paths in self.of.items() if any(one.startswith(own) for one in paths)
        ]


def find_paths(table: Table, wanted: Flags) -> Paths:
    """Return the paths of the wanted records; bool[records]."""
    names = table.names
    count = len(table.records)
    is_base, is_directory = table.is_base, table.is_directory
    parent = (names["parent"] & np.uint64(c_ntfs.NUMBER_MASK)).astype(np.int64)
    known = (parent < count) & (names["owner"] < count)
    owner = np.where(known, names["owner"], 0)
    parent = np.where(known, parent, 0)
    sequence = names["parent"] >> np.uint64(c_ntfs.NUMBER_BITS)
    known &= is_base[owner] & is_directory[parent]
    known &= table.records["sequence"][parent] == sequence
    known &= _is_long(names["namespace"], owner, known, count)
    rows = np.flatnonzero(known & (is_directory[owner] | wanted[owner]))
    triples = [
        (own, above, table.texts[row])
        for own, above, row in zip(
            owner[rows].tolist(), parent[rows].tolist(), rows.tolist(), strict=True
        )
    ]
    folders = _folders({own: (above, text) for own, above, text in triples if is_directory[own]})
    paths: dict[int, list[str]] = {}
    for own, above, text in triples:
        folder = folders.get(above)
        if wanted[own] and folder is not None and _is_legal(text):
            path = f"{folder}/{text}"
            if len(path) <= MAX_PATH_CHARACTERS:
                paths.setdefault(own, []).append(path)
    lost = [number for number in np.flatnonzero(wanted).tolist() if number not in paths]
    return Paths(paths, lost)


def _is_long(namespace: Column, owner: Column, known: Flags, count: int) -> Flags:
    """Leave out the short names that DOS programs see beside a long one."""
    has_long = np.zeros(count, dtype=np.bool_)
    has_long[owner[known & (namespace != c_ntfs.DOS)]] = True
    return np.asarray((namespace != c_ntfs.DOS) | ~has_long[owner], dtype=np.bool_)


def _folders(above: dict[int, tuple[int, str]]) -> dict[int, str | None]:
    """Return the path of each directory, None where its parents lead in a circle or nowhere.

    above: directory -> (its parent, its name).
    """
    paths: dict[int, str | None] = {c_ntfs.ROOT_RECORD: "", c_ntfs.EXTEND_RECORD: EXTEND}
    for number in above:
        chain: list[tuple[int, str]] = []
        while number not in paths:
            paths[number] = None  # a chain that comes back here goes in a circle
            if number in above:
                parent, name = above[number]
                chain.append((number, name))
                number = parent
        path = paths[number]
        for number, name in reversed(chain):
            if path is not None:
                path = f"{path}/{name}" if _is_legal(name) else None
            if path is not None and len(path) > MAX_PATH_CHARACTERS:
                path = None
            paths[number] = path
    return paths


def _is_legal(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name
