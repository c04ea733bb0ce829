"""How a registry's demand for a login is met: Basic, or a Bearer token from its token server.

The challenge comes from a stranger. A token server may lie on another host, and gets the
registry's user name and password there, as with docker, containers/image and oras (Docker Hub
could not be used otherwise); but only over TLS, and never anything that is kept for other
registries. The scope that is asked for is our own, never the challenge's. References: RFC 9110,
11.6.1; RFC 6750; distribution's docs/spec/auth (token.md, oauth.md).
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec
import requests

from packer.transport.credentials import Credentials
from packer.transport.response import (
    MAX_URL_CHARACTERS,
    ForbiddenError,
    NoAuth,
    OneHostSession,
    Transient,
    TransportError,
    may_pass,
    plain_body,
    retry_after,
    send_once,
    visible,
)

MAX_CHALLENGE_CHARACTERS = 8 << 10
MAX_TOKEN_ANSWER_BYTES = 128 << 10
"""As oras-go allows: a token must fit into a header, and may be there twice."""

LEAST_TOKEN_SECONDS = 60.0
"""How long a token lives that says nothing, or less (token.md, "expires_in")."""

MOST_TOKEN_SECONDS = 24 * 3600.0
CLIENT_ID = "vmpack"

_PART = re.compile(
    r'(?P<key>[A-Za-z0-9_-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))'
    r"|(?P<scheme>[A-Za-z][A-Za-z0-9_-]*)"
)
_TOKEN = re.compile(r"[!-~]{1,65536}")

Challenge = tuple[str, dict[str, str]]
"""Scheme and parameters, names in lower case."""


def parse_challenges(text: str) -> list[Challenge]:
    """Return the challenges of a WWW-Authenticate header, in its order."""
    found: list[Challenge] = []
    for part in _PART.finditer(text[:MAX_CHALLENGE_CHARACTERS]):
        if part["scheme"]:
            found.append((part["scheme"].lower(), {}))
        elif found:
            quoted = part["quoted"]
            value = part["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(part["key"].lower(), value)
    return found


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class Authenticator:
    """Supplies the Authorization header for one registry. May be used from several threads.

    registry: its origin, "https://host:port". scopes: what tokens are asked for
    ("repository:team/demo:pull"). find: looks the credentials up when they are needed first.
    direct_host: is asked for tokens through no proxy.
    """

    def __init__(
        self,
        registry: str,
        scopes: Sequence[str],
        find: Callable[[], Credentials | None],
        timeout_seconds: tuple[float, float],
        *,
        direct_host: str = "",
    ) -> None:
        self._registry = registry
        self._scopes = list(scopes)
        self._find = find
        self._timeout_seconds = timeout_seconds
        self._session = OneHostSession(1, direct_host=direct_host)
        self._session.auth = NoAuth()
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._looked = False
        self._challenge: Challenge | None = None
        self._header: str | None = None
        self._expires = 0.0

    def add_scope(self, scope: str) -> None:
        """Ask for one right more with the next token, which is fetched at once."""
        with self._lock:
            if scope not in self._scopes:
                self._scopes.append(scope)
                self._expires = 0.0

    def header(self) -> str | None:
        """Return the header's value, renewed in time; None as long as nobody has asked for one."""
        with self._lock:
            if self._challenge is not None and time.monotonic() > self._expires:
                self._header = self._answer(self._challenge)
            return self._header

    def answer(self, challenges: str, refused: str | None) -> str:
        """Return the header's value after a 401.

        challenges: its WWW-Authenticate. refused: the value that was sent. Raises ForbiddenError
        when there is no answer to it, TransportError, Transient when the token server fails.
        """
        with self._lock:
            if self._header is None or self._header == refused:  # else another thread was faster
                self._challenge = self._choose(challenges)
                self._header = self._answer(self._challenge)
            return self._header

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def user(self) -> str:
        """Return for messages as whom we came."""
        found = self._credentials
        if found is None:
            return "anonymously"
        return f"as {found.username!r:.100}" if found.username else "with an identity token"

    def _choose(self, challenges: str) -> Challenge:
        for scheme, parameters in parse_challenges(challenges):
            if scheme in ("bearer", "basic"):
                return scheme, parameters
        raise ForbiddenError(
            f"{self._registry}: asks for a login of a kind that vmpack does not know: "
            f"{challenges!r:.100}"
        )

    def _answer(self, challenge: Challenge) -> str:
        scheme, parameters = challenge
        if not self._looked:
            self._credentials = self._find()
            self._looked = True
        found = self._credentials
        if scheme == "bearer":
            return f"Bearer {self._fetch_token(parameters)}"
        if found is None or not found.username:
            raise ForbiddenError(
                f"{self._registry}: asks for user name and password, found none for it",
                hint=LOGIN_HINT,
            )
        self._expires = float("inf")
        return _basic(found)

    def _fetch_token(self, parameters: dict[str, str]) -> str:
        realm = self._checked_realm(parameters.get("realm", ""))
        fields = [("service", parameters["service"])] if parameters.get("service") else []
        found = self._credentials
        headers: dict[str, str] = {}
        data: str | None = None
        if found is not None and found.identity_token:
            fields += [("scope", " ".join(self._scopes)), ("client_id", CLIENT_ID)]
            fields += [("grant_type", "refresh_token"), ("refresh_token", found.identity_token)]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            data, url = urlencode(fields), realm
        else:
            fields += [("scope", scope) for scope in self._scopes]
            if found is not None:
                fields.append(("account", found.username))
                headers["Authorization"] = _basic(found)
            parts = urlsplit(realm)
            query = "&".join(filter(None, (parts.query, urlencode(fields))))
            url = urlunsplit(parts._replace(query=query))
        answer = self._ask(url, headers, data)
        token = answer.token or answer.access_token
        if not _TOKEN.fullmatch(token):
            raise TransportError(
                f"{visible(realm)}: expected a token, found {len(token)} characters that are none"
            )
        seconds = min(max(answer.expires_in or 0.0, LEAST_TOKEN_SECONDS), MOST_TOKEN_SECONDS)
        self._expires = time.monotonic() + seconds
        return token

    def _checked_realm(self, realm: str) -> str:
        """Return the address of a token server; raise ForbiddenError for one not to be asked."""
        try:
            parts = urlsplit(realm)
            host, scheme = parts.hostname, parts.scheme
        except ValueError:
            host, scheme = None, ""
        here = urlsplit(self._registry)
        # Without TLS only where the registry itself is spoken to without.
        right = scheme == "https" or (scheme == here.scheme and host == here.hostname)
        if not host or not right or len(realm) > MAX_URL_CHARACTERS:
            raise ForbiddenError(
                f"{self._registry}: expected a token server with an https address, "
                f"found {visible(realm)!r:.200}",
                hint="user name and password are not sent there",
            )
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))

    def _ask(self, url: str, headers: dict[str, str], data: str | None) -> _TokenAnswer:
        method = "GET" if data is None else "POST"
        response = send_once(self._session, url, headers, self._timeout_seconds, method, data)
        try:
            self._check_status(response, url)
            text = plain_body(response, url).whole(MAX_TOKEN_ANSWER_BYTES)
        finally:
            response.close()
        try:
            return msgspec.json.decode(text, type=_TokenAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TransportError(f"{visible(url)}: expected a token as JSON: {error}") from error

    def _check_status(self, response: requests.Response, url: str) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in (400, 401, 403):
            raise ForbiddenError(
                f"{visible(url)}: gives no token {self.user()}: {status}", hint=LOGIN_HINT
            )
        if may_pass(status):
            raise Transient(f"{visible(url)} answers {status}", retry_after(response))
        # A redirect, too: nobody's password goes where an answer points to.
        raise TransportError(f"{visible(url)}: expected a token, found status {status}")


LOGIN_HINT = (
    "log in with 'skopeo login HOST' (or podman, docker, oras); vmpack reads what they write"
)


def _basic(found: Credentials) -> str:
    pair = f"{found.username}:{found.password}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"
