"""Whether parts of files are in memory, so that they can be read without waiting.

Source: Linux, mm/filemap.c (cachestat, since 6.5; the same number on all architectures).
"""

from __future__ import annotations

import ctypes
import os
import sys

_CACHESTAT = 451
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_syscall = ctypes.CDLL(None, use_errno=True).syscall if sys.platform == "linux" else None


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "written_back", "evicted", "recently_evicted")
    )


def is_in_memory(fd: int, offset: int, length: int) -> bool:
    """Return whether `length` > 0 bytes of an open file are all there, and in the page cache.

    False where the kernel does not tell.
    """
    if _syscall is None or os.fstat(fd).st_size < offset + length:
        return False
    asked, found = _Range(offset, length), _Pages()
    if _syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(found), 0) != 0:
        return False
    pages = (offset + length - 1) // _PAGE_BYTES - offset // _PAGE_BYTES + 1
    return int(found.cached) >= pages
