"""What a guest can lose without harm, and what keeps it from being packed as it is.

Only swap is dropped: after the header page nobody reads it before writing it, unless a suspended
system lies there. Everything else that looks superfluous (caches, logs) stays. What is Windows'
own: packer/guest/windows/state.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from formats.errors import FormatError
from formats.filesystem import swap
from formats.filesystem.model import DATA
from formats.ranges import Ranges, total, union
from formats.source import Runs
from packer.guest.model import Dropped
from packer.guest.mounts import volume_name
from packer.guest.tree import Tree
from packer.survey.model import Survey, Volume
from packer.survey.runs import runs_of
from packer.text import printable

CURE_FOR_DIRTY = "start the guest and shut it down cleanly"
CURE_FOR_WINDOWS = (
    'start it and shut it down completely (`shutdown /s /f /t 0`, or Shift and "Shut down"); for'
    " good, switch hibernation and fast startup off (`powercfg /h off`)"
)
CURE_FOR_HIBERNATED = "start the guest, let it resume, and shut it down instead of hibernating it"
_SWAP_REASON = "swap pages: a guest that was shut down never reads them again"


@dataclass(frozen=True, slots=True)
class Findings:
    """dropped: see packer.guest.model. refusals, warnings: sentences with their cure."""

    dropped: tuple[Dropped, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def find_droppable(tree: Tree) -> Findings:
    """Return what may be dropped, and what the state of volumes and swap forbids or costs."""
    survey = tree.survey
    dropped = [
        Dropped(f"swap {volume_name(survey.volumes[row])}", _SWAP_REASON, ranges)
        for row, ranges in survey.dropped
        if len(ranges)
    ]
    refusals: list[str] = []
    warnings: list[str] = []
    for volume in survey.volumes:
        if volume.state == "hibernated":
            refusals.append(_hibernated(volume_name(volume), volume.state_reason))
        elif volume.state != "clean" and volume.kind != "raw":
            warnings.append(
                f"{volume.kind} on {volume_name(volume)} is not clean ({volume.state_reason}):"
                f" packed whole, including its free space; {_cure_for(volume)}"
            )
    for path, stream in _swap_files(tree):
        _judge_swap_file(tree, path, stream, dropped, refusals, warnings)
    return Findings(tuple(dropped), tuple(refusals), tuple(warnings))


def _cure_for(volume: Volume) -> str:
    return CURE_FOR_WINDOWS if volume.kind == "ntfs" else CURE_FOR_DIRTY


def ranges_on_disk(survey: Survey, stream: int, wanted: Ranges) -> Ranges:
    """Return where on the disk the bytes `wanted` of a stream lie; holes lie nowhere."""
    rows = survey.extents_of(stream)
    data = survey.kind[rows] == DATA
    start = survey.file_offset[rows][data]
    end = start + survey.length[rows][data]
    shift = survey.disk_offset[rows][data] - start
    pieces = []
    for low, high in wanted.tolist():
        first, last = np.maximum(start, low), np.minimum(end, high)
        some = first < last
        pieces.append(np.stack([first + shift, last + shift], axis=1)[some])
    return union(*pieces) if pieces else wanted


def ranges_of_stream(survey: Survey, stream: int) -> Ranges:
    """Return where on the disk all bytes of a stream lie."""
    size = int(survey.file_size[stream])
    return ranges_on_disk(survey, stream, np.array([[0, size]], dtype=np.int64))


def _swap_files(tree: Tree) -> Iterator[tuple[str, int]]:
    """Yield (path, safe to print; stream) of each file that the guest swaps to."""
    seen: set[int] = set()
    for entry in tree.fstab:
        if entry.kind != "swap" or not entry.spec.startswith("/") or entry.spec.startswith("/dev/"):
            continue
        stream = tree.stream_of(entry.spec)
        if stream is not None and stream not in seen:
            seen.add(stream)
            yield printable(entry.spec), stream


def _judge_swap_file(
    tree: Tree,
    path: str,
    stream: int,
    dropped: list[Dropped],
    refusals: list[str],
    warnings: list[str],
) -> None:
    """Add what follows from one swap file; a file that is no swap area stays as it is."""
    survey = tree.survey
    runs = runs_of(survey, stream, int(survey.file_size[stream]))
    if runs is None:
        return
    try:
        area = swap.read(Runs(tree.source, runs))
    except FormatError as error:
        warnings.append(f"{path} is no swap file that can be emptied ({error}): packed as it is")
        return
    if area.state == "hibernated":
        refusals.append(_hibernated(path, area.state_reason))
    elif survey.volumes[int(survey.volume[stream])].state == "clean":
        # In a volume that is not clean the journal may still give these blocks to somebody else.
        ranges = ranges_on_disk(survey, stream, area.dropped)
        if total(ranges):
            dropped.append(Dropped(f"swap file {path}", _SWAP_REASON, ranges))


def _hibernated(what: str, reason: str) -> str:
    found = f" ({reason})" if reason else ""
    return f"{what} holds a hibernated system{found}: {CURE_FOR_HIBERNATED}"
