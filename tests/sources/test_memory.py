from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from packer.sources.memory import Memory, Stamps, find_rows, hash_range, stamp_of
from tests.host import as_nobody, in_processes, needs_root


def stamps(count: int, *, device: int = 64768, first: int = 0) -> Stamps:
    inode = np.arange(first, first + count)
    ones = np.ones(count, dtype=np.int64)
    return np.column_stack([device * ones, inode, 100 + inode, 10**18 + inode, 10**18 + inode])


def digests(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def remember(memory: Memory, stamp: Stamps, digest: np.ndarray) -> None:
    memory.remember(stamp, np.zeros(len(stamp), dtype=np.int64), stamp[:, 2], digest)


def recall(memory: Memory, stamp: Stamps) -> tuple[np.ndarray, np.ndarray]:
    return memory.recall(stamp, np.zeros(len(stamp), dtype=np.int64), stamp[:, 2])


def test_what_was_remembered_is_recalled_by_another_process_run(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "files.sqlite"
    memory = Memory(path)
    remember(memory, stamps(1200), digests(1200))
    memory.close()
    memory = Memory(path)
    digest, known = recall(memory, stamps(1500))
    assert known.tolist() == [True] * 1200 + [False] * 300
    assert np.array_equal(digest[:1200], digests(1200))
    assert not digest[1200:].any()
    memory.close()


def test_many_inodes_are_recalled_by_reading_the_whole_device(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    remember(memory, stamps(25_000), digests(25_000))
    remember(memory, stamps(10, device=9), digests(10, 9))
    both = np.concatenate([stamps(25_000), stamps(10, device=9)])
    digest, known = recall(memory, both)
    assert known.all()
    assert np.array_equal(digest, np.concatenate([digests(25_000), digests(10, 9)]))


@pytest.mark.parametrize("field", range(5))
def test_a_file_in_another_state_is_not_known(tmp_path: Path, field: int) -> None:
    memory = Memory(tmp_path / "m")
    remember(memory, stamps(3), digests(3))
    changed = stamps(3)
    changed[1, field] += 1
    known = recall(memory, changed)[1]
    # Inode 1 becomes inode 2, whose other fields are not those of row 1.
    assert known.tolist() == [True, False, True]


def test_ranges_of_a_file_are_kept_apart(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    stamp = np.repeat(stamps(1), 3, axis=0)
    start, length = np.array([0, 0, 50]), np.array([100, 50, 50])
    memory.remember(stamp[:2], start[:2], length[:2], digests(2))
    digest, known = memory.recall(stamp, start, length)
    assert known.tolist() == [True, True, False]
    assert np.array_equal(digest[:2], digests(2))


def test_the_same_question_twice_has_the_same_answer(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    remember(memory, stamps(1), digests(1))
    digest, known = recall(memory, np.repeat(stamps(1), 2, axis=0))
    assert known.all()
    assert np.array_equal(digest[0], digest[1])


def test_a_newer_state_replaces_the_older_one(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    for seed in (1, 2):
        remember(memory, stamps(1), digests(1, seed))
    assert np.array_equal(recall(memory, stamps(1))[0], digests(1, 2))
    memory.close()
    assert sqlite3.connect(tmp_path / "m").execute("SELECT count(*) FROM file").fetchone() == (1,)


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    stamp = stamps(2)
    stamp[0, 4] = time.time_ns()
    remember(memory, stamp, digests(2))
    assert recall(memory, stamp)[1].tolist() == [False, True]


def test_numbers_of_64_bits_are_kept(tmp_path: Path) -> None:
    status = os.stat_result((0o100644, 2**64 - 5, 2**63 + 7, 1, 0, 0, 12, 0, 0, 0))
    assert stamp_of(status)[:3] == (-(2**63) + 7, -5, 12)
    memory = Memory(tmp_path / "m")
    stamp = np.array([(*stamp_of(status)[:3], 1, 2)], dtype=np.int64)
    remember(memory, stamp, digests(1))
    assert recall(memory, stamp)[1].all()


def test_nothing_asked_is_nothing_answered(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    remember(memory, stamps(0), digests(0))
    digest, known = recall(memory, stamps(0))
    assert digest.shape == (0, 32)
    assert known.shape == (0,)


def damage_header(path: Path) -> None:
    path.write_bytes(b"this was a database once" * 100)


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def other_tables(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("DROP TABLE file")
    database.execute("CREATE TABLE file (something TEXT)")
    database.commit()
    database.close()


def other_version(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 77")
    database.close()


@pytest.mark.parametrize(
    "damage", [damage_header, damage_pages, truncate, other_tables, other_version]
)
def test_a_damaged_database_is_begun_anew(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    path = tmp_path / "files.sqlite"
    memory = Memory(path)
    remember(memory, stamps(2000), digests(2000))
    memory.close()
    damage(path)
    with caplog.at_level(logging.WARNING):
        memory = Memory(path)
        assert not recall(memory, stamps(2000))[1].all()
        remember(memory, stamps(2000), digests(2000))
        assert recall(memory, stamps(2000))[1].all()
    memory.close()
    if damage is not other_version:
        assert "begun anew" in caplog.text
    memory = Memory(path)
    assert recall(memory, stamps(2000))[1].all()
    memory.close()


def test_rows_that_are_no_digests_are_no_answers(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    remember(memory, stamps(3), digests(3))
    database = sqlite3.connect(tmp_path / "m")
    database.execute("PRAGMA ignore_check_constraints = 1")
    database.execute("UPDATE file SET digest = 'text' WHERE inode = 0")
    database.execute("UPDATE file SET digest = x'00' WHERE inode = 1")
    database.commit()
    assert recall(memory, stamps(3))[1].tolist() == [False, False, True]


def test_a_folder_that_cannot_be_made_only_costs_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    memory = Memory(tmp_path / "file" / "files.sqlite")
    remember(memory, stamps(2), digests(2))
    assert not recall(memory, stamps(2))[1].any()
    memory.close()
    assert "not remembered" in caplog.text


@needs_root
def test_a_database_of_another_user_only_costs_the_memory(tmp_path: Path) -> None:
    path = Path(f"/tmp/vmpack-test-{os.getpid()}.sqlite")
    memory = Memory(path)
    remember(memory, stamps(2), digests(2))
    memory.close()

    def use() -> None:
        memory = Memory(path)
        remember(memory, stamps(2, first=10), digests(2))
        assert not recall(memory, stamps(2, first=10))[1].any()
        memory.close()

    try:
        as_nobody(use)
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def test_what_was_not_used_for_longest_is_forgotten_first(tmp_path: Path) -> None:
    path = tmp_path / "m"
    memory = Memory(path)
    remember(memory, stamps(100), digests(100))
    memory.close()
    database = sqlite3.connect(path)
    database.execute("UPDATE file SET used_day = inode")
    database.commit()
    database.close()
    memory = Memory(path, max_rows=80)
    recall(memory, stamps(10))  # used again, so they stay
    remember(memory, stamps(1, first=500), digests(1))
    memory.close()
    database = sqlite3.connect(path)
    kept = {row[0] for row in database.execute("SELECT inode FROM file")}
    assert len(kept) == 60
    assert kept == {*range(10), *range(51, 100), 500}


def write_many(path: Path, worker: int) -> None:
    memory = Memory(path)
    for batch in range(20):
        first = worker * 10_000 + batch * 100
        remember(memory, stamps(100, first=first), digests(100))
        assert recall(memory, stamps(100, first=first))[1].all()
    memory.close()


def test_several_processes_use_one_memory(tmp_path: Path) -> None:
    path = tmp_path / "m"
    in_processes(write_many, [(path, number) for number in range(4)])
    memory = Memory(path)
    for number in range(4):
        assert recall(memory, stamps(2000, first=number * 10_000))[1].all()
    memory.close()


def test_several_threads_use_one_memory(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    failures: list[int] = []

    def work(number: int) -> None:
        for batch in range(20):
            mine = stamps(50, first=number * 10_000 + batch * 50)
            remember(memory, mine, digests(50, number))
            if not recall(memory, mine)[1].all():
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    memory.close()


def test_a_range_is_hashed_and_a_range_past_the_end_is_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    data = os.urandom(3 << 20)
    file.write_bytes(data)
    fd = os.open(file, os.O_RDONLY)
    assert hash_range(fd, 0, len(data)) == hashlib.sha256(data).digest()
    assert hash_range(fd, 7, 1 << 20) == hashlib.sha256(data[7 : 7 + (1 << 20)]).digest()
    assert hash_range(fd, 1, len(data)) is None
    os.close(fd)


def test_rows_are_found_by_all_their_bytes() -> None:
    table = digests(1000)
    table[::2, 31] = 0
    table[::4, 0] = 0
    assert find_rows(table, table[::-1]).tolist() == list(range(1000))[::-1]
    other = table.copy()
    other[:, 31] ^= 1
    assert (find_rows(table, other) == -1).all()
    assert find_rows(table[:0], table[:2]).tolist() == [-1, -1]
    assert find_rows(table, table[:0]).tolist() == []
    keys = np.arange(14).reshape(2, 7) - 5
    assert find_rows(keys, keys[[1, 0, 1]]).tolist() == [1, 0, 1]
