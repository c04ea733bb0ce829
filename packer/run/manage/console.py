"""A VM's serial console on this terminal, or on standard output where there is none."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from packer.run.manage.session import Session
from packer.run.supervisor.link import Console, Ended, Input, Now, Say, Stop, Told
from packer.text import printable

ESCAPE = b"\x1d"
"""Ctrl-]: leave the console; the VM goes on. As telnet and virsh have it."""

_TYPED_BYTES = 4096


class _TerminatedError(Exception):
    """SIGTERM has come."""


def on_terminal() -> bool:
    """Return whether a person sits here: standard input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def wait_until_started(session: Session) -> Ended | None:
    """Return when a VM runs, or how it has ended at once; show nothing but lines for people."""
    screen = _Screen(raw=False)
    for one in session.messages():
        if isinstance(one, Say):
            screen.say(one.text)
        elif isinstance(one, Ended):
            return one
        elif isinstance(one, Now) and one.state != "starting":
            break
    return None


def relay(session: Session, grace_seconds: float, started: Callable[[], None]) -> Ended | None:
    """Show the console until the VM ends; None when the person has left it running.

    On a terminal what is typed goes to the guest, Ctrl-C too. Elsewhere SIGINT stops the VM, and
    SIGTERM does so everywhere: its power button, its plug after `grace_seconds`. started: called
    when it runs.
    """
    screen = _Screen(raw=on_terminal())
    conversation = _Conversation(session, screen, started)
    with _hearing_sigterm(), screen.prepared():
        try:
            return conversation.until_left()
        except (KeyboardInterrupt, _TerminatedError) as told:
            screen.say("the VM is shut down")
            session.send(Stop(grace_seconds))
            ended = conversation.until_ended()
            if isinstance(told, KeyboardInterrupt):
                raise
            return ended


class _Conversation:
    """What goes between the VM and the person."""

    def __init__(self, session: Session, screen: _Screen, started: Callable[[], None]) -> None:
        self._session = session
        self._screen = screen
        self._started: Callable[[], None] | None = started

    def until_left(self) -> Ended | None:
        """Return how the VM has ended, None when the person leaves it."""
        keys = [sys.stdin.fileno()] if self._screen.raw else []
        while True:
            readable = select.select([self._session, *keys], [], [])[0]
            if self._session in readable and (ended := self._hear(self._session.receive())):
                return ended
            if keys and keys[0] in readable and self._typed(os.read(keys[0], _TYPED_BYTES)):
                return None

    def until_ended(self) -> Ended | None:
        """Return how the VM has ended."""
        for one in self._session.messages():
            if ended := self._hear([one]):
                return ended
        return None

    def _hear(self, told: list[Told]) -> Ended | None:
        for one in told:
            if isinstance(one, Console):
                self._screen.show(one.data)
            elif isinstance(one, Say):
                self._screen.say(one.text)
            elif isinstance(one, Ended):
                return one
            elif isinstance(one, Now) and one.state != "starting" and self._started is not None:
                started, self._started = self._started, None
                started()
        return None

    def _typed(self, data: bytes) -> bool:
        """Pass on what was typed; return whether the person wants to leave."""
        before, escape, _ = data.partition(ESCAPE)
        if before:
            self._session.send(Input(before))
        return bool(escape) or not data


class _Screen:
    """Where the console is shown. raw: a terminal that passes every key on."""

    def __init__(self, *, raw: bool) -> None:
        self.raw = raw
        self._line_begins = True

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Make the terminal raw, and what it was before at the end, whatever happens."""
        if not self.raw:
            yield
            return
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        try:
            tty.setraw(fd)
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
            if not self._line_begins:
                print(flush=True)

    def show(self, data: bytes) -> None:
        """Show what the guest says."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        self._line_begins = data.endswith(b"\n")

    def say(self, text: str) -> None:
        """Show a line of ours, on a line of its own."""
        end = "\r\n" if self.raw else "\n"
        begin = end if self.raw and not self._line_begins else ""
        sys.stderr.write(f"{begin}vmpack: {printable(text)}{end}")
        sys.stderr.flush()
        self._line_begins = True


@contextmanager
def _hearing_sigterm() -> Iterator[None]:
    def hear(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # it is told to end already
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
