"""A client for files that do not change, over HTTP: ranges, several connections, resumption.

Bodies are bounded by what was asked for; a cut connection is taken up again at the byte that was
reached. Nothing is verified here: who asked compares digests.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Self

from packer.transport.ranges import Asked, bounds, cut_ranges, join_ranges
from packer.transport.response import (
    Body,
    ForbiddenError,
    NotFoundError,
    OneHostSession,
    Transient,
    TransportError,
    open_body,
    origin,
    visible,
)

__all__ = ["Client", "ForbiddenError", "NotFoundError", "TransportError"]

ATTEMPTS = 5
PROGRESS_BYTES = 1 << 16
"""A connection that brought this much before it broke starts a new count of attempts."""

BACK_OFF_SECONDS = 0.5
MAX_WAIT_SECONDS = 60.0
"""The longest wait between attempts, whatever Retry-After says."""

TIMEOUT_SECONDS = (10.0, 30.0)
"""To connect; between two arrivals of data."""

END_SECONDS = 1.0
"""How long the end of a call waits for its threads, whose connections it has cut."""


class _Call:
    """One request of a caller: what it has open, and whether it was called off."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._bodies: set[Body] = set()

    def opened(self, body: Body) -> None:
        with self._lock:
            self._bodies.add(body)

    def closed(self, body: Body) -> None:
        with self._lock:
            self._bodies.discard(body)
        body.close()

    def stop(self) -> None:
        """Wake every thread that waits for this call's data; none starts anew."""
        self.stopped.set()
        with self._lock:
            for body in self._bodies:
                body.interrupt()


@dataclass(slots=True)
class _Attempts:
    """How often the same bytes were asked for in vain; `failed` waits or gives up."""

    url: str
    call: _Call
    back_off_seconds: float
    limit: int
    count: int = 0

    def failed(self, error: Transient) -> None:
        self.count += 1
        if self.count >= self.limit:
            raise TransportError(
                f"{visible(self.url)}: {error} ({self.count} attempts)",
                hint="try again later; what has arrived is kept",
            ) from error
        wait = self.back_off_seconds * 2 ** (self.count - 1) * random.uniform(0.5, 1.5)
        wait = min(max(wait, error.after_seconds or 0.0), MAX_WAIT_SECONDS)
        if self.call.stopped.wait(wait):
            raise TransportError(f"{visible(self.url)}: stopped") from error


PIECES_AHEAD = 2
"""How many pieces a connection may be ahead of who takes them."""

Found = tuple[int, bytes] | None
"""(row, bytes), or None at the end of a group."""


class Client:
    """Reads files over HTTP. May be used from several threads.

    connections: how many at once. attempts: in vain, for the same bytes. timeout_seconds: to
    connect, between two arrivals of data.
    """

    def __init__(
        self,
        *,
        connections: int = 4,
        attempts: int = ATTEMPTS,
        back_off_seconds: float = BACK_OFF_SECONDS,
        timeout_seconds: tuple[float, float] = TIMEOUT_SECONDS,
    ) -> None:
        self.connections = max(1, connections)
        self.attempts = attempts
        self.back_off_seconds = back_off_seconds
        self.timeout_seconds = timeout_seconds
        self._session = OneHostSession(self.connections)
        self._lock = threading.Lock()
        self._calls: set[_Call] = set()
        self._received_bytes = 0
        self._honours_ranges: set[str] = set()
        self._ignores_ranges: set[str] = set()

    @property
    def received_bytes(self) -> int:
        """Bytes of bodies that came over the wire so far, wanted or not."""
        return self._received_bytes

    def ignores_ranges(self, url: str) -> bool:
        """Return whether this file was seen to come only as a whole."""
        return url in self._ignores_ranges

    def get_size(self, url: str) -> int:
        """Return the size of a file in bytes. Raises NotFoundError, TransportError."""
        with self._call() as call:
            body = self._open(url, 0, 1, call)
            try:
                if body.partial:
                    self._count(sum(map(len, body.chunks())))  # one byte: the connection stays
            except Transient:
                pass  # the headers are what was asked for
            finally:
                call.closed(body)
            if body.total is None:
                raise TransportError(f"{visible(url)}: the server names no size")
            return body.total

    def get_range(self, url: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises NotFoundError, TransportError."""
        with closing(self.get_ranges(url, [(offset, length)])) as found:
            return next(found)[1]

    def get_bytes(self, url: str, max_bytes: int) -> bytes:
        """Return a whole file of at most `max_bytes`. Raises NotFoundError, TransportError."""
        data = bytearray()
        with self._call() as call, closing(self._stream(url, 0, None, call)) as chunks:
            for chunk in chunks:
                data += chunk
                if len(data) > max_bytes:
                    raise TransportError(f"{visible(url)}: longer than {max_bytes} bytes")
        return bytes(data)

    def get_ranges(
        self, url: str, ranges: Sequence[tuple[int, int]]
    ) -> Generator[tuple[int, bytes], None, None]:
        """Yield (row, bytes) for each (offset, length), in any order.

        Neighbours travel together, groups over several connections. From a server that ignores
        ranges the file is read once, front to back, for all of them.
        Raises NotFoundError, TransportError; what was yielded before stands.
        """
        if any(offset < 0 or length < 0 for offset, length in ranges):
            raise ValueError("ranges are of at least 0 bytes at offsets of at least 0")
        yield from ((row, b"") for row, (_, length) in enumerate(ranges) if length == 0)
        asked = sorted((o, o + length, row) for row, (o, length) in enumerate(ranges) if length)
        if not asked:
            return
        groups = join_ranges(asked)
        with self._call() as call:
            if url in self._ignores_ranges:
                yield from self._one_pass(url, asked, None, call)
            elif len(groups) > 1 and origin(url) in self._honours_ranges:
                yield from self._parallel(url, groups, None, call)
            else:
                # The first answer decides how the rest is asked for; its body is used either way.
                body = self._open(url, *bounds(groups[0]), call)
                if len(groups) > 1 and body.partial:
                    yield from self._parallel(url, groups, body, call)
                else:
                    yield from self._one_pass(url, asked, body, call)

    def close(self) -> None:
        """Call off what other threads still do, give the connections back."""
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.stop()
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _call(self) -> Iterator[_Call]:
        call = _Call()
        with self._lock:
            self._calls.add(call)
        try:
            yield call
        finally:
            call.stop()
            with self._lock:
                self._calls.discard(call)

    def _attempts(self, url: str, call: _Call) -> _Attempts:
        return _Attempts(url, call, self.back_off_seconds, self.attempts)

    def _count(self, received: int) -> None:
        with self._lock:
            self._received_bytes += received

    def _open(self, url: str, start: int, end: int | None, call: _Call) -> Body:
        """Return an answer with right headers, after as many attempts as it takes."""
        attempts = self._attempts(url, call)
        while True:
            try:
                return self._open_once(url, start, end, call)
            except Transient as error:
                attempts.failed(error)

    def _open_once(self, url: str, start: int, end: int | None, call: _Call) -> Body:
        if call.stopped.is_set():
            raise TransportError(f"{visible(url)}: stopped")
        body = open_body(self._session, url, start, end, self.timeout_seconds)
        call.opened(body)
        with self._lock:
            if body.partial:
                self._honours_ranges.add(origin(url))
            elif start or end is not None:
                self._ignores_ranges.add(url)
        return body

    def _stream(
        self, url: str, start: int, end: int | None, call: _Call, body: Body | None = None
    ) -> Generator[bytes, None, None]:
        """Yield the bytes [start, end) of a file, over as many connections as it takes.

        body: an answer that is already open. end None: to the end of the file.
        """
        attempts = self._attempts(url, call)
        position = counted = start
        previous = body
        while end is None or position < end:
            try:
                body = body or self._open_once(url, position, end, call)
                _check_same_file(previous, body)
                _check_reaches(body, position if end is None else end)
                for data in self._wanted(body, position, end):
                    position += len(data)
                    yield data
                if end is None:
                    return
            except Transient as error:
                if position - counted >= PROGRESS_BYTES:
                    attempts.count, counted = 0, position
                attempts.failed(error)
            finally:
                if body is not None:
                    call.closed(body)
                previous, body = body or previous, None

    def _wanted(self, body: Body, start: int, end: int | None) -> Iterator[bytes]:
        """Yield the part [start, end) of a body that may begin earlier; all of it is counted.

        Raises Transient when the body ends before it should.
        """
        at = body.start
        for chunk in body.chunks():
            self._count(len(chunk))
            if body.end is not None and at + len(chunk) > body.end:
                raise TransportError(f"{visible(body.url)}: more bytes than the headers announce")
            part = chunk[max(0, start - at) : None if end is None else max(0, end - at)]
            at += len(chunk)
            if part:
                yield part
            if end is not None and at >= end:
                break
        else:
            if body.end is None and end is not None:
                raise TransportError(f"{visible(body.url)}: expected {end} bytes, found {at}")
            if body.end is not None and at < body.end:
                raise Transient(f"the connection ended at byte {at} of {body.end}")
        body.check_finished()

    def _one_pass(
        self, url: str, asked: Sequence[Asked], body: Body | None, call: _Call
    ) -> Iterator[tuple[int, bytes]]:
        start, end = bounds(asked)
        with closing(self._stream(url, start, end, call, body)) as chunks:
            yield from cut_ranges(chunks, start, asked)

    def _parallel(
        self, url: str, groups: Sequence[Sequence[Asked]], body: Body | None, call: _Call
    ) -> Iterator[tuple[int, bytes]]:
        """Fetch groups in threads; `body` is the answer already open for the first one."""
        todo: queue.SimpleQueue[tuple[Sequence[Asked], Body | None]] = queue.SimpleQueue()
        for number, group in enumerate(groups):
            todo.put((group, body if number == 0 else None))
        # Bounded, so that a slow taker holds the threads back instead of filling memory.
        done: queue.Queue[Found | TransportError] = queue.Queue(PIECES_AHEAD * self.connections)

        def work() -> None:
            while not call.stopped.is_set():
                try:
                    group, opened = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    # Piece by piece: who is killed keeps all that has come to its end.
                    for piece in self._one_pass(url, group, opened, call):
                        _put(done, piece, call)
                    _put(done, None, call)
                except TransportError as error:
                    _put(done, error, call)
                    return

        count = min(self.connections, len(groups))
        # Daemons: a thread that waits for a dead server must not hold up the end of the program.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            ended = 0
            while ended < len(groups):
                found = _take(done, threads, url)
                if isinstance(found, TransportError):
                    raise found
                if found is None:
                    ended += 1
                else:
                    yield found
        finally:
            call.stop()
            deadline = time.monotonic() + END_SECONDS
            for thread in threads:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))


def _put(
    done: queue.Queue[Found | TransportError], found: Found | TransportError, call: _Call
) -> None:
    while not call.stopped.is_set():
        try:
            done.put(found, timeout=0.2)
        except queue.Full:
            continue
        return


def _take(
    done: queue.Queue[Found | TransportError], threads: Sequence[threading.Thread], url: str
) -> Found | TransportError:
    while True:
        try:
            return done.get(timeout=1.0)
        except queue.Empty:
            if not any(thread.is_alive() for thread in threads) and done.empty():
                raise TransportError(f"{visible(url)}: stopped") from None


def _check_reaches(body: Body, end: int) -> None:
    if body.end is not None and body.end < end:
        raise TransportError(
            f"{visible(body.url)}: expected at least {end} bytes, the file has {body.end}"
        )


def _check_same_file(previous: Body | None, body: Body) -> None:
    """Raise TransportError when the file changed between two connections."""
    if previous is None or previous is body:
        return
    sizes = previous.total is not None and body.total is not None and previous.total != body.total
    if sizes or (previous.etag and body.etag and previous.etag != body.etag):
        raise TransportError(
            f"{visible(body.url)}: the file changed while it was read", hint="start again"
        )
