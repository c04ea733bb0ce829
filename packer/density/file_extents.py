"""Where the blocks of a file lie on its file system: what it shares already, and what are holes.

Source: Linux `Documentation/filesystems/fiemap.rst` and `include/uapi/linux/fiemap.h`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

import numpy as np

from packer.columns import Column

FS_IOC_FIEMAP = 0xC020660B
"""_IOWR('f', 11, struct fiemap)."""

NOWHERE = -1
"""The place of an extent that has none yet, or none that could be compared."""

# struct fiemap: u64 fm_start, fm_length; u32 fm_flags, fm_mapped_extents, fm_extent_count, reserved
_REQUEST = struct.Struct("=QQIIII")
_EXTENT = np.dtype(
    [
        ("logical", "<u8"),  # bytes from the start of the file
        ("physical", "<u8"),  # bytes from the start of the file system's device
        ("length", "<u8"),
        ("reserved64", "<u8", 2),
        ("flags", "<u4"),
        ("reserved", "<u4", 3),
    ]
)
_EXTENTS_A_CALL = 4096
_SYNC = 0x1  # FIEMAP_FLAG_SYNC: what waits to be written gets its place first
_LAST = 0x1
# UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL: no place, or one
# that says nothing of the bytes.
_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
_UNWRITTEN = 0x800  # allocated, and reads as zeros: a hole to us
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EBADR)


@dataclass(frozen=True, slots=True)
class FileExtents:
    """The parts of a file that are not holes, sorted and disjoint: int64[n] each, in bytes.

    start, end: in the file. place: on the file system, or NOWHERE; two ranges with the same place
    are the same blocks.
    """

    start: Column
    end: Column
    place: Column


def file_extents(fd: int) -> FileExtents:
    """Return the extents of an open file. Raises OSError.

    Where the file system does not tell, the whole file is one extent that lies nowhere.
    """
    size = os.fstat(fd).st_size
    found: list[np.ndarray[tuple[int], np.dtype[np.void]]] = []
    position = 0
    while position < size:
        try:
            part = _ask(fd, position, size - position)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return FileExtents(*(np.array([one], np.int64) for one in (0, size, NOWHERE)))
        if len(part) == 0:
            break
        found.append(part)
        position = int(part[-1]["logical"] + part[-1]["length"])
        if part[-1]["flags"] & _LAST:
            break
    rows = np.concatenate([np.empty(0, _EXTENT), *found])
    rows = rows[(rows["flags"] & _UNWRITTEN) == 0]
    start = rows["logical"].astype(np.int64)
    place = np.where(rows["flags"] & _NO_PLACE, NOWHERE, rows["physical"].astype(np.int64))
    end = np.minimum(start + rows["length"].astype(np.int64), size)
    return FileExtents(start, end, place)


def _ask(fd: int, start: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    buffer = bytearray(_REQUEST.size + _EXTENTS_A_CALL * _EXTENT.itemsize)
    _REQUEST.pack_into(buffer, 0, start, length, _SYNC, 0, _EXTENTS_A_CALL, 0)
    fcntl.ioctl(fd, FS_IOC_FIEMAP, buffer)
    count = _REQUEST.unpack_from(buffer)[3]
    return np.frombuffer(bytes(buffer), _EXTENT, count, _REQUEST.size)
