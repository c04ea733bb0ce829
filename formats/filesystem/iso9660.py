"""ISO 9660 volumes with Rock Ridge or Joliet names: where the files of a folder lie.

A folder is read when it is asked for, and only that folder: whoever looks for files at a few known
paths reads a few folders, whatever else a volume claims, and no loop of folders leads anywhere.

References: ECMA-119 (4th edition), 8 (volume descriptors), 9.1 (directory records); Joliet
Specification (Microsoft, 1995); SUSP 1.12, 5 (SP, CE, ST); RRIP 1.12, 4.1.4 (NM).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from formats.errors import Corrupt, Truncated, Unsupported
from formats.source import Readable

SECTOR_BYTES = 2048
MAX_DIRECTORY_BYTES = 16 << 20
MAX_ENTRIES = 1 << 16
"""Of one folder. A record of 64 characters takes at most 256 bytes."""

_FIRST_DESCRIPTOR = 16 * SECTOR_BYTES
_MAX_DESCRIPTORS = 32
_MAX_CONTINUATIONS = 4

# Volume descriptor: offsets in its sector
_TYPE = 0  # 1 primary, 2 supplementary, 255 terminator
_IDENTIFIER = slice(1, 6)  # "CD001"
_SPACE_SIZE = 80  # blocks of the volume, both byte orders
_ESCAPES = slice(88, 120)  # which character set a supplementary descriptor's names have
_BLOCK_SIZE = 128  # bytes, 16 bits in both byte orders
_ROOT = slice(156, 190)  # the root folder's record
_PRIMARY, _SUPPLEMENTARY, _TERMINATOR = 1, 2, 255
_JOLIET = (b"%/@", b"%/C", b"%/E")  # UCS-2 level 1, 2, 3

# Directory record: offsets in it
_LENGTH = 0  # bytes of the record; 0: the rest of the sector is empty
_ATTRIBUTE_BLOCKS = 1  # blocks of an extended attribute record before the data
_EXTENT = 2  # first block, both byte orders
_DATA_LENGTH = 10  # bytes, both byte orders
_FLAGS = 25
_UNIT_AND_GAP = slice(26, 28)  # blocks; not 0 in interleaved files
_NAME_LENGTH = 32  # bytes of the name, which follows
_NAME = 33
_FOLDER, _ASSOCIATED, _MORE_EXTENTS = 0x02, 0x04, 0x80

_CONTINUES = 0x01  # flag of a Rock Ridge name whose rest is in the next NM


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder: its size, and its data as (offset in the volume, length), in bytes."""

    name: str
    is_folder: bool
    size: int
    runs: tuple[tuple[int, int], ...]

    def spans(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield where `[offset, offset + length)` of the data lies: (offset in volume, length)."""
        for start, size in self.runs:
            if length and offset < size:
                take = min(length, size - offset)
                yield start + offset, take
                length -= take
                offset += take
            offset -= size


@dataclass(frozen=True, slots=True)
class _Record:
    """A directory record as it stands there. system_use: what follows its name."""

    position: int
    flags: int
    start: int
    length: int
    name: bytes
    system_use: bytes


def probe(source: Readable) -> bool:
    """Return whether a source begins like an ISO 9660 volume."""
    if source.size < _FIRST_DESCRIPTOR + SECTOR_BYTES:
        return False
    head = source.pread(_FIRST_DESCRIPTOR, 6)
    return head[_IDENTIFIER] == b"CD001"


class Iso9660:
    """A volume, by its Rock Ridge names, else by its Joliet names, else by its plain ones.

    Plain names are taken in lower case and without version (";1"). Raises FormatError for what is
    no volume, or one in blocks that are no sectors.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        primary, joliet = self._descriptors()
        position = _FIRST_DESCRIPTOR
        block_bytes = int.from_bytes(primary[_BLOCK_SIZE : _BLOCK_SIZE + 2], "little")
        if block_bytes != SECTOR_BYTES:
            raise Unsupported(
                "volume descriptor", position, f"expected blocks of 2048 bytes, found {block_bytes}"
            )
        self._size = _both(primary, _SPACE_SIZE, position) * SECTOR_BYTES
        if self._size > source.size:
            raise Truncated(
                "ISO 9660 volume",
                source.size,
                f"expected {self._size} bytes, the source ends at byte {source.size}",
            )
        self._skipped = self._rock_ridge(primary)
        self._joliet = self._skipped is None and joliet is not None
        chosen = joliet if self._joliet and joliet is not None else primary
        self.root = self._root_of(chosen)

    def entries(self, folder: Entry) -> dict[str, Entry]:
        """Return {name: entry} of a folder of this volume.

        Raises FormatError for a folder that is too large, or contradicts itself or the volume, or
        has a name twice.
        """
        found: dict[str, Entry] = {}
        runs: list[tuple[int, int]] = []
        expected: bytes | None = None
        for record in self._records(folder):
            if record.flags & _ASSOCIATED or record.name in (b"\0", b"\1"):
                continue
            if expected not in (None, record.name):
                raise _corrupt(record, "another extent of the file before it", "another name")
            runs.append((record.start, record.length))
            expected = record.name if record.flags & _MORE_EXTENTS else None
            if expected is not None:
                if record.length % SECTOR_BYTES:
                    raise _corrupt(record, "an extent of whole blocks", f"{record.length} bytes")
                continue
            entry = self._entry(record, runs)
            if entry.name in found:
                raise _corrupt(record, "another name", f"{entry.name[:80]!r} twice")
            if len(found) == MAX_ENTRIES:
                raise _corrupt(record, f"at most {MAX_ENTRIES} entries in a folder", "more")
            found[entry.name] = entry
            runs = []
        if expected is not None:
            raise Corrupt("directory", folder.runs[0][0], "the last file lacks its last extent")
        return found

    def _entry(self, record: _Record, runs: list[tuple[int, int]]) -> Entry:
        joined: list[tuple[int, int]] = []
        for start, length in runs:
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            elif length:
                joined.append((start, length))
        size = sum(length for _, length in joined)
        return Entry(self._name(record), bool(record.flags & _FOLDER), size, tuple(joined))

    def _descriptors(self) -> tuple[bytes, bytes | None]:
        """Return the primary descriptor, and the one of the Joliet tree if there is one."""
        primary = joliet = None
        position = _FIRST_DESCRIPTOR
        for _ in range(_MAX_DESCRIPTORS):
            if position + SECTOR_BYTES > self._source.size:
                break
            sector = self._source.pread(position, SECTOR_BYTES)
            if sector[_IDENTIFIER] != b"CD001":
                raise Corrupt("volume descriptor", position, "expected CD001, found otherwise")
            if sector[_TYPE] == _TERMINATOR:
                if primary is None:
                    raise Corrupt("volume descriptors", position, "expected a primary one")
                return primary, joliet
            if sector[_TYPE] == _PRIMARY and primary is None:
                primary = sector
            if sector[_TYPE] == _SUPPLEMENTARY and sector[_ESCAPES].startswith(_JOLIET):
                joliet = joliet or sector
            position += SECTOR_BYTES
        raise Corrupt("volume descriptors", position, "expected a terminator, found none")

    def _root_of(self, descriptor: bytes) -> Entry:
        record = self._record(descriptor[_ROOT], _FIRST_DESCRIPTOR + _ROOT.start)
        if not record.flags & _FOLDER:
            raise _corrupt(record, "the root folder", "a file")
        return Entry("", True, record.length, ((record.start, record.length),))

    def _rock_ridge(self, primary: bytes) -> int | None:
        """Return how many bytes precede the system use fields; None without Rock Ridge."""
        dot = next(self._records(self._root_of(primary)), None)
        if dot is None or dot.name != b"\0":
            return None
        sp = dot.system_use[:7]
        return sp[6] if len(sp) == 7 and sp[:6] == b"SP\x07\x01\xbe\xef" else None

    def _records(self, folder: Entry) -> Iterator[_Record]:
        if not folder.is_folder or len(folder.runs) != 1:
            raise Corrupt("directory", 0, f"{folder.name[:80]!r}: expected a folder")
        ((start, length),) = folder.runs
        if length % SECTOR_BYTES or length > MAX_DIRECTORY_BYTES:
            raise Corrupt(
                "directory",
                start,
                f"expected whole blocks, at most {MAX_DIRECTORY_BYTES} bytes, found {length}",
            )
        data = self._source.pread(start, length)
        for sector in range(0, length, SECTOR_BYTES):
            position, end = sector, sector + SECTOR_BYTES
            while position < end and data[position + _LENGTH]:
                after = position + data[position + _LENGTH]
                if after > end:
                    raise Corrupt("directory record", start + position, "crosses its sector")
                yield self._record(data[position:after], start + position)
                position = after

    def _record(self, data: bytes, position: int) -> _Record:
        if len(data) <= _NAME or _NAME + data[_NAME_LENGTH] > len(data):
            raise Corrupt("directory record", position, f"{len(data)} bytes do not hold its name")
        name_end = _NAME + data[_NAME_LENGTH]
        record = _Record(
            position,
            data[_FLAGS],
            _both(data, _EXTENT, position) * SECTOR_BYTES,
            _both(data, _DATA_LENGTH, position),
            data[_NAME:name_end],
            data[name_end + (name_end & 1) :],  # a name is padded to an even offset
        )
        if any(data[_UNIT_AND_GAP]) or data[_ATTRIBUTE_BLOCKS]:
            raise Unsupported(
                "directory record", position, "an interleaved file, or one with attribute blocks"
            )
        if record.length and record.start + record.length > self._size:
            raise _corrupt(
                record, f"data within a volume of {self._size} bytes", f"{record.length} bytes "
                f"from byte {record.start}"
            )  # fmt: skip
        return record

    def _name(self, record: _Record) -> str:
        if self._joliet:
            return record.name.decode("utf-16-be", "replace").partition(";")[0]
        if self._skipped is not None:
            pieces = b"".join(self._rock_ridge_name(record, self._skipped))
            if pieces:
                return pieces.decode("utf-8", "surrogateescape")
        return record.name.decode("latin-1").partition(";")[0].rstrip(".").lower()

    def _rock_ridge_name(self, record: _Record, skipped: int) -> Iterator[bytes]:
        """Yield the pieces of a Rock Ridge name; none when it has only a plain one."""
        area = record.system_use[skipped:]
        for _ in range(_MAX_CONTINUATIONS):
            following = None
            for signature, field in _fields(area, record):
                if signature == b"NM" and field:
                    yield field[1:]
                    if not field[0] & _CONTINUES:
                        return
                elif signature == b"CE":
                    following = field
            if following is None:
                return
            area = self._continuation(following, record)
        raise _corrupt(record, f"at most {_MAX_CONTINUATIONS} continuation areas", "more")

    def _continuation(self, field: bytes, record: _Record) -> bytes:
        if len(field) < 24:
            raise _corrupt(record, "a CE field of 28 bytes", f"{len(field) + 4}")
        block, offset, length = (_both(field, place, record.position) for place in (0, 8, 16))
        start = block * SECTOR_BYTES + offset
        if length > SECTOR_BYTES or start + length > self._size:
            raise _corrupt(record, "a continuation area in the volume", f"{length} at {start}")
        return self._source.pread(start, length)


def _fields(area: bytes, record: _Record) -> Iterator[tuple[bytes, bytes]]:
    """Yield (signature, data) of the system use fields in an area."""
    position = 0
    while position + 4 <= len(area) and area[position : position + 2] != b"ST":
        length = area[position + 2]
        if length < 4 or position + length > len(area):
            if not any(area[position:]):  # padding
                return
            raise _corrupt(record, "a system use field", f"one of {length} bytes")
        yield area[position : position + 2], area[position + 4 : position + length]
        position += length


def _both(data: bytes, offset: int, position: int) -> int:
    """Return the 32-bit number that stands at `offset` in both byte orders."""
    little = int.from_bytes(data[offset : offset + 4], "little")
    big = int.from_bytes(data[offset + 4 : offset + 8], "big")
    if little != big:
        raise Corrupt(
            "ISO 9660 number",
            position + offset,
            f"expected the same in both byte orders, found {little} and {big}",
        )
    return little


def _corrupt(record: _Record, expected: str, found: str) -> Corrupt:
    return Corrupt("directory record", record.position, f"expected {expected}, found {found}")
