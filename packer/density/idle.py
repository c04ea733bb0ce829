"""Standing back: a process that works only when nobody else wants to.

ioprio_set(2) has no function in libc; numbers: Linux `arch/*/entry/syscalls`, bits:
`include/uapi/linux/ioprio.h`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_WHO_PROCESS = 1
_CLASS_IDLE = 3 << 13
_LOWEST = 19


def stand_back() -> None:
    """Give this process and what it starts the lowest priority, of processor and storage."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        # Where the kernel knows no such classes nothing changes, which does no harm.
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)
