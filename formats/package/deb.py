"""Members of a Debian package file, read once from front to back with bounded memory.

Source: deb(5): an ar archive of `debian-binary`, `control.tar*`, `data.tar*`, in this order.
"""

from __future__ import annotations

import bz2
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, Self, cast

import pyzstd

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.filesystem.libyal import FileObject
from formats.source import Source

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_SIZE = 60
# ar header: 0 name, 16 characters padded with spaces; 16 time, 12; 28 user, 6; 34 group, 6;
# 40 mode, 8, octal; 48 size in bytes, 10, decimal; 58 "`\n". Data is padded to an even offset.
_AR_NAME = slice(0, 16)
_AR_SIZE = slice(48, 58)
_AR_END = slice(58, 60)
_CHUNK_BYTES = 64 << 10
_MAX_XZ_MEMORY = 256 << 20  # xz -9 needs 65 MiB to unpack
_MAX_ZSTD_WINDOW_LOG = 27  # 128 MiB: zstd's own limit without --long
_MAX_TAR_NAME = 64 << 10  # bytes of a long name or of extended headers
_MAX_AR_MEMBERS = 64


class Readable(Protocol):
    """What a member's content is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file or hard link of a package.

    kind: "control" or "data". path: begins with "/". size: bytes.
    link: the path whose content a hard link has, else an empty string; a link has no content.
    file: the content, to be read before the next member is asked for; raises FormatError.
    """

    kind: str
    path: str
    size: int
    link: str
    file: Readable


def members(
    package: Source | BinaryIO,
    *,
    max_bytes: int,
    kinds: frozenset[str] = frozenset({"control", "data"}),
) -> Iterator[Member]:
    """Yield the regular files and hard links of the archives named in `kinds`.

    max_bytes: most bytes that each archive may have when unpacked.
    Raises Truncated, Corrupt, Unsupported; nothing else, wherever the package came from.
    """
    stream = _Front(package)
    if stream.exactly(len(_AR_MAGIC)) != _AR_MAGIC:
        raise Corrupt("deb package", 0, "no ar archive")
    for number in range(_MAX_AR_MEMBERS):
        member = _ar_member(stream)
        if member is None:
            return
        name, size = member
        part = _Part(stream, size)
        kind, _, suffix = name.partition(".tar")
        if number == 0:
            if name != "debian-binary" or not part.read(16).startswith(b"2."):
                raise Corrupt("deb package", len(_AR_MAGIC), "no debian-binary of version 2")
        elif kind in kinds and kind in ("control", "data"):
            yield from _archive(kind, _unpacked(part, suffix, max_bytes))
        part.skip()
    raise Corrupt("deb package", stream.offset, f"more than {_MAX_AR_MEMBERS} ar members")


class _Front:
    """A source or file that is only ever read forward."""

    def __init__(self, package: Source | BinaryIO) -> None:
        self._package: Readable
        if hasattr(package, "pread"):
            self._package = FileObject(cast(Source, package))
        else:
            self._package = package
        self.offset = 0

    def read(self, size: int) -> bytes:
        try:
            data = self._package.read(size)
        except OSError as error:
            raise FormatError("deb package", self.offset, str(error)) from error
        self.offset += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        start = self.offset
        data = self.read(size)
        while data and len(data) < size and (more := self.read(size - len(data))):
            data += more
        if len(data) != size:
            raise Truncated("deb package", start, f"expected {size} bytes, found {len(data)}")
        return data


def _ar_member(stream: _Front) -> tuple[str, int] | None:
    """Return (name, size) of the next member, or None at the end of the archive."""
    start = stream.offset
    first = stream.read(1)
    if not first:
        return None
    header = first + stream.exactly(_AR_HEADER_SIZE - 1)
    digits = header[_AR_SIZE].strip()
    if header[_AR_END] != b"`\n" or not digits.isdigit():
        raise Corrupt("deb ar header", start, f"found {header!r}")
    name = header[_AR_NAME].rstrip().removesuffix(b"/")
    return name.decode("ascii", "replace"), int(digits)


class _Part:
    """The bytes of one ar member and its padding."""

    def __init__(self, stream: _Front, size: int) -> None:
        self._stream = stream
        self._start = stream.offset
        self._left = size
        self._padding = size % 2

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        data = self._stream.exactly(size) if size else b""
        self._left -= size
        return data

    def skip(self) -> None:
        while self._left:
            self.read(_CHUNK_BYTES)
        if self._padding:
            self._stream.read(1)  # the last member's padding may be missing


class _Decompressor(Protocol):
    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of its younger siblings."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with a gzip header

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _zstd() -> _Decompressor:
    option: dict[int, int] = {pyzstd.DParameter.windowLogMax: _MAX_ZSTD_WINDOW_LOG}
    return cast(_Decompressor, pyzstd.ZstdDecompressor(option=option))


def _xz() -> _Decompressor:
    return cast(_Decompressor, lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MAX_XZ_MEMORY))


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    ".gz": lambda: cast(_Decompressor, _Gzip()),
    ".xz": _xz,
    ".lzma": _xz,
    ".bz2": lambda: cast(_Decompressor, bz2.BZ2Decompressor()),
    ".zst": _zstd,
}
_DECOMPRESSION_ERRORS = (
    zlib.error,
    lzma.LZMAError,
    pyzstd.ZstdError,
    OSError,
    EOFError,
    ValueError,
)


class _Unpacked:
    """The unpacked bytes of a part, up to a limit."""

    def __init__(
        self, part: _Part, create: Callable[[], _Decompressor] | None, max_bytes: int
    ) -> None:
        self._part = part
        self._create = create
        self._decompressor = create() if create else None
        self.max_bytes = max_bytes
        self.offset = 0

    def read(self, size: int = _CHUNK_BYTES) -> bytes:
        if size < 0:
            size = _CHUNK_BYTES
        pieces: list[bytes] = []
        while size and (piece := self._some(size)):
            pieces.append(piece)
            size -= len(piece)
            self.offset += len(piece)
            if self.offset > self.max_bytes:
                raise self.too_large()
        return b"".join(pieces)

    def too_large(self) -> Unsupported:
        reason = f"more than the allowed {self.max_bytes} bytes when unpacked"
        return Unsupported("deb archive", self.max_bytes, reason)

    def _some(self, size: int) -> bytes:
        if self._decompressor is None or self._create is None:
            return self._part.read(size)
        while True:
            try:
                if self._decompressor.eof:
                    rest = self._decompressor.unused_data or self._part.read(_CHUNK_BYTES)
                    if not rest.strip(b"\0"):  # xz and tar alike allow padding
                        return b""
                    self._decompressor = self._create()
                    data = self._decompressor.decompress(rest, size)
                else:
                    fresh = b""
                    if self._decompressor.needs_input:
                        fresh = self._part.read(_CHUNK_BYTES)
                        if not fresh:
                            raise Truncated("deb archive", self.offset, "its compressed data ends")
                    data = self._decompressor.decompress(fresh, size)
            except _DECOMPRESSION_ERRORS as error:
                raise Corrupt("deb archive", self.offset, str(error)) from error
            if data:
                return data


def _unpacked(part: _Part, suffix: str, max_bytes: int) -> _Unpacked:
    if suffix and suffix not in _DECOMPRESSORS:
        raise Unsupported("deb package", 0, f"archive compressed as {suffix!r}")
    return _Unpacked(part, _DECOMPRESSORS[suffix] if suffix else None, max_bytes)


_READ_AT_ONCE = (
    *(set(tarfile.SUPPORTED_TYPES) - set(tarfile.REGULAR_TYPES)),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Types of which `tarfile` reads the content itself, into memory, or whose content is nothing."""


class _TarInfo(tarfile.TarInfo):
    """A tar header that is bounded before it is believed, and whose damage is not its end.

    `TarFile.next` ends an archive silently at a header that is broken or cut off.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the two zero blocks of a regular end
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise Truncated("deb archive", archive.offset, "it has no end blocks") from error
        except tarfile.HeaderError as error:
            raise Corrupt("deb tar header", archive.offset, str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        if self.type in _READ_AT_ONCE and self.size > _MAX_TAR_NAME:
            raise Corrupt("deb tar header", self.offset, f"a name of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]

    def _refuse_sparse(self, *_: object) -> None:
        """Stand in for the readers of sparse maps, which have no bound."""
        raise Unsupported("deb archive", self.offset, f"sparse member {self.name!r}")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


class _Content:
    """A member's content, whose errors are ours."""

    def __init__(self, file: Readable | None, offset: int) -> None:
        self._file = file
        self._offset = offset

    def read(self, size: int = -1, /) -> bytes:
        if self._file is None:
            return b""
        try:
            return self._file.read(size)
        except _TAR_ERRORS as error:
            raise Truncated("deb archive", self._offset, str(error)) from error


_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError)


def _archive(kind: str, unpacked: _Unpacked) -> Iterator[Member]:
    """Yield the regular files and hard links of one tar archive."""
    try:
        archive = tarfile.open(  # noqa: SIM115 - the caller owns what is beneath it
            fileobj=cast(BinaryIO, unpacked),
            mode="r|",
            tarinfo=_TarInfo,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except _TAR_ERRORS as error:
        raise Corrupt("deb archive", unpacked.offset, str(error)) from error
    while True:
        try:
            info = archive.next()
            archive.members.clear()  # type: ignore[attr-defined]  # else every header is kept
        except _TAR_ERRORS as error:
            raise Corrupt("deb archive", unpacked.offset, str(error)) from error
        if info is None:
            return
        if info.size < 0:
            raise Corrupt("deb tar header", info.offset, f"a member of {info.size} bytes")
        if archive.offset > unpacked.max_bytes:  # `next` would go there in steps of 10 KiB
            raise unpacked.too_large()
        if info.isreg():
            content = _Content(archive.extractfile(info), info.offset_data)
            yield Member(kind, _path(info.name, info.offset), info.size, "", content)
        elif info.islnk():
            path, link = _path(info.name, info.offset), _path(info.linkname, info.offset)
            yield Member(kind, path, 0, link, _Content(None, info.offset))


def _path(name: str, offset: int) -> str:
    """Return the member's path from "/"; raises Corrupt when it leads anywhere else."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name or not parts:
        raise Corrupt("deb archive", offset, f"member path {name!r}")
    return "/" + "/".join(parts)
