"""The requests of one client, answered in whatever order their bytes come to hand.

Source: NetworkBlockDevice/nbd `doc/proto.md`, sections "Request message", "Request types" and
"Error values".
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from packer.errors import Error
from packer.run.disk.export import Part
from packer.run.nbd import replies
from packer.run.nbd.budget import Budget
from packer.run.nbd.handshake import Terms
from packer.run.nbd.limits import Limits, ProtocolError
from packer.run.nbd.replies import Piece
from packer.transport import nbd_wire as wire

_WRITES = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)
_KNOWN_FLAGS = {
    wire.CMD_READ: wire.CMD_FLAG_DF,
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_REQ_ONE,
    wire.CMD_CACHE: 0,
}


class Output(Protocol):
    """Where replies go."""

    def send(self, pieces: list[Piece]) -> None:
        """Send a whole reply, now or as fast as the client takes it."""

    async def drained(self) -> None:
        """Return once the client has taken what was sent before."""

    def proceed(self) -> None:
        """Offer the next request: there may be room for it now."""

    def abort(self) -> None:
        """End the connection at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `cookie` is what the client knows it by, offset and length are in bytes."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int

    @property
    def payload_bytes(self) -> int:
        """What follows the request on the wire."""
        return self.length if self.command == wire.CMD_WRITE else 0


class Transmission:
    """Answers requests with the bytes of an export. See `Limits` for how many at once."""

    def __init__(self, terms: Terms, limits: Limits, budget: Budget, output: Output) -> None:
        self._export = terms.export
        self._terms = terms
        self._limits = limits
        self._budget = budget
        self._output = output
        self._tasks: set[asyncio.Task[None]] = set()
        self._held_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether one more request may be taken."""
        return (
            len(self._tasks) < self._limits.requests and self._held_bytes < self._limits.read_bytes
        )

    @property
    def is_idle(self) -> bool:
        """Whether every request has its reply."""
        return not self._tasks

    def cancel(self) -> None:
        """Answer nothing any more."""
        for task in self._tasks:
            task.cancel()

    def take(self, request: Request) -> None:
        """Answer a request, at once if that needs no waiting. Raises ProtocolError.

        A client that goes (CMD_DISC) is not this one's business.
        """
        if request.payload_bytes > wire.MAX_READ_BYTES:
            raise ProtocolError(f"a write of {request.payload_bytes} bytes")
        reason = self._objection(request)
        if request.command in _WRITES:
            self._fail(request, wire.EPERM, "the disk is read-only")
        elif reason:
            self._fail(request, wire.EINVAL, reason)
        elif request.command == wire.CMD_BLOCK_STATUS:
            self._status(request)
        else:
            self._read_or_cache(request)

    def _objection(self, request: Request) -> str:
        """Return what is wrong with a request, nothing if it can be answered."""
        if request.command not in _KNOWN_FLAGS:
            return f"unknown command {request.command}"
        if request.flags & ~_KNOWN_FLAGS[request.command]:
            return f"unknown flags {request.flags:#x}"
        if request.flags & wire.CMD_FLAG_DF and not self._terms.structured:
            return "unfragmented replies were not agreed"
        if request.command == wire.CMD_BLOCK_STATUS:
            if not self._terms.allocation:
                return "base:allocation was not agreed"
        elif request.length > wire.MAX_READ_BYTES:
            return f"more than {wire.MAX_READ_BYTES} bytes at once"
        if not 0 < request.length <= self._export.size - request.offset:
            return f"not within the {self._export.size} bytes of the disk"
        return ""

    def _status(self, request: Request) -> None:
        try:
            extents = self._export.extents(request.offset, request.length)
            most = 1 if request.flags & wire.CMD_FLAG_REQ_ONE else replies.MAX_EXTENTS
            reply = replies.status(request.cookie, extents, most)
        except (Error, OSError) as error:
            self._fail(request, wire.EIO, str(error))
        else:
            self._output.send(reply)

    def _read_or_cache(self, request: Request) -> None:
        try:
            parts = self._export.read_now(request.offset, request.length)
        except (Error, OSError) as error:
            self._fail(request, wire.EIO, str(error))
            return
        if parts is None:
            self._start(request, self._answer_later(request))
        else:
            self._output.send(self._reply(request, parts))

    async def _answer_later(self, request: Request) -> None:
        try:
            parts = await self._export.read(request.offset, request.length)
        except (Error, OSError) as error:
            reply = self._error(request, wire.EIO, str(error))
        else:
            reply = self._reply(request, parts)
        await self._output.drained()
        self._output.send(reply)

    def _start(self, request: Request, answer: Coroutine[Any, Any, None]) -> None:
        self._held_bytes += request.length
        self._budget.hold(request.length)
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._held_bytes -= request.length
            self._budget.release(request.length)
            self._tasks.discard(task)
            if not task.cancelled() and (bug := task.exception()):
                self._output.abort()  # a request without a reply would never end
                raise bug
            self._output.proceed()

        task.add_done_callback(ended)

    def _reply(self, request: Request, parts: list[Part]) -> list[Piece]:
        if request.command == wire.CMD_CACHE:
            return replies.done(request.cookie, structured=self._terms.structured)
        if not self._terms.structured:
            return replies.simple_read(request.cookie, request.length, parts)
        whole = bool(request.flags & wire.CMD_FLAG_DF)
        return replies.structured_read(
            request.cookie, request.offset, request.length, parts, whole=whole
        )

    def _fail(self, request: Request, number: int, message: str) -> None:
        self._output.send(self._error(request, number, message))

    def _error(self, request: Request, number: int, message: str) -> list[Piece]:
        structured = self._terms.structured
        return replies.error(request.cookie, number, message, structured=structured)
