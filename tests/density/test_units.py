"""Where the files of a survey lie in the file that the disk is, and what a wrong survey costs."""

from __future__ import annotations

import numpy as np

from formats.source import Memory, Source
from packer.density.file_extents import FileExtents
from packer.density.units import RUN_BYTES, Names, Units, find_units
from packer.survey.model import Survey
from tests.density.places import BLOCK, MIB
from tests.pack.surveys import File, numbered_disk, survey_of, volume

BLOCKS = 64


def found_on(
    survey: Survey, source: Source | None = None, *, fragments: int = 1, size: int = BLOCKS * BLOCK
) -> Units:
    """The units of a raw disk whose file lies in that many pieces."""
    edges = np.linspace(0, size, fragments + 1).astype(np.int64)
    extents = FileExtents(edges[:-1], edges[1:], edges[:-1])
    runs = np.array([[0, 0, size]], dtype=np.int64)
    return find_units(survey, source or numbered_disk(BLOCKS), runs, extents, Names())


def file(name: str, *blocks: tuple[int, int]) -> File:
    """A file of runs of blocks: (first, how many)."""
    size = 0
    extents: list[tuple[int, ...]] = []
    for first, count in blocks:
        extents.append((size, first * BLOCK, count * BLOCK))
        size += count * BLOCK
    return File(size, extents, [name])


def places(units: Units, row: int) -> list[tuple[int, int]]:
    mine = units.unit == row
    return list(zip(units.host[mine].tolist(), units.length[mine].tolist(), strict=True))


def test_a_file_lies_where_its_extents_do() -> None:
    units = found_on(survey_of(BLOCKS * BLOCK, [file("/a", (10, 2), (4, 1)), file("/b", (20, 1))]))
    assert places(units, 0) == [(10 * BLOCK, 2 * BLOCK), (4 * BLOCK, BLOCK)]
    assert places(units, 1) == [(20 * BLOCK, BLOCK)]


def test_bytes_that_several_files_claim_belong_to_none_of_them() -> None:
    files = [
        file("/long", (10, 20)),
        file("/inside", (12, 1)),
        file("/behind-it", (15, 1)),
        file("/across-the-end", (50, 1), (29, 2)),
        file("/alone", (31, 1)),
    ]
    units = found_on(survey_of(BLOCKS * BLOCK, files))
    assert [len(places(units, row)) for row in range(5)] == [0, 0, 0, 0, 1]


def test_files_that_all_claim_the_whole_disk_cost_no_memory() -> None:
    """2,000 files times 200,000 pieces of the disk's file: 400 million rows of several columns."""
    size = 200_000 * BLOCK
    files = [File(size, [(0, 0, size)], [f"/{number}"]) for number in range(2_000)]
    units = found_on(survey_of(size, files), numbered_disk(1), fragments=200_000, size=size)
    assert len(units.unit) == 0


class Sparse(Memory):
    """A disk of 4 EiB with 2 MiB of data at its end."""

    SIZE = 1 << 62

    def __init__(self) -> None:
        super().__init__(b"")
        self.size = self.SIZE

    def data_ranges(self, start: int, end: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        return np.array([[self.size - 2 * MIB, self.size]], dtype=np.int64)


def test_an_enormous_volume_costs_what_it_holds() -> None:
    survey = survey_of(Sparse.SIZE, volumes=[volume(0, Sparse.SIZE, kind="raw")])
    units = found_on(survey, Sparse(), size=Sparse.SIZE)
    assert units.size.tolist() == [RUN_BYTES, RUN_BYTES]
    assert units.host.tolist() == [Sparse.SIZE - 2 * MIB, Sparse.SIZE - MIB]
