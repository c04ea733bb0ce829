"""Which process is meant: an id alone may belong to another process by now.

Sources: proc(5), proc_pid_stat(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import msgspec

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_AFTER_NAME = 2  # proc_pid_stat(5) numbers from 1; what follows the name begins with field 3
_STATE, _THREADS, _START = (number - 1 - _AFTER_NAME for number in (3, 20, 22))


class Process(msgspec.Struct, frozen=True):
    """A process of this host. started: in clock ticks since the boot of this id."""

    pid: int
    started: int
    boot: str


def boot_id() -> str:
    """Return what tells this boot of the host from others; "" where nothing does."""
    with suppress(OSError):
        return _BOOT_ID.read_text("ascii").strip()
    return ""


def identify(pid: int) -> Process | None:
    """Return the process that has an id now; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
        state, threads, started = fields[_STATE], int(fields[_THREADS]), int(fields[_START])
    except (OSError, IndexError, ValueError):
        return None
    # While other threads still end, the process keeps its files and their locks.
    ended = state == b"X" or (state == b"Z" and threads <= 1)
    return None if ended else Process(pid, started, boot_id())


def is_alive(process: Process) -> bool:
    """Return whether a process lives."""
    return identify(process.pid) == process


def open_process(process: Process) -> int | None:
    """Return a descriptor of a process (pidfd), readable when it has ended; None if it has.

    Whatever is done through it reaches this process or nobody.
    """
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if is_alive(process):  # looked at after it was opened: the id cannot change hands any more
        return fd
    os.close(fd)
    return None


def kill(pidfd: int) -> None:
    """End a process at once, if it lives."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
