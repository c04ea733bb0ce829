"""Ctrl-C: the first one ends what is under way in good order, a later one ends it at once.

SIGTERM means the same to verbs that ask for it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""The exit code of a command that was interrupted, as shells have it: 128 and the signal."""

_ECHO_SECONDS = 0.5
"""Within which a second interrupt is the first one again: a hasty finger, or the process that has
unpacked the program that media carry, which passes on what the terminal has sent to both."""


def hear_interrupts() -> None:
    """Raise KeyboardInterrupt at the first interrupt only, for the rest of this process.

    Python would raise it at each: in whatever tidies up after the first, or as it ends.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # below nohup
        return
    heard: float | None = None

    def hear(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        if heard is None:
            heard = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - heard > _ECHO_SECONDS:
            _end_at_once()

    signal.signal(signal.SIGINT, hear)
    # Once all threads have ended: Python puts the handler away before the process is gone.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def hear_termination() -> None:
    """Take SIGTERM for an interrupt from now on: for a verb that would leave a guest running."""
    hear = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, hear if callable(hear) else signal.default_int_handler)


def _end_at_once() -> NoReturn:
    """End as if killed, which leaves nothing half done under a final name."""
    with contextlib.suppress(OSError):
        os.write(2, b"\nvmpack: interrupted\n")  # print is not for what may interrupt a print
    os._exit(INTERRUPTED)
