"""Bars on a real terminal, as a person sees them."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from packer.progress import Bars, Silent, for_terminal


class Terminal:
    """A pseudo-terminal: what was written to it."""

    def __init__(self, ours: int) -> None:
        self._ours = ours

    def shown(self) -> str:
        ready, _, _ = select.select([self._ours], [], [], 5)
        return os.read(self._ours, 1 << 16).decode() if ready else ""


@contextmanager
def terminal(rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    """Make standard error a terminal; no fixture: pytest puts its own file back before a test."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    with os.fdopen(theirs, "w") as file, redirect_stderr(file):
        yield Terminal(ours)
    os.close(ours)


@pytest.mark.parametrize("size", [(24, 80), (0, 0)], ids=["usual", "a serial console"])
def test_a_bar_says_what_is_done_and_goes_when_it_is_done(size: tuple[int, int]) -> None:
    with terminal(*size) as one:
        with for_terminal(quiet=False).stage("hashing", 3_000_000) as advance:
            advance(1_500_000)
        shown = one.shown()
    assert "hashing" in shown
    assert "3.00MB" in shown
    assert shown.split("\r")[-2].strip() == ""  # wiped


def test_work_of_unknown_length_shows_no_numbers() -> None:
    with terminal() as one:
        with Bars().stage("cleaning", 0):
            pass
        shown = one.shown()
    assert "cleaning …" in shown
    assert "0" not in shown


def test_without_a_terminal_or_when_quiet_there_is_silence(tmp_path: Path) -> None:
    with terminal():
        assert isinstance(for_terminal(quiet=True), Silent)
        assert isinstance(for_terminal(quiet=False), Bars)
    with (tmp_path / "log").open("w") as log, redirect_stderr(log):
        assert isinstance(for_terminal(quiet=False), Silent)
