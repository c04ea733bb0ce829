"""What was said of late, and logs that do not grow for ever: a guest can talk without end."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

SCROLLBACK_BYTES = 1 << 18
MAX_CONSOLE_LOG_BYTES = 64 << 20
MAX_WORDS_LOG_BYTES = 1 << 20
KEPT_PART = 4
"""Of a log that has grown too long the last part in so many is kept, as NAME.old."""

WORDS_SHOWN = 600


class Scrollback:
    """The last bytes of a stream."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Note what was said."""
        self._data += data
        del self._data[:-SCROLLBACK_BYTES]

    def last(self) -> bytes:
        """Return what was said of late."""
        return bytes(self._data)


def tail(path: Path, count: int, start: int = 0) -> bytes:
    """Return the last bytes of a log, `count` at most, none before `start`."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        first = start if start <= size else 0  # it was shortened
        file.seek(max(first, size - count))
        return file.read(count)
    return b""


def last_words(path: Path, start: int = 0) -> str:
    """Return the end of a log in one line, for an error."""
    return " ".join(tail(path, WORDS_SHOWN, start).decode("utf-8", "replace").split())


def shorten(path: Path, most_bytes: int) -> None:
    """Shorten a log that has become longer than `most_bytes`; its writer appends (O_APPEND)."""
    with suppress(OSError):
        if path.stat().st_size <= most_bytes:
            return
        path.with_suffix(".old").write_bytes(tail(path, most_bytes // KEPT_PART))
        os.truncate(path, 0)
