"""Draw the map of a cut and hashed disk: name the contents, classify them, order the ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import PLAIN
from formats.ranges import bytes_inside, empty_ranges, union
from packer.artifact.contents import Class, Contents, block_starts, digest_keys
from packer.artifact.hints import MAX_PATH_BYTES, Hints
from packer.artifact.map import Kind, Map
from packer.artifact.programs import Programs
from packer.guest.model import Judgement
from packer.pack.cut import NO_STREAM, Cut
from packer.pack.digest import Digests
from packer.survey.model import Survey
from packer.survey.recognise import QUIET_TYPES


@dataclass(frozen=True, slots=True)
class Drawing:
    """A map, and which fragment of the cut holds each of its contents.

    fragment: int64[n], for each content the first fragment on disk that holds it.
    """

    map: Map
    fragment: NDArray[np.int64]


def classify(
    survey: Survey,
    judgement: Judgement,
    cut: Cut,
    owned: NDArray[np.bool_],
    *,
    keep_free: bool = False,
) -> NDArray[np.uint8]:
    """Return the class of every fragment, uint8[f].

    Metadata of a parsed volume and everything outside volumes is needed before anything can be
    resolved: boot; so is a partition that holds a loader instead of a file system. Where metadata
    cannot be told from free blocks (nobody can parse the volume, it is not clean, or free blocks
    are kept), both are private. So are free blocks that snapshots may read.
    """
    of_stream = cut.stream != NO_STREAM
    classes = np.full(len(cut.size), Class.BOOT, dtype=np.uint8)
    begins = cut.disk_offset[cut.extent_bounds()[:-1]]
    for volume in survey.volumes:
        if volume.partition_type in QUIET_TYPES:
            continue
        if volume.kind == "raw" or volume.state != "clean" or keep_free:
            # A run is cut at whole MiB: it may reach over a volume's border into the next one.
            inside = (begins >= volume.start) & (begins + cut.size <= volume.end)
            classes[inside & ~of_stream] = Class.PRIVATE
    held = union(empty_ranges(), *(ranges for _, ranges in survey.held))
    only_held = bytes_inside(held, begins, begins + cut.size) == cut.size
    classes[only_held & ~of_stream] = Class.PRIVATE
    stream = cut.stream[of_stream]
    shipped = judgement.package[stream] >= 0
    proven = np.array([one is not None for one in judgement.expected], dtype=bool)
    shared = owned[of_stream] | (shipped & ~proven[stream])
    of_files = np.where(shared, Class.SHARED, Class.PRIVATE)
    classes[of_stream] = np.where(judgement.boot[stream] >= 0, Class.BOOT, of_files)
    return classes


def draw(size: int, cut: Cut, digests: Digests, classes: NDArray[np.uint8]) -> Drawing:
    """Return the map; contents are numbered by where on the disk they first appear.

    A content with several owners takes the class that serves all of them: boot if any owner is,
    else shared if anybody ships it, else private.
    """
    _, first, number = np.unique(
        digest_keys(digests.digest), return_index=True, return_inverse=True
    )
    order = np.argsort(first, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    content_of_fragment = place[number] if len(number) else number.astype(np.int64)
    fragment = first[order].astype(np.int64)

    rank_of_class = np.array([0, 2, 1], dtype=np.uint8)  # boot before shared before private
    rank = np.full(len(fragment), 2, dtype=np.uint8)
    np.minimum.at(rank, content_of_fragment, rank_of_class[classes])
    contents = _contents(cut, digests, fragment, rank_of_class[rank])

    start = np.concatenate([cut.unused[:, 0], cut.dropped[:, 0], cut.zero[:, 0], cut.disk_offset])
    length = np.concatenate(
        [
            cut.unused[:, 1] - cut.unused[:, 0],
            cut.dropped[:, 1] - cut.dropped[:, 0],
            cut.zero[:, 1] - cut.zero[:, 0],
            cut.length,
        ]
    )
    empty = len(start) - len(cut.disk_offset)
    kind = np.concatenate(
        [
            np.full(len(cut.unused), Kind.UNUSED),
            np.full(len(cut.dropped), Kind.DROPPED),
            np.full(len(cut.zero), Kind.ZERO),
            np.full(len(cut.disk_offset), Kind.CONTENT),
        ]
    ).astype(np.uint8)
    content = np.concatenate(
        [np.full(empty, -1, dtype=np.int64), content_of_fragment[cut.fragment]]
    )
    offset = np.concatenate([np.zeros(empty, dtype=np.int64), cut.offset])
    rows = np.argsort(start, kind="stable")
    end = (start + length)[rows]
    if not np.array_equal(start[rows], np.concatenate([[0], end[:-1]])) or end[-1] != size:
        raise AssertionError("the ranges of a cut do not cover the disk exactly once")
    return Drawing(Map(size, end, kind[rows], content[rows], offset[rows], contents), fragment)


def _contents(
    cut: Cut, digests: Digests, fragment: NDArray[np.int64], classes: NDArray[np.uint8]
) -> Contents:
    size = cut.size[fragment]
    starts = block_starts(size)
    count = np.diff(starts)
    source = np.repeat(digests.block_start[fragment], count)
    rows = source + np.arange(len(source)) - np.repeat(starts[:-1], count)
    return Contents(digests.digest[fragment], size, classes, digests.blocks[rows], starts)


def note_hints(
    survey: Survey,
    judgement: Judgement,
    cut: Cut,
    drawing: Drawing,
    programs: NDArray[np.int64] | None = None,
) -> Hints:
    """Return where in the guest each content was found, for every name of every file.

    programs: as of Digests.
    """
    keys = content_of_fragments(drawing.map, cut)
    of_stream = np.flatnonzero(cut.stream != NO_STREAM)
    by_stream = of_stream[np.argsort(cut.stream[of_stream], kind="stable")]
    sorted_streams = cut.stream[by_stream]
    low = np.searchsorted(sorted_streams, survey.name_stream, side="left")
    count = np.searchsorted(sorted_streams, survey.name_stream, side="right") - low
    name_row = np.repeat(np.arange(len(survey.name_stream)), count)
    within = np.arange(len(name_row)) - np.repeat(np.cumsum(count) - count, count)
    fragment = by_stream[low[name_row] + within]
    content = keys[fragment]
    usable = np.array([_can_be_looked_up(path) for path in judgement.path], dtype=bool)[name_row]
    name_row, fragment, content = name_row[usable], fragment[usable], content[usable]
    paths = [judgement.path[row] for row in name_row.tolist()]
    order = np.array(
        sorted(range(len(paths)), key=lambda row: (int(content[row]), paths[row])), dtype=np.int64
    )
    stream = survey.name_stream[name_row][order]
    return Hints(
        content=content[order],
        path=[paths[row] for row in order.tolist()],
        file_size=survey.file_size[stream],
        file_offset=cut.file_offset[fragment[order]],
        package=judgement.package[stream],
        packages=judgement.packages,
        programs=Programs() if programs is None else _programs(survey, cut, keys, programs),
    )


def _programs(
    survey: Survey, cut: Cut, keys: NDArray[np.int64], programs: NDArray[np.int64]
) -> Programs:
    """Return the contents that are whole programs, as everybody reads them."""
    fragment = programs[:, 0]
    stream = cut.stream[fragment]
    whole = (cut.file_offset[fragment] == 0) & (cut.size[fragment] == survey.file_size[stream])
    programs = programs[whole & (survey.form[stream] == PLAIN)]
    content, first = np.unique(keys[programs[:, 0]], return_index=True)
    return Programs(content, programs[first, 1], programs[first, 2])


def _can_be_looked_up(path: str) -> bool:
    """Return whether a guest's name can be a hint; a damaged directory can hold anything."""
    try:
        encoded = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair is no byte that a path could hold
        return False
    return path.startswith("/") and b"\0" not in encoded and len(encoded) <= MAX_PATH_BYTES


def content_of_fragments(disk_map: Map, cut: Cut) -> NDArray[np.int64]:
    """Return int64[f]: the content that each fragment holds, by way of the map's ranges."""
    begins = cut.disk_offset[cut.extent_bounds()[:-1]]
    rows = np.searchsorted(disk_map.end, begins, side="right")
    return disk_map.content[rows]
