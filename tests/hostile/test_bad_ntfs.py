"""NTFS volumes with flipped bits: a clear error or a believable answer, in bounded time and memory.

Each answer goes through the worker's encoding and the parent's disbelief, as that of a child does.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from formats.errors import FormatError
from formats.filesystem import ntfs
from formats.filesystem.ntfs.boot import read_boot
from formats.ranges import Ranges, intersect, subtract, total, union
from formats.source import Memory
from packer.survey import wire, worker
from packer.survey.believe import VolumeColumns, believe_volume
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.filesystem.ntfs_content import fill
from tests.formats.filesystem.ntfs_editor import Editor, Record
from tests.formats.filesystem.ntfs_images import STREAMS, make, mounted
from tests.host import needs_root

pytestmark = [pytest.mark.slow]

KIB = 1 << 10
SECONDS = 10
IMAGES_PER_SEED = {1 * KIB: 400, 4 * KIB: 150}  # by size of the records
KINDS = {"1 KiB records": (4096, "-c 512"), "4 KiB records": (8192, "-s 4096 -c 4096")}
ATTRIBUTE_LIST, DATA = 0x20, 0x80
MFT_MIRROR, LOG_FILE, BITMAP = 1, 2, 6


@pytest.fixture(scope="module", params=KINDS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small volume with files of every kind, two of them in several records."""
    size_kib, options = KINDS[request.param]
    path = make(tmp_path_factory.mktemp("ntfs") / "volume", size_kib, *options.split())
    with mounted(path, f"{STREAMS},compression") as root:
        fill(root, 1, compression=True, small=True)
    return path


def areas_of(image: Path) -> list[tuple[int, int]]:
    """Where damage tells: the heads of volume, mirror, bitmap, log and lists; and each record.

    The records take half of the damage, the rest shares the other half.
    """
    editor = Editor(image)
    records, others = [], [(0, 90), (0x1E00, 0x1E40)]
    for number in range(editor.records):
        with suppress(KeyError):  # not in use
            record = editor.record(number)
            records.append((record.place, record.place + record.get(24, "I")))
            if number in (MFT_MIRROR, LOG_FILE, BITMAP):
                others.append(first_bytes(editor, record, DATA))
            others.append(first_bytes(editor, record, ATTRIBUTE_LIST))
    lists = len(others) - 5
    assert lists > 0 or editor.boot.record_size == 4 * KIB, "a larger record needs no list"
    return records + others * (len(records) // len(others))


def first_bytes(editor: Editor, record: Record, kind: int) -> tuple[int, int]:
    """Of an attribute outside its record; raises KeyError if there is none."""
    first = record.first_run(kind)
    if first is None:
        raise KeyError(kind)
    start = first * editor.boot.cluster_size
    return start, start + 2 * KIB


@needs_root
@pytest.mark.parametrize("seed", range(4))
def test_damaged_volumes_give_an_error_or_a_believable_answer(
    image: Path, seed: int, tmp_path: Path
) -> None:
    original = image.read_bytes()
    free = ntfs.read(Memory(original)).free
    answers = {"clean": 0, "dirty": 0, "refused": 0}
    count = IMAGES_PER_SEED[Editor(image).boot.record_size]
    for broken in damaged(original, areas_of(image), count, seed):
        started = time.monotonic()
        try:
            with at_most_one_gib():
                answer = answer_to(broken)
            if answer is not None:
                nothing_is_lost(answer, free)
        except BaseException:
            (tmp_path / "broken").write_bytes(broken)
            raise
        assert time.monotonic() - started < SECONDS
        answers["refused" if answer is None else answer.state] += 1
    assert min(answers.values()) > 10, answers


def nothing_is_lost(answer: VolumeColumns, free: Ranges) -> None:
    """A little damage frees nothing that was in use, and gives no file what was free."""
    assert total(subtract(answer.free, free)) == 0
    if answer.state == "clean":
        owned = union(np.stack([answer.disk_offset, answer.disk_offset + answer.length], axis=1))
        assert total(intersect(owned, free)) == 0


def answer_to(data: bytes) -> VolumeColumns | None:
    source = Memory(data)
    request = wire.ReadVolume(wire.PlainFile(-1), "NTFS", 0, source.size)
    try:
        if not ntfs.probe(source):
            read_boot(source)
        reply = worker._read_volume(request, source)
    except FormatError:
        return None
    return believe_volume(reply, source.size)
