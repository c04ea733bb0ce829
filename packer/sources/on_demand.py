"""A source on the network that is opened when something is missing, and not before.

So a server learns nothing of a disk that can be rebuilt without it, and costs no request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from packer.errors import Error
from packer.sources.base import Offers, Piece, Source, SourceError, Wanted


class OnDemand:
    """Another source, far away, that `open_source` opens when it is first asked.

    One that cannot be opened is not tried again; whoever asks is told why each time.
    """

    local = False

    def __init__(self, uri: str, open_source: Callable[[], Source]) -> None:
        self.uri = uri
        self._open_source = open_source
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._failure: Error | None = None

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Open the source, if it was not asked before, and ask it."""
        return self._opened().find(wanted, deep=deep)

    def fetch(self, rows: NDArray[np.int64]) -> Iterator[Piece]:
        """Yield what the source does."""
        yield from self._opened().fetch(rows)

    def close(self) -> None:
        """Close the source if it was opened."""
        with self._lock:
            if self._source is not None:
                self._source.close()

    def _opened(self) -> Source:
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
