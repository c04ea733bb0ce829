"""A source on the network that is opened when something is missing, and not before.

So a server learns nothing of a disk that can be rebuilt without it, and costs no request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from packer.errors import Error
from packer.sources.base import (
    Blockwise,
    Bytes,
    Offers,
    Piece,
    Renewable,
    Source,
    SourceError,
    Wanted,
)

Rows = NDArray[np.int64]


class BlockwiseSource(Source, Blockwise, Protocol):
    """A source that can also send single pieces."""


class OnDemand:
    """Another source, far away, that `open_source` opens when it is first asked.

    One that cannot be opened is not tried again before `renew`; whoever asks is told why each time.
    """

    local = False

    def __init__(self, uri: str, open_source: Callable[[], BlockwiseSource]) -> None:
        self.uri = uri
        self._open_source = open_source
        self._lock = threading.Lock()
        self._source: BlockwiseSource | None = None
        self._failure: Error | None = None

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Open the source, if it was not asked before, and ask it."""
        return self._opened().find(wanted, deep=deep)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield what the source does."""
        yield from self._opened().fetch(rows)

    def fetch_blocks(self, rows: Rows, blocks: Rows) -> Iterator[Bytes]:
        """Yield what the source does."""
        yield from self._opened().fetch_blocks(rows, blocks)

    def cost_of_blocks(self, rows: Rows, blocks: Rows) -> int:
        """Return what the source does."""
        return self._opened().cost_of_blocks(rows, blocks)

    def renew(self) -> None:
        """Try again to open the source, when it is asked next; one that is open forgets, too."""
        with self._lock:
            self._failure = None
            if isinstance(self._source, Renewable):
                self._source.renew()

    def close(self) -> None:
        """Close the source if it was opened."""
        with self._lock:
            if self._source is not None:
                self._source.close()

    def _opened(self) -> BlockwiseSource:
        with self._lock:
            if self._source is None and self._failure is None:
                try:
                    self._source = self._open_source()
                except Error as error:
                    self._failure = error
            if self._source is not None:
                return self._source
            assert self._failure is not None
            raise SourceError(
                f"{self._failure}; left out", hint=self._failure.hint
            ) from self._failure
