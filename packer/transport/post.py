"""A client for questions by POST, to one server that knows us by a token.

No redirects, no proxies, no ~/.netrc: the token and the questions are for this server only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from packer.transport.calls import Attempts, Call
from packer.transport.response import (
    ForbiddenError,
    OneHostSession,
    TransportError,
    checked_status,
    plain_body,
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
        self._session = _Session(connections, url, token, certificate)
        self._lock = threading.Lock()
        self._calls: set[Call] = set()

    def post(self, path: str, data: bytes, most_bytes: int) -> bytes:
        """Return the whole answer, at most `most_bytes`. Raises TransportError."""
        call = Call()
        with self._lock:
            self._calls.add(call)
        attempts = Attempts(self.url, call, self._back_off_seconds, self._attempts)
        try:
            return attempts.until_done(lambda: self._post_once(path, data, most_bytes, call))
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
            checked_status(response, url, _ACCEPTED)
            body = plain_body(response, url)
        except ForbiddenError as error:
            raise ForbiddenError(str(error), hint="is the token that of this server?") from error
        except TransportError:
            response.close()
            raise
        call.opened(body)
        try:
            return body.whole(most_bytes)
        finally:
            call.closed(body)


class _Session(OneHostSession):
    """A session with one server, whose token goes with every request."""

    def __init__(self, connections: int, url: str, token: str, certificate: Path | None) -> None:
        super().__init__(connections, direct_host=urlsplit(url).hostname or "")
        self._certificate = certificate
        self.auth: Callable[[requests.PreparedRequest], requests.PreparedRequest] = _Bearer(token)

    def merge_environment_settings(self, *arguments: Any, **options: Any) -> Any:
        """Return the settings of one request; of the environment only whom to believe."""
        settings = super().merge_environment_settings(*arguments, **options)
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
