"""ISO images whose bytes are changed on purpose."""

from __future__ import annotations

from formats.filesystem.iso9660 import SECTOR_BYTES, Entry, Iso9660
from formats.source import Memory

PRIMARY = 16 * SECTOR_BYTES
"""Where the primary volume descriptor lies; its record of the root is at 156 in it."""


class Image:
    """A small image whose bytes can be changed; records are found by their names."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def record(self, name: str) -> int:
        """Where the record of a plain name begins."""
        position = self.data.index(bytes([len(name)]) + name.encode()) - 32
        assert self.data[position] >= 33 + len(name)
        return position

    def rename(self, old: str, new: str) -> None:
        """Change a plain name and the Rock Ridge name that follows it."""
        position = self.record(old)
        for _ in range(2):
            position = self.data.index(old.encode(), position)
            self.put(position, new.encode())

    def put(self, position: int, data: bytes) -> None:
        self.data[position : position + len(data)] = data

    def put_both(self, position: int, number: int) -> None:
        self.put(position, number.to_bytes(4, "little") + number.to_bytes(4, "big"))

    def both(self, position: int) -> int:
        return int.from_bytes(self.data[position : position + 4], "little")

    def redirect(self, name: str, to: int) -> None:
        """Let a record's extent be that of another record; sizes stay."""
        self.put_both(self.record(name) + 2, self.both(to + 2))

    def open(self) -> Iso9660:
        return Iso9660(Memory(bytes(self.data)))

    def entries(self, *path: str) -> dict[str, Entry]:
        volume = self.open()
        folder = volume.root
        for name in path:
            folder = volume.entries(folder)[name]
        return volume.entries(folder)
