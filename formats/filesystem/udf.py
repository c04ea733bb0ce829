"""UDF volumes as media have them: where the files of a folder lie.

Installation media of Windows are UDF 1.02; what ISO 9660 shows of them is a single text that says
so. A folder is read when it is asked for, as in iso9660. Read are volumes with blocks of 2048 bytes
in one plain partition: no packet-written, virtual or metadata partitions (UDF 1.50, 2.50).

References: ECMA-167 (3rd edition), 1/7.2 (character sets), 2/9.1 (recognition), 3/7.2 (tags),
3/10 (volume descriptors), 4/14 (file sets, files, folders, allocation); OSTA UDF 2.60, 2.1.1
(names), 2.2.3 (anchor).
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass

from formats.errors import Corrupt, FormatError, Unsupported
from formats.filesystem.iso9660 import MAX_DIRECTORY_BYTES, MAX_ENTRIES, SECTOR_BYTES, Entry
from formats.source import Readable

_RECOGNITION = 16 * SECTOR_BYTES
_MAX_RECOGNITION_SECTORS = 64
_KNOWN = (b"BEA01", b"BOOT2", b"CD001", b"CDW02", b"TEA01")  # before and after NSR02, NSR03
_ANCHOR_SECTOR = 256
_MAX_DESCRIPTORS = 64
_TYPE_1_MAP = b"\1\6"  # kind, bytes

# Identifiers of tags
_ANCHOR, _PARTITION, _LOGICAL_VOLUME, _TERMINATOR = 2, 5, 6, 8
_FILE_SET, _NAME, _FILE, _EXTENDED_FILE = 256, 257, 261, 266
_TAG_BYTES = 16

# Where the numbers of a file entry stand: bytes of attributes, of allocation descriptors, header
_FILE_LAYOUT = {_FILE: (168, 172, 176), _EXTENDED_FILE: (208, 212, 216)}
_FOLDER_TYPE, _REGULAR_TYPES = 4, (0, 5)  # 0: nobody said what it is
_SHORT, _LONG, _EMBEDDED = 0, 1, 3  # what allocation descriptors are
_LENGTH_MASK = (1 << 30) - 1  # the two bits above: 0 for what is recorded

_IS_DELETED, _IS_PARENT = 0x04, 0x08
_NAME_HEADER_BYTES = 38


@dataclass(frozen=True, slots=True)
class _Descriptor:
    """A tagged structure and where it begins in the source."""

    position: int
    data: bytes

    def number(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def corrupt(self, expected: str, found: object) -> FormatError:
        return Corrupt("UDF descriptor", self.position, f"expected {expected}, found {found}")


def probe(source: Readable) -> bool:
    """Return whether a source is recognised as UDF (ECMA-167, 2/9.1)."""
    for number in range(_MAX_RECOGNITION_SECTORS):
        position = _RECOGNITION + number * SECTOR_BYTES
        if position + SECTOR_BYTES > source.size:
            return False
        identifier = source.pread(position, 6)[1:]
        if identifier in (b"NSR02", b"NSR03"):
            return True
        if identifier not in _KNOWN:
            return False
    return False


class Udf:
    """A volume; entries as in `formats.filesystem.iso9660`.

    Raises FormatError for what is no volume, or one of a kind that is not read.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._start = self._size = 0
        file_set = self._find_file_set()
        self.root = self._entry("", file_set.data[400:416], file_set.position, is_folder=True)

    def entries(self, folder: Entry) -> dict[str, Entry]:
        """Return {name: entry} of a folder of this volume.

        Raises FormatError for a folder that is too large or contradicts itself or the volume.
        """
        if not folder.is_folder or folder.size > MAX_DIRECTORY_BYTES:
            position = folder.runs[0][0] if folder.runs else 0
            found = f"{folder.size} bytes" if folder.is_folder else "a file"
            expected = f"a folder of at most {MAX_DIRECTORY_BYTES} bytes"
            raise Corrupt("UDF folder", position, f"expected {expected}, found {found}")
        data = b"".join(self._source.pread(*span) for span in folder.spans(0, folder.size))
        position = folder.runs[0][0] if folder.runs else 0
        entries: dict[str, Entry] = {}
        for one in _names(data, position):
            flags, length, skipped = one.number(18, 1), one.number(19, 1), one.number(36, 2)
            if flags & (_IS_DELETED | _IS_PARENT):
                continue
            start = _NAME_HEADER_BYTES + skipped
            name = _decode(one.data[start : start + length])
            if name in entries or len(entries) == MAX_ENTRIES:
                raise one.corrupt(f"at most {MAX_ENTRIES} different names", repr(name[:80]))
            entries[name] = self._entry(name, one.data[20:36], one.position)
        return entries

    def _find_file_set(self) -> _Descriptor:
        """Read the volume descriptors; note where the partition lies."""
        anchor = self._read(_ANCHOR_SECTOR * SECTOR_BYTES, {_ANCHOR})
        sectors = min(anchor.number(16) // SECTOR_BYTES, _MAX_DESCRIPTORS)
        partition = logical = None
        for number in range(sectors):
            one = self._read((anchor.number(20) + number) * SECTOR_BYTES, None)
            kind = one.number(0, 2)
            if kind == _TERMINATOR:
                break
            partition = one if kind == _PARTITION and partition is None else partition
            logical = one if kind == _LOGICAL_VOLUME and logical is None else logical
        if partition is None or logical is None:
            raise anchor.corrupt("a partition and a logical volume", "none")
        self._check_maps(partition, logical)
        self._start = partition.number(188) * SECTOR_BYTES
        self._size = partition.number(192) * SECTOR_BYTES
        if self._start + self._size > self._source.size:
            end = self._start + self._size
            raise partition.corrupt(f"a partition within {self._source.size} bytes", end)
        position = self._offset(logical.number(252), logical.number(248), logical)
        return self._read(position, {_FILE_SET})

    @staticmethod
    def _check_maps(partition: _Descriptor, logical: _Descriptor) -> None:
        if logical.number(212) != SECTOR_BYTES:
            found = f"blocks of {logical.number(212)} bytes, expected {SECTOR_BYTES}"
            raise Unsupported("UDF logical volume", logical.position, found)
        if logical.number(268) != 1 or logical.data[440:442] != _TYPE_1_MAP:
            found = "several partitions, or one that is virtual, sparable or holds metadata"
            raise Unsupported("UDF logical volume", logical.position, found)
        if logical.number(444, 2) != partition.number(22, 2):
            raise logical.corrupt(f"partition {partition.number(22, 2)}", logical.number(444, 2))

    def _entry(self, name: str, icb: bytes, position: int, *, is_folder: bool = False) -> Entry:
        """Return the file or folder whose file entry a long allocation descriptor names."""
        here = _Descriptor(position, icb)
        one = self._read(self._offset(here.number(4), here.number(0), here), set(_FILE_LAYOUT))
        kind = one.number(27, 1)
        if (is_folder and kind != _FOLDER_TYPE) or one.number(20, 2) != 4:
            raise one.corrupt("a folder, by strategy 4", f"type {kind}, {one.number(20, 2)}")
        size = one.number(56, 8)
        if kind not in (_FOLDER_TYPE, *_REGULAR_TYPES):
            return Entry(name, False, 0, ())  # a device, a link: nothing to read
        runs = tuple(self._runs(one, size))
        if sum(length for _, length in runs) != size:
            raise one.corrupt(f"{size} bytes of data", sum(length for _, length in runs))
        return Entry(name, kind == _FOLDER_TYPE, size, runs)

    def _runs(self, one: _Descriptor, size: int) -> Iterator[tuple[int, int]]:
        """Yield (offset in the source, length) of a file's data, joined where they touch."""
        attributes, descriptors, header = _FILE_LAYOUT[one.number(0, 2)]
        start = header + one.number(attributes)
        end = start + one.number(descriptors)
        if end > SECTOR_BYTES:
            raise one.corrupt("descriptors within the block", f"an end at byte {end}")
        form = one.number(34, 2) & 7
        if form == _EMBEDDED:
            yield one.position + start, min(size, end - start)
            return
        if form not in (_SHORT, _LONG):
            raise Unsupported("UDF file entry", one.position, f"allocation of kind {form}")
        position = length = 0
        for offset in range(start, end, 8 if form == _SHORT else 16):
            more = min(one.number(offset) & _LENGTH_MASK, size)
            if one.number(offset) >> 30 and more:
                raise Unsupported("UDF file entry", one.position, "an extent that is not recorded")
            if not more:
                break
            following = self._offset(one.number(offset + 4), more, one)
            size -= more
            if length and position + length == following:
                length += more
                continue
            if length:
                yield position, length
            position, length = following, more
        if length:
            yield position, length

    def _offset(self, block: int, length: int, named_by: _Descriptor) -> int:
        """Return where in the source a block of the partition begins."""
        position = block * SECTOR_BYTES
        if position + (length & _LENGTH_MASK) > self._size:
            found = f"{length & _LENGTH_MASK} bytes from block {block}"
            raise named_by.corrupt(f"data in a partition of {self._size} bytes", found)
        return self._start + position

    def _read(self, position: int, kinds: set[int] | None) -> _Descriptor:
        """Return the descriptor that a sector holds, one of these kinds."""
        if position + SECTOR_BYTES > self._source.size:
            found = f"the source ends at byte {self._source.size}"
            raise Corrupt("UDF descriptor", position, found)
        one = _Descriptor(position, self._source.pread(position, SECTOR_BYTES))
        _check_tag(one)
        if kinds is not None and one.number(0, 2) not in kinds:
            raise one.corrupt(f"a tag of {sorted(kinds)}", one.number(0, 2))
        return one


def _check_tag(one: _Descriptor) -> None:
    """Raise Corrupt when the checksum of a tag, or of what it stands for, is wrong."""
    tag = one.data[:_TAG_BYTES]
    if len(tag) < _TAG_BYTES or (sum(tag) - tag[4]) & 0xFF != tag[4]:
        raise one.corrupt("a tag", "a wrong checksum")
    length = one.number(10, 2)
    body = one.data[_TAG_BYTES : _TAG_BYTES + length]
    if len(body) != length or binascii.crc_hqx(body, 0) != one.number(8, 2):
        raise one.corrupt("a descriptor", "a wrong CRC")


def _names(data: bytes, position: int) -> Iterator[_Descriptor]:
    """Yield the file identifier descriptors of a folder; position: where it begins, for errors."""
    start = 0
    while start + _NAME_HEADER_BYTES <= len(data):
        header = _Descriptor(position + start, data[start : start + _NAME_HEADER_BYTES])
        length = _NAME_HEADER_BYTES + header.number(36, 2) + header.number(19, 1)
        length = -(-length // 4) * 4
        one = _Descriptor(position + start, data[start : start + length])
        if one.number(0, 2) != _NAME or len(one.data) != length:
            raise one.corrupt(f"a name (tag {_NAME}) in the folder", one.number(0, 2))
        _check_tag(one)
        yield one
        start += length


def _decode(name: bytes) -> str:
    """Return a name in OSTA Compressed Unicode (UDF 2.60, 2.1.1)."""
    if name[:1] == b"\x10":
        return name[1:].decode("utf-16-be", "replace")
    return name[1:].decode("latin-1")
