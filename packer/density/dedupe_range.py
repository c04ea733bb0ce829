"""Sharing equal bytes of files in place: the kernel compares them and links them, at once.

Because the kernel locks both files, compares, and shares only what is equal, no program that
reads or writes them meanwhile sees another byte than before. Request and errors:
ioctl_fideduperange(2); Linux `fs/remap_range.c` (`vfs_dedupe_file_range`).
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Sequence

FIDEDUPERANGE = 0xC0189436
"""ioctl number, linux/fs.h: _IOWR(0x94, 54, struct file_dedupe_range)."""

SAME = 0
"""FILE_DEDUPE_RANGE_SAME: the ranges were equal and share their blocks now."""

DIFFERS = 1
"""FILE_DEDUPE_RANGE_DIFFERS; negative numbers are errors."""

MAX_BYTES = 16 << 20
"""What one request may ask for: btrfs takes no more, and the files are locked meanwhile."""

MAX_TARGETS = 127
"""The request has to fit into one page of 4 KiB."""

# struct file_dedupe_range: u64 src_offset, src_length; u16 dest_count, reserved1; u32 reserved2
_REQUEST = struct.Struct("=QQHHI")
# struct file_dedupe_range_info: s64 dest_fd; u64 dest_offset, bytes_deduped; s32 status; u32
_TARGET = struct.Struct("=qQQiI")
_UNALIGNED = 1


def share(source: int, offset: int, length: int, targets: Sequence[tuple[int, int]]) -> list[int]:
    """Let ranges of other files share the blocks of a range where they are equal to it.

    All in bytes and whole blocks; length: at most MAX_BYTES. targets: (descriptor, offset), at
    most MAX_TARGETS. Return for each SAME, DIFFERS, or a negative error number. A file system that
    shares a part at a time is asked for the rest; should that differ by then, so does all.
    Raises OSError for what ails the source.
    """
    outcome = [SAME] * len(targets)
    pending = dict.fromkeys(range(len(targets)), 0)
    while pending:
        done = min(pending.values())
        asked = [number for number in pending if pending[number] == done]
        places = [(targets[number][0], targets[number][1] + done) for number in asked]
        answers = _ask(source, offset + done, length - done, places)
        for number, (shared, status) in zip(asked, answers, strict=True):
            if status == SAME and 0 < shared < length - done:
                pending[number] += shared
                continue
            outcome[number] = status if status != SAME or shared else -errno.EINVAL
            del pending[number]
    return outcome


def why_not(source: int, target: int) -> int:
    """Return why no block of one open file can be shared with another one, as errno; 0: it can.

    The kernel is asked for a range that is not aligned, which it refuses last.
    """
    try:
        [(_, status)] = _ask(source, 0, 1, [(target, _UNALIGNED)])
    except OSError as error:
        return 0 if error.errno == errno.EINVAL else error.errno or errno.EIO
    return 0 if status in (SAME, DIFFERS, -errno.EINVAL) else -status


def _ask(
    source: int, offset: int, length: int, targets: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return (bytes shared, status) for each target."""
    request = bytearray(_REQUEST.pack(offset, length, len(targets), 0, 0))
    for fd, target_offset in targets:
        request += _TARGET.pack(fd, target_offset, 0, 0, 0)
    fcntl.ioctl(source, FIDEDUPERANGE, request)
    rows = _TARGET.iter_unpack(memoryview(request)[_REQUEST.size :])
    return [(shared, status) for _, _, shared, status, _ in rows]
