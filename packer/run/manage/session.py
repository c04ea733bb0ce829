"""Attend to a VM: be told what happens to it, type on its console, stop it."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

from packer.errors import Error, InUseError
from packer.run.server.control_protocol import RemoteError
from packer.run.supervisor import link
from packer.run.supervisor.link import (
    Ask,
    Attach,
    Console,
    Ended,
    Failed,
    Now,
    Request,
    Say,
    Start,
    Stop,
    Told,
)
from packer.run.supervisor.process import start_supervisor
from packer.run.vm.vm import Vm

GRACE_SECONDS = 60.0
"""What a guest gets to shut down, when nobody says how long."""

_TRIES = 5
_TRY_SECONDS = 0.2
_ASK_SECONDS = 3.0
_CHUNK_BYTES = 1 << 16
_WORDS_KEPT = 1 << 20
_LONGEST_MATCH = 1 << 14


class Connection:
    """A connection to a supervisor. Raises ConnectionError and FileNotFoundError at first."""

    def __init__(self, vm: Vm) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._buffer = bytearray()
        try:
            self._socket.connect(str(vm.runtime() / link.SOCKET))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._socket.fileno()

    def send(self, request: Request) -> None:
        """Send a request. Raises OSError when nobody is there any more."""
        self._socket.sendall(link.encode(request))

    def receive(self) -> list[Told] | None:
        """Return the messages that have come; None at the end of the connection."""
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except OSError:
            return None
        if not data:
            return None
        self._buffer += data
        if len(self._buffer) > link.MAX_LINE_BYTES + _CHUNK_BYTES:
            return None
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        try:
            return [link.decode_told(bytes(line)) for line in lines]
        except ValueError:
            return None  # another version of vmpack; its supervisor is as good as none

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Session:
    """Attends to a VM, across the death of its supervisor: another one is started then.

    start: start it, if it does not run. replay: be told what its console said of late.
    Raises Error.
    """

    def __init__(self, vm: Vm, start: Start | None = None, *, replay: bool = True) -> None:
        self.vm = vm
        self._opening = Attach(start, replay)
        self._connection = self._connected()
        self._lost = 0
        self._ended = False
        self._stop: Stop | None = None

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to `receive`."""
        return self._connection.fileno()

    def receive(self) -> list[Told]:
        """Return what has come, nothing after the end. Raises the Error of a failed start."""
        if self._ended:
            return []
        told = self._connection.receive()
        if told is None:
            self._connection.close()
            self._lost += 1
            if self._lost > _TRIES:
                raise self._unanswered()
            self._connection = self._connected()
            if self._stop is not None:  # the dead one may not have heard it
                self.send(self._stop)
            return [Say("the supervisor of the VM was gone; there is another one")]
        self._lost = 0
        for one in told:
            if isinstance(one, Failed):
                raise RemoteError(one.failure)
            if isinstance(one, Now) and one.state != "starting":
                self._opening = Attach(replay=False)  # it is started, and heard up to here
            self._ended = self._ended or isinstance(one, Ended)
        return told

    def messages(self, seconds: float | None = None) -> Iterator[Told]:
        """Yield what is told until the VM has ended, or for so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._ended:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            if select.select([self], [], [], left)[0]:
                yield from self.receive()

    def send(self, request: Request) -> None:
        """Send a request; all but a Stop are lost if the supervisor dies now."""
        if isinstance(request, Stop):
            self._stop = request
        with suppress(OSError):
            self._connection.send(request)

    def close(self) -> None:
        """Attend no more; the VM goes on."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Connection:
        """Return a connection to the supervisor, which is started if none lives."""
        for number in range(_TRIES):
            with suppress(OSError):
                connection = Connection(self.vm)
                try:
                    connection.send(self._opening)
                except OSError:
                    connection.close()
                    raise
                return connection
            to_start = self._opening.start is not None
            if not start_supervisor(self.vm, to_start=to_start) and number == _TRIES - 1:
                raise InUseError(
                    f"another vmpack changes the VM {self.vm.name}",
                    hint=f"wait for it; see {self.vm.folder / 'supervisor.log'}",
                )
            time.sleep(_TRY_SECONDS)
        raise self._unanswered()

    def _unanswered(self) -> Error:
        return Error(
            f"the supervisor of {self.vm.name} does not answer",
            hint=f"see {self.vm.folder / 'supervisor.log'}",
        )


class RunningVm:
    """A VM that was started, for programs: wait for what it says, stop it.

    console: what its serial console said while it was waited for, the last MiB of it. said: lines
    for a person: why it is paused, for example. Raises Error when it cannot be started.
    """

    def __init__(self, vm: Vm, start: Start | None = None) -> None:
        self.vm = vm
        self.console = b""
        self._new_bytes = 0
        self.said: list[str] = []
        self.now: Now | None = None
        self.ended: Ended | None = None
        self._session = Session(vm, start)

    def wait_until_started(self, seconds: float) -> bool:
        """Return whether it runs within some time."""
        return self._wait(seconds, lambda: self.now is not None and self.now.state != "starting")

    def wait_for(self, pattern: str, seconds: float) -> re.Match[bytes] | None:
        """Return what a regular expression matches on the console within some time, or None.

        Returns None at once when the VM ends without it. A match of more than _LONGEST_MATCH bytes
        may be missed.
        """
        sought = re.compile(pattern.encode())
        found = sought.search(self.console)
        self._new_bytes = 0

        def is_there() -> bool:
            nonlocal found
            new, self._new_bytes = self._new_bytes, 0
            if found is None and new:
                begin = len(self.console) - new - _LONGEST_MATCH
                found = sought.search(self.console, max(0, begin))
            return found is not None

        self._wait(seconds, is_there)
        return found

    def wait_until_said(self, words: str, seconds: float) -> bool:
        """Return whether a line for a person has these words within some time."""
        return self._wait(seconds, lambda: any(words in line for line in self.said))

    def wait_end(self, seconds: float) -> Ended | None:
        """Return how it has ended, None if it has not within some time."""
        self._wait(seconds, lambda: False)
        return self.ended

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> Ended | None:
        """Shut it down, or pull its plug after `grace_seconds`; return how it has ended."""
        self._session.send(Stop(grace_seconds))
        return self.wait_end(grace_seconds + GRACE_SECONDS)

    def type(self, data: bytes) -> None:
        """Type on its console."""
        self._session.send(link.Input(data))

    def close(self) -> None:
        """Attend no more; the VM goes on."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, seconds: float, done: Callable[[], bool]) -> bool:
        if done():
            return True
        for one in self._session.messages(seconds):
            if isinstance(one, Console):
                self.console = (self.console + one.data)[-_WORDS_KEPT:]
                self._new_bytes += len(one.data)
            elif isinstance(one, Say):
                self.said.append(one.text)
            elif isinstance(one, Now):
                self.now = one
            elif isinstance(one, Ended):
                self.ended = one
            if done():
                return True
        return False


def start_vm(
    vm: Vm, arguments: tuple[str, ...] = (), *, folder: str = "/", window: bool = False
) -> RunningVm:
    """Start a VM, or attach to it if it runs. arguments: for QEMU, from a folder.

    Raises Error when no supervisor comes up; what else keeps it from starting is raised by the
    first wait.
    """
    return RunningVm(vm, Start(arguments, folder, window))


def stop_vm(vm: Vm, grace_seconds: float = GRACE_SECONDS) -> Ended:
    """Shut a VM down, or pull its plug after `grace_seconds`; return how it has ended."""
    with RunningVm(vm) as running:
        ended = running.stop(grace_seconds)
    if ended is None:
        raise Error(f"{vm.name} does not end", hint=f"see {vm.folder / 'supervisor.log'}")
    return ended


def ask(vm: Vm) -> Now | None:
    """Return how a VM is by its supervisor's word; None when no supervisor answers."""
    with suppress(OSError):
        connection = Connection(vm)
        try:
            connection.send(Ask())
            deadline = time.monotonic() + _ASK_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([connection], [], [], left)[0]:
                    break
                told = connection.receive()
                if told is None:
                    break
                if found := [one for one in told if isinstance(one, Now)]:
                    return found[-1]
        finally:
            connection.close()
    return None
