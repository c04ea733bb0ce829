"""Sharing equal bytes of files in place: the kernel compares them and links them, at once.

Because the kernel locks both files, compares, and shares only what is equal, no program that
reads or writes them meanwhile sees another byte than before. Request and errors:
ioctl_fideduperange(2); Linux `fs/remap_range.c` (`vfs_dedupe_file_range`).
"""

from __future__ import annotations

import errno
import fcntl
import struct

FIDEDUPERANGE = 0xC0189436
"""ioctl number, linux/fs.h: _IOWR(0x94, 54, struct file_dedupe_range)."""

SAME = 0
"""FILE_DEDUPE_RANGE_SAME: the ranges were equal and share their blocks now."""

DIFFERS = 1
"""FILE_DEDUPE_RANGE_DIFFERS; negative numbers are errors."""

MAX_BYTES = 16 << 20
"""What one request may ask for: btrfs takes no more, and the files are locked meanwhile."""

# struct file_dedupe_range: u64 src_offset, src_length; u16 dest_count, reserved1; u32 reserved2;
# then one struct file_dedupe_range_info: s64 dest_fd; u64 dest_offset, bytes_deduped; s32 status;
# u32 reserved
_REQUEST = struct.Struct("=QQHHIqQQiI")
_UNALIGNED = 1


def share(source: int, offset: int, target: int, target_offset: int, length: int) -> int:
    """Let a range of a file share the blocks of a range of another one where they are equal.

    source, target: descriptors. All else in bytes and whole blocks; length: at most MAX_BYTES.
    Return SAME, DIFFERS, or a negative error number. A file system that shares a part at a time is
    asked for the rest; should that differ by then, so does all. Raises OSError for what ails the
    source.
    """
    done = 0
    while done < length:
        shared, status = _ask(source, offset + done, target, target_offset + done, length - done)
        if status != SAME:
            return status
        if shared == 0:
            return -errno.EINVAL
        done += shared
    return SAME


def why_not(source: int, target: int) -> int:
    """Return why no block of one open file can be shared with another one, as errno; 0: it can.

    The kernel is asked for a range that is not aligned, which it refuses last.
    """
    try:
        _, status = _ask(source, 0, target, _UNALIGNED, 1)
    except OSError as error:
        return 0 if error.errno == errno.EINVAL else error.errno or errno.EIO
    return 0 if status in (SAME, DIFFERS, -errno.EINVAL) else -status


def _ask(source: int, offset: int, target: int, target_offset: int, length: int) -> tuple[int, int]:
    """Return (bytes shared, status)."""
    request = bytearray(_REQUEST.pack(offset, length, 1, 0, 0, target, target_offset, 0, 0, 0))
    fcntl.ioctl(source, FIDEDUPERANGE, request)
    shared, status = _REQUEST.unpack(request)[-3:-1]
    return shared, status
