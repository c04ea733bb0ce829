"""One client's connection: bytes in, replies out, TLS in between, and when it has to end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import cast

from packer.run.disk.export import Export, FilePart
from packer.run.nbd.budget import Budget
from packer.run.nbd.handshake import GREETING, MAX_OPTION_BYTES, Handshake, Step
from packer.run.nbd.limits import Limits, ProtocolError
from packer.run.nbd.replies import Piece
from packer.run.nbd.transmission import Request, Transmission
from packer.transport import nbd_wire as wire

BUFFER_BYTES = 64 << 10
"""For what came in and is not dealt with yet; holds the longest option."""

SEND_BUFFER_BYTES = 512 << 10
"""Asked of the kernel, which may give less: a reply to a usual request goes in one piece, and is
still in the processor's cache when the client takes it.
"""

TLS_GOODBYE_SECONDS = 5.0

_TICK_SECONDS = 1.0

_TURN = 64
"""So many requests are taken before other connections have their turn."""

_MAX_PIECES = os.sysconf("SC_IOV_MAX")
_MSG_MORE = getattr(socket, "MSG_MORE", 0)
_log = logging.getLogger(__name__)
assert MAX_OPTION_BYTES + wire.OPTION.size <= BUFFER_BYTES


class Connection(asyncio.BufferedProtocol):
    """Drives a handshake, then a transmission, over one socket.

    Bytes go from stage to stage: `_stage` takes what it can use from the beginning of the buffer
    and returns how many bytes that were, 0 when it needs more. `peers` are all connections of a
    server, oldest first; this one enters and leaves them by itself. budget: of all of them.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        limits: Limits,
        connection: socket.socket,
        tls: ssl.SSLContext | None,
        peers: dict[Connection, None],
        budget: Budget,
    ) -> None:
        self._limits = limits
        self._budget = budget
        self._unsent_bytes = 0
        self._socket: socket.socket | None = connection
        self._tls = tls
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._handshake = Handshake(exports, tls=tls is not None)
        self._transmission: Transmission | None = None
        self._stage: Callable[[], int] = self._take_flags
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = self._end = 0
        self._payload_bytes = 0
        self._turn: asyncio.Handle | None = None
        self._upgrade: asyncio.Task[None] | None = None
        self._leaving = self._lost = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._handshake_deadline: asyncio.TimerHandle | None = None
        self._reply_deadline: asyncio.TimerHandle | None = None

    @property
    def is_in_handshake(self) -> bool:
        """Whether no export was chosen yet."""
        return self._transmission is None

    def leave(self) -> None:
        """Take no further request, and end when those that were taken have their replies."""
        self._leaving = True
        if self._transmission is None or self._transmission.is_idle:
            self._transport.close()

    def abort(self) -> None:
        """End at once; what was not sent yet is not waited for."""
        self._leaving = True
        if not self._lost:  # a transport that has ended by itself cannot be (Python 3.11)
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._peers[self] = None
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # `_drained` means that it is empty
        seconds = self._limits.handshake_seconds
        self._handshake_deadline = self._loop.call_later(seconds, self.abort)
        self.send([GREETING])

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 # asyncio's interface
        """Return room for what comes in; there is some whenever reading is not paused."""
        left = self._end - self._start
        if self._start:
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        return self._buffer[left:]

    def buffer_updated(self, nbytes: int) -> None:
        """Deal with what came in."""
        self._end += nbytes
        self.proceed()

    def eof_received(self) -> None:
        """End: a client that only has nothing more to ask says CMD_DISC."""
        self._leaving = True
        self._loop.call_soon(self.abort)  # a TLS transport cannot be aborted amid its own call

    def pause_writing(self) -> None:
        """Give the client its time to take what it was sent."""
        self._drained.clear()
        self._watch_reply(self._loop.time())

    def _watch_reply(self, since: float) -> None:
        """Cut a client off that does not take its reply, the sooner if others need the memory."""
        limits = self._limits
        crowded = self._budget.is_crowded
        seconds = limits.crowded_reply_seconds if crowded else limits.reply_seconds
        if self._loop.time() - since >= min(seconds, limits.reply_seconds):
            self.abort()
            return
        tick = min(_TICK_SECONDS, limits.reply_seconds / 4)
        self._reply_deadline = self._loop.call_later(tick, self._watch_reply, since)

    def resume_writing(self) -> None:
        """Go on: the client has taken everything."""
        self._let_go_of_reply()
        self._drained.set()
        self.proceed()

    def _let_go_of_reply(self) -> None:
        if self._reply_deadline is not None:
            self._reply_deadline.cancel()
        self._hold_unsent(0)

    def _hold_unsent(self, count: int) -> None:
        before, self._unsent_bytes = self._unsent_bytes, count
        self._budget.hold(count)
        self._budget.release(before)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 # the same
        """Let go of everything."""
        self._lost = True
        for handle in (self._handshake_deadline, self._turn):
            if handle is not None:
                handle.cancel()
        self._let_go_of_reply()
        self._budget.leave(self.proceed)
        if self._transmission is not None:
            self._transmission.cancel()
        self._drained.set()
        self._peers.pop(self, None)

    # What the transmission calls.

    def send(self, pieces: list[Piece]) -> None:
        """Send a whole reply; what the kernel does not take at once goes by and by."""
        if self._transport.is_closing():
            return
        try:
            if self._socket is None:
                self._transport.writelines([_in_memory(piece) for piece in pieces])
            else:
                if not self._transport.get_write_buffer_size():
                    pieces = _send_now(self._socket, pieces)
                # `writelines` copies more, or does not pause us (cpython 127655).
                for piece in pieces:
                    self._transport.write(_in_memory(piece))
        except OSError as error:  # amid a reply: only a new connection is understood again
            _log.warning("%s", error)
            self.abort()
            return
        if not self._drained.is_set():
            self._hold_unsent(self._transport.get_write_buffer_size())

    async def drained(self) -> None:
        """Return once the client has taken what was sent before."""
        while not self._drained.is_set():
            await self._drained.wait()

    def proceed(self) -> None:
        """Deal with what lies in the buffer, as long as there is room for the answers."""
        if self._turn is not None or self._upgrade is not None:
            return
        try:
            self._work()
        except ProtocolError:
            self.abort()
        except BaseException:
            self.abort()  # a request without a reply would be waited for until the end of days
            raise

    def _work(self) -> None:
        for _ in range(_TURN):
            if self._leaving:
                self.leave()
                return
            if not self._has_room():
                break
            used = self._stage()
            self._start += used
            if not used:
                break
        else:
            self._turn = self._loop.call_soon(self._next_turn)
        if self._end - self._start == BUFFER_BYTES:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _next_turn(self) -> None:
        self._turn = None
        self.proceed()

    def _has_room(self) -> bool:
        if self._transport.is_closing() or not self._drained.is_set():
            return False
        if self._transmission is None:
            return True
        if not self._transmission.has_room:
            return False
        asks = self._stage == self._take_request and self._available() >= wire.REQUEST.size
        return not asks or self._budget.has_room(self.proceed)  # who asks nothing is in no line

    # The stages.

    def _take_flags(self) -> int:
        if self._available() < wire.U32.size:
            return 0
        self._handshake.begin(wire.U32.unpack_from(self._buffer, self._start)[0])
        self._stage = self._take_option
        return wire.U32.size

    def _take_option(self) -> int:
        if self._available() < wire.OPTION.size:
            return 0
        magic, option, length = wire.OPTION.unpack_from(self._buffer, self._start)
        if magic != wire.OPTION_MAGIC or length > MAX_OPTION_BYTES:
            raise ProtocolError(f"not an option: {magic:#x}, {length} bytes")
        used: int = wire.OPTION.size + length
        if self._available() < used:
            return 0
        data = bytes(self._buffer[self._start + wire.OPTION.size : self._start + used])
        reply, step = self._handshake.answer(option, data)
        if step is Step.TLS and self._available() > used:
            raise ProtocolError("plain bytes after the wish for TLS")  # an attacker's, in between
        self.send([reply])
        self._enter(step)
        return used

    def _enter(self, step: Step) -> None:
        if step is Step.TRANSMISSION:
            terms = self._handshake.terms
            assert terms is not None
            assert self._handshake_deadline is not None
            self._handshake_deadline.cancel()
            self._transmission = Transmission(terms, self._limits, self._budget, self)
            self._stage = self._take_request
        elif step is Step.TLS:
            self._upgrade = self._loop.create_task(self._start_tls())
            self._stage = self._nothing
        elif step is Step.END:
            self._leaving = True

    def _nothing(self) -> int:
        return 0

    def _take_request(self) -> int:
        if self._available() < wire.REQUEST.size:
            return 0
        magic, *fields = wire.REQUEST.unpack_from(self._buffer, self._start)
        if magic != wire.REQUEST_MAGIC:
            raise ProtocolError(f"not a request: {magic:#x}")
        request = Request(*fields)
        if request.command == wire.CMD_DISC:
            self._leaving = True
            return wire.REQUEST.size
        assert self._transmission is not None
        self._transmission.take(request)
        if request.payload_bytes:
            self._payload_bytes = request.payload_bytes
            self._stage = self._skip_payload
        return wire.REQUEST.size

    def _skip_payload(self) -> int:
        used = min(self._available(), self._payload_bytes)
        self._payload_bytes -= used
        if not self._payload_bytes:
            self._stage = self._take_request
        return used

    def _available(self) -> int:
        return self._end - self._start

    async def _start_tls(self) -> None:
        assert self._tls is not None
        self._socket = None  # from now on everything goes through the transport
        self._transport.pause_reading()
        await self.drained()  # TLS would never begin on a paused transport (cpython 109051)
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=TLS_GOODBYE_SECONDS,
            )
        except OSError:  # SSLError is one
            transport = None
        if transport is None:  # asyncio does not call `connection_lost` then
            self.abort()
            self.connection_lost(None)
            return
        self._transport = transport
        # This transport pauses as soon as it holds `high` bytes, a plain one above that.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._handshake.secured()
        self._stage = self._take_option
        self._upgrade = None
        self.proceed()


def _in_memory(piece: Piece) -> bytes | bytearray | memoryview:
    return bytes(piece) if isinstance(piece, FilePart) else piece


def _send_now(connection: socket.socket, pieces: list[Piece]) -> list[Piece]:
    """Return what the kernel does not take at once. Raises OSError when a file ends too early.

    Saves the copy that a transport makes of what it cannot send (Python 3.11), and those of files.
    """
    while pieces:
        first = pieces[0]
        if isinstance(first, FilePart):
            batch: list[Piece] = [first]
            sent = _send_file(connection, first)
        else:
            batch = list(takewhile(_is_plain, pieces[:_MAX_PIECES]))
            sent = _send_plain(connection, batch, more=len(batch) < len(pieces))
        for index, piece in enumerate(batch):
            size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
            if sent < size:
                return [_rest(piece, sent), *pieces[index + 1 :]]
            sent -= size
        pieces = pieces[len(batch) :]
    return pieces


def _is_plain(piece: Piece) -> bool:
    return not isinstance(piece, FilePart)


def _rest(piece: Piece, done: int) -> Piece:
    if isinstance(piece, FilePart):
        return piece.rest(done)
    return memoryview(piece).cast("B")[done:]


def _send_plain(connection: socket.socket, batch: list[Piece], *, more: bool) -> int:
    """Return how many bytes the kernel has taken. more: something follows at once."""
    try:
        return connection.sendmsg(cast(list[memoryview], batch), (), _MSG_MORE if more else 0)
    except OSError:  # no room, or the client is gone: the transport will see
        return 0


def _send_file(connection: socket.socket, part: FilePart) -> int:
    done = 0
    while done < part.length:
        try:
            sent = os.sendfile(connection.fileno(), part.fd, part.offset + done, part.length - done)
        except OSError:  # as above; a file that cannot be read is noticed by who reads the rest
            break
        if not sent:
            raise OSError(f"a file of the store ended before byte {part.offset + part.length}")
        done += sent
    return done
