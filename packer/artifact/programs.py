"""What symbol servers know contents by: a table in the hints.

Microsoft, and others who publish programs, keep them under name, TimeDateStamp and SizeOfImage.
Names are in the paths of the hints. All of it helps to find bytes and proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.columns import PackedColumn, decode_column, encode_column
from packer.errors import InputError

MAX_FIELD = 0xFFFF_FFFF
"""Both fields have 32 bits in a program's headers."""


def _none() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Programs:
    """p contents that are whole Windows programs, as columns sorted by content.

    content: int64[p], row in the pack's contents, each once. timestamp: int64[p], TimeDateStamp.
    size_of_image: int64[p], SizeOfImage, bytes.
    """

    content: NDArray[np.int64] = field(default_factory=_none)
    timestamp: NDArray[np.int64] = field(default_factory=_none)
    size_of_image: NDArray[np.int64] = field(default_factory=_none)

    def of(self, row: int) -> tuple[int, int] | None:
        """Return (TimeDateStamp, SizeOfImage) of content `row`, None if it is no program."""
        place = int(np.searchsorted(self.content, row))
        if place == len(self.content) or self.content[place] != row:
            return None
        return int(self.timestamp[place]), int(self.size_of_image[place])

    def only(self, rows: NDArray[np.int64]) -> Programs:
        """Return those of some contents, renumbered to places in `rows` (sorted)."""
        some = np.isin(self.content, rows)
        return Programs(
            np.searchsorted(rows, self.content[some]),
            self.timestamp[some],
            self.size_of_image[some],
        )


class WirePrograms(msgspec.Struct, frozen=True):
    """The table as it is encoded; see docs/format.md."""

    content_step: PackedColumn
    timestamp: PackedColumn
    size_of_image: PackedColumn


def encode_programs(programs: Programs) -> WirePrograms | None:
    """Return the table, None for one without rows."""
    if not len(programs.content):
        return None
    return WirePrograms(
        encode_column(np.diff(programs.content, prepend=-1) - 1),
        encode_column(programs.timestamp),
        encode_column(programs.size_of_image),
    )


def decode_programs(wire: WirePrograms | None, contents: int) -> Programs:
    """Return the table of a pack of that many contents.

    Raises InputError naming the column that breaks a rule.
    """
    if wire is None:
        return Programs()
    rows = wire.content_step.rows
    _expect(0 < rows <= contents, f"content_step: {rows} rows for {contents} contents")
    step = decode_column(wire.content_step, "hints: programs: content_step", rows)
    _expect(bool((step < contents).all()), "content_step: out of bounds")
    content = np.cumsum(step + 1) - 1
    _expect(int(content[-1]) < contents, "content_step: past the last content")
    return Programs(
        content,
        _decode_field(wire.timestamp, "timestamp", rows),
        _decode_field(wire.size_of_image, "size_of_image", rows),
    )


def _decode_field(packed: PackedColumn, name: str, rows: int) -> NDArray[np.int64]:
    column = decode_column(packed, f"hints: programs: {name}", rows)
    _expect(int(column.max()) <= MAX_FIELD, f"{name}: more than 32 bits")
    return column


def _expect(holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"hints: programs: {rule}")
