"""Pieces of a blob that come before their turn wait on the medium, and take no room twice."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from packer.artifact.layout.base import COPY_BYTES
from packer.artifact.layout.directory import DirectoryWriter
from packer.artifact.layout.staging import Staging
from packer.artifact.manifest import Blob
from packer.errors import Error
from tests.artifact.layout.media import small_medium
from tests.artifact.layout.test_taken_up import Far, Found

PIECES = 6
DATA = random.Random(5).randbytes(PIECES * COPY_BYTES - 12_345)
BLOB = Blob("sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA))
SLACK_BYTES = 1 << 20
"""What folders take, and buffers."""

ORDERS: dict[str, Sequence[int]] = {
    "backwards": range(PIECES - 1, -1, -1),
    "the first piece last": [*range(1, PIECES), 0],
    "in pairs": [1, 0, 3, 2, 5, 4],
    "at random": [3, 1, 0, 5, 2, 4],
}


def coming(order: Sequence[int]) -> Callable[[Found], Found]:
    def twist(found: Found) -> Found:
        pieces = dict(found)
        for row in order:
            yield row, pieces[row]

    return twist


def waiting_file(folder: Path) -> os.stat_result:
    """The one file of this process on that medium that has no name."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            path, status = entry.readlink(), entry.stat()
        except OSError:  # the one that lists them
            continue
        if folder in path.parents and status.st_nlink == 0:
            found.append(status)
    (one,) = found
    return one


@pytest.mark.parametrize("order", ORDERS)
def test_what_waits_gives_its_room_back_as_it_goes_out(tmp_path: Path, order: str) -> None:
    staging = Staging(tmp_path / "demo", durable=False)
    taken: list[int] = []
    sizes: list[int] = []

    def look(count: int) -> None:
        del count
        waiting = waiting_file(tmp_path)
        written = sum(path.stat().st_size for path in staging.root.rglob("*") if path.is_file())
        taken.append(written + waiting.st_blocks * 512)
        sizes.append(waiting.st_size)

    try:
        staging.copy(Far(DATA, twist=coming(ORDERS[order])), BLOB, lambda n: look(n) if n else None)
        assert staging.path(BLOB.digest).read_bytes() == DATA
    finally:
        staging.remove()
    assert len(taken) == PIECES
    assert max(taken) <= BLOB.size + SLACK_BYTES
    if order == "in pairs":  # where files have no holes (FAT), the next one takes the place
        assert max(sizes) == COPY_BYTES


@pytest.mark.root
@pytest.mark.parametrize("order", ORDERS)
def test_a_blob_that_just_fits_comes_in_any_order(tmp_path: Path, order: str) -> None:
    with (
        small_medium(tmp_path / "small", BLOB.size + SLACK_BYTES) as medium,
        DirectoryWriter(medium / "demo") as writer,
    ):
        writer.check_room([BLOB])
        writer.copy(Far(DATA, twist=coming(ORDERS[order])), BLOB)


@pytest.mark.root
def test_no_room_for_what_waits_is_one_clear_error(tmp_path: Path) -> None:
    with (
        small_medium(tmp_path / "small", 2 * COPY_BYTES) as medium,
        DirectoryWriter(medium / "demo") as writer,
        pytest.raises(Error, match=r"cannot write .*/demo: No space left"),
    ):
        writer.copy(Far(DATA, twist=coming(ORDERS["backwards"])), BLOB)
