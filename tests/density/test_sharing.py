"""What comes of requests: which units were not equal, and how much was gained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from packer.density.pairs import Requests
from packer.density.sharing import Shared, share_all
from packer.progress import ignore
from tests.density.places import BLOCK, sharing
from tests.host import ROOT, run, shared_bytes

pytestmark = [*ROOT]
BLOCKS = 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with sharing(tmp_path_factory.mktemp("sharing"), 400) as point:
        yield point


def shared(
    place: Path, differing: list[int], pieces: list[tuple[int, int]], slack: set[int]
) -> Shared:
    """What comes of a file and its copy with other bytes at these offsets, compared from start to
    end in pieces (unit, blocks). slack: which pieces end in some.
    """
    one, other = place / "one", place / "other"
    data = bytearray(os.urandom(BLOCKS * BLOCK))
    one.write_bytes(data)
    for offset in differing:
        data[offset] ^= 1
    other.write_bytes(data)
    run("sync", "-f", place)
    unit, blocks = np.array(pieces, dtype=np.int64).T
    length = blocks * BLOCK
    start, zero = np.cumsum(length) - length, np.zeros_like(length)
    has_slack = np.isin(np.arange(len(pieces)), list(slack))
    fds = [os.open(path, os.O_RDONLY) for path in (one, other)]
    try:
        requests = Requests(zero, start, zero + 1, start, length, unit, has_slack)
        found = share_all(requests, fds, BLOCK, ignore)
    finally:
        for fd in fds:
            os.close(fd)
    assert found.gained.tolist() == [0, shared_bytes(other)]
    assert other.read_bytes() == data
    return found


def test_what_differs_is_found_among_all_that_is_asked_for_together(place: Path) -> None:
    pieces = [(unit, 1) for unit in range(BLOCKS)]
    found = shared(place, [10 * BLOCK + 7, 11 * BLOCK, 63 * BLOCK], pieces, set())
    assert found.unequal.tolist() == [10, 11, 63]
    assert found.gained.tolist() == [0, 61 * BLOCK]
    assert found.refused == ()


def test_where_the_slack_alone_differs_all_but_that_is_shared(place: Path) -> None:
    found = shared(place, [10 * BLOCK - 1], [(0, 10), (1, 54)], {0})
    assert found.unequal.tolist() == []
    assert found.gained.tolist() == [0, 63 * BLOCK]


def test_what_differs_elsewhere_is_not_equal_whatever_its_slack_holds(place: Path) -> None:
    found = shared(place, [BLOCK, 64 * BLOCK - 1], [(0, 4), (0, 60)], {1})
    assert found.unequal.tolist() == [0]
    assert found.gained.tolist() == [0, 59 * BLOCK]
