"""What a process that reads untrusted bytes may use up."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from dataclasses import dataclass

GIB = 1 << 30
CPU_GRACE_SECONDS = 5
"""Between SIGXCPU, which ends the process, and SIGKILL."""

# prctl(2), Linux include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds for one child process.

    memory_bytes: address space; a bare interpreter with numpy takes 0.1 GiB of it. wall_seconds:
    from start to end, which is longer than the processor's time because storage may be slow.
    open_files: descriptors. result_bytes: what the parent reads from it at most.
    """

    memory_bytes: int = 2 * GIB
    cpu_seconds: int = 600
    wall_seconds: float = 1800.0
    open_files: int = 64
    result_bytes: int = GIB // 2


def limit_this_process(limits: Limits, *, die_with_parent: bool = True) -> None:
    """Take the limits on, for good: soft and hard ones, before anything untrusted is read.

    It may write no file and dump no core, and gains no rights through an exec.
    die_with_parent: whether it is killed when the *thread* that started it ends.
    """
    _lower(resource.RLIMIT_AS, limits.memory_bytes)
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + CPU_GRACE_SECONDS)
    libc = ctypes.CDLL(None, use_errno=True)
    death_signal = int(signal.SIGKILL) if die_with_parent else 0
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_PDEATHSIG, death_signal)):
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl", str(option))


def parent_is_gone(parent: int) -> bool:
    """Say whether the parent ended before its death could be signalled."""
    return os.getppid() != parent


def _lower(kind: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, or keep one that is tighter already."""
    ceiling = resource.getrlimit(kind)[1]
    wanted = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        wanted = min(wanted, ceiling)
    resource.setrlimit(kind, (min(soft, wanted), wanted))
