"""Requests to one registry: where it is, who we are there, what its answers mean.

Credentials go to the registry's own origin and to no other; where it points to for blobs and
uploads is asked without. Bodies and headers are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import msgspec
import requests

from packer.text import printable
from packer.transport.calls import Attempts, Call
from packer.transport.credentials import find_credentials
from packer.transport.http import ATTEMPTS, BACK_OFF_SECONDS, TIMEOUT_SECONDS, Client
from packer.transport.registry_auth import LOGIN_HINT, Authenticator
from packer.transport.registry_reference import Reference
from packer.transport.response import (
    MAX_REDIRECTS,
    ForbiddenError,
    NoAuth,
    NotFoundError,
    OneHostSession,
    Transient,
    TransportError,
    may_pass,
    origin,
    plain_body,
    redirected,
    retry_after,
    send_once,
    visible,
)

MAX_ERROR_BYTES = 16 << 10
MAX_ANSWER_BYTES = 64 << 10
PIECE_BYTES = 1 << 18
_PORTS = {"http": 80, "https": 443}
EXPIRED_STATUS = (400, 401, 403, 404, 410)
"""What object stores say to an address whose signature has run out (400 also to several ranges)."""


class RefusedError(TransportError):
    """The registry understands the request and does not want it."""


class Expired(Transient):
    """Where the registry points to, this address is not or no longer valid; it may name another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with a status of 200 to 399, and its body."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Sending:
    """What a request carries, piece by piece, from the start whenever it is sent again.

    size: bytes, more than 0. piece: returns them by (offset, length). sent: told how many went.
    """

    size: int
    piece: Callable[[int, int], bytes]
    sent: Callable[[int], None] = field(default=lambda _: None)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        for offset in range(0, self.size, PIECE_BYTES):
            length = min(PIECE_BYTES, self.size - offset)
            yield self.piece(offset, length)
            self.sent(offset + length)


class _Session(OneHostSession):
    """A session that meets the registry's challenges, and has nothing for other hosts."""

    def __init__(
        self, connections: int, registry: str, authenticator: Authenticator, direct_host: str
    ) -> None:
        super().__init__(connections, direct_host=direct_host)
        self.auth = NoAuth()
        self._registry = _place(registry)
        self._authenticator = authenticator

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Return the answer to a request; a refusal of our credentials raises ForbiddenError."""
        url = request.url or ""
        if _place(url) != self._registry:
            return self._send_elsewhere(request, **options)
        header = self._authenticator.header()
        response = self._send_as(header, request, **options)
        if response.status_code == 401:
            challenges = response.headers.get("WWW-Authenticate", "")
            response.close()
            header = self._authenticator.answer(challenges, header)
            response = self._send_as(header, request, **options)
        if response.status_code in (401, 403):
            reason = reason_of(response, url)
            response.close()
            raise ForbiddenError(
                f"{visible(url)}: refused {self._authenticator.user()}: {reason}", hint=LOGIN_HINT
            )
        return response

    def _send_as(
        self, header: str | None, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        if header is not None:
            request.headers["Authorization"] = header
        return super().send(request, **options)

    def _send_elsewhere(
        self, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        response = super().send(request, **options)
        several = response.status_code == 400 and "," in str(request.headers.get("Range", ""))
        if response.status_code in EXPIRED_STATUS and not several:
            response.close()
            raise Expired(
                f"{origin(request.url or '')}, where the registry points to, "
                f"answers {response.status_code}"
            )
        return response


class RegistryHttp:
    """One registry, with the rights that `scopes` name. May be used from several threads."""

    def __init__(
        self,
        reference: Reference,
        scopes: Sequence[str],
        *,
        attempts: int = ATTEMPTS,
        back_off_seconds: float = BACK_OFF_SECONDS,
        timeout_seconds: tuple[float, float] = TIMEOUT_SECONDS,
        connections: int = 4,
    ) -> None:
        self._attempts = attempts
        self._back_off_seconds = back_off_seconds
        self._timeout_seconds = timeout_seconds
        self.root = _root(reference, timeout_seconds)
        # No proxy stands between this host and itself; it would read what is sent without TLS.
        direct_host = (urlsplit(self.root).hostname or "") if reference.loopback else ""
        self._authenticator = Authenticator(
            self.root,
            scopes,
            lambda: find_credentials(reference.host, reference.repository),
            timeout_seconds,
            direct_host=direct_host,
        )
        self._session = _Session(connections, self.root, self._authenticator, direct_host)
        self.client = Client(
            connections=connections,
            attempts=attempts,
            back_off_seconds=back_off_seconds,
            timeout_seconds=timeout_seconds,
            session=self._session,
        )

    def add_scope(self, scope: str) -> None:
        """Ask for one right more from now on."""
        self._authenticator.add_scope(scope)

    def attempts(self, url: str) -> Attempts:
        """Return a new count of attempts at something."""
        return Attempts(url, Call(), self._back_off_seconds, self._attempts)

    def exchange(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
        *,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """Return the answer to a request that may be sent twice, after as many as it takes.

        Raises NotFoundError, ForbiddenError, RefusedError, TransportError.
        """
        return self.attempts(url).until_done(
            lambda: self.exchange_once(method, url, headers, data, max_bytes=max_bytes)
        )

    def exchange_once(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        data: bytes | Sending | None = None,
        *,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """Return the answer to one request; raise Transient when it may succeed next time."""
        response = send_once(
            self._session, url, headers or {}, self._timeout_seconds, method, data or None
        )
        try:
            _check_status(response, url)
            body = b"" if method == "HEAD" else plain_body(response, url).whole(max_bytes)
            return Answer(response.status_code, url, response.headers, body)
        finally:
            response.close()

    def fetch(self, url: str, headers: dict[str, str] | None = None, *, max_bytes: int) -> Answer:
        """Return what lies at an address of the registry, or where it says that it lies."""
        at = url
        for _ in range(MAX_REDIRECTS + 1):
            answer = self.exchange("GET", at, headers, max_bytes=max_bytes)
            if answer.status == 200:
                return answer
            at = self.location(answer) if answer.status >= 300 else ""
            if not at:
                raise TransportError(f"{visible(url)}: expected status 200, found {answer.status}")
        raise TransportError(f"{visible(url)}: more than {MAX_REDIRECTS} redirects")

    def location(self, answer: Answer) -> str:
        """Return where an answer says to go on, "" when it does not say.

        Raises TransportError for an address that nothing may be sent to.
        """
        value = answer.headers.get("Location", "")
        if not value:
            return ""
        try:
            return redirected(answer.url, self._with_tls(urljoin(answer.url, value)))
        except ValueError as error:
            raise TransportError(f"{visible(answer.url)}: sends us nowhere: {error}") from error

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()
        self._authenticator.close()

    def _with_tls(self, url: str) -> str:
        """Return the address with TLS where a registry behind a TLS proxy forgot about it."""
        here, parts = urlsplit(self.root), urlsplit(url)
        if here.scheme == "https" and parts.scheme == "http" and parts.hostname == here.hostname:
            return urlunsplit(parts._replace(scheme="https", netloc=here.netloc))
        return url


def reason_of(response: requests.Response, url: str) -> str:
    """Return why a registry refuses: status, and what its error document says first.

    Reference: distribution-spec 1.1, "Error Codes".
    """
    reason = f"{response.status_code} {printable(response.reason or '')[:80]}".rstrip()
    try:
        text = plain_body(response, url).whole(MAX_ERROR_BYTES)
        found = msgspec.json.decode(text, type=_Errors)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Transient, TransportError):
        return reason
    for one in found.errors[:1]:
        reason += f", {printable(f'{one.code} {one.message}')[:200]}".rstrip()
    return reason


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def _place(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL: what credentials are bound to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def _check_status(response: requests.Response, url: str) -> None:
    """Raise the error that a status of 400 or more means."""
    status = response.status_code
    if status < 400:
        return
    reason = reason_of(response, url)
    shown = f"{visible(url)}: {reason}"
    if status in (404, 410):
        raise NotFoundError(shown)
    if may_pass(status) and status != 501:
        raise Transient(reason, retry_after(response))
    raise RefusedError(shown)


def _root(reference: Reference, timeout_seconds: tuple[float, float]) -> str:
    """Return the origin of the registry's API.

    TLS everywhere, but where the user says otherwise, and on this very host if the registry there
    has none.
    """
    plain, secure = (f"{scheme}://{reference.api_host}" for scheme in ("http", "https"))
    if reference.plain_http:
        return plain
    if not reference.loopback:
        return secure
    with OneHostSession(1, direct_host=urlsplit(plain).hostname or "") as session:
        session.auth = NoAuth()
        try:
            response = send_once(session, f"{plain}/v2/", {}, timeout_seconds)
        except (Transient, TransportError):
            return secure
        response.close()
    # A server of TLS that is spoken to without answers 400, or nothing.
    return secure if response.status_code == 400 else plain
