"""Programs of this host that read archives of strangers: what they may use up is bounded."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

GIB = 1 << 30
_MESSAGE_BYTES = 1 << 20
"""The least that a program may write to a file: what it complains of is kept in one."""

_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds for one program. file_bytes: the largest file that it may write.

    How long it may wait for storage is not bounded: whoever reads from it can be interrupted.
    """

    memory_bytes: int = 4 * GIB
    cpu_seconds: int = 3600
    file_bytes: int = 0
    open_files: int = 256


@contextmanager
def running(
    command: Sequence[str],
    bounds: Bounds,
    *,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that reads nothing from its user; it is ended with the block.

    Raises OSError when it cannot be started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        env={name: os.environ[name] for name in _VARIABLES if name in os.environ}
        | {"LC_ALL": "C.UTF-8"},
        start_new_session=True,  # an interrupt at the terminal is this process's to handle
    ) as process:
        try:
            _limit(process.pid, bounds)
            yield process
        finally:
            if process.poll() is None:  # once it is reaped, its number may be another's
                os.killpg(process.pid, signal.SIGKILL)


def _limit(pid: int, bounds: Bounds) -> None:
    limits = (
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_CPU, bounds.cpu_seconds),
        (resource.RLIMIT_FSIZE, max(bounds.file_bytes, _MESSAGE_BYTES)),
        (resource.RLIMIT_NOFILE, bounds.open_files),
        (resource.RLIMIT_CORE, 0),
    )
    with suppress(ProcessLookupError):  # it has ended already
        for kind, wanted in limits:
            hard = resource.prlimit(pid, kind)[1]
            if hard != resource.RLIM_INFINITY:
                wanted = min(wanted, hard)
            resource.prlimit(pid, kind, (wanted, wanted))
