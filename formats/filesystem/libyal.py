"""A source as the Python file object that the libyal bindings read from."""

from __future__ import annotations

import io

from formats.source import Source


class FileObject:
    """What `volume.open_file_object(…)` of pyfsfat, pyfsext and their kin asks for.

    Source: libyal/libfsfat, `pyfsfat/pyfsfat_file_object_io_handle.c`, which calls `read`, `seek`,
    `tell` or `get_offset`, and `get_size`, and copies whatever `read` returns: never more than it
    asked for. Not for use by several threads, because the position is shared.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes from the position; fewer only at the end of the source."""
        left = max(self._source.size - self._position, 0)
        length = left if size < 0 else min(size, left)
        if length == 0:
            return b""
        data = self._source.pread(self._position, length)
        self._position += length
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, which may lie past the end, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def get_offset(self) -> int:
        """Return the position in bytes."""
        return self._position

    def get_size(self) -> int:
        """Return the size of the source in bytes."""
        return self._source.size
