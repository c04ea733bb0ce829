"""Hash every fragment of a cut disk: what each one is called, and whether a record says the same.

What symbol servers know programs by is noted on the way, because all bytes pass here.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from formats.errors import FormatError
from formats.source import Source, check_bounds
from formats.windows.authenticode import image_digest
from formats.windows.image_key import START_BYTES, ImageKey, image_key
from formats.windows.pe import PortableExecutable
from packer.artifact.contents import BLOCK_BYTES, DIGEST_BYTES, block_starts
from packer.guest.expected import ALGORITHMS, Catalogued, Expected
from packer.pack.cut import Cut
from packer.pack.earlier import Known

BATCH_BYTES = 16 << 20
BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Digests:
    """digest: uint8[f, 32], SHA-256 of each fragment. blocks: uint8[b, 32], of each 1 MiB of
    fragments above that, in row order; block_start: int64[f + 1]. owned: bool[f], whether the
    fragment is a whole file whose digest is one that was expected. programs: int64[p, 3], of each
    whole file that is a Windows program: fragment, TimeDateStamp, SizeOfImage; sorted.
    """

    digest: NDArray[np.uint8]
    blocks: NDArray[np.uint8]
    block_start: NDArray[np.int64]
    owned: NDArray[np.bool_]
    programs: NDArray[np.int64]


class FragmentReader:
    """Reads fragments of a cut disk; any number of threads."""

    def __init__(self, cut: Cut, source: Source) -> None:
        self._source = source
        # Arrays of Python: single numbers are had faster than from NumPy's, in a fifth of a list's
        # memory.
        self._bounds = array("q", cut.extent_bounds().tobytes())
        self._offset = array("q", cut.offset.tobytes())
        self._disk_offset = array("q", cut.disk_offset.tobytes())
        self._length = array("q", cut.length.tobytes())

    def read(self, fragment: int, start: int, end: int) -> bytes:
        """Return the bytes `[start, end)` of a fragment."""
        pieces: list[bytes] = []
        for row in range(self._bounds[fragment], self._bounds[fragment + 1]):
            low = max(start, self._offset[row])
            high = min(end, self._offset[row] + self._length[row])
            if low < high:
                place = self._disk_offset[row] + low - self._offset[row]
                pieces.append(self._source.pread(place, high - low))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def blocks(self, fragment: int, size: int) -> Iterator[bytes]:
        """Yield a fragment in pieces of 1 MiB."""
        for start in range(0, size, BLOCK_BYTES):
            yield self.read(fragment, start, min(start + BLOCK_BYTES, size))


def digest_fragments(
    cut: Cut,
    reader: FragmentReader,
    expected: Sequence[Expected | None],
    *,
    known: Known | None = None,
    with_programs: bool = False,
    jobs: int,
    progress: Callable[[int], None],
) -> Digests:
    """Return the digests of all fragments.

    expected: for each stream of the survey, what a record says it hashes to. known: fragments that
    need not be read; nothing is said of whether they are what was expected.
    progress: called with the bytes hashed since the last call, by any thread.
    """
    held: list[int] = [-1] * len(cut.size) if known is None else known.content.tolist()
    sizes: list[int] = cut.size.tolist()
    streams: list[int] = cut.stream.tolist()
    fragments_of_stream = np.bincount(cut.stream[cut.stream >= 0], minlength=len(expected))
    whole = (fragments_of_stream == 1).tolist()

    def hash_rows(bounds: tuple[int, int]) -> _Part:
        part = _Part()
        for row in range(*bounds):
            is_file = streams[row] >= 0 and whole[streams[row]]
            if known is not None and held[row] >= 0:
                hashed = _recalled(known, held[row])
            else:
                wanted = expected[streams[row]] if is_file else None
                hashed = _hash(_Fragment(reader, row, sizes[row]), wanted, progress)
            part.add(row, hashed, with_program=with_programs and is_file)
        small = (row for row in range(*bounds) if held[row] < 0 and sizes[row] <= BLOCK_BYTES)
        progress(sum(sizes[row] for row in small))
        return part

    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(hash_rows, _batches(sizes)))
    programs = [one for part in parts for one in part.programs]
    return Digests(
        _as_digests(part.digest for part in parts),
        _as_digests(part.blocks for part in parts),
        block_starts(cut.size),
        np.array([one for part in parts for one in part.owned], dtype=bool),
        np.array(programs, dtype=np.int64).reshape(-1, 3),
    )


@dataclass(frozen=True, slots=True)
class _Fragment:
    """A fragment as a source of its own."""

    reader: FragmentReader
    row: int
    size: int

    def pread(self, offset: int, length: int) -> bytes:
        check_bounds("file", self.size, offset, length)
        return self.reader.read(self.row, offset, offset + length)


@dataclass(frozen=True, slots=True)
class _Hashed:
    digest: bytes
    blocks: bytes
    owned: bool
    key: ImageKey | None


@dataclass(slots=True)
class _Part:
    """What was found in a batch, in few objects: a guest may have a million fragments."""

    digest: bytearray = field(default_factory=bytearray)
    blocks: bytearray = field(default_factory=bytearray)
    owned: list[bool] = field(default_factory=list)
    programs: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, row: int, hashed: _Hashed, *, with_program: bool) -> None:
        self.digest += hashed.digest
        self.blocks += hashed.blocks
        self.owned.append(hashed.owned)
        if with_program and hashed.key is not None:
            self.programs.append((row, *hashed.key))


def _recalled(known: Known, content: int) -> _Hashed:
    """Return what a fragment is that is known to be a content of an earlier pack."""
    contents = known.contents
    first, end = contents.block_start[content : content + 2].tolist()
    key = known.programs.of(content)
    return _Hashed(
        contents.digest[content].tobytes(),
        contents.blocks[first:end].tobytes(),
        owned=False,
        key=None if key is None else ImageKey(*key),
    )


def _hash(
    fragment: _Fragment, expected: Expected | None, progress: Callable[[int], None]
) -> _Hashed:
    """Return what a fragment is; tell the progress of a large one."""
    whole = hashlib.sha256()
    other = _other_hash(expected)
    blocks = bytearray()
    key: ImageKey | None = None
    for number, piece in enumerate(fragment.reader.blocks(fragment.row, fragment.size)):
        whole.update(piece)
        if number == 0:
            key = image_key(piece[:START_BYTES])
        if fragment.size > BLOCK_BYTES:
            blocks += hashlib.sha256(piece).digest()
            progress(len(piece))
        if other is not None:
            other.update(piece)
    digest = whole.digest()
    if isinstance(expected, Catalogued):
        owned = _is_catalogued(fragment, digest, expected)
    else:
        owned = expected is not None and expected == (digest if other is None else other.digest())
    return _Hashed(digest, bytes(blocks), owned, key)


def _other_hash(expected: Expected | None) -> hashlib._Hash | None:
    """Return the hash of a record that does not say SHA-256, which is taken anyway."""
    if not isinstance(expected, bytes) or len(expected) == DIGEST_BYTES:
        return None
    return hashlib.new(ALGORITHMS[len(expected)], usedforsecurity=False)


def _is_catalogued(fragment: _Fragment, sha256: bytes, listed: Catalogued) -> bool:
    """Return whether catalogs list a file: a program without its signature, others as they are.

    Both ways of counting start anew: it is asked of few files, and mostly one way is enough.
    """
    try:
        program = PortableExecutable(fragment)
    except FormatError:
        if sha256 in listed.sha256:
            return True
        return bool(listed.sha1) and _digest(fragment, "sha1") in listed.sha1
    try:
        return any(
            bool(digests) and image_digest(fragment, program, algorithm) in digests
            for algorithm, digests in (("sha256", listed.sha256), ("sha1", listed.sha1))
        )
    except FormatError:
        return False


def _digest(fragment: _Fragment, algorithm: str) -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for piece in fragment.reader.blocks(fragment.row, fragment.size):
        digest.update(piece)
    return digest.digest()


def _as_digests(parts: Iterable[bytearray]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _batches(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return [first, end) rows of batches that are small enough to keep every thread busy."""
    cuts, filled = [0], 0
    for row, size in enumerate(sizes):
        filled += size
        if filled >= BATCH_BYTES or row + 1 - cuts[-1] >= BATCH_ROWS:
            cuts.append(row + 1)
            filled = 0
    if cuts[-1] != len(sizes):
        cuts.append(len(sizes))
    return list(pairwise(cuts))
