"""A disk with its map: every content of the disk, without hints, wherever the map says it lies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.map import Kind, Map
from packer.sources.against import holds
from packer.sources.base import Bytes, FileRange, Wanted
from packer.sources.mapped import MappedSource
from packer.survey.disk import open_disk
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, no_hints
from tests.unpack.simulated import DATA, numbered, sample_disk, sample_map

MIB = 1 << 20
ALL = list(range(len(DATA)))
IN_ONE_RUN = {0, 2, 3, 4}
"""Those of DATA that the disk holds in one piece somewhere."""

Open = Callable[[Path, Map], MappedSource]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(sample_disk())
    return path


@pytest.fixture
def opened() -> Iterator[Open]:
    """`opened(path, map)`: the source; it and its disk are closed after the test."""
    with ExitStack() as stack:

        def open_one(path: Path, disk_map: Map) -> MappedSource:
            disk = stack.enter_context(open_disk(path))
            source = MappedSource(disk, disk_map, path)
            stack.callback(source.close)
            return source

        yield open_one


def no_hints_needed() -> None:
    raise AssertionError("hints were asked for")


def wanted_of(data: list[bytes]) -> Wanted:
    return Wanted(contents_of(data), np.arange(len(data)), no_hints_needed)  # type: ignore[arg-type]


def fetched(source: MappedSource, wanted: Wanted) -> dict[int, bytes]:
    rows = source.find(wanted, deep=False).rows
    found: dict[int, bytes] = {}
    for piece in source.fetch(rows):
        if isinstance(piece, FileRange):
            size = int(wanted.contents.size[piece.row])
            found[piece.row] = os.pread(piece.fd, size, piece.offset)
        else:
            assert len(found.get(piece.row, b"")) == piece.block * MIB
            found[piece.row] = found.get(piece.row, b"") + bytes(piece.data)
    return found


def test_every_content_is_had_and_those_in_one_run_as_ranges_of_the_file(
    image: Path, opened: Open
) -> None:
    source = opened(image, sample_map())
    wanted = wanted_of(DATA)
    assert fetched(source, wanted) == dict(enumerate(DATA))
    pieces = list(source.fetch(np.array(ALL)))
    assert {piece.row for piece in pieces if isinstance(piece, FileRange)} == IN_ONE_RUN
    assert source.local
    assert source.uri == f"disk:{image}"


def test_pieces_come_in_the_order_of_the_disk(image: Path, opened: Open) -> None:
    source = opened(image, sample_map())
    source.find(wanted_of(DATA), deep=False)
    rows = [piece.row for piece in source.fetch(np.array([4, 0, 2]))]
    assert rows == [0, 2, 4]


@pytest.mark.parametrize("container", ["qcow2", "vmdk"])
def test_another_container_gives_its_contents_block_by_block(
    image: Path, opened: Open, container: str
) -> None:
    path = image.with_suffix(f".{container}")
    # Containers are rounded up to whole sectors.
    os.truncate(image, -(-image.stat().st_size // 512) * 512)
    subprocess.run(["qemu-img", "convert", "-O", container, image, path], check=True)
    source = opened(path, sample_map())
    assert fetched(source, wanted_of(DATA)) == dict(enumerate(DATA))
    assert all(isinstance(piece, Bytes) for piece in source.fetch(np.array(ALL)))


def test_other_contents_are_not_offered_and_order_does_not_matter(
    image: Path, opened: Open
) -> None:
    data = [b"nowhere", DATA[5], b"nor this", DATA[1]]
    source = opened(image, sample_map())
    wanted = wanted_of(data)
    assert source.find(wanted, deep=True).rows.tolist() == [1, 3]
    assert fetched(source, wanted) == {1: DATA[5], 3: DATA[1]}
    one = wanted.only(np.array([3]))
    assert source.find(one, deep=False).rows.tolist() == [3]


def test_of_a_twin_the_place_in_one_piece_is_taken(tmp_path: Path, opened: Open) -> None:
    """Its first place on the disk is in two pieces; only a whole one can share blocks."""
    data = numbered(3 * 4096, 7)
    disk_map = map_of(
        contents_of([data]),
        [
            (Kind.CONTENT, 4096, 0, 0),
            (Kind.ZERO, 4096, -1, 0),
            (Kind.CONTENT, 8192, 0, 4096),
            (Kind.CONTENT, 3 * 4096, 0, 0),
        ],
    )
    path = tmp_path / "twins.raw"
    path.write_bytes(disk_of(disk_map, [data]))
    source = opened(path, disk_map)
    source.find(wanted_of([data]), deep=False)
    (piece,) = source.fetch(np.array([0]))
    assert isinstance(piece, FileRange)
    assert piece.offset == 4 * 4096


def test_pieces_that_follow_each_other_are_one_run(tmp_path: Path, opened: Open) -> None:
    data = numbered(3 * 4096, 8)
    rows = [(Kind.CONTENT, 4096, 0, offset) for offset in range(0, 3 * 4096, 4096)]
    disk_map = map_of(contents_of([data]), rows)
    path = tmp_path / "cut.raw"
    path.write_bytes(data)
    source = opened(path, disk_map)
    source.find(wanted_of([data]), deep=False)
    (piece,) = source.fetch(np.array([0]))
    assert isinstance(piece, FileRange)


def test_what_a_guest_has_written_to_since_is_offered_and_not_proven(
    image: Path, opened: Open
) -> None:
    with image.open("r+b") as file:
        file.seek(8192 + 4096)  # inside the content of four blocks
        file.write(b"another byte")
    source = opened(image, sample_map())
    wanted = wanted_of(DATA)
    assert source.find(wanted, deep=False).rows.tolist() == ALL
    assert holds(source, wanted).tolist() == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("container", ["raw", "qcow2"])
def test_a_disk_that_became_shorter_lacks_what_lay_behind(
    image: Path, opened: Open, container: str
) -> None:
    os.truncate(image, 4 * MIB)
    path = image
    if container == "qcow2":
        path = image.with_suffix(".qcow2")
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, path], check=True)
    source = opened(path, sample_map())
    assert holds(source, wanted_of(DATA)).tolist() == [0, 1, 2, 3, 4]


def test_a_map_that_lies_about_a_size_offers_nothing(image: Path, opened: Open) -> None:
    disk_map = sample_map()
    wanted = wanted_of(DATA)
    wanted.contents.size[3] += 1
    assert 3 not in opened(image, disk_map).find(wanted, deep=False).rows


def test_a_map_without_contents_offers_nothing(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "empty.raw"
    path.write_bytes(bytes(8192))
    source = opened(path, map_of(contents_of([]), [(Kind.ZERO, 8192, -1, 0)]))
    assert source.find(wanted_of(DATA), deep=False).rows.tolist() == []
    assert list(source.fetch(np.array([], dtype=np.int64))) == []


def test_no_descriptor_is_left_open(image: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_disk(image) as disk:
        source = MappedSource(disk, sample_map(), image)
        source.find(Wanted(contents_of(DATA), np.array(ALL), no_hints()), deep=False)
        next(source.fetch(np.array(ALL)))
        source.close()
        source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
