"""One blob on its way into a registry: in chunks that go on where they broke, or in one piece.

A registry says how much it has kept; where it has forgotten the upload (docker's does when a chunk
breaks in the middle) the blob begins again. Reference: OCI distribution-spec 1.1, "Pushing blobs".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote, urlsplit, urlunsplit

from packer.progress import Advance
from packer.transport.registry_http import Answer, Expired, RefusedError, RegistryHttp, Sending
from packer.transport.response import NotFoundError, Transient, TransportError, visible

CHUNK_BYTES = 16 << 20
"""What is lost at most when a line breaks; object stores want parts of at least 5 MiB."""

MAX_CHUNK_BYTES = 256 << 20
"""A registry that wants longer ones is given the blob in one piece."""

LEAST_KEPT = 16
"""A registry that keeps less than this part of a chunk does not want chunks."""

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})", re.ASCII)
_LENGTH = re.compile(r"\d{1,19}", re.ASCII)


class Upload:
    """Puts one blob into a repository.

    url: its "…/blobs/uploads/". read: returns the blob's bytes by (offset, length), from front to
    back, and again from any byte after a failure. arrived: whether the registry has the blob.
    location: of an upload that the registry has begun already, or "".
    """

    def __init__(
        self,
        http: RegistryHttp,
        url: str,
        digest: str,
        size: int,
        *,
        read: Callable[[int, int], bytes],
        arrived: Callable[[], bool],
        advance: Advance,
        location: str = "",
    ) -> None:
        self._http = http
        self._url = url
        self._digest = digest
        self._size = size
        self._read = read
        self._arrived = arrived
        self._advance = advance
        self._location = location
        self._certain = True
        self._position = 0
        self._shown = 0
        self._chunk = CHUNK_BYTES

    def in_chunks(self) -> None:
        """Send chunk by chunk; raise RefusedError when the registry will not have it so."""
        try:
            self._until_done(self._send_chunks)
        except (RefusedError, NotFoundError) as error:
            self._location = ""  # nothing more of it goes there
            raise RefusedError(str(error)) from error

    def in_one_piece(self) -> None:
        """Send everything in one request, from the start."""
        self._until_done(self._send_whole)

    def _until_done(self, send: Callable[[], None]) -> None:
        attempts = self._http.attempts(self._url)
        best = 0
        while True:
            try:
                send()
            except Transient as error:
                self._certain = False
                if self._position > best:
                    best, attempts.count = self._position, 0
                attempts.failed(error)
            else:
                return
            if self._arrived():  # only the answer was lost
                self._show(self._size)
                return

    def _send_chunks(self) -> None:
        if not self._location:
            self._begin()
        elif not self._certain:
            self._ask_position()
        while self._size - self._position > self._chunk:
            self._patch()
        self._put()

    def _send_whole(self) -> None:
        if not self._location or not self._certain or self._position:
            self._begin()
        self._put()

    def _begin(self) -> None:
        answer = self._http.exchange_once("POST", self._url)
        self._expect(answer, 202)
        self._position = 0
        self._take_location(answer)
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        if _LENGTH.fullmatch(least) and int(least) > self._chunk:
            if int(least) > MAX_CHUNK_BYTES:
                raise RefusedError(f"{visible(self._url)}: wants chunks of {least} bytes")
            self._chunk = int(least)

    def _ask_position(self) -> None:
        """Go on where the registry says, or begin again when it has forgotten."""
        try:
            answer = self._http.exchange_once("GET", self._location)
        except (NotFoundError, RefusedError, Expired):
            self._begin()
            return
        self._expect(answer, 200, 202, 204)
        self._position = self._stored(answer, self._size) or 0
        self._take_location(answer)

    def _patch(self) -> None:
        start, end = self._position, self._position + self._chunk
        answer = self._http.exchange_once(
            "PATCH", self._location, _headers(start, end), self._sending(start, end)
        )
        self._expect(answer, 200, 201, 202, 204)
        stored = self._stored(answer, end)
        if stored is not None and stored < start + self._chunk // LEAST_KEPT:
            raise RefusedError(f"{visible(self._location)}: keeps next to nothing of a chunk")
        self._position = end if stored is None else stored
        self._take_location(answer)

    def _put(self) -> None:
        start = self._position
        parts = urlsplit(self._location)
        query = "&".join(filter(None, (parts.query, f"digest={quote(self._digest, safe='')}")))
        self._certain = False  # what of this arrives without an answer, the registry must say
        answer = self._http.exchange_once(
            "PUT",
            urlunsplit(parts._replace(query=query)),
            _headers(start, self._size),
            self._sending(start, self._size),
        )
        self._expect(answer, 200, 201, 204)
        named = answer.headers.get("Docker-Content-Digest", self._digest)
        if named != self._digest:
            raise TransportError(
                f"{visible(self._url)}: expected to be told {self._digest}, found {named!r:.100}"
            )
        self._show(self._size)

    def _sending(self, start: int, end: int) -> Sending:
        return Sending(
            end - start,
            lambda offset, length: self._read(start + offset, length),
            lambda count: self._show(start + count),
        )

    def _show(self, position: int) -> None:
        """Tell how far it is; what has to be sent again is not counted twice."""
        if position > self._shown:
            self._advance(position - self._shown)
            self._shown = position

    def _stored(self, answer: Answer, most: int) -> int | None:
        """Return how many bytes the registry says it has, None when it does not say."""
        value = answer.headers.get("Range", "")
        if not value:
            return None
        found = _RANGE.fullmatch(value)
        if found is None or int(found[1]) + 1 > max(most, 1):
            raise TransportError(
                f"{visible(answer.url)}: expected a range of at most {most} bytes from 0, "
                f"found {value!r:.60}"
            )
        return int(found[1]) + 1 if int(found[1]) else 0  # registries say "0-0" of nothing

    def _take_location(self, answer: Answer) -> None:
        self._location = self._http.location(answer) or self._location
        if not self._location:
            raise TransportError(f"{visible(answer.url)}: does not say where to upload to")
        self._certain = True

    def _expect(self, answer: Answer, *statuses: int) -> None:
        if answer.status not in statuses:
            expected = " or ".join(map(str, statuses))
            raise RefusedError(
                f"{visible(answer.url)}: expected status {expected}, found {answer.status}"
            )


def _headers(start: int, end: int) -> dict[str, str]:
    """Return the headers of the bytes [start, end) of a blob; of all of it no range is said."""
    headers = {"Content-Type": "application/octet-stream"} if end > start else {}
    if start and end > start:
        headers["Content-Range"] = f"{start}-{end - 1}"
    return headers
