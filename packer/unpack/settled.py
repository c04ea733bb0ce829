"""Whether a file stayed as it was while its blocks were shared and read, told by its times.

Every change of a file sets its status-change time, which nobody can set otherwise: a write, a
clone into it, a truncation, and the first store through a mapping since its pages were last written
out (ioctl_ficlonerange(2) writes them out before it shares). So a time that lies some seconds back
before, and is the same after, means that nothing changed in between. A fresh time tells nothing,
because another change within the same tick of the clock would leave it as it is.
"""

from __future__ import annotations

import os
import time

TYPES = frozenset(("btrfs", "xfs"))
"""File systems that are known to keep this: theirs are the times of this host, not of a server."""

SETTLED_NS = 2_000_000_000
"""Far more than a tick of the kernel's clock, which is 10 ms at most."""

State = tuple[int, int, int]


def settled_state(fd: int) -> State | None:
    """Return the state of a file whose last change lies back far enough; None if it does not."""
    state = _state(fd)
    return state if 0 <= state[0] < time.time_ns() - SETTLED_NS else None


def is_still(fd: int, state: State) -> bool:
    """Return whether nothing has changed the file since `settled_state` returned `state`."""
    return _state(fd) == state


def _state(fd: int) -> State:
    status = os.fstat(fd)
    return status.st_ctime_ns, status.st_mtime_ns, status.st_size
