"""Sources and disks made up for tests: working implementations of the real interface.

A simulated source holds contents in memory or in files. What it does wrong is a function from the
pieces that an honest source yields to those that this one yields.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.hints import Hints
from packer.artifact.map import Kind, Map
from packer.progress import Silent
from packer.sources.base import Bytes, FileRange, Offers, Piece, SourceError, Wanted
from packer.unpack.assemble import Assembler
from packer.unpack.output import Output
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, no_hints

Rows = np.ndarray
Twist = Callable[[Iterator[Piece]], Iterator[Piece]]
MIB = 1 << 20

ASSEMBLER_JOBS = 3


def numbered(size: int, seed: int) -> bytes:
    """Return bytes whose every KiB differs from every other one."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


DATA = [
    numbered(512, 1),  # 0: a boot sector
    numbered(40_000, 2),  # 1: in two pieces, the last block first
    numbered(3 * MIB + 5_000, 3),  # 2: four blocks
    numbered(20_480, 4),  # 3: twice on the disk
    numbered(5, 5),  # 4: tiny
    numbered(2 * MIB, 6),  # 5: exactly two blocks, in pieces that do not lie at their borders
]
"""The contents of the disk that most tests rebuild."""

CLASSES = [Class.BOOT, Class.PRIVATE, Class.SHARED, Class.SHARED, Class.SHARED, Class.SHARED]


def sample_map() -> Map:
    """Return the map of that disk: every kind of range, twins, pieces in any order."""
    return map_of(
        contents_of(DATA, CLASSES),
        [
            (Kind.CONTENT, 512, 0, 0),
            (Kind.ZERO, 3584, -1, 0),
            (Kind.CONTENT, 7232, 1, 32_768),
            (Kind.UNUSED, 960, -1, 0),
            (Kind.CONTENT, 3 * MIB + 5_000, 2, 0),
            (Kind.UNUSED, 3192, -1, 0),
            (Kind.CONTENT, 32_768, 1, 0),
            (Kind.CONTENT, 20_480, 3, 0),
            (Kind.DROPPED, 8192, -1, 0),
            (Kind.CONTENT, 5, 4, 0),
            (Kind.UNUSED, 4091, -1, 0),
            (Kind.CONTENT, MIB + 12_288, 5, MIB - 12_288),
            (Kind.CONTENT, 20_480, 3, 0),
            (Kind.CONTENT, MIB - 12_288, 5, 0),
            (Kind.ZERO, 1000, -1, 0),
        ],
    )


def sample_disk() -> bytes:
    return disk_of(sample_map(), DATA)


class Simulated:
    """A source that holds some contents in memory.

    held: {row: bytes}; a row may hold wrong bytes. cost: bytes that each content costs alone.
    asked, fetched: what find and fetch were called with, in order.
    """

    def __init__(
        self,
        uri: str = "honest:",
        held: Mapping[int, bytes] | None = None,
        *,
        local: bool = True,
        near: bool = False,
        twist: Twist | None = None,
        cost: int = 0,
    ) -> None:
        self.uri = uri
        self.local = local
        self.near = near
        self.held = dict(enumerate(DATA)) if held is None else dict(held)
        self.twist = twist
        self.cost = cost
        self.asked: list[tuple[list[int], bool]] = []
        self.fetched: list[list[int]] = []

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        self.asked.append((wanted.rows.tolist(), deep))
        rows = np.array([row for row in wanted.rows.tolist() if row in self.held], dtype=np.int64)
        none = np.empty(0, dtype=np.int64)
        return Offers(rows, np.full(len(rows), self.cost), np.full(len(rows), -1), none)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        self.fetched.append(rows.tolist())
        pieces = self._pieces(rows)
        return self.twist(pieces) if self.twist else pieces

    def _pieces(self, rows: Rows) -> Iterator[Piece]:
        for row in rows.tolist():
            data = self.held[row]
            for block, start in enumerate(range(0, len(data), BLOCK_BYTES)):
                yield Bytes(row, block, data[start : start + BLOCK_BYTES])

    def close(self) -> None:
        pass


class InBlocks(Simulated):
    """A source that also sends single pieces. sent: which, in order."""

    def __init__(self, uri: str = "honest:", *, local: bool = True) -> None:
        super().__init__(uri, local=local)
        self.sent: list[tuple[int, int]] = []

    def fetch_blocks(self, rows: Rows, blocks: Rows) -> Iterator[Bytes]:
        for row, block in zip(rows.tolist(), blocks.tolist(), strict=True):
            self.sent.append((row, block))
            start = block * BLOCK_BYTES
            yield Bytes(row, block, self.held[row][start : start + BLOCK_BYTES])

    def cost_of_blocks(self, rows: Rows, blocks: Rows) -> int:
        return len(rows)


class InOneFrame(InBlocks):
    """A source that sends all that it holds, whatever of it is asked for, the last one first."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        found = super().find(wanted, deep=deep)
        group = np.zeros_like(found.rows)
        return replace(found, group=group, group_bytes=np.array([1000], dtype=np.int64))

    def fetch_blocks(self, rows: Rows, blocks: Rows) -> Iterator[Bytes]:
        self.sent += zip(rows.tolist(), blocks.tolist(), strict=True)
        for piece in reversed(list(self._pieces(np.array(sorted(self.held))))):
            assert isinstance(piece, Bytes)
            yield piece


class Files(Simulated):
    """A source that holds contents in files, each at an offset in its file.

    meddle: called with a file's path just before the file is handed over.
    """

    def __init__(
        self,
        folder: Path,
        held: Mapping[int, bytes] | None = None,
        *,
        uri: str = "files:",
        offset: int = 0,
        twist: Twist | None = None,
        meddle: Callable[[Path], None] | None = None,
        local: bool = True,
    ) -> None:
        super().__init__(uri, held, twist=twist, local=local)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.offset = offset
        self.meddle = meddle
        for row, data in self.held.items():
            self.path(row).write_bytes(bytes(offset) + data + b"what follows in the file")

    def path(self, row: int) -> Path:
        return self.folder / f"file-{row}"

    def _pieces(self, rows: Rows) -> Iterator[Piece]:
        for row in rows.tolist():
            if self.meddle:
                self.meddle(self.path(row))
            fd = os.open(self.path(row), os.O_RDONLY)
            try:
                yield FileRange(row, fd, self.offset)
            finally:
                os.close(fd)


class Fickle(Simulated):
    """A source with several candidates for each content, of which the last one is right."""

    def __init__(self, uri: str, wrong: int, held: Mapping[int, bytes] | None = None) -> None:
        super().__init__(uri, held)
        self.wrong = wrong
        self.learned: list[tuple[list[int], bool]] = []
        self._refuted: dict[int, int] = {}

    def learn(self, rows: Rows, *, ok: bool) -> None:
        self.learned.append((rows.tolist(), ok))
        for row in rows.tolist() if not ok else ():
            self._refuted[row] = self._refuted.get(row, 0) + 1

    def _pieces(self, rows: Rows) -> Iterator[Piece]:
        for piece in super()._pieces(rows):
            assert isinstance(piece, Bytes)
            if self._refuted.get(piece.row, 0) < self.wrong:
                yield Bytes(piece.row, piece.block, b"?" * len(piece.data))
            else:
                yield piece


# -- what a source can do wrong --------------------------------------------------------------------


def each(change: Callable[[Bytes], Bytes]) -> Twist:
    """Return the twist that changes every piece."""

    def twist(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            assert isinstance(piece, Bytes)
            yield change(piece)

    return twist


def flipped(data: bytes | memoryview) -> bytes:
    return bytes([data[0] ^ 1]) + bytes(data[1:])


def backwards_and_twice(pieces: Iterator[Piece]) -> Iterator[Piece]:
    everything = list(pieces)
    yield from reversed(everything)
    yield from everything


def right_then_wrong(pieces: Iterator[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        assert isinstance(piece, Bytes)
        yield piece
        yield Bytes(piece.row, piece.block, flipped(piece.data))


def every_second_one(pieces: Iterator[Piece]) -> Iterator[Piece]:
    return (piece for number, piece in enumerate(pieces) if number % 2)


def breaks_after(count: int) -> Twist:
    def twist(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for number, piece in enumerate(pieces):
            if number == count:
                raise SourceError("the cable was pulled")
            yield piece

    return twist


def for_others(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Pieces of contents and blocks that nobody asked for, or that do not exist."""
    for piece in pieces:
        assert isinstance(piece, Bytes)
        for row, block in [
            (piece.row, piece.block + 1),
            (piece.row, -1),
            (piece.row, 1 << 40),
            (len(DATA), 0),
            (-1, 0),
            ((piece.row + 1) % len(DATA), piece.block),
        ]:
            yield Bytes(row, block, piece.data)
        for row in range(len(DATA)):
            yield Bytes(row, -1, DATA[row][-BLOCK_BYTES:])
            yield Bytes(row, 2, b"")


MISDEEDS: dict[str, Twist] = {
    "lies in the first byte": each(lambda p: Bytes(p.row, p.block, flipped(p.data))),
    "lies in the last byte": each(lambda p: Bytes(p.row, p.block, flipped(p.data[::-1])[::-1])),
    "sends pieces that are short": each(lambda p: Bytes(p.row, p.block, p.data[:-1])),
    "sends nothing in its pieces": each(lambda p: Bytes(p.row, p.block, b"")),
    "sends pieces that are long": each(lambda p: Bytes(p.row, p.block, bytes(p.data) + b"x")),
    "swaps blocks": each(lambda p: Bytes(p.row, p.block ^ 1, p.data)),
    "sends backwards and twice": backwards_and_twice,
    "sends right ones, then wrong ones": right_then_wrong,
    "leaves pieces out": every_second_one,
    "sends nothing at all": lambda pieces: iter(()),
    "breaks at once": breaks_after(0),
    "breaks in the middle": breaks_after(3),
    "sends what nobody asked for": for_others,
}


# -- a disk being rebuilt --------------------------------------------------------------------------


@dataclass
class Bench:
    """An output with its assembler, and the bytes that must come out."""

    path: Path
    disk_map: Map = field(default_factory=sample_map)
    disk: bytes = field(default_factory=sample_disk)

    def __post_init__(self) -> None:
        self.closed = False
        self.output = Output(self.path, self.disk_map.size)
        self.assembler = Assembler(self.disk_map, self.output, ASSEMBLER_JOBS)

    def place(self, source: Simulated, rows: Rows | None = None) -> tuple[int, list[str]]:
        told: list[int] = []
        rows = self.assembler.missing() if rows is None else rows
        result = self.assembler.place_all(source, rows, told.append)
        assert sum(told) == result[0]
        self.check_proven()
        return result

    def written(self) -> bytes:
        return self.output.pread(0, self.disk_map.size)

    def check_proven(self) -> None:
        """Whatever counts as proven is right, in all its places; and nothing lies elsewhere."""
        missing = set(self.assembler.missing().tolist())
        found = self.written()
        for start, end, content in zip(
            self.disk_map.start.tolist(),
            self.disk_map.end.tolist(),
            self.disk_map.content.tolist(),
            strict=True,
        ):
            if content not in missing:
                assert found[start:end] == self.disk[start:end], (start, end, content)

    def finish(self) -> None:
        """An honest source completes what is there to the right disk."""
        self.place(Simulated())
        assert self.assembler.missing().tolist() == []
        assert self.written() == self.disk

    def close(self) -> None:
        if not self.closed:
            self.output.close()
        self.closed = True


def ask(disk_map: Map, hints: Hints | None = None) -> Wanted:
    rows = np.arange(len(disk_map.contents), dtype=np.int64)
    return Wanted(disk_map.contents, rows, hints or no_hints())


SILENT = Silent()
