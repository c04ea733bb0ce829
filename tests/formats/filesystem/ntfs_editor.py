"""A small editor for records of a master file table, to make what no tool makes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from formats.filesystem.ntfs.boot import Boot, read_boot
from formats.filesystem.ntfs.mft import open_mft
from formats.source import FileSource, Runs, Window

SECTOR = 512
END = 0xFFFF_FFFF


class Record:
    """One record without its fixups; `save` puts them in again."""

    def __init__(self, image: Path, place: int, size: int) -> None:
        self.image, self.place = image, place
        with image.open("rb") as file:
            file.seek(place)
            self.data = bytearray(file.read(size))
        for sector in range(size // SECTOR):
            last = (sector + 1) * SECTOR - 2
            self.data[last : last + 2] = self.data[self._fixup(sector) :][:2]

    def _fixup(self, sector: int) -> int:
        first: int = struct.unpack_from("<H", self.data, 4)[0]
        return first + 2 + 2 * sector

    def get(self, offset: int, layout: str) -> int:
        value: int = struct.unpack_from("<" + layout, self.data, offset)[0]
        return value

    def put(self, offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, self.data, offset, *values)

    @property
    def number(self) -> int:
        return self.get(44, "I")

    def attribute(self, kind: int, name: str = "") -> int:
        """Where the attribute of a type and a name begins."""
        offset = self.get(20, "H")
        while self.get(offset, "I") != END:
            start = offset + self.get(offset + 10, "H")
            own = self.data[start : start + 2 * self.data[offset + 9]].decode("utf-16-le")
            if self.get(offset, "I") == kind and own == name:
                return offset
            offset += self.get(offset + 4, "I")
        raise KeyError((kind, name))

    def value(self, kind: int) -> int:
        """Where the value of a resident attribute begins."""
        offset = self.attribute(kind)
        return offset + self.get(offset + 20, "H")

    def first_run(self, kind: int, name: str = "") -> int | None:
        """Return the first cluster of an attribute, None where it is resident or a hole."""
        offset = self.attribute(kind, name)
        if not self.data[offset + 8]:
            return None
        start = offset + self.get(offset + 32, "H")
        head = self.data[start]
        first = start + 1 + (head & 15)
        return int.from_bytes(self.data[first : first + (head >> 4)], "little") or None

    def set_runs(self, kind: int, runs: bytes, name: str = "") -> None:
        """Write a run list over that of an attribute, which has room for it."""
        offset = self.attribute(kind, name)
        start, end = offset + self.get(offset + 32, "H"), offset + self.get(offset + 4, "I")
        assert len(runs) <= end - start
        self.data[start:end] = runs.ljust(end - start, b"\0")

    def save(self) -> None:
        data = bytearray(self.data)
        number = data[self._fixup(-1) :][:2]
        for sector in range(len(data) // SECTOR):
            last = (sector + 1) * SECTOR - 2
            data[self._fixup(sector) : self._fixup(sector) + 2] = data[last : last + 2]
            data[last : last + 2] = number
        with self.image.open("r+b") as file:
            file.seek(self.place)
            file.write(data)


class Editor:
    """The records of an image."""

    def __init__(self, image: Path) -> None:
        self.image = image
        with FileSource(image) as source:
            self.boot: Boot = read_boot(source)
            table = open_mft(source, self.boot)
        assert isinstance(table, Window)
        assert isinstance(table.source, Runs)
        self._runs = table.source.runs
        self.records = table.size // self.boot.record_size

    def record(self, number: int) -> Record:
        """A record that is in use."""
        place = number * self.boot.record_size
        row = int(np.searchsorted(self._runs[:, 0], place, side="right")) - 1
        start, disk, _ = self._runs[row].tolist()
        record = Record(self.image, disk + place - start, self.boot.record_size)
        assert record.data[:4] == b"FILE"
        if record.get(22, "H") & 1 == 0:
            raise KeyError(number)
        assert record.number == number
        return record

    def write(self, offset: int, data: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, length: int) -> bytes:
        with self.image.open("rb") as file:
            file.seek(offset)
            return file.read(length)
