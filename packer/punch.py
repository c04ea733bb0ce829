"""Holes in files and devices: what a part of them takes is given back, and it reads as zeros."""

from __future__ import annotations

import ctypes
import errno
import os

_FALLOC_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


def punch_hole(fd: int, start: int, end: int) -> bool:
    """Make `[start, end)` read as zeros without writing them; False where that cannot be done.

    Raises OSError when the file system or the device refuses.
    """
    low, length = ctypes.c_longlong(start), ctypes.c_longlong(end - start)
    if _libc.fallocate(fd, _FALLOC_PUNCH, low, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code))
