"""Connections whose every step comes to an end.

A socket's timeout counts from byte to byte. A server that drips a TLS handshake, headers, chunk
sizes or trailers, or that sends interim answers (RFC 9110, 15.2) without end, never lets it run
out, and no data arrives whose rate could be judged. So each of these steps has a deadline, after
which its connection is cut from outside. Overrides what urllib3 2 documents for subclasses:
`HTTPConnection.connect`, `getresponse`, `_new_conn`, `HTTPConnectionPool.ConnectionCls`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from typing import Any

import requests.adapters
import urllib3
import urllib3.connection
import urllib3.exceptions

STEP_SECONDS = 60.0
"""For each of: connection with TLS and proxy, status and headers, one piece of a body."""

_TICK_SECONDS = 0.5


@dataclass(slots=True)
class Limit:
    """One step that is watched. expired: it took too long and was cut."""

    deadline: float
    cut: Callable[[], None]
    expired: bool = False


class _Watch:
    """Looks after limits from a thread of its own, which ends when there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: dict[int, Limit] = {}
        self._thread: threading.Thread | None = None

    def add(self, limit: Limit) -> None:
        with self._lock:
            self._limits[id(limit)] = limit
            if self._thread is None or not self._thread.is_alive():  # or lost in a fork
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def remove(self, limit: Limit) -> None:
        with self._lock:
            self._limits.pop(id(limit), None)

    def _run(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            with self._lock:
                if not self._limits:
                    self._thread = None
                    return
                now = time.monotonic()
                # Cut under the lock: a step that has ended is never cut after it was removed.
                for limit in self._limits.values():
                    if now > limit.deadline:
                        limit.expired = True
                        with suppress(Exception):  # one that cannot be cut must not save the others
                            limit.cut()  # again and again: it may have been between two connections


_watch = _Watch()


@contextmanager
def limited(cut: Callable[[], None]) -> Iterator[Limit]:
    """Call `cut` from another thread when the block takes longer than STEP_SECONDS."""
    limit = Limit(time.monotonic() + STEP_SECONDS, cut)
    _watch.add(limit)
    try:
        yield limit
    finally:
        _watch.remove(limit)


def hang_up(connection: socket.socket) -> None:
    """End a connection that another thread waits for.

    In both directions: after SHUT_RD alone Linux goes on receiving. Below TLS, whose state belongs
    to the other thread.
    """
    below = getattr(connection, "socket", connection)  # urllib3's TLS within TLS is no socket
    with suppress(OSError):
        socket.socket.shutdown(below, socket.SHUT_RDWR)


class _HttpConnection(urllib3.connection.HTTPConnection):
    """Cut when connecting or the head of an answer takes too long.

    The responses have one attribute more: `hang_up()`.
    """

    _opening: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        self._opening = connection.dup()  # TLS takes the first descriptor over
        return connection

    def connect(self) -> None:
        def cut() -> None:
            if self._opening is not None:
                hang_up(self._opening)

        try:
            _within_limit(super().connect, cut, "no connection")
        finally:
            if self._opening is not None:
                self._opening.close()
                self._opening = None

    def getresponse(self) -> Any:
        connection = self.sock
        assert connection is not None  # a request was sent
        cut = partial(hang_up, connection)
        response = _within_limit(super().getresponse, cut, "no whole answer")
        response.hang_up = cut
        return response


class _HttpsConnection(_HttpConnection, urllib3.connection.HTTPSConnection):
    """The same over TLS."""


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


_POOLS = {"http": _HttpPool, "https": _HttpsPool}


class Adapter(requests.adapters.HTTPAdapter):
    """What a session opens its connections with."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the pools of connections through a proxy; SOCKS has its own kind."""
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager


def _within_limit(step: Callable[[], Any], cut: Callable[[], None], what: str) -> Any:
    """Return what a step returns; TimeoutError when it had to be cut, whatever it says then."""
    result = None
    with limited(cut) as limit:
        try:
            result = step()
        except (OSError, HTTPException, urllib3.exceptions.HTTPError):
            if not limit.expired:
                raise
    if limit.expired:
        raise TimeoutError(f"{what} within {STEP_SECONDS:g} s")
    return result
