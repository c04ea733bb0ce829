"""How much of the server one client, and all of them together, may hold, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


class ProtocolError(Exception):
    """A client broke the protocol in a way that only the end of its connection can answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on strangers and on slow clients; quiet ones in the transmission phase may stay."""

    connections: int = 256
    """At once. Beyond that, the one that has been in its handshake for longest has to go."""

    handshake_seconds: float = 30.0
    """From connecting to the choice of an export, TLS included."""

    reply_seconds: float = 120.0
    """Until a client has taken what was written, a reply of 32 MiB at the most."""

    crowded_reply_seconds: float = 10.0
    """The same while others wait for `total_bytes`."""

    requests: int = 64
    """Of one connection at once; further ones wait in the socket."""

    read_bytes: int = 32 << 20
    """No further request is taken while a connection waits for as much; so it can hold at most
    this and one request more.
    """

    total_bytes: int = 256 << 20
    """The same for all connections of a server together: replies that are waited for, or that
    clients have not taken yet.
    """
