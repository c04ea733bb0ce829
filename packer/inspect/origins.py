"""Sum up where the shared and private files of a guest come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from packer.artifact.contents import Class
from packer.artifact.map import Map
from packer.guest.model import Judgement
from packer.pack.cut import NO_STREAM, Cut
from packer.pack.draw import content_of_fragments

ROWS_SHOWN = 12
MORE = "more"


@dataclass(frozen=True, slots=True)
class OriginSum:
    """Contents of a class ("shared", "private") that come from the same place, in words."""

    class_name: str
    words: str
    contents: int
    size_bytes: int


def sum_up_origins(judgement: Judgement, cut: Cut, disk_map: Map) -> tuple[OriginSum, ...]:
    """Return the sums, the largest first within a class; () where nothing is known of origins.

    A content with several owners is counted once, with the first that has words for its class.
    After ROWS_SHOWN of a class the rest is one row, MORE.
    """
    if not judgement.origins:
        return ()
    of_files = np.flatnonzero(cut.stream != NO_STREAM)
    content = content_of_fragments(disk_map, cut)[of_files]
    origin = judgement.origin[cut.stream[of_files]]
    found: list[OriginSum] = []
    for one in (Class.SHARED, Class.PRIVATE):
        words = [getattr(row, one.name.lower()) for row in judgement.origins]
        wordless = np.array([not text for text in words], dtype=bool)[origin]
        order = np.lexsort((np.arange(len(content)), wordless, content))
        rows, first = np.unique(content[order], return_index=True)
        chosen = disk_map.contents.classes[rows] == one
        found += _sums(
            one.name.lower(),
            [words[row] for row in origin[order[first]][chosen].tolist()],
            disk_map.contents.size[rows[chosen]].tolist(),
        )
    return tuple(found)


def _sums(class_name: str, words: list[str], sizes: list[int]) -> list[OriginSum]:
    sums: dict[str, tuple[int, int]] = {}
    for text, size in zip(words, sizes, strict=True):
        count, total = sums.get(text, (0, 0))
        sums[text] = (count + 1, total + size)
    ordered = sorted(sums.items(), key=lambda item: (-item[1][1], item[0]))
    rows = [OriginSum(class_name, text, *both) for text, both in ordered[:ROWS_SHOWN]]
    rest = [both for _, both in ordered[ROWS_SHOWN:]]
    if rest:
        count, total = (sum(column) for column in zip(*rest, strict=True))
        rows.append(OriginSum(class_name, MORE, count, total))
    return rows
