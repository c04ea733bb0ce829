"""Source: a symbol server on the web (symbols:https://…)."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from formats.windows.symbols import compressed_path
from packer.artifact.contents import Contents
from packer.errors import UsageError
from packer.sources.base import Offers, Piece, SourceError, Wanted, sent_offers
from packer.sources.cabinet import most_cabinet_bytes
from packer.sources.symbols import Cabinets, Candidates, cut
from packer.text import printable
from packer.transport.calls import Call, in_parallel
from packer.transport.http import (
    Client,
    ForbiddenError,
    NotFoundError,
    OtherSizeError,
    TransportError,
)
from packer.transport.response import NoAuth, OneHostSession, is_address, visible

Rows = NDArray[np.int64]

CONNECTIONS = 4

FAILURES_IN_A_ROW = 3
"""After so many files that a server neither sent nor said it has not, it counts as broken."""

CABINETS_IN_VAIN = 16
"""After so many cabinets that were not there, and none that was, none is asked for any more: few
servers have them, and each question costs a round trip."""

_log = logging.getLogger(__name__)


class SymbolServer:
    """A symbol server on the web; it is asked for what nobody else has, and for programs only.

    A file travels whole. What the server does not have costs one request, which is not repeated,
    or two as long as it may have cabinets. Raises UsageError for what is no plain address.
    """

    local = False

    def __init__(self, url: str) -> None:
        self.uri = f"symbols:{visible(url)}"
        if not is_address(url):
            raise UsageError(f"{self.uri}: expected an address like https://host/path")
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                f"{self.uri}: a symbol server is asked without user name, password or query",
                hint="fetch its files with a program that may log in, and name their folder",
            )
        self._url = url.rstrip("/")
        self._cabinets = Cabinets(self.uri)
        self._candidates = Candidates()
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._broken = ""
        self._failures = 0
        self._has_cabinets = False
        self._cabinets_in_vain = 0

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return the wanted programs. Whether the server has them, nobody knows before it is asked.

        Raises SourceError when it turned out to be broken.
        """
        if self._broken:
            raise SourceError(self._broken)
        rows = np.array(sorted(self._candidates.note(wanted)), dtype=np.int64)
        return sent_offers(rows, wanted.contents.size)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the pieces of programs as they arrive, over several connections.

        Raises SourceError when the server is broken.
        """
        contents, jobs = self._candidates.of(rows)
        if contents is None or not jobs:
            return
        client = self._connected()
        absent: list[int] = []

        def work(job: tuple[int, list[str]]) -> Iterator[Piece]:
            for path in job[1]:
                there = False
                for piece in self._file(client, contents, job[0], path):
                    there = True
                    yield piece
                if there:
                    return
                self._candidates.drop(path)
            absent.append(job[0])

        try:
            with closing(in_parallel(jobs, work, Call(), CONNECTIONS, self._url)) as pieces:
                yield from pieces
        except TransportError as error:
            raise SourceError(f"{self.uri}: {error}", hint=error.hint) from error
        if absent:
            there, asked = len(jobs) - len(absent), len(jobs)
            _log.warning("%s: has %d of %d programs that it was asked for", self.uri, there, asked)

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note of what the receiver found out about contents fetched from here."""
        self._candidates.learn(rows, ok=ok)

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                session = OneHostSession(CONNECTIONS)
                session.auth = NoAuth()  # nothing of ~/.netrc: any host may be behind a redirect
                self._client = Client(connections=CONNECTIONS, session=session)
            return self._client

    def _file(self, client: Client, contents: Contents, row: int, path: str) -> Iterator[Piece]:
        """Yield the pieces of a file that the server has; nothing when it has it not.

        Raises SourceError when it does not answer properly for the third time in a row.
        """
        try:
            yield from self._plain(client, contents, row, path)
        except (NotFoundError, ForbiddenError):  # some say "forbidden" of what is not there
            self._note_answer()
        except OtherSizeError as error:
            self._note_answer()
            _log.info("%s: %s", self.uri, error)
            return
        except TransportError as error:
            self._note_failure(error)
            return
        else:
            self._note_answer()
            return
        if self._has_cabinets or self._cabinets_in_vain < CABINETS_IN_VAIN:
            yield from self._cabinet(client, contents, row, path)

    def _plain(self, client: Client, contents: Contents, row: int, path: str) -> Iterator[Piece]:
        with closing(client.get_file(self._address(path), int(contents.size[row]))) as chunks:
            yield from cut(contents, row, chunks)

    def _cabinet(self, client: Client, contents: Contents, row: int, path: str) -> Iterator[Piece]:
        address = self._address(compressed_path(path))
        try:
            size = client.get_size(address)
            self._has_cabinets = True
            if size > most_cabinet_bytes(int(contents.size[row])) or not self._cabinets.usable():
                return
            with (
                tempfile.TemporaryFile() as file,
                closing(client.get_file(address, size)) as chunks,
            ):
                _write(file, chunks)
                yield from self._cabinets.pieces(contents, row, file.fileno())
        except (NotFoundError, ForbiddenError):
            with self._lock:
                self._cabinets_in_vain += 1
        except TransportError as error:
            self._note_failure(error)
        except OSError as error:  # no room for temporary files
            raise SourceError(f"{self.uri}: {error.strerror or error}") from error

    def _address(self, path: str) -> str:
        return "/".join([self._url, *(quote(part, safe="") for part in path.split("/"))])

    def _note_answer(self) -> None:
        with self._lock:
            self._failures = 0

    def _note_failure(self, error: TransportError) -> None:
        with self._lock:
            self._failures += 1
            broken = self._failures >= FAILURES_IN_A_ROW
            if broken:
                self._broken = f"{self.uri}: {error}; left out"
        if broken:
            raise SourceError(self._broken, hint=error.hint) from error
        _log.warning("%s: %s", self.uri, printable(str(error)))


def _write(file: BinaryIO, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        file.write(chunk)
    file.flush()
