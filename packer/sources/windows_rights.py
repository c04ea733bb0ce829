"""Who may read the files of a mounted Windows volume: its own access lists say.

The modes that ntfs-3g and ntfs3 show are made up from mount options, one for all files (0777 by
default): a private letter looks as open as a system library. The lists of the Windows that wrote
the volume are the same rule as "every user of this host may read" elsewhere.
"""

from __future__ import annotations

import ctypes
import os
from typing import Protocol

from formats.errors import FormatError
from formats.windows.security_descriptor import everybody_may_read

_ATTRIBUTES = (b"system.ntfs_acl", b"system.ntfs_security")
"""How the drivers hand a file's security descriptor out: ntfs-3g (libntfs-3g, xattrs.c, for all
who mount, FUSE or not), ntfs3 (Linux, fs/ntfs3/xattr.c)."""

_MOST_BYTES = 1 << 16
"""XATTR_SIZE_MAX of Linux."""

_libc = ctypes.CDLL(None, use_errno=True)


class Rights(Protocol):
    """Who may read the files of one tree, where its modes do not say. Any number of threads."""

    def everybody_may_read(self, place: str) -> bool:
        """Return whether all may read a file or list a folder. What cannot be told counts as no.

        place: a path; "/proc/self/fd/3" for an open file.
        """


class _AllRights:
    def everybody_may_read(self, place: str) -> bool:  # noqa: ARG002
        return True


ALL_RIGHTS: Rights = _AllRights()
"""Of a tree that holds nothing but what is public."""


class WindowsRights:
    """The access lists of one mounted volume."""

    def __init__(self, attribute: bytes) -> None:
        self._attribute = attribute

    def everybody_may_read(self, place: str) -> bool:
        """See Rights."""
        try:
            return everybody_may_read(_get(place, self._attribute))
        except (OSError, ValueError, FormatError):
            return False


def windows_rights(folder: str) -> WindowsRights | None:
    """Return the rights on the volume on which a folder lies, None where that is not NTFS."""
    for attribute in _ATTRIBUTES:
        try:
            _get(folder, attribute)
        except OSError:
            continue
        return WindowsRights(attribute)
    return None


def _get(place: str, attribute: bytes) -> bytes:
    """Return an extended attribute, following links. Raises OSError.

    os.getxattr begins with a buffer of 128 bytes, for which ntfs-3g answers EIO and not ERANGE.
    """
    path = os.fsencode(place)
    if b"\0" in path:
        raise ValueError(place)
    buffer = ctypes.create_string_buffer(_MOST_BYTES)
    length = _libc.getxattr(path, attribute, buffer, ctypes.c_size_t(_MOST_BYTES))
    if length < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), place)
    return ctypes.string_at(buffer, length)
