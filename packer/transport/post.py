"""A client for questions by POST, to one server that knows us by a token.

No redirects, no proxies, no ~/.netrc: the token and the questions are for this server only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from packer.transport.calls import Attempts, Call
from packer.transport.response import (
    Body,
    ForbiddenError,
    OneHostSession,
    Transient,
    TransportError,
    checked_status,
    content_length,
    send_once,
    visible,
)

ATTEMPTS = 4
BACK_OFF_SECONDS = 0.3
TIMEOUT_SECONDS = (5.0, 30.0)
"""To connect, which is near; between two arrivals of data."""

_ACCEPTED = frozenset({200})


class Poster:
    """Asks one server. May be used from several threads.

    url: "http://host:port" or "https://host:port". certificate: a PEM file; whoever proves to be
    one of those in it is the server. None: whoever the host's certificates vouch for.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        certificate: Path | None = None,
        connections: int = 2,
        attempts: int = ATTEMPTS,
        back_off_seconds: float = BACK_OFF_SECONDS,
        timeout_seconds: tuple[float, float] = TIMEOUT_SECONDS,
    ) -> None:
        self.url = url
        self.connections = connections
        self._attempts = attempts
        self._back_off_seconds = back_off_seconds
        self._timeout_seconds = timeout_seconds
        self._session = _DirectSession(connections, token, certificate)
        self._lock = threading.Lock()
        self._calls: set[Call] = set()

    def post(self, path: str, data: bytes, most_bytes: int) -> bytes:
        """Return the whole answer, at most `most_bytes`. Raises TransportError."""
        call = Call()
        with self._lock:
            self._calls.add(call)
        attempts = Attempts(self.url, call, self._back_off_seconds, self._attempts)
        try:
            while True:
                try:
                    return self._post_once(path, data, most_bytes, call)
                except Transient as error:
                    attempts.failed(error)
        finally:
            call.stop()
            with self._lock:
                self._calls.discard(call)

    def close(self) -> None:
        """Call off what other threads still do, give the connections back."""
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.stop()
        self._session.close()

    def _post_once(self, path: str, data: bytes, most_bytes: int, call: Call) -> bytes:
        url = f"{self.url}{path}"
        if call.stopped.is_set():
            raise TransportError(f"{visible(url)}: stopped")
        headers = {"Content-Type": "application/octet-stream"}
        response = send_once(self._session, url, headers, self._timeout_seconds, "POST", data)
        try:
            length = _length(checked_status(response, url, _ACCEPTED), url, most_bytes)
        except ForbiddenError as error:
            raise ForbiddenError(str(error), hint="is the token that of this server?") from error
        body = Body(url, response, 0, length, length, False, "")
        call.opened(body)
        try:
            return _whole(body, length)
        finally:
            call.closed(body)


class _DirectSession(OneHostSession):
    """A session with one server, whose token goes with every request."""

    def __init__(self, connections: int, token: str, certificate: Path | None) -> None:
        super().__init__(connections)
        self._certificate = certificate
        self.auth: Callable[[requests.PreparedRequest], requests.PreparedRequest] = _Bearer(token)

    def merge_environment_settings(self, *arguments: Any, **options: Any) -> Any:
        """Return the settings of one request; of the environment only whom to believe."""
        settings = super().merge_environment_settings(*arguments, **options)
        settings["proxies"] = {}
        if self._certificate is not None:
            settings["verify"] = str(self._certificate)
        return settings


class _Bearer(requests.auth.AuthBase):
    """The token as a header; a session that has this looks for no other password."""

    def __init__(self, token: str) -> None:
        self._value = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


def _length(response: requests.Response, url: str, most_bytes: int) -> int:
    try:
        length = content_length(response, url)
        if length is None or length > most_bytes:
            raise TransportError(
                f"{visible(url)}: expected an answer of at most {most_bytes} bytes, found "
                + ("one without a length" if length is None else f"{length}")
            )
    except BaseException:
        response.close()
        raise
    return length


def _whole(body: Body, length: int) -> bytes:
    data = bytearray()
    for chunk in body.chunks():
        data += chunk
        if len(data) > length:
            raise TransportError(f"{visible(body.url)}: more bytes than the headers announce")
    if len(data) < length:
        raise Transient(f"the connection ended at byte {len(data)} of {length}")
    return bytes(data)
