"""A client for files that do not change, over HTTP: ranges, several connections, resumption.

Bodies are bounded by what was asked for; a cut connection is taken up again at the byte that was
reached. Several ranges travel in one request where the server understands that (RFC 9110, 14.2);
where it does not, each costs one. Nothing is verified here: who asked compares digests.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Self

from packer.transport.calls import Attempts, Call, in_parallel
from packer.transport.multipart import MultipartError, Part, read_parts
from packer.transport.ranges import (
    GAP_BYTES,
    MOST_RANGES,
    PART_BYTES,
    Asked,
    batches,
    bounds,
    cut_ranges,
    gap_of,
    join_ranges,
    within,
)
from packer.transport.response import (
    Body,
    ForbiddenError,
    NotFoundError,
    OneHostSession,
    Transient,
    TransportError,
    open_body,
    open_several,
    origin,
    visible,
)

__all__ = ["Client", "ForbiddenError", "NotFoundError", "OtherSizeError", "TransportError"]

ATTEMPTS = 5
PROGRESS_BYTES = 1 << 16
"""A connection that brought this much before it broke starts a new count of attempts."""

BACK_OFF_SECONDS = 0.5
TIMEOUT_SECONDS = (10.0, 30.0)
"""To connect; between two arrivals of data."""

Found = tuple[int, bytes]
"""(row of what was asked for, its bytes)."""


class OtherSizeError(TransportError):
    """A file has another size than it should have: it is another file."""


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
        session: OneHostSession | None = None,
    ) -> None:
        self.connections = max(1, connections)
        self.attempts = attempts
        self.back_off_seconds = back_off_seconds
        self.timeout_seconds = timeout_seconds
        self._session = session or OneHostSession(self.connections)
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self._received_bytes = 0
        self._honours_ranges: set[str] = set()
        self._ranges_at_once: dict[str, int] = {}
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

    def get_file(self, url: str, size: int) -> Generator[bytes, None, None]:
        """Yield a whole file of exactly `size` bytes as it arrives.

        Raises OtherSizeError before anything is yielded where the server says how large it is,
        NotFoundError, TransportError; what was yielded before stands.
        """
        with self._call() as call:
            body = self._open(url, 0, None, call)
            if body.total not in (None, size):
                call.closed(body)
                raise OtherSizeError(f"{visible(url)}: expected {size} bytes, found {body.total}")
            with closing(self._stream(url, 0, size, call, body)) as chunks:
                yield from chunks

    def get_ranges(
        self, url: str, ranges: Sequence[tuple[int, int]]
    ) -> Generator[tuple[int, bytes], None, None]:
        """Yield (row, bytes) for each (offset, length), in any order.

        Many travel in one request, requests over several connections. From a server that ignores
        ranges the file is read once, front to back, for all of them.
        Raises NotFoundError, TransportError; what was yielded before stands.
        """
        if any(offset < 0 or length < 0 for offset, length in ranges):
            raise ValueError("ranges are of at least 0 bytes at offsets of at least 0")
        yield from ((row, b"") for row, (_, length) in enumerate(ranges) if length == 0)
        asked = sorted((o, o + length, row) for row, (o, length) in enumerate(ranges) if length)
        if not asked:
            return
        with self._call() as call:
            if url in self._ignores_ranges:
                yield from self._one_pass(url, asked, None, call)
            else:
                yield from self._in_batches(url, asked, call)

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
    def _call(self) -> Iterator[Call]:
        call = Call()
        with self._lock:
            self._calls.add(call)
        try:
            yield call
        finally:
            call.stop()
            with self._lock:
                self._calls.discard(call)

    def _attempts(self, url: str, call: Call) -> Attempts:
        return Attempts(url, call, self.back_off_seconds, self.attempts)

    def _count(self, received: int) -> None:
        with self._lock:
            self._received_bytes += received

    def _open(self, url: str, start: int, end: int | None, call: Call) -> Body:
        """Return an answer with right headers, after as many attempts as it takes."""
        attempts = self._attempts(url, call)
        return attempts.until_done(lambda: self._open_once(url, start, end, call))

    def _open_once(self, url: str, start: int, end: int | None, call: Call) -> Body:
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
        self, url: str, start: int, end: int | None, call: Call, body: Body | None = None
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
        self, url: str, asked: Sequence[Asked], body: Body | None, call: Call
    ) -> Iterator[Found]:
        start, end = bounds(asked)
        with closing(self._stream(url, start, end, call, body)) as chunks:
            yield from cut_ranges(chunks, start, asked)

    def _in_batches(self, url: str, asked: Sequence[Asked], call: Call) -> Iterator[Found]:
        """Fetch what is asked for with as many requests as it is worth, over all connections."""
        jobs: list[tuple[Sequence[Asked], Body | None]] = []
        if origin(url) not in self._honours_ranges:
            # The first answer decides how the rest is asked for; its body is used either way.
            first = batches(asked, MOST_RANGES, self.connections)[0]
            first = within(first, *join_ranges(first, PART_BYTES)[0])
            body = self._open(url, *bounds(first), call)
            if not body.partial:
                yield from self._one_pass(url, asked, body, call)
                return
            jobs.append((first, body))
            asked = asked[len(first) :]
        rest = batches(asked, self._most_ranges(url), self.connections)
        jobs.extend((batch, None) for batch in rest)

        def work(job: tuple[Sequence[Asked], Body | None]) -> Iterator[Found]:
            return self._batch(url, *job, call)

        if len(jobs) == 1:
            yield from work(jobs[0])
        else:
            yield from in_parallel(jobs, work, call, self.connections, url)

    def _batch(
        self, url: str, asked: Sequence[Asked], body: Body | None, call: Call
    ) -> Iterator[Found]:
        """Fetch what is meant to travel in one request; `body`: the answer, if it is open already.

        What an answer does not bring is asked for again, in fewer ranges at once.
        """
        if body is not None:
            yield from self._one_pass(url, asked, body, call)
            return
        attempts = self._attempts(url, call)
        todo = deque([asked])
        while todo:
            now, *later = batches(todo.popleft(), self._most_ranges(url), 1)
            todo.extendleft(reversed(later))
            if len(join_ranges(now, gap_of(self._most_ranges(url)))) == 1:
                yield from self._one_pass(url, now, None, call)
                continue
            came: set[int] = set()
            try:
                for row, data in self._several(url, now, call):
                    if row not in came:
                        came.add(row)
                        yield row, data
            except Transient as error:
                if came:
                    attempts.count = 0
                attempts.failed(error)
            missing = [one for one in now if one[2] not in came]
            if missing and not came:
                # A connection that never lives long enough for a whole range gets on byte by byte.
                first = batches(missing, 1, 1)[0]
                yield from self._one_pass(url, first, None, call)
                missing = missing[len(first) :]
            if missing:
                todo.appendleft(missing)

    def _several(self, url: str, asked: Sequence[Asked], call: Call) -> Iterator[Found]:
        """Yield what one request for several ranges brings, which may be less, or something twice.

        Raises Transient when the connection breaks.
        """
        spans = join_ranges(asked, PART_BYTES)
        answer = self._open_several(url, spans, call)
        if answer is None:
            self._lower_ranges(url, 1)
            return
        # Servers may join ranges, send fewer, or in another order (RFC 9110, 15.3.7.2).
        allowed = sum(end - start for start, end in spans) + GAP_BYTES * len(spans)
        parts = brought = 0
        try:
            for part in self._parts(answer, len(spans)):
                allowed -= part.end - part.start
                if allowed < 0:
                    raise MultipartError("much more than was asked for")
                inside = within(asked, part.start, part.end)
                yield from cut_ranges(part.chunks, part.start, inside)
                parts, brought = parts + 1, brought + len(inside)
        except MultipartError:
            self._lower_ranges(url, 1)
        else:
            if brought < len(asked):
                self._lower_ranges(url, min(parts, len(spans) - 1))
        finally:
            call.closed(answer)

    def _parts(self, answer: Body, most_parts: int) -> Iterator[Part]:
        """Yield the parts of an answer to a request for several ranges; all of it is counted."""
        if not answer.boundary:
            assert answer.end is not None  # the headers have named it
            chunks = self._wanted(answer, answer.start, answer.end)
            yield Part(answer.start, answer.end, answer.total, chunks)
            return
        yield from read_parts(self._counted(answer), answer.boundary, most_parts)

    def _counted(self, body: Body) -> Iterator[bytes]:
        for chunk in body.chunks():
            self._count(len(chunk))
            yield chunk

    def _open_several(self, url: str, spans: Sequence[tuple[int, int]], call: Call) -> Body | None:
        """Ask for several ranges at once; None when the server does not do that."""
        if call.stopped.is_set():
            raise TransportError(f"{visible(url)}: stopped")
        body = open_several(self._session, url, spans, self.timeout_seconds)
        if body is not None:
            call.opened(body)
        return body

    def _most_ranges(self, url: str) -> int:
        return self._ranges_at_once.get(origin(url), MOST_RANGES)

    def _lower_ranges(self, url: str, count: int) -> None:
        """Note that this server answers no more than so many ranges at once."""
        with self._lock:
            known = self._ranges_at_once.get(origin(url), MOST_RANGES)
            self._ranges_at_once[origin(url)] = min(known, max(1, count))


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
