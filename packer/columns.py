"""Integer columns as bytes: what the map, the hints, the index and the survey are made of.

A column of n unsigned integers is stored as n * width bytes in *planes*: first the least
significant byte of every value, then the next one, up to the width that the largest value needs.
Planes of small or slowly changing numbers are long runs, which zstd shrinks to almost nothing;
and a million rows stay two objects instead of a million.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.errors import InputError

MAX_ROWS = 1 << 25
"""Many times the ranges of a large disk; a column of zeros has no bytes that would bound it."""

Column = NDArray[np.int64]


class PackedColumn(msgspec.Struct, frozen=True, array_like=True):
    """A column on the wire: bytes a value (0 for a column of zeros), rows, planes."""

    width: int
    rows: int
    planes: bytes


_Table = TypeVar("_Table")


def decode_table(decoder: msgspec.msgpack.Decoder[_Table], data: bytes, what: str) -> _Table:
    """Return the table of columns that `data` encodes. Raises InputError when it is none."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{what}: not the MessagePack it should be ({error})") from error


def encode_column(values: NDArray[np.integer]) -> PackedColumn:
    """Return the shortest packed form of a one-dimensional column of values in [0, 2^63)."""
    wide = np.ascontiguousarray(values, dtype="<i8")
    if len(wide) == 0:
        return PackedColumn(0, 0, b"")
    if int(wide.min()) < 0:
        raise ValueError("a column holds values of at least 0")
    width = (int(wide.max()).bit_length() + 7) // 8
    planes = wide.view(np.uint8).reshape(len(wide), 8)[:, :width]
    return PackedColumn(width, len(wide), planes.T.tobytes())


def decode_column(packed: PackedColumn, what: str, rows: int | None = None) -> Column:
    """Return the column as int64[rows].

    what: names the column in errors. rows: how many it must have, if that is known.
    Raises InputError when width, row count and length do not agree.
    """
    if rows is not None and packed.rows != rows:
        raise InputError(f"{what}: expected {rows} rows, found {packed.rows}")
    if not 0 <= packed.width <= 8 or packed.rows < 0:
        raise InputError(f"{what}: {packed.width} bytes a value is not between 0 and 8")
    if packed.rows > MAX_ROWS:
        raise InputError(f"{what}: expected at most {MAX_ROWS} rows, found {packed.rows}")
    if len(packed.planes) != packed.width * packed.rows:
        raise InputError(
            f"{what}: expected {packed.width * packed.rows} bytes, found {len(packed.planes)}"
        )
    wide = np.zeros((packed.rows, 8), dtype=np.uint8)
    planes = np.frombuffer(packed.planes, dtype=np.uint8).reshape(packed.width, packed.rows)
    wide[:, : packed.width] = planes.T
    values = wide.reshape(-1).view("<i8").astype(np.int64, copy=False)
    if len(values) and int(values.min()) < 0:
        raise InputError(f"{what}: a value is 2^63 or more")
    return values
