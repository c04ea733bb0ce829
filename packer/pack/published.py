"""Hold what a pack is about to publish against the privacy rules."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from packer.errors import PolicyError
from packer.guest.mounts import volume_name
from packer.guest.privacy import (
    Finding,
    Review,
    advice,
    count_of,
    find_private,
    summary,
)
from packer.guest.privacy_rules import FREE_SPACE, UNREAD_VOLUME, Rule
from packer.pack.cut import NO_STREAM
from packer.pack.draw import content_of_fragments
from packer.pack.prepare import Prepared
from packer.survey.model import Volume
from packer.survey.recognise import QUIET_TYPES
from packer.text import printable


def find_published(
    prepared: Prepared, carried: NDArray[np.bool_], *, keep_free: bool = False
) -> tuple[Finding, ...]:
    """Return what looks private among contents that no package ships unchanged.

    carried: bool[n], contents that the pack carries. keep_free: as it was prepared with.
    """
    content = content_of_fragments(prepared.map, prepared.cut)
    published = (prepared.unshipped & carried)[content]
    return (*_files(prepared, published), *_volumes(prepared, published, keep_free))


def demand_nothing_private(review: Review) -> None:
    """Raise PolicyError, with the rules that found something, if anything looks private."""
    if not review.findings:
        return
    raise PolicyError(
        f"{count_of(review.findings)} private; with --strict nothing is packed then\n"
        + summary(review.findings),
        hint=advice(review.findings)
        + "".join(f"; nothing fits --allow {pattern}" for pattern in review.idle),
    )


def _files(prepared: Prepared, published: NDArray[np.bool_]) -> tuple[Finding, ...]:
    survey, cut = prepared.survey, prepared.cut
    rows = np.flatnonzero(published & (cut.stream != NO_STREAM))
    published_bytes = np.zeros(len(survey.inode), dtype=np.int64)
    np.add.at(published_bytes, cut.stream[rows], cut.size[rows])
    begins = rows[cut.file_offset[rows] == 0]
    first = np.full(len(survey.inode), -1, dtype=np.int64)
    first[cut.stream[begins]] = begins
    names = np.flatnonzero(published_bytes[survey.name_stream] > 0)
    stream = survey.name_stream[names]

    def read(row: int, most_bytes: int) -> bytes:
        fragment = int(first[stream[row]])
        if fragment < 0:  # it begins with a hole, or with what others have too
            return b""
        return prepared.reader.read(fragment, 0, min(most_bytes, int(cut.size[fragment])))

    paths = [prepared.judgement.path[row] for row in names.tolist()]
    return find_private(paths, published_bytes[stream], read)


def _volumes(
    prepared: Prepared, published: NDArray[np.bool_], keep_free: bool
) -> Iterator[Finding]:
    """Yield the volumes of which something travels that nobody has looked at."""
    cut = prepared.cut
    outside = published & (cut.stream == NO_STREAM)
    begins = cut.disk_offset[cut.extent_bounds()[:-1]]
    for volume in prepared.survey.volumes:
        inside = outside & (begins >= volume.start) & (begins < volume.end)
        size_bytes = int(cut.size[inside].sum())
        if volume.partition_type in QUIET_TYPES or size_bytes == 0:
            continue
        if volume.kind == "raw":
            yield _finding(UNREAD_VOLUME, volume, size_bytes, volume.note)
            continue
        if volume.unread:
            yield _finding(UNREAD_VOLUME, volume, 0, volume.unread[0])
        if keep_free or volume.state != "clean":
            yield _finding(FREE_SPACE, volume, size_bytes, volume.state_reason)


def _finding(rule: Rule, volume: Volume, size_bytes: int, detail: str) -> Finding:
    return Finding(volume_name(volume), rule.id, rule.what, size_bytes, printable(detail))
