"""Source: the files of an ISO image, UDF or ISO 9660: what lies loose on an installation medium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from formats.errors import FormatError
from formats.filesystem import udf
from formats.filesystem.iso9660 import Entry, Iso9660
from formats.source import FileSource
from packer.artifact.contents import Contents
from packer.errors import InputError
from packer.sources.base import Bytes, FileRange, Offers, Piece, SourceError, Wanted, free_offers
from packer.sources.by_path import Place, WantedPaths

Rows = NDArray[np.int64]

MAX_FILES = 50_000
"""Files and folders of one medium; those of Windows have about 1,000."""

MAX_FOLDER_BYTES = 16 << 20
"""What is read of all folders; one that is named in many places is read as often."""

MAX_FOLDERS_DEEP = 32
MAX_PATH_CHARACTERS = 1024


class ImageFiles:
    """The files of an image, by path ("/sources/install.wim"), names in any case.

    uri: names it in errors. Raises InputError when the image is damaged or holds neither file
    system, OSError when it cannot be read.
    """

    local = True

    def __init__(self, path: Path, uri: str) -> None:
        self.uri = uri
        self._source = FileSource(path)
        try:
            self.files = _listed(self._source, uri)
        except FormatError as error:
            self._source.close()
            raise InputError(
                f"{uri}: {error}",
                hint="mount the medium in another way and name its folder: medium:/mnt/windows",
            ) from error
        except BaseException:
            self._source.close()
            raise
        self._contents: Contents | None = None
        self._places: dict[int, tuple[Entry, Place]] = {}

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return what files at the hints' paths with the hints' size may hold."""
        if wanted.contents is not self._contents:
            self._contents = wanted.contents
            paths = WantedPaths(wanted, {file.size for file in self.files.values()})
            self._places = {
                place.row: (file, place)
                for path, file in self.files.items()
                for place in paths.of(path, file.size)
            }
        rows = [row for row in wanted.rows.tolist() if row in self._places]
        return free_offers(np.array(rows, dtype=np.int64))

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield contents as ranges of the image where they lie in one piece, else in pieces.

        Raises SourceError when the image cannot be read any more.
        """
        for row in rows.tolist():
            if self._contents is not None and row in self._places:
                yield from self._pieces(self._contents, *self._places[row])

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Take note that contents fetched from here were wrong: they are not offered again."""
        for row in () if ok else rows.tolist():
            self._places.pop(row, None)

    def read(self, file: Entry, offset: int, length: int) -> bytes:
        """Return a part of a file. Raises SourceError."""
        try:
            return b"".join(self._source.pread(*span) for span in file.spans(offset, length))
        except (FormatError, OSError) as error:
            raise SourceError(f"{self.uri}: {error}") from error

    def close(self) -> None:
        """Close the image."""
        self._source.close()

    def _pieces(self, contents: Contents, file: Entry, place: Place) -> Iterator[Piece]:
        spans = list(file.spans(place.start, int(contents.size[place.row])))
        if len(spans) == 1:
            yield FileRange(place.row, self._source.fd, spans[0][0])
            return
        for block in range(contents.block_count(place.row)):
            start, end = contents.block_bounds(place.row, block)
            yield Bytes(place.row, block, self.read(file, place.start + start, end - start))


def _listed(source: FileSource, uri: str) -> dict[str, Entry]:
    """Return {path: file}. Media of Windows show ISO 9660 readers nothing: UDF comes first."""
    volume: udf.Udf | Iso9660 = udf.Udf(source) if udf.probe(source) else Iso9660(source)
    files: dict[str, Entry] = {}
    pending = [("", volume.root)]
    found = folder_bytes = 0
    while pending:
        path, folder = pending.pop()
        folder_bytes += folder.size
        _expect(folder_bytes <= MAX_FOLDER_BYTES, uri, f"{MAX_FOLDER_BYTES} bytes of folders")
        _expect(path.count("/") <= MAX_FOLDERS_DEEP, uri, f"folders {MAX_FOLDERS_DEEP} deep")
        entries = volume.entries(folder)
        found += len(entries)
        _expect(found <= MAX_FILES, uri, f"{MAX_FILES} files and folders")
        for name, entry in entries.items():
            here = f"{path}/{name}"
            _expect(len(here) <= MAX_PATH_CHARACTERS, uri, f"{MAX_PATH_CHARACTERS} letters a path")
            if entry.is_folder:
                pending.append((here, entry))
            else:
                files[here] = entry
    return files


def _expect(holds: bool, uri: str, most: str) -> None:
    if not holds:
        raise InputError(f"{uri}: expected at most {most}, found more")
