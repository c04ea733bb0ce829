"""An answer that holds several ranges of a file: multipart/byteranges (RFC 9110, 14.6).

    [preamble CRLF] --BOUNDARY CRLF headers CRLF CRLF data
               CRLF --BOUNDARY CRLF headers CRLF CRLF data … CRLF --BOUNDARY-- [epilogue]

Everything here comes from a stranger. Headers, preamble and epilogue are bounded, a part's data is
as long as its Content-Range says and goes past without being gathered.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

MAX_HEADER_BYTES = 2048
"""Of one part; servers send about 80 bytes."""

MAX_FILLING_BYTES = 2048
"""Of preamble and epilogue each, which mean nothing."""

MAX_OFFSET_BYTES = 1 << 62
_BOUNDARY = re.compile(
    r"""multipart/byteranges\s*;(?:[^"]*;)?\s*boundary=(?:"([^"\\]{1,200})"|([^\s;"]{1,200}))""",
    re.IGNORECASE,
)
_CONTENT_RANGE = re.compile(
    rb"^content-range:[ \t]*bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


class MultipartError(Exception):
    """The answer breaks the rules of its format, or ends early; never leaves this package."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [start, end) of a file of `total` bytes (None: the server does not say)."""

    start: int
    end: int
    total: int | None
    chunks: Iterator[bytes]
    """The part's bytes as they arrive. Raises MultipartError when they end early."""


def boundary_of(content_type: str) -> bytes:
    """Return what separates the parts of an answer of this type, b"" if it has no parts."""
    found = _BOUNDARY.match(content_type)
    return (found[1] or found[2]).encode("latin-1") if found else b""


def read_parts(chunks: Iterator[bytes], boundary: bytes, most_parts: int) -> Iterator[Part]:
    """Yield the parts of a body in the order in which they come.

    Each part's chunks are read before the next part is asked for; what is left of them is passed
    over. Raises MultipartError for a body that breaks the rules, ends early or has more than
    `most_parts`.
    """
    stream = _Stream(chunks)
    _open_first(stream, b"--" + boundary)
    for _ in range(most_parts):
        part = _part(stream)
        yield part
        for _ in part.chunks:
            pass
        if stream.take(len(boundary) + 4) != b"\r\n--" + boundary:
            raise MultipartError("a part is longer than its Content-Range, or ends wrongly")
        if _is_last(stream):
            stream.finish()
            return
    raise MultipartError(f"more than {most_parts} parts")


class _Stream:
    """Bytes that arrive in chunks, taken in other pieces; holds about one chunk."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._data = bytearray()

    def take(self, length: int) -> bytes:
        """Return exactly `length` bytes."""
        while len(self._data) < length:
            self._more()
        taken = bytes(self._data[:length])
        del self._data[:length]
        return taken

    def take_until(self, mark: bytes, most_bytes: int) -> bytes:
        """Return what comes before `mark`, which is passed over."""
        while (place := self._data.find(mark)) < 0:
            if len(self._data) > most_bytes:
                raise MultipartError(f"no {mark!r} within {most_bytes} bytes")
            self._more()
        if place > most_bytes:
            raise MultipartError(f"no {mark!r} within {most_bytes} bytes")
        return self.take(place + len(mark))[:place]

    def stream(self, length: int) -> Generator[bytes, None, None]:
        """Yield the next `length` bytes as they come."""
        while length:
            if not self._data:
                self._more()
            data = self.take(min(length, len(self._data)))
            length -= len(data)
            yield data

    def finish(self) -> None:
        """Read a short rest, so that the connection can be used again."""
        rest = len(self._data)
        for data in self._chunks:
            rest += len(data)
            if rest > MAX_FILLING_BYTES:
                return  # not worth reading: the connection is closed

    def _more(self) -> None:
        data = next(self._chunks, b"")
        if not data:
            raise MultipartError("the answer ends between two parts or within one")
        self._data += data


def _open_first(stream: _Stream, delimiter: bytes) -> None:
    """Pass over the preamble and the first delimiter, which stands at the start of a line."""
    preamble = stream.take_until(delimiter, MAX_FILLING_BYTES)
    if preamble and not preamble.endswith(b"\r\n"):
        raise MultipartError("no part begins where one should")
    if _is_last(stream):
        raise MultipartError("no part at all")


def _is_last(stream: _Stream) -> bool:
    """Read what follows a delimiter; return whether it was the last one."""
    mark = stream.take(2)
    if mark == b"--":
        return True
    if mark != b"\r\n":
        raise MultipartError("a delimiter does not end its line")
    return False


def _part(stream: _Stream) -> Part:
    """Read a part's headers, of which only Content-Range counts."""
    headers = stream.take_until(b"\r\n\r\n", MAX_HEADER_BYTES).replace(b"\r\n", b"\n")
    found = _CONTENT_RANGE.findall(headers)
    if len(found) != 1:
        raise MultipartError(f"a part has {len(found)} Content-Range headers, expected one")
    first, last = int(found[0][0]), int(found[0][1])
    total = None if found[0][2] == b"*" else int(found[0][2])
    if not first <= last < MAX_OFFSET_BYTES or (total is not None and last >= total):
        raise MultipartError("a part's Content-Range contradicts itself")
    return Part(first, last + 1, total, stream.stream(last + 1 - first))
