"""Requests handed to the kernel one after the other, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from packer.columns import Column
from packer.density.dedupe_range import DIFFERS, MAX_TARGETS, SAME, share
from packer.density.pairs import Requests
from packer.density.read_ahead import ReadAhead
from packer.progress import Advance


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
    again = requests.without_slack(np.flatnonzero(status == DIFFERS), block)
    status_again = _ask(again, fds, lambda _: None)
    for asked, answers in ((requests, status), (again, status_again)):
        same = answers == SAME
        found = np.bincount(asked.target_disk[same], asked.length[same], len(fds))
        gained += found.astype(np.int64)
    failed = (status != SAME) & ~np.isin(requests.unit, again.unit)
    unequal = np.concatenate([requests.unit[failed], again.unit[status_again != SAME]])
    errors = np.unique(np.concatenate([status, status_again]))
    return Shared(gained, np.unique(unequal), tuple((-errors[errors < 0]).tolist()))


def _ask(requests: Requests, fds: Sequence[int], advance: Advance) -> NDArray[np.int32]:
    """Return for each request SAME, DIFFERS, or a negative error number."""
    status = np.zeros(len(requests), dtype=np.int32)
    reader = ReadAhead(requests, fds)
    source_disk, source, length, target_disk, target = (
        column.tolist()
        for column in (
            requests.source_disk, requests.source, requests.length,
            requests.target_disk, requests.target,
        )
    )  # fmt: skip
    for first, end in _batches(requests):
        reader.pass_over(first, end)
        places = [(fds[target_disk[row]], target[row]) for row in range(first, end)]
        status[first:end] = share(fds[source_disk[first]], source[first], length[first], places)
        advance(length[first] * (end - first))
    return status


def _batches(requests: Requests) -> Iterator[tuple[int, int]]:
    """Yield [first, end) of requests with the same source range, which one call answers."""
    if len(requests) == 0:
        return
    new = np.zeros(len(requests), dtype=bool)
    for column in (requests.source_disk, requests.source, requests.length):
        new[1:] |= np.diff(column) != 0
    for first, end in pairwise([0, *np.flatnonzero(new).tolist(), len(requests)]):
        for low in range(first, end, MAX_TARGETS):
            yield low, min(low + MAX_TARGETS, end)
