"""A layout as one tar file.

The writer's order is oci-layout, index.json, manifest, config, then the layers as the manifest
lists them: signature, maps, frame index, hints, boot, private, shared bundles. Who reads from the
front (a stream, an HTTP Range request, a tape) meets the whole trust decision in the first few
kilobytes and the boot set before anything that can be had elsewhere. The price is that bundles
lie on the medium twice while the file is put together, one bundle at a time.

Of what others wrote, only regular members called index.json, oci-layout and blobs/sha256/HEX are
looked at, and each may occur once; names never become paths.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from formats.source import FileSource, Readable
from packer.artifact.layout.base import (
    COPY_BYTES,
    MAX_INDEX_BYTES,
    MAX_LAYOUT_FILE_BYTES,
    blob_hex,
    check_range,
    most_index_bytes,
    reading,
)
from packer.artifact.layout.staging import (
    StagedWriter,
    refuse_existing,
    writing,
)
from packer.artifact.layout.tar_members import (
    END,
    MAX_MEMBERS,
    Member,
    encode_header,
    next_member,
    padded,
    padding,
)
from packer.artifact.manifest import OCI_LAYOUT, Blob, Entry, check_oci_layout
from packer.durable import sync_directory
from packer.errors import Error, InputError, UsageError

_MEMBER = re.compile(rb"(?:\./)?(index\.json|oci-layout|blobs/sha256/([0-9a-f]{64}))")
_AHEAD_BYTES = 16 << 10
"""How much is read at each header: a bundle's neighbours are far, small blobs lie together."""


class TarLayout:
    """Reads a layout that is one tar file; safe to use from several threads.

    source: the file's bytes, which may lie behind HTTP Range. remote: then the headers are walked
    only as far as needed; of a local file all are checked at once. on_close: gives the source
    back. Raises InputError when the file is no tar file or holds no OCI layout.
    """

    def __init__(
        self,
        source: Readable,
        location: str,
        *,
        remote: bool = False,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.location = location
        self.remote = remote
        self._source = _Ahead(source)
        self._on_close = on_close
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._position: int | None = 0
        self._walked = 0
        check_oci_layout(
            self._read_file("oci-layout", MAX_LAYOUT_FILE_BYTES), f"{location}: oci-layout"
        )
        if not remote:
            self._find("")  # no member has this name: every header is walked and checked

    def index(self) -> bytes:
        """Return the bytes of index.json."""
        return self._read_file("index.json", MAX_INDEX_BYTES)

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob in bytes, or None when it is not there."""
        member = self._find(f"blobs/sha256/{blob_hex(digest, self.location)}")
        return None if member is None else member.size

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of a blob from `offset`, not verified."""
        ((_row, data),) = self.read_many(digest, [(offset, length)])
        return data

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) for each (offset, length), in the order of the offsets."""
        member = self._find(f"blobs/sha256/{blob_hex(digest, self.location)}")
        for offset, length in ranges:
            check_range(
                self.location, digest, None if member is None else member.size, offset, length
            )
        for row in sorted(range(len(ranges)), key=lambda row: ranges[row]):
            assert member is not None  # check_range refused any range of a blob that is absent
            yield row, self._pread(member.offset + ranges[row][0], ranges[row][1])

    def close(self) -> None:
        """Give back the source."""
        if self._on_close is not None:
            self._on_close()

    def _read_file(self, name: str, max_bytes: int) -> bytes:
        member = self._find(name)
        if member is None:
            raise InputError(
                f"{self.location}: expected {name} in the tar file, found none",
                hint="this is no pack, or the file is incomplete",
            )
        if member.size > max_bytes:
            raise InputError(
                f"{self.location}: {name}: expected at most {max_bytes} bytes, found {member.size}"
            )
        return self._pread(member.offset, member.size)

    def _find(self, name: str) -> Member | None:
        """Return the member of that name; walk on until it was met or the file ends."""
        with self._lock, reading(self.location):
            while name not in self._members and self._position is not None:
                self._step(self._position)
            return self._members.get(name)

    def _step(self, position: int) -> None:
        member = next_member(self._source, position, self.location)
        if member is None:
            self._position = None
            return
        if self._walked >= MAX_MEMBERS:
            raise InputError(f"{self.location}: expected at most {MAX_MEMBERS} members, found more")
        if match := _MEMBER.fullmatch(member.name):
            name = match[1].decode("ascii")
            if not member.regular or name in self._members:
                raise InputError(
                    f"{self.location}: {name}: expected one regular file, "
                    + ("found it twice" if member.regular else "found a link or folder"),
                    hint="no honest tool writes such a file",
                )
            self._members[name] = member
        self._walked += 1
        self._position = member.end

    def _pread(self, offset: int, length: int) -> bytes:
        with reading(self.location):
            return self._source.direct(offset, length)


class _Ahead:
    """A source that reads some more than asked, so that neighbouring headers cost one read."""

    def __init__(self, source: Readable) -> None:
        self.size = source.size
        self.direct = source.pread
        self._start = 0
        self._data = b""

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; one caller at a time."""
        start = offset - self._start
        if start < 0 or start + length > len(self._data):
            self._data = self.direct(offset, min(max(length, _AHEAD_BYTES), self.size - offset))
            self._start, start = offset, 0
        return self._data[start : start + length]


def open_tar(path: Path) -> TarLayout:
    """Return the layout in a local tar file. Raises InputError when it holds none."""
    with reading(str(path)):
        source = FileSource(path)
    try:
        return TarLayout(source, str(path), on_close=source.close)
    except Error:
        source.close()
        raise


class TarWriter(StagedWriter):
    """Writes a layout as one tar file; the same blobs and names give the same bytes.

    Members are regular files of mode 0644, time 0, user and group 0. replace: whether an existing
    file of that name is replaced. Raises UsageError when the name is taken.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        if not replace:
            refuse_existing(path)
        elif path.exists() and not path.is_file():
            raise UsageError(f"{path} exists and is no file", hint="choose another name")
        super().__init__(path, replace=replace, durable=False)

    def medium_bytes(self, blob_sizes: Sequence[int]) -> int:
        """Return the size of the tar file with blobs of these sizes, manifests included."""
        members = (len(OCI_LAYOUT), most_index_bytes(len(blob_sizes)), *blob_sizes)
        return len(END) + sum(len(encode_header("", size)) + padded(size) for size in members)

    def finish(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Put the tar file together, make it durable, give it its name."""
        staging = self._open_staging()
        manifests = staging.seal(packs)
        contained = (blob.digest for pack in packs for blob in pack.manifest.blobs())
        digests = dict.fromkeys([*(blob.digest for blob in manifests), *contained])
        whole = staging.root / "whole.tar"
        with writing(self._path):
            with whole.open("xb") as tar:
                for name in ("oci-layout", "index.json"):
                    _append(tar, name, staging.root / name)
                for digest in digests:  # what several packs share is there once
                    path = staging.path(digest)
                    _append(tar, f"blobs/sha256/{path.name}", path)
                tar.write(END)
                tar.flush()
                os.fsync(tar.fileno())
            if not self._replace:
                refuse_existing(self._path)
            whole.replace(self._path)
            sync_directory(self._path.parent)
        staging.remove()
        self._staging = None
        return manifests


def _append(tar: BinaryIO, name: str, path: Path) -> None:
    """Append a staged file and remove it, so that the medium holds one blob twice, not all."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        tar.write(encode_header(name, size))
        shutil.copyfileobj(file, tar, COPY_BYTES)
        tar.write(padding(size))
    path.unlink()
