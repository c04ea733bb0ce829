"""Contents that lie in runs of a disk, as pieces: what every source that is a disk hands out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from formats.errors import FormatError
from formats.source import Runs
from packer.artifact.contents import Contents
from packer.errors import Error
from packer.sources.base import Bytes, FileRange, Piece, SourceError
from packer.survey.disk import Disk


class DiskRuns:
    """The bytes of an open disk, which stays open until its owner closes it.

    uri: names the disk in errors. Raises OSError when the file cannot be opened once more.
    """

    def __init__(self, disk: Disk, uri: str) -> None:
        self._disk = disk
        self._uri = uri
        self._fd = -1
        if disk.container == "raw" and len(disk.files) == 1:
            self._fd = os.open(disk.files[0], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._fd_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    def pieces(self, contents: Contents, row: int, runs: NDArray[np.int64]) -> Iterator[Piece]:
        """Yield a content: as a range of the file where that is a raw disk and the content lies in
        one run, else block by block. A content in a damaged part of an image is left out.

        runs: see formats.source.Runs. Raises SourceError when the disk cannot be read any more.
        """
        size, offset = int(contents.size[row]), int(runs[0, 1])
        if len(runs) == 1 and self._fd >= 0 and 0 <= offset <= self._fd_bytes - size:
            yield FileRange(row, self._fd, offset)
            return
        for block in range(contents.block_count(row)):
            data = self.read(runs, *contents.block_bounds(row, block))
            if data is None:
                return
            yield Bytes(row, block, data)

    def read(self, runs: NDArray[np.int64], start: int, end: int) -> bytes | None:
        """Return bytes [start, end) of what the runs make, None when the image is damaged there.

        Raises SourceError when the disk cannot be read any more.
        """
        try:
            return Runs(self._disk.source, runs).pread(start, end - start)
        except FormatError:
            return None
        except Error as error:
            raise SourceError(f"{self._uri}: {error}", hint=error.hint) from error
        except OSError as error:
            raise SourceError(f"{self._uri}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the descriptor of the file, once."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
