"""A layout as one ISO 9660 image, read: the files of a directory layout, found by its records.

Three folders are read when it is opened (the root, blobs, blobs/sha256), each bounded; after that
a blob is a range of the image. So an image is read where it lies, also behind HTTP Range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from formats.filesystem.iso9660 import Entry, Iso9660, probe
from formats.source import FileSource, Readable
from packer.artifact.layout.base import (
    MAX_INDEX_BYTES,
    MAX_LAYOUT_FILE_BYTES,
    blob_hex,
    check_range,
    reading,
)
from packer.artifact.manifest import check_oci_layout
from packer.errors import Error, InputError

_TAR_MAGIC = 257

ReadRanges = Callable[[Sequence[tuple[int, int]]], Iterator[tuple[int, bytes]]]
"""Yields (row, bytes) for each (offset, length) of an image, in any order."""


class IsoLayout:
    """Reads a layout that is an ISO image; safe to use from several threads.

    source: the image's bytes. read_ranges: reads many ranges together where that is better than
    one after the other, as over a network. on_close: gives the source back. Raises InputError
    when the source is no ISO image or holds no OCI layout.
    """

    def __init__(
        self,
        source: Readable,
        location: str,
        *,
        remote: bool = False,
        read_ranges: ReadRanges | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.location = location
        self.remote = remote
        self._source = source
        self._read_ranges = read_ranges or self._one_by_one
        self._on_close = on_close
        with reading(location):
            volume = Iso9660(source)
            self._root = volume.entries(volume.root)
            marker = self._read_file("oci-layout", MAX_LAYOUT_FILE_BYTES)
            check_oci_layout(marker, f"{location}: oci-layout")
            blobs = volume.entries(self._expect(self._root, "blobs", is_folder=True))
            self._blobs = volume.entries(self._expect(blobs, "sha256", is_folder=True))

    def index(self) -> bytes:
        """Return the bytes of index.json."""
        with reading(self.location):
            return self._read_file("index.json", MAX_INDEX_BYTES)

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob in bytes, or None when it is not there."""
        blob = self._blob(digest)
        return None if blob is None else blob.size

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of a blob from `offset`, not verified."""
        ((_row, data),) = self.read_many(digest, [(offset, length)])
        return data

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) for each (offset, length), in any order."""
        blob = self._blob(digest)
        for offset, length in ranges:
            check_range(self.location, digest, None if blob is None else blob.size, offset, length)
        if blob is None or not ranges:
            return
        if len(blob.runs) == 1:
            ((start, _size),) = blob.runs
            yield from self._read_ranges([(start + offset, length) for offset, length in ranges])
            return
        for row, (offset, length) in enumerate(ranges):  # scattered, or nothing at all
            with reading(self.location):
                data = b"".join(self._pieces(blob, offset, length))
            yield row, data

    def close(self) -> None:
        """Give back the source."""
        if self._on_close is not None:
            self._on_close()

    def _blob(self, digest: str) -> Entry | None:
        blob = self._blobs.get(blob_hex(digest, self.location))
        return None if blob is None or blob.is_folder else blob

    def _expect(self, folder: dict[str, Entry], name: str, *, is_folder: bool) -> Entry:
        entry = folder.get(name)
        if entry is None or entry.is_folder != is_folder:
            kind = "folder" if is_folder else "file"
            raise InputError(
                f"{self.location}: expected the {kind} {name} in the ISO image, found none",
                hint="this is no pack, or the image is incomplete",
            )
        return entry

    def _read_file(self, name: str, max_bytes: int) -> bytes:
        entry = self._expect(self._root, name, is_folder=False)
        if entry.size > max_bytes:
            raise InputError(
                f"{self.location}: {name}: expected at most {max_bytes} bytes, found {entry.size}"
            )
        return b"".join(self._pieces(entry, 0, entry.size))

    def _pieces(self, entry: Entry, offset: int, length: int) -> Iterator[bytes]:
        for start, size in entry.spans(offset, length):
            yield self._source.pread(start, size)

    def _one_by_one(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        for row in sorted(range(len(ranges)), key=lambda row: ranges[row]):
            with reading(self.location):
                data = self._source.pread(*ranges[row])
            yield row, data


def open_iso(path: Path) -> IsoLayout:
    """Return the layout in a local ISO image. Raises InputError when it holds none."""
    with reading(str(path)):
        source = FileSource(path)
    try:
        return IsoLayout(source, str(path), on_close=source.close)
    except Error:
        source.close()
        raise


def is_iso(path: Path) -> bool:
    """Return whether a local file is an ISO image, by what it begins with and not by its name.

    The first sectors of an image are free for others; one that begins like a tar file is a tar
    file. Raises InputError when it cannot be read.
    """
    with reading(str(path)), FileSource(path) as source:
        return probe(source) and source.pread(_TAR_MAGIC, 5) != b"ustar"


def holds_layout(path: Path) -> bool:
    """Return whether a local file is an ISO image that holds a layout, not some other disk."""
    try:
        if is_iso(path):
            open_iso(path).close()
            return True
    except InputError:
        pass
    return False
