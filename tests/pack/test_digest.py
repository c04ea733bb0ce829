"""Fragments are named by what they hold, whoever hashes them and in however many threads."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fixtures.windows.signing import signed as signed_program
from formats.filesystem.model import UNWRITTEN
from formats.ranges import empty_ranges
from formats.source import Memory
from formats.windows.authenticode import image_digest
from formats.windows.pe import PortableExecutable
from packer.guest.expected import Catalogued
from packer.pack.cut import Cut, cut
from packer.pack.digest import Digests, FragmentReader, digest_fragments
from tests.formats.windows.make_pe import SECTION_OFFSET, TIMESTAMP, Form, program
from tests.pack.surveys import BLOCK, File, numbered_disk, survey_of

MIB = 1 << 20


def cut_and_hash(
    source: Memory, files: list[File], *, jobs: int = 1
) -> tuple[Cut, Digests, list[int]]:
    """Return (cut, digests, bytes that were told to the progress)."""
    pieces = cut(survey_of(source.size, files), source, empty_ranges())
    told: list[int] = []
    digests = digest_fragments(
        pieces,
        FragmentReader(pieces, source),
        [file.expected for file in files],
        jobs=jobs,
        progress=told.append,
    )
    return pieces, digests, told


def names(digests: Digests) -> list[str]:
    return [bytes(row).hex() for row in digests.digest]


def md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


def test_a_fragment_is_named_by_the_sha256_of_its_bytes() -> None:
    source = numbered_disk(6)
    file = File(BLOCK + 10, [(0, 4 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK, BLOCK)])
    pieces, digests, told = cut_and_hash(source, [file])
    row = pieces.stream.tolist().index(0)
    expected = bytes([4]) * BLOCK + bytes([2]) * 10
    assert names(digests)[row] == hashlib.sha256(expected).hexdigest()
    assert sum(told) == int(pieces.size.sum())


@pytest.mark.parametrize("size", [MIB, MIB + 1, 2 * MIB, 3 * MIB + 5])
def test_what_is_larger_than_a_mib_is_also_named_by_each_mib(size: int) -> None:
    data = bytes(range(256)) * (3 * MIB // 256 + 16)
    length = -(-size // BLOCK) * BLOCK
    pieces, digests, _ = cut_and_hash(Memory(data), [File(size, [(0, 0, length)])])
    row = pieces.stream.tolist().index(0)
    first, last = digests.block_start[row], digests.block_start[row + 1]
    found = [bytes(one).hex() for one in digests.blocks[first:last]]
    expected = [
        hashlib.sha256(data[start : min(start + MIB, size)]).hexdigest()
        for start in range(0, size, MIB)
    ]
    assert found == (expected if size > MIB else [])
    assert int(digests.block_start[-1]) == len(digests.blocks)


def test_of_a_large_file_every_mib_is_told_so_that_a_bar_moves() -> None:
    size = 5 * MIB + 17
    pieces, _, told = cut_and_hash(Memory(bytes([7]) * (6 * MIB)), [File(size, [(0, 0, 6 * MIB)])])
    assert max(told) <= MIB
    assert sum(told) == int(pieces.size.sum())


def test_a_disk_without_fragments_has_no_digests() -> None:
    _, digests, told = cut_and_hash(Memory(bytes(10 * BLOCK)), [])
    assert digests.digest.shape == (0, 32)
    assert digests.blocks.shape == (0, 32)
    assert digests.block_start.tolist() == [0]
    assert sum(told) == 0


def test_the_number_of_threads_does_not_change_a_name() -> None:
    source = numbered_disk(9000)
    files = [File(BLOCK, [(0, n * 2 * BLOCK, BLOCK)]) for n in range(3000)]
    files.append(File(8 * MIB, [(0, 6500 * BLOCK, 8 * MIB)]))
    pieces, one, _ = cut_and_hash(source, files, jobs=1)
    _, four, told = cut_and_hash(source, files, jobs=4)
    for name in Digests.__slots__:
        assert np.array_equal(getattr(one, name), getattr(four, name))
    assert len(told) > 1
    assert sum(told) == int(pieces.size.sum())


def test_a_whole_file_with_the_md5_of_its_package_is_owned() -> None:
    source = numbered_disk(6)
    good = File(BLOCK, [(0, 2 * BLOCK, BLOCK)], expected=md5(bytes([2]) * BLOCK))
    changed = File(BLOCK, [(0, 3 * BLOCK, BLOCK)], expected=md5(b"as it was shipped"))
    nobodys = File(BLOCK, [(0, 4 * BLOCK, BLOCK)])
    pieces, digests, _ = cut_and_hash(source, [good, changed, nobodys])
    owned = {int(s): bool(o) for s, o in zip(pieces.stream, digests.owned, strict=True)}
    assert owned == {-1: False, 0: True, 1: False, 2: False}


@pytest.mark.parametrize(
    "extents",
    [
        [(0, 2 * BLOCK, BLOCK), (5 * BLOCK, 3 * BLOCK, BLOCK)],
        [
            (0, 2 * BLOCK, BLOCK),
            (BLOCK, 4 * BLOCK, BLOCK, UNWRITTEN),
            (2 * BLOCK, 3 * BLOCK, BLOCK),
        ],
    ],
    ids=["hole", "unwritten"],
)
def test_no_part_of_a_file_with_holes_is_owned(extents: list[tuple[int, ...]]) -> None:
    """The MD5 speaks of the whole file, so that a part which happens to have it proves nothing."""
    file = File(6 * BLOCK, extents, expected=md5(bytes([2]) * BLOCK))
    _, digests, _ = cut_and_hash(numbered_disk(6), [file])
    assert not digests.owned.any()


def disk_of(*files: bytes) -> tuple[Memory, list[File]]:
    """A disk with files one after the other, from block 1 on."""
    disk, found = bytearray(BLOCK), []
    for data in files:
        length = -(-len(data) // BLOCK) * BLOCK
        found.append(File(len(data), [(0, len(disk), length)]))
        disk += data.ljust(length, b"\0")
    return Memory(bytes(disk)), found


def owned_files(source: Memory, files: list[File]) -> list[bool]:
    pieces, digests, _ = cut_and_hash(source, files)
    owned = dict(zip(pieces.stream.tolist(), digests.owned.tolist(), strict=True))
    return [owned[row] for row in range(len(files))]


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("size", [100, 2 * MIB + 5])
def test_the_length_of_a_digest_tells_its_algorithm(algorithm: str, size: int) -> None:
    data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
    source, (good, bad) = disk_of(data, data + b"!")
    good.expected = bad.expected = hashlib.new(algorithm, data).digest()
    assert owned_files(source, [good, bad]) == [True, False]


PROGRAM = program(Form(imports=("hal.dll",)))


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_catalogs_list_programs_by_what_signatures_cover(algorithm: str) -> None:
    """So a program that got a signature since then is still the listed one."""
    signed = signed_program(PROGRAM)
    changed = bytearray(signed)
    changed[SECTION_OFFSET] ^= 1
    source, files = disk_of(PROGRAM, signed, bytes(changed))
    listed = frozenset(
        [image_digest(Memory(PROGRAM), PortableExecutable(Memory(PROGRAM)), algorithm)]
    )
    for file in files:
        file.expected = Catalogued(**{algorithm: listed})
    assert owned_files(source, files) == [True, True, False]


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_catalogs_list_other_files_by_all_their_bytes(algorithm: str) -> None:
    source, files = disk_of(b"[Version]\r\n", b"[Version]\n", b"MZ, but no program")
    listed = [hashlib.new(algorithm, b"[Version]\r\n").digest()]
    listed.append(hashlib.new(algorithm, b"MZ, but no program").digest())
    for file in files:
        file.expected = Catalogued(**{algorithm: frozenset(listed)})
    assert owned_files(source, files) == [True, False, True]


def test_programs_are_noted_with_what_symbol_servers_know_them_by() -> None:
    source, files = disk_of(b"no program", PROGRAM, b"MZ" + bytes(5000))
    pieces = cut(survey_of(source.size, files), source, empty_ranges())
    reader = FragmentReader(pieces, source)
    found = [
        digest_fragments(
            pieces, reader, [None] * 3, with_programs=wanted, jobs=1, progress=lambda _: None
        ).programs.tolist()
        for wanted in (True, False)
    ]
    size_of_image = PortableExecutable(Memory(PROGRAM)).size_of_image
    assert found == [[[pieces.stream.tolist().index(1), TIMESTAMP, size_of_image]], []]


def test_a_part_of_a_fragment_can_be_read() -> None:
    source = numbered_disk(8)
    file = File(3 * BLOCK, [(0, 6 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK, 2 * BLOCK)])
    pieces = cut(survey_of(source.size, [file]), source, empty_ranges())
    reader = FragmentReader(pieces, source)
    row = pieces.stream.tolist().index(0)
    whole = bytes([6]) * BLOCK + bytes([2]) * BLOCK + bytes([3]) * BLOCK
    for start, end in [
        (0, 1),
        (BLOCK - 1, BLOCK + 1),
        (BLOCK, 3 * BLOCK),
        (100, 3 * BLOCK),
        (7, 7),
    ]:
        assert reader.read(row, start, end) == whole[start:end]
