"""Requests handed to the kernel one after the other, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from packer.columns import Column
from packer.density.dedupe_range import DIFFERS, SAME, share
from packer.density.pairs import Requests
from packer.density.read_ahead import ReadAhead
from packer.progress import Advance, ignore


@dataclass(frozen=True, slots=True)
class Shared:
    """gained: int64[disks], bytes that share blocks now. unequal: units of which a part differed,
    each once. refused: error numbers of the kernel, each once.
    """

    gained: Column
    unequal: Column
    refused: tuple[int, ...]


def share_all(requests: Requests, fds: Sequence[int], block: int, advance: Advance) -> Shared:
    """Share what is equal. Where only the last block's slack differs, all but that is shared.

    fds: the files of the disks. Raises OSError when a file cannot be read.
    """
    gained = np.zeros(len(fds), dtype=np.int64)
    status = _ask(requests, fds, advance)
    slack = np.flatnonzero((status == DIFFERS) & requests.slack & (requests.length > block))
    again = requests.without_slack(slack, block)
    status_again = _ask(again, fds, ignore)
    for asked, answers in ((requests, status), (again, status_again)):
        same = answers == SAME
        found = np.bincount(asked.target_disk[same], asked.length[same], len(fds))
        gained += found.astype(np.int64)
    failed = status != SAME
    failed[slack] = status_again != SAME
    errors = np.unique(np.concatenate([status, status_again]))
    return Shared(gained, np.unique(requests.unit[failed]), tuple((-errors[errors < 0]).tolist()))


def _ask(requests: Requests, fds: Sequence[int], advance: Advance) -> NDArray[np.int32]:
    """Return for each request SAME, DIFFERS, or a negative error number.

    Each call locks two files and writes to the file system's log, so a whole run is asked for at
    once. Where that is not equal, its halves are.
    """
    status = np.zeros(len(requests), dtype=np.int32)
    columns = (requests.source_disk, requests.source, requests.target_disk, requests.target)
    source_disk, source, target_disk, target = (column.tolist() for column in columns)
    source_end = (requests.source + requests.length).tolist()

    def ask(first: int, end: int) -> int:
        length = source_end[end - 1] - source[first]
        target_fd = fds[target_disk[first]]
        return share(fds[source_disk[first]], source[first], target_fd, target[first], length)

    reader = ReadAhead(requests, fds)
    for run in pairwise(requests.runs().tolist()):
        reader.pass_over(run_bytes := source_end[run[1] - 1] - source[run[0]])
        parts = [run]
        while parts:
            first, end = parts.pop()
            answer = ask(first, end)
            if answer == SAME or end - first == 1:
                status[first:end] = answer
            else:
                middle = (first + end) // 2
                parts += [(middle, end), (first, middle)]
        advance(run_bytes)
    return status
