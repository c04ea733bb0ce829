"""Sharing blocks between files, where the file system can (reflinks).

Request and errors: linux/fs.h and ioctl_ficlonerange(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

FICLONERANGE = 0x4020940D
"""ioctl number, linux/fs.h: _IOW(0x94, 13, struct file_clone_range)."""

CLONE_UNIT_BYTES = 4096
"""The block of most file systems that share any; ranges that are not aligned to it are copied."""

# struct file_clone_range, linux/fs.h: s64 src_fd, u64 src_offset, src_length, dest_offset.
_RANGE = struct.Struct("=qQQQ")

_NO_BLOCKS_OF_THIS_DEVICE = {
    errno.EXDEV,  # another file system
    errno.EOPNOTSUPP,  # the file system has no shared blocks
    errno.ENOTTY,  # it does not know the request
    errno.ENOSYS,  # nor does what stands in for it (FUSE, a sandbox)
    errno.EBADF,  # "the filesystem which src_fd resides on does not support reflink"
    errno.EPERM,  # a policy forbids it; an immutable target says so again when it is written
}
_NOT_THIS_RANGE = {
    errno.EINVAL,  # not aligned, past the end of the source, or not a regular file
    errno.ETXTBSY,  # one of the two is a swap file
}


class Cloner:
    """Shares blocks of other files with files of one file system, from any thread.

    Remembers the devices whose blocks that file system cannot share: asking again is not free
    everywhere. NFS writes out both files before it finds out that its server cannot
    (nfs42_remap_file_range, linux/fs/nfs/nfs4file.c).
    """

    def __init__(self) -> None:
        self._refused_devices: set[int] = set()

    def clone_blocks(
        self, source_fd: int, offset: int, target_fd: int, target_offset: int, length: int
    ) -> bool:
        """Share a range of one file with another; False when its bytes must be copied.

        All in bytes and whole blocks; only at the end of the source may the last one be a part.
        length: at least 1, because the kernel takes 0 for all that follows.
        Raises OSError for what ails the target (ENOSPC, EDQUOT, EIO).
        """
        if self._refused_devices and os.fstat(source_fd).st_dev in self._refused_devices:
            return False
        request = _RANGE.pack(source_fd, offset, length, target_offset)
        try:
            fcntl.ioctl(target_fd, FICLONERANGE, request)
        except OSError as error:
            if error.errno in _NO_BLOCKS_OF_THIS_DEVICE:
                self._refused_devices.add(os.fstat(source_fd).st_dev)
            elif error.errno not in _NOT_THIS_RANGE:
                raise
            return False
        return True
