"""A file of a surveyed disk as the runs that make it one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import DATA
from formats.ranges import overlap_of_sorted
from packer.survey.model import Survey


def runs_of(survey: Survey, stream: int, length: int) -> NDArray[np.int64] | None:
    """Return the runs (see formats.source.Runs) of a stream's first `length` bytes.

    Holes, unwritten extents and what is not valid read as zeros. None if extents overlap or lie at
    negative offsets.
    """
    rows = survey.extents_of(stream)
    start = survey.file_offset[rows]
    end = np.minimum(start + survey.length[rows], min(length, int(survey.valid_size[stream])))
    disk = np.where(survey.kind[rows] == DATA, survey.disk_offset[rows], -1)
    some = start < end
    pieces = np.stack([start[some], disk[some], end[some]], axis=1)
    bounds = pieces[:, [0, 2]]
    if len(pieces) and (overlap_of_sorted(bounds) >= 0 or int(start.min()) < 0):
        return None
    gap_starts = np.concatenate([[0], pieces[:, 2]])
    gap_ends = np.concatenate([pieces[:, 0], [length]])
    gaps = np.stack([gap_starts, np.full(len(gap_starts), -1), gap_ends], axis=1)
    everything = np.concatenate([pieces, gaps[gap_starts < gap_ends]]).astype(np.int64)
    everything = everything[np.argsort(everything[:, 0], kind="stable")]
    everything[:, 2] -= everything[:, 0]
    return everything
