"""Talk to a server of a disk: what it has done, what is missing, and that it may end."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.errors import Error
from packer.run.server.control_protocol import (
    MAX_ANSWER_BYTES,
    Hello,
    RemoteError,
    Request,
    ServerStatus,
    decode_answer,
)

ANSWER_SECONDS = 10.0
_CHUNK_BYTES = 1 << 16
_Value = TypeVar("_Value")


class ServerGoneError(Error):
    """Nobody answers at a server's control socket, or no more."""


class Control:
    """A connection to a server; the server does not end for want of clients while it is open.

    path: of its control socket. seconds: within which each answer comes. Raises ServerGoneError,
    as every method does when the server dies; RemoteError is what the server says itself.
    """

    def __init__(self, path: Path, *, seconds: float = ANSWER_SECONDS) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._gone(error) from error
        self._answers = self._socket.makefile("rb")

    def hello(self) -> Hello:
        """Return who answers."""
        return self._ask(Request("hello"), Hello)

    def status(self) -> ServerStatus:
        """Return what the server does and has done."""
        return self._ask(Request("status"), ServerStatus)

    def touched(self) -> NDArray[np.int64]:
        """Return the ranges of the disk that clients have read, at 64 KiB: int64[k, 2], bytes."""
        ranges = self._ask(Request("touched"), list[tuple[int, int]])
        return np.array(ranges, dtype=np.int64).reshape(-1, 2)

    def forget_touched(self) -> None:
        """Begin to note anew what is read."""
        self._ask(Request("forget_touched"), type(None))

    def complete(self, *, on: bool = True) -> None:
        """Fetch in the background what nobody has asked for; on=False: no more of it."""
        self._ask(Request("complete", on), type(None))

    def retry(self) -> None:
        """Look again at once for what is missing."""
        self._ask(Request("retry"), type(None))

    def stop(self) -> None:
        """End the server, and return when it listens no more; others read no further from it."""
        self._ask(Request("stop"), type(None))
        try:
            while self._answers.read(_CHUNK_BYTES):
                pass
        except ConnectionError:
            pass
        except OSError as error:
            raise self._gone(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: Request, kind: type[_Value]) -> _Value:
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
            return decode_answer(self._line(), kind)
        except OSError as error:
            raise self._gone(error) from error
        except RemoteError:
            raise
        except ValueError as error:
            raise Error(f"{self._path}: expected an answer to {request.do!r}: {error}") from error

    def _line(self) -> bytes:
        """Return the next line. Raises OSError, also at the end of the connection."""
        line = self._answers.readline(MAX_ANSWER_BYTES + 1)
        if len(line) > MAX_ANSWER_BYTES:
            raise ValueError(f"expected a line of at most {MAX_ANSWER_BYTES} bytes")
        if not line.endswith(b"\n"):
            raise ConnectionResetError("it has ended")
        return line

    def _gone(self, error: OSError) -> ServerGoneError:
        return ServerGoneError(
            f"the server at {self._path} does not answer: {error.strerror or error}"
        )
