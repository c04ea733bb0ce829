"""Compress contents into the frames of bundles.

A frame of the shared bundles never mixes packages or folders of different origin, so that who
lacks one package fetches little else; boot and private bundles travel whole and mix freely. A
content of 128 KiB or more has frames of its own, one for each 1 MiB block.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Class, Contents
from packer.artifact.hints import NO_PACKAGE, Hints
from packer.artifact.index import MAX_FRAME_BYTES, OWN_FRAME_BYTES, Index, offsets_in_bundles
from packer.artifact.layout.base import BlobWriter, LayoutWriter
from packer.artifact.manifest import Blob
from packer.artifact.zstd import compress_within_reason
from packer.errors import InUseError

SHARED_FRAME_BYTES = BLOCK_BYTES
"""Small shared contents are mixed up to this size: what a missing 20 kB file costs to fetch."""

SHARED_BUNDLE_BYTES = 192 << 20
"""A shared bundle is closed when it has grown to this size."""

OTHER_BUNDLE_BYTES = 1 << 30
"""Likewise boot and private bundles, so that no file system of a stick finds one too large."""

ESTIMATE_LEVEL = 3

ReadBlock = Callable[[int, int], bytes]
"""(row of the contents, block) -> the bytes of that block."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What one frame holds: one block of one content, or several whole small contents."""

    rows: tuple[int, ...]
    block: int
    size: int


def _column() -> array[int]:
    return array("q")


@dataclass(slots=True)
class _Table:
    """The frame index while it grows."""

    bundle: array[int] = field(default_factory=_column)
    stored_bytes: array[int] = field(default_factory=_column)
    frame_bytes: array[int] = field(default_factory=_column)
    content: array[int] = field(default_factory=_column)
    first_frame: array[int] = field(default_factory=_column)
    offset: array[int] = field(default_factory=_column)

    def add(self, frame: Frame, bundle: int, stored_bytes: int, sizes: Sequence[int]) -> None:
        if frame.block == 0:
            offset = 0
            for row in frame.rows:
                self.content.append(row)
                self.first_frame.append(len(self.bundle))
                self.offset.append(offset)
                offset += sizes[row]
        self.bundle.append(bundle)
        self.stored_bytes.append(stored_bytes)
        self.frame_bytes.append(frame.size)

    def index(self, bundles: Sequence[Blob]) -> Index:
        bundle = np.array(self.bundle, dtype=np.int64)
        stored = np.array(self.stored_bytes, dtype=np.int64)
        content = np.array(self.content, dtype=np.int64)
        rows = np.argsort(content)
        return Index(
            tuple(blob.digest for blob in bundles),
            bundle,
            offsets_in_bundles(bundle, stored),
            stored,
            np.array(self.frame_bytes, dtype=np.int64),
            content[rows],
            np.array(self.first_frame, dtype=np.int64)[rows],
            np.array(self.offset, dtype=np.int64)[rows],
        )


def write_bundles(
    writer: LayoutWriter,
    contents: Contents,
    hints: Hints,
    read: ReadBlock,
    *,
    wanted: NDArray[np.bool_] | None = None,
    taken: Collection[str] = (),
    levels: dict[Class, int],
    jobs: int,
    progress: Callable[[int], None],
) -> tuple[dict[str, Blob], Index]:
    """Write the bundles of contents, class by class. Returns ({title: bundle}, index).

    wanted: bool[n], leave the others out. taken: titles that other bundles have already. levels:
    zstd level of each class. Every block is compared with its digest as it is compressed: raises
    InUseError when the image changed since then.
    """
    sizes = contents.size.tolist()
    table = _Table()
    titles: list[str] = []
    blobs: list[Blob] = []
    with ThreadPoolExecutor(jobs) as pool:
        for one in Class:
            limit = SHARED_BUNDLE_BYTES if one == Class.SHARED else OTHER_BUNDLE_BYTES
            frames = frames_of(contents, hints, one, wanted)
            stored = _compressed(pool, frames, contents, read, levels[one], jobs)
            open_bundle: BlobWriter | None = None
            for frame, data in stored:
                if open_bundle is None:
                    open_bundle = writer.stream()
                    titles.append(_title(one, [*taken, *titles]))
                open_bundle.write(data)
                table.add(frame, len(blobs), len(data), sizes)
                progress(frame.size)
                if open_bundle.size >= limit:
                    # A content's blocks may go on in the next bundle: frames stay in one row.
                    blobs.append(open_bundle.finish())
                    open_bundle = None
            if open_bundle is not None:
                blobs.append(open_bundle.finish())
    return dict(zip(titles, blobs, strict=True)), table.index(blobs)


def estimate_bytes(
    contents: Contents,
    hints: Hints,
    read: ReadBlock,
    *,
    jobs: int,
    progress: Callable[[int], None],
) -> int:
    """Return about how many bytes boot and private bundles would take.

    Compressed at a fast level, which comes within a tenth of the final one: kernels and
    initramfs, most of it, are compressed already.
    """
    stored = 0
    with ThreadPoolExecutor(jobs) as pool:
        for one in (Class.BOOT, Class.PRIVATE):
            frames = frames_of(contents, hints, one)
            for frame, data in _compressed(pool, frames, contents, read, ESTIMATE_LEVEL, jobs):
                stored += len(data)
                progress(frame.size)
    return stored


def frames_of(
    contents: Contents, hints: Hints, one: Class, wanted: NDArray[np.bool_] | None = None
) -> Iterator[Frame]:
    """Yield the frames of a class in their order: by origin, then by path.

    wanted: bool[n], leave the others out.
    """
    rows = np.flatnonzero((contents.classes == one) & (True if wanted is None else wanted))
    if len(rows) == 0:
        return
    mixes = one != Class.SHARED
    limit = MAX_FRAME_BYTES if mixes else SHARED_FRAME_BYTES
    sizes = contents.size.tolist()
    gathered: list[int] = []
    filled = 0
    last_origin: object = None
    for origin, row in _by_origin(hints, rows):
        size = sizes[row]
        if size >= OWN_FRAME_BYTES:
            for block, start in enumerate(range(0, size, BLOCK_BYTES)):
                yield Frame((row,), block, min(BLOCK_BYTES, size - start))
            continue
        if gathered and (filled + size > limit or not (mixes or origin == last_origin)):
            yield Frame(tuple(gathered), 0, filled)
            gathered, filled = [], 0
        gathered.append(row)
        filled += size
        last_origin = origin
    if gathered:
        yield Frame(tuple(gathered), 0, filled)


def _by_origin(hints: Hints, rows: NDArray[np.int64]) -> Iterator[tuple[str, int]]:
    """Yield (origin, row) of each content: by origin, then with like beside like.

    The origin is the package, or the folder of what no package ships; metadata has neither.
    """
    place = np.minimum(np.searchsorted(hints.content, rows), max(len(hints.content) - 1, 0))
    named = hints.content[place] == rows if len(hints.content) else np.zeros(len(rows), dtype=bool)
    places = np.where(named, place, -1).tolist()

    def origin(place: int) -> str:
        if place < 0:
            return ""
        package = int(hints.package[place])
        if package == NO_PACKAGE:
            return hints.path[place].rpartition("/")[0]
        return f"{hints.packages[package].name}\0{package}"

    def key(number: int) -> str:
        place = places[number]
        path = hints.path[place] if place >= 0 else ""
        # Files of one kind compress best beside each other.
        return f"{origin(place)}\0{path.rpartition('/')[2].rpartition('.')[2]}\0{path}"

    # Only their order is kept: the keys of a million contents take hundreds of MB.
    order = array("q", sorted(range(len(rows)), key=key))
    for number in order:
        yield origin(places[number]), int(rows[number])


def _compressed(
    pool: ThreadPoolExecutor,
    frames: Iterator[Frame],
    contents: Contents,
    read: ReadBlock,
    level: int,
    jobs: int,
) -> Iterator[tuple[Frame, bytes]]:
    """Yield each frame with its compressed bytes, in order, some of them ahead of time."""
    ahead: deque[tuple[Frame, Future[bytes]]] = deque()
    for frame in frames:
        ahead.append((frame, pool.submit(_compress, frame, contents, read, level)))
        if len(ahead) > 4 * jobs:
            done, future = ahead.popleft()
            yield done, future.result()
    for done, future in ahead:
        yield done, future.result()


def _compress(frame: Frame, contents: Contents, read: ReadBlock, level: int) -> bytes:
    pieces = []
    for row in frame.rows:
        data = read(row, frame.block)
        if hashlib.sha256(data).digest() != contents.block_digest(row, frame.block):
            raise InUseError(
                f"the image changed while it was packed: {contents.name(row)} is no longer there",
                hint="shut the guest down and pack again",
            )
        pieces.append(data)
    return compress_within_reason(pieces[0] if len(pieces) == 1 else b"".join(pieces), level)


def _title(one: Class, taken: Collection[str]) -> str:
    """Return the first free title of a bundle: "boot", "boot-001", …; "shared-000", …"""
    kind = one.name.lower()
    first = f"{kind}-000" if one == Class.SHARED else kind
    titles = chain([first], (f"{kind}-{number:03d}" for number in count(1)))
    return next(title for title in titles if title not in taken)
