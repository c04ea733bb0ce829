"""One HTTP answer that was checked before a byte of its body is believed.

Everything here comes from a stranger: statuses, lengths and redirects are compared with what was
asked for, bodies are read in pieces and never past what was asked for. RFC 9110 sections 14 and 15.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import urllib3.exceptions
from requests.auth import AuthBase

from packer.errors import Error
from packer.text import printable
from packer.transport import deadline
from packer.transport.multipart import boundary_of

CHUNK_BYTES = 1 << 18
MAX_REDIRECTS = 5
MAX_URL_CHARACTERS = 8000
"""As much as servers accept (RFC 9110, 4.1)."""

MAX_REASON_CHARACTERS = 80
MAX_CAUSE_CHARACTERS = 200

MAX_OFFSET_BYTES = 1 << 62
"""Larger lengths and offsets in headers are nonsense."""

SLOW_WINDOW_SECONDS = 60.0
SLOW_WINDOW_BYTES = 1 << 14
"""Less than this within the window counts as a stall: the read timeout alone lets one byte every
few seconds go on for ever."""

_ONE = frozenset({200, 206, 416})
"""Statuses that answer a request for one range, or for all."""

_SEVERAL = _ONE | {400, 413, 414, 431, 501}
"""The same for several ranges, which not every server understands."""

_NOT_SHOWN = re.compile(r"(?<=//)[^/]*@|[?#].*", re.DOTALL)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})", re.ASCII)


class TransportError(Error):
    """A server cannot be reached or answers what it must not answer."""


class NotFoundError(TransportError):
    """The server says that it does not have this (404, 410)."""


class ForbiddenError(TransportError):
    """The server does not hand this out (401, 403, 407); some say so of what is not there."""


class Transient(Exception):
    """A failure after which the same request may succeed; never leaves this package."""

    def __init__(self, reason: str, after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """An answer whose headers are right: its body holds the file's bytes from `start`.

    end: where the body ends in the file, None when the server does not say; total: size of the
    file or None; partial: whether the server honoured the range; etag: "" without; boundary: what
    separates the parts of a body that holds several ranges, b"" for one: then only the parts say
    where they begin and end.
    """

    url: str
    response: requests.Response
    start: int
    end: int | None
    total: int | None
    partial: bool
    etag: str
    boundary: bytes = b""

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in pieces as they arrive; a cut or a stall raises Transient."""
        if self.response.status_code == 416:
            return  # nothing is left of the file; this body is a message
        waited_seconds, received = 0.0, 0
        while True:
            started = time.monotonic()
            data = self._read(CHUNK_BYTES)
            waited_seconds += time.monotonic() - started  # not the time that the taker needs
            if not data:
                return
            yield data
            received += len(data)
            if waited_seconds > SLOW_WINDOW_SECONDS:
                if received < SLOW_WINDOW_BYTES:
                    raise Transient(f"only {received} bytes in {waited_seconds:.0f} s")
                waited_seconds, received = 0.0, 0

    def whole(self, max_bytes: int) -> bytes:
        """Return the whole body, read from its start.

        Raises TransportError when it is longer than `max_bytes`, Transient when it breaks off.
        """
        too_long = TransportError(
            f"{visible(self.url)}: expected a body of at most {max_bytes} bytes, found more"
        )
        if self.end is not None and self.end > max_bytes:
            raise too_long
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > max_bytes:
                raise too_long
        if self.end is not None and len(data) != self.end:
            raise Transient(f"the connection ended at byte {len(data)} of {self.end}")
        return bytes(data)

    def check_finished(self) -> None:
        """Raise TransportError when more follows than the headers announced."""
        if self.response.status_code == 206 and self._read(1):
            raise TransportError(f"{visible(self.url)}: the body is longer than its Content-Range")

    def interrupt(self) -> None:
        """Wake a thread that waits for data; its read ends as if the connection were cut."""
        # AttributeError, ValueError, RuntimeError: an older urllib3, nothing to shut down, done.
        raw: Any = self.response.raw
        with suppress(OSError, AttributeError, ValueError, RuntimeError):
            raw.shutdown()
            raw.hang_up()

    def close(self) -> None:
        """Give the connection back, or cut it when the body was not read to its end."""
        self.response.close()

    def _read(self, size: int) -> bytes:
        # read1 hands over what has arrived, so that a cut connection loses nothing.
        with deadline.limited(self.interrupt) as limit:
            try:
                data = bytes(self.response.raw.read1(size, decode_content=False) or b"")
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise Transient(f"the connection broke: {error}") from error
        if limit.expired:  # what came out of a connection that was cut says nothing
            raise Transient(f"nothing usable within {deadline.STEP_SECONDS:g} s")
        return data


class NoAuth(AuthBase):
    """Adds nothing; where it stands, requests does not look into ~/.netrc."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Return the request as it is."""
        return request


class OneHostSession(requests.Session):
    """A session without cookies, retries and hidden redirects; proxies come from the environment.

    requests reads the whole body of a redirect, however long, even when it is told not to follow
    it (Session.send, 2.34); so redirects are followed in `send` below.
    direct_host: is spoken to without a proxy, whatever the environment says.
    """

    def __init__(self, connections: int, *, direct_host: str = "") -> None:
        super().__init__()
        self._direct_host = direct_host
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers.update({"Accept-Encoding": "identity", "User-Agent": "vmpack"})
        adapter = deadline.Adapter(pool_maxsize=connections, max_retries=0)
        for scheme in ("http://", "https://"):
            self.mount(scheme, adapter)

    def resolve_redirects(self, *_: object, **__: object) -> Iterator[requests.Response]:
        """Follow nothing, read nothing."""
        return iter(())

    def merge_environment_settings(
        self, url: str | bytes | None, *arguments: Any, **options: Any
    ) -> Any:
        """Return the settings of one request: what the environment says, but for `direct_host`."""
        settings = super().merge_environment_settings(url, *arguments, **options)
        if self._direct_host and urlsplit(str(url)).hostname == self._direct_host:
            settings["proxies"] = {}
        return settings


def visible(url: str) -> str:
    """Return the URL as it may be shown: without user name, password, query, control characters."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL at all
        return printable(_NOT_SHOWN.sub("", url))
    host = parts.netloc.rpartition("@")[2]
    return printable(urlunsplit((parts.scheme, host, parts.path, "", "")))


def is_address(url: str) -> bool:
    """Return whether this is a URL of a web server."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def origin(url: str) -> str:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def send(
    session: requests.Session,
    url: str,
    headers: dict[str, str],
    timeout_seconds: tuple[float, float],
    *,
    accepted: frozenset[int] = _ONE,
) -> requests.Response:
    """Return the answer after redirects, of an accepted status; its body is unread.

    Raises Transient for what may pass, TransportError for what will not, NotFoundError for 404.
    """
    target, auth = url, None
    for _ in range(MAX_REDIRECTS + 1):
        response = send_once(session, target, headers, timeout_seconds, auth=auth)
        try:
            location = session.get_redirect_target(response)
            if location is None:
                return checked_status(response, url, accepted)
            response.close()
            target = redirected(target, location)
            # ~/.netrc is for the host that somebody named, not for where that one points to.
            same = urlsplit(target).hostname == urlsplit(url).hostname
            auth = None if same else NoAuth()
        except ValueError as error:  # of the redirect's address, whose bytes may be anything
            response.close()
            raise TransportError(f"{visible(url)}: a redirect to nowhere: {error}") from error
    raise TransportError(f"{visible(url)}: more than {MAX_REDIRECTS} redirects")


def send_once(
    session: requests.Session,
    url: str,
    headers: dict[str, str],
    timeout_seconds: tuple[float, float],
    method: str = "GET",
    data: Any = None,
    auth: AuthBase | None = None,
) -> requests.Response:
    """Return the answer to one request, a redirect like any other; its body is unread.

    data: what the request carries. auth: instead of what the session or ~/.netrc have.
    Raises Transient for what may pass, TransportError for what will not.
    """
    try:
        return session.request(
            method,
            url,
            data=data,
            headers=headers,
            auth=auth,
            timeout=timeout_seconds,
            stream=True,
            allow_redirects=False,
        )
    except requests.exceptions.SSLError as error:
        raise TransportError(
            f"{visible(url)}: no trusted connection: {_cause(error)}",
            hint="REQUESTS_CA_BUNDLE names the certificates that are accepted",
        ) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Transient(_cause(error)) from error
    except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationValueError) as error:
        # What it says may be the whole address with its password, or that of the proxy.
        raise TransportError(f"{visible(url)}: this, or its proxy, is no address") from error
    except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
        raise TransportError(f"{visible(url)}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """Return the innermost reason; the outer ones print objects and whole URLs."""
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return printable(str(seen) or type(seen).__name__)[:MAX_CAUSE_CHARACTERS]


def redirected(url: str, location: str) -> str:
    """Return the next URL; a user name and password go along only to the same origin."""
    if len(location) > MAX_URL_CHARACTERS:
        raise TransportError(
            f"{visible(url)}: a redirect to an address of {len(location)} characters, "
            f"expected at most {MAX_URL_CHARACTERS}"
        )
    target = urljoin(url, location)
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or (
        parts.scheme == "http" and urlsplit(url).scheme == "https"
    ):
        raise TransportError(f"{visible(url)}: refused a redirect to {parts.scheme or 'nowhere'}:")
    user = urlsplit(url).netloc.rpartition("@")[0] if origin(target) == origin(url) else ""
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}@{host}" if user else host, fragment=""))


def checked_status(
    response: requests.Response, url: str, accepted: frozenset[int]
) -> requests.Response:
    """Return the answer if its status is accepted; else close it and raise what that means."""
    status = response.status_code
    if status in accepted:
        return response
    response.close()
    reason = f"{status} {printable(response.reason or '')[:MAX_REASON_CHARACTERS]}".rstrip()
    shown = f"{visible(url)}: {reason}"
    if status in (404, 410):
        raise NotFoundError(shown, hint="check the address")
    if status in (401, 403, 407):
        raise ForbiddenError(shown, hint="~/.netrc may hold the user name and password of a host")
    if may_pass(status):
        raise Transient(reason, retry_after(response))
    raise TransportError(shown)


def may_pass(status: int) -> bool:
    """Return whether the same request may succeed after an answer with this status."""
    return status in (408, 425, 429) or status >= 500


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds a server asks us to wait (RFC 9110, 10.2.3), or None."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def open_body(
    session: requests.Session,
    url: str,
    start: int,
    end: int | None,
    timeout_seconds: tuple[float, float],
) -> Body:
    """Ask for the bytes [start, end) of a file (end None: all) and check the answer's headers.

    A server that ignores ranges yields a body with `partial` False and `start` 0; a file that ends
    before `start` one with `start` and `end` at its size.
    """
    headers = {}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"
    response = send(session, url, headers, timeout_seconds)
    try:
        return _checked_body(response, url, start, end)
    except BaseException:
        response.close()
        raise


def open_several(
    session: requests.Session,
    url: str,
    spans: Sequence[tuple[int, int]],
    timeout_seconds: tuple[float, float],
) -> Body | None:
    """Ask for several ranges [start, end) of a file at once.

    Returns None when the server does not do that: it sends the whole file, or says that it cannot.
    It may also send one of them, or one that spans them.
    """
    wanted = ",".join(f"{start}-{end - 1}" for start, end in spans)
    headers = {"Range": f"bytes={wanted}"}
    response = send(session, url, headers, timeout_seconds, accepted=_SEVERAL)
    try:
        if response.status_code != 206:
            response.close()
            return None
        boundary = boundary_of(response.headers.get("Content-Type", ""))
        if boundary:
            _check_identity(response, url)
            etag = response.headers.get("ETag", "")[:256]
            return Body(url, response, 0, None, None, True, etag, boundary)
        first, last, _ = _content_range(response, url)
        return _checked_body(response, url, first, last + 1)
    except BaseException:
        response.close()
        raise


def _check_identity(response: requests.Response, url: str) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise TransportError(
            f"{visible(url)}: the server compresses although it was asked not to",
            hint="switch compression off for this directory",
        )


def _checked_body(response: requests.Response, url: str, start: int, end: int | None) -> Body:
    _check_identity(response, url)
    length = _content_length(response, url)
    etag = response.headers.get("ETag", "")[:256]
    if response.status_code == 416:
        found = _UNSATISFIED.fullmatch(response.headers.get("Content-Range", ""))
        if found is None:
            raise TransportError(f"{visible(url)}: the file has no byte {start}")
        size = int(found[1])
        return Body(url, response, size, size, size, True, etag)
    if response.status_code == 200:
        return Body(url, response, 0, length, length, False, etag)
    first, last, total = _content_range(response, url)
    if first != start or (end is not None and last + 1 != end):
        raise TransportError(
            f"{visible(url)}: expected bytes {start} to {end or 'the end'}, "
            f"Content-Range has {first} to {last + 1} of {total}"
        )
    if length is not None and length != last + 1 - first:
        raise TransportError(
            f"{visible(url)}: Content-Range means {last + 1 - first} bytes, Content-Length {length}"
        )
    return Body(url, response, first, last + 1, total, True, etag)


def plain_body(response: requests.Response, url: str) -> Body:
    """Return the body of an answer that is no part of a file. Raises TransportError."""
    length = _content_length(response, url)
    return Body(url, response, 0, length, length, False, "")


def _content_length(response: requests.Response, url: str) -> int | None:
    """Return how long the body is to be, bytes, or None when the headers do not say."""
    value = response.headers.get("Content-Length")
    if value is None:
        return None
    if (
        not (value.isascii() and value.isdigit())
        or len(value) > 19
        or int(value) > MAX_OFFSET_BYTES
    ):
        raise TransportError(f"{visible(url)}: Content-Length {value[:40]!r} is no length")
    return int(value)


def _content_range(response: requests.Response, url: str) -> tuple[int, int, int | None]:
    """Return first byte, last byte and the file's size (RFC 9110, 14.4)."""
    value = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(value)
    if found is None:
        raise TransportError(f"{visible(url)}: Content-Range {value[:60]!r} is not one byte range")
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if not first <= last < MAX_OFFSET_BYTES or (total is not None and last >= total):
        raise TransportError(f"{visible(url)}: Content-Range {value[:60]!r} contradicts itself")
    return first, last, total
