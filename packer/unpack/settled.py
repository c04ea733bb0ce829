"""Whether a file stayed as it was while its blocks were shared and read, told by its times.

Every change of a file sets its status-change time, which nobody can set otherwise: a write, a
clone into it, a truncation, and the first store through a mapping since its pages were last written
out (ioctl_ficlonerange(2) writes them out before it shares). So a time that lies some seconds back
before, and is the same after, means that nothing changed in between. A fresh time tells nothing,
because another change within the same tick of the clock would leave it as it is.

One change does not show: the kernel may have pinned a page of a mapping (for O_DIRECT, or
process_vm_writev(2)) and store into it later without a fault. So a file counts only if nobody can
map it for writing whom this process does not trust anyhow.
"""

from __future__ import annotations

import os
import stat
import time

from packer.sources.memory import RACY_NS, stamp_of

TYPES = frozenset(("btrfs", "xfs"))
"""File systems that are known to keep this: theirs are the times of this host, not of a server."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def settled_stamp(fd: int) -> tuple[int, ...] | None:
    """Return the stamp of a file that nothing changes unseen.

    None if its last change does not lie back far enough, or if others than root and the user who
    runs this may write to it.
    """
    status = os.fstat(fd)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
        return None
    return stamp_of(status) if status.st_ctime_ns < time.time_ns() - RACY_NS else None


def is_still(fd: int, stamp: tuple[int, ...]) -> bool:
    """Return whether nothing has changed the file since `settled_stamp` returned `stamp`."""
    return stamp_of(os.fstat(fd)) == stamp
