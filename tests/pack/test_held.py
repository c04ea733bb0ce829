"""Free blocks that snapshots may read: private where they are alone, boot among metadata."""

from __future__ import annotations

from dataclasses import replace

import pytest

from formats.ranges import as_ranges
from packer.artifact.contents import Class
from packer.pack.cut import cut
from packer.pack.digest import FragmentReader, digest_fragments
from packer.pack.draw import classify
from tests.pack.surveys import BLOCK, File, judgement_of, numbered_disk, survey_of

BLOCKS = 12


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([], {1: Class.BOOT, 6: Class.BOOT}),
        ([(0, 5 * BLOCK)], {1: Class.PRIVATE, 6: Class.BOOT}),
        ([(BLOCK, 2 * BLOCK)], {1: Class.BOOT, 6: Class.BOOT}),
        ([(0, 3 * BLOCK), (3 * BLOCK, 5 * BLOCK), (7 * BLOCK, 9 * BLOCK)], {1: Class.PRIVATE}),
        ([(6 * BLOCK, 12 * BLOCK)], {1: Class.BOOT, 6: Class.PRIVATE}),
    ],
)
def test_a_run_is_private_if_all_of_it_is_held(
    held: list[tuple[int, int]], expected: dict[int, Class]
) -> None:
    source = numbered_disk(BLOCKS)
    file = File(BLOCK, [(0, 5 * BLOCK, BLOCK)], ["/file"])
    ranges = as_ranges(held)
    survey = replace(survey_of(source.size, [file]), held=((0, ranges),) if held else ())
    pieces = cut(survey, source, as_ranges([]))
    judgement = judgement_of([file])
    reader = FragmentReader(pieces, source)
    digests = digest_fragments(pieces, reader, judgement.expected, jobs=1, progress=lambda _: None)
    classes = classify(survey, judgement, pieces, digests.owned)
    begins = pieces.disk_offset[pieces.extent_bounds()[:-1]] // BLOCK
    found = {int(begin): Class(int(one)) for begin, one in zip(begins, classes, strict=True)}
    for block, one in expected.items():
        begin = max(begin for begin in found if begin <= block)
        assert found[begin] == one
    assert found[5] == Class.PRIVATE
