"""Where shared and private files come from, summed up for people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from packer.artifact.contents import Class
from packer.guest.model import Origin
from packer.inspect.origins import MORE, ROWS_SHOWN, OriginSum, sum_up_origins
from tests.pack.surveys import BLOCK, File
from tests.pack.test_draw import Drawn, filled

STORE, PROFILE = Origin("component store", "changed components"), Origin("", "profiles")


def drawn_with(files: list[File], origin: list[int], origins: tuple[Origin, ...]) -> Drawn:
    values = [int(file.extents[0][1] // BLOCK) for file in files]
    drawn = Drawn(filled(9, *values), files)
    drawn.judgement = replace(
        drawn.judgement, origin=np.array(origin, dtype=np.int64), origins=origins
    )
    return drawn


def block(place: int, size: int = BLOCK, package: int = -1, boot: int = -1) -> File:
    return File(size, [(0, place * BLOCK, BLOCK)], [f"/{place}"], package=package, boot=boot)


def sums(drawn: Drawn) -> tuple[OriginSum, ...]:
    return sum_up_origins(drawn.judgement, drawn.cut, drawn.map)


def test_each_class_is_summed_up_by_origin_the_largest_first() -> None:
    files = [block(1, 100, package=0), block(2, 300), block(3, 200), block(4), block(5, boot=0)]
    drawn = drawn_with(files, [0, 0, 1, 1, 0], (STORE, PROFILE))
    assert sums(drawn) == (
        OriginSum("shared", "component store", 1, 100),
        OriginSum("private", "profiles", 2, BLOCK + 200),
        OriginSum("private", "changed components", 1, 300),
    )


def test_the_sums_of_a_class_are_all_its_files_once() -> None:
    files = [block(row, package=row % 2 - 1) for row in range(1, 9)]
    drawn = drawn_with(files, [row % 2 for row in range(8)], (STORE, PROFILE))
    contents = drawn.map.contents
    for one in (Class.SHARED, Class.PRIVATE):
        expected = int(contents.size[contents.classes == one].sum())
        name = one.name.lower()
        assert sum(row.size_bytes for row in sums(drawn) if row.class_name == name) == expected


def test_a_content_of_several_files_has_the_origin_that_speaks_of_its_class() -> None:
    """A user's copy lies first on the disk; that the store has the file is why it is shared."""
    files = [block(1), block(2, package=0)]
    drawn = Drawn(filled(9, 7, 7), files)
    drawn.judgement = replace(drawn.judgement, origin=np.array([1, 0]), origins=(STORE, PROFILE))
    assert sums(drawn) == (OriginSum("shared", "component store", 1, BLOCK),)


def test_after_so_many_rows_the_rest_is_one() -> None:
    count = ROWS_SHOWN + 3
    files = [block(row + 1, size=row + 1) for row in range(count)]
    origins = tuple(Origin("", f"product {row}") for row in range(count))
    found = sums(drawn_with(files, list(range(count)), origins))
    assert [one.words for one in found[:2]] == [f"product {count - 1}", f"product {count - 2}"]
    assert found[-1] == OriginSum("private", MORE, 3, 1 + 2 + 3)


def test_a_guest_of_which_nothing_is_known_has_no_sums() -> None:
    drawn = Drawn(filled(9, 7), [block(1)])
    assert sums(drawn) == ()
