"""Tar headers: where the members of a tar file lie, and the headers of one that is written.

Reading trusts no header. It stops with InputError at whatever could make two readers see
different members: bad checksums, sparse members, links with data, names that occur twice (the
caller's check), an end without an end mark. References: POSIX.1-2017, pax, "ustar Interchange
Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format" (base-256 sizes, long names).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from formats.source import Readable
from packer.errors import InputError

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
"""What ends a tar file: two blocks of zeros; readers are content with one."""

MAX_MEMBERS = 1 << 16
"""A pack has a few members per 256 MiB; a file of empty members must not cost hours."""

_MAX_EXTENSION_BYTES = 1 << 20
_MAX_EXTENSIONS = 8
_MAX_SIZE = 1 << 62
_OCTAL_LIMIT = 8 << 30

# Offset, length in bytes and meaning of the header fields that are looked at
_NAME = slice(0, 100)  # path, NUL-padded
_SIZE = slice(124, 136)  # bytes of data, octal, or base-256 when the first bit is set
_CHECKSUM = slice(148, 156)  # sum of all header bytes with this field as spaces, octal
_TYPE = slice(156, 157)  # see below
_MAGIC = slice(257, 263)  # "ustar" NUL (POSIX) or "ustar" space (GNU)
_PREFIX = slice(345, 500)  # POSIX only: what stands before the path and a slash

_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, pipes
_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK = b"x", b"g", b"L", b"K"
_EXTENSIONS = (_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK)

_NUMBER = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,7}) ")
_DECIMAL = re.compile(rb"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its name as it stands there, where its data begins, and sizes in bytes."""

    name: bytes
    regular: bool
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header lies."""
        return self.offset + -(-self.size // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(slots=True)
class _Overrides:
    """What extension headers say about the member that follows them."""

    pending: bool = False
    name: bytes | None = None
    size: int | None = None


def next_member(source: Readable, position: int, location: str) -> Member | None:
    """Return the member whose header (or extension headers) begin at `position`, None at the end.

    location: names the file in errors. Raises InputError, with the offset, for anything that is
    no plain tar file.
    """
    overrides = _Overrides()
    for _ in range(_MAX_EXTENSIONS):
        header = _take(source, position, BLOCK_BYTES, location)
        if not any(header):
            if overrides.pending:
                raise _bad(location, position, "the member that was announced", "the end")
            return None
        member, kind = _parse(header, position, location)
        if kind not in _EXTENSIONS:
            return _finish(source, member, kind, overrides, location)
        if member.size > _MAX_EXTENSION_BYTES:
            raise _bad(location, position, "an extension header", f"{member.size} bytes of it")
        body = _take(source, member.offset, member.size, location)
        _apply(overrides, kind, body, location, position)
        position = member.end
    raise _bad(location, position, "a member", f"{_MAX_EXTENSIONS} extension headers in a row")


def encode_header(name: str, size: int) -> bytes:
    """Return the header of a regular file; everything but name and size is always the same.

    name: at most 100 ASCII characters. size: bytes; 8 GiB and more get a pax header before it.
    """
    if size < _OCTAL_LIMIT:
        return _header(name, size, b"0")
    body = _pax_record("size", str(size))
    padding = bytes(-len(body) % BLOCK_BYTES)
    return _header("pax-header", len(body), _PAX) + body + padding + _header(name, 0, b"0")


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes of data."""
    return bytes(padded(size) - size)


def padded(size: int) -> int:
    """Return how many bytes `size` bytes of data take with the zeros that follow them."""
    return size + -size % BLOCK_BYTES


def _parse(header: bytes, position: int, location: str) -> tuple[Member, bytes]:
    blanked = header[: _CHECKSUM.start] + b" " * 8 + header[_CHECKSUM.stop :]
    stored = _number(header[_CHECKSUM])
    if stored != sum(blanked):
        raise _bad(location, position, f"a tar header with checksum {sum(blanked)}", stored)
    if header[_MAGIC] not in (b"ustar\0", b"ustar "):
        raise _bad(location, position, "a ustar header", header[_MAGIC])
    name = header[_NAME].split(b"\0", 1)[0]
    if header[_MAGIC] == b"ustar\0" and header[_PREFIX.start]:
        name = header[_PREFIX].split(b"\0", 1)[0] + b"/" + name
    size = _number(header[_SIZE])
    if size is None or size > _MAX_SIZE:
        raise _bad(location, position, "a size in bytes", header[_SIZE])
    kind = header[_TYPE]
    return Member(name, kind in _REGULAR, position + BLOCK_BYTES, size), kind


def _finish(
    source: Readable, member: Member, kind: bytes, overrides: _Overrides, location: str
) -> Member:
    name = member.name if overrides.name is None else overrides.name
    size = member.size if overrides.size is None else overrides.size
    header = member.offset - BLOCK_BYTES
    if kind not in _REGULAR + _WITHOUT_DATA:
        raise _bad(location, header, "a plain member", f"type {kind!r} (sparse or unknown)")
    if kind in _WITHOUT_DATA and size:
        raise _bad(location, header, "a link, device or folder without data", f"{size} bytes")
    if size > source.size - member.offset:
        raise _truncated(location, member.offset, size, source.size)
    return Member(name, member.regular, member.offset, size)


def _apply(overrides: _Overrides, kind: bytes, body: bytes, location: str, position: int) -> None:
    overrides.pending |= kind != _PAX_GLOBAL
    if kind == _GNU_LONG_NAME:
        overrides.name = body.split(b"\0", 1)[0]
    if kind not in (_PAX, _PAX_GLOBAL):
        return
    records = _pax_records(body, location, position)
    if sparse := next((key for key in records if key.startswith(b"GNU.sparse.")), None):
        raise _bad(location, position, "a plain member", f"a sparse one ({sparse!r})")
    if kind == _PAX_GLOBAL and records.keys() & {b"path", b"size"}:
        raise _bad(location, position, "a global header without path and size", "one with them")
    overrides.name = records.get(b"path", overrides.name)
    if (size := records.get(b"size")) is not None:
        if not _DECIMAL.fullmatch(size) or int(size) > _MAX_SIZE:
            raise _bad(location, position, "a pax size in bytes", size[:40])
        overrides.size = int(size)


def _pax_records(body: bytes, location: str, position: int) -> dict[bytes, bytes]:
    """Return {key: value}; each record is its own length in decimal, a space, key=value, LF."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(body):
        match = _PAX_LENGTH.match(body, start)
        end = start + int(match[1]) if match else 0
        key, equals, value = body[match.end() if match else 0 : end].partition(b"=")
        if not match or end > len(body) or not equals or not value.endswith(b"\n"):
            raise _bad(location, position, "pax records", body[start : start + 40])
        records[key] = value[:-1]
        start = end
    return records


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU base-256; 0xff begins a negative number
        return None if field[0] & 0x40 else int.from_bytes(field, "big") & ~(0x80 << 88)
    match = _NUMBER.fullmatch(field)
    return int(match[1] or b"0", 8) if match else None


def _take(source: Readable, offset: int, length: int, location: str) -> bytes:
    if length > source.size - offset:
        raise _truncated(location, offset, length, source.size)
    return source.pread(offset, length)


def _header(name: str, size: int, kind: bytes) -> bytes:
    fields = (
        (name.encode("ascii"), 100),  # 0: name
        (b"0000644\0", 8),  # 100: mode
        (b"0000000\0", 8),  # 108: user
        (b"0000000\0", 8),  # 116: group
        (b"%011o\0" % size, 12),  # 124: size in bytes
        (b"00000000000\0", 12),  # 136: modification time
        (b" " * 8, 8),  # 148: checksum, filled in below
        (kind, 1),  # 156: type
        (b"", 100),  # 157: target of a link
        (b"ustar\x0000", 8),  # 257: magic and version
        (b"", 247),  # 265: names of user and group, device numbers, prefix, padding
    )
    if len(fields[0][0]) > 100:
        raise ValueError(f"a member name of more than 100 bytes: {name!r}")
    block = b"".join(value.ljust(length, b"\0") for value, length in fields)
    return block[: _CHECKSUM.start] + b"%06o\0 " % sum(block) + block[_CHECKSUM.stop :]


def _pax_record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    length = len(text) + 2  # sizes of 8 GiB and more make records of two-digit length
    return f"{length}{text}".encode("ascii")


def _bad(location: str, position: int, expected: str, found: object) -> InputError:
    shown = found if isinstance(found, str) else repr(found)
    return InputError(
        f"{location}: at byte {position}: expected {expected}, found {shown}",
        hint="the file is damaged or no pack",
    )


def _truncated(location: str, offset: int, length: int, size: int) -> InputError:
    return InputError(
        f"{location}: expected {length} bytes from byte {offset}, the file ends at byte {size}",
        hint="the file is incomplete; fetch it again",
    )
