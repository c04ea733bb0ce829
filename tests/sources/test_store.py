from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from packer.sources.base import FileRange, Learning, Wanted
from packer.sources.store import Store
from packer.sources.store_files import StoreError
from tests.artifact.make import contents_of
from tests.host import (
    as_nobody,
    in_processes,
    needs_root,
    shared_bytes,
    sharing_file_system,
)
from tests.sources.asking import as_hints
from tests.sources.stores import put, sha256


def everything_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    with sharing_file_system(tmp_path) as folder:
        yield folder


def ask(*blobs: bytes) -> Wanted:
    return Wanted(contents_of(list(blobs)), np.arange(len(blobs)), as_hints([]))


def test_what_was_put_is_found_and_fetched(store: Store) -> None:
    blobs = [b"one", b"two" * 1000, os.urandom(3 << 20), b"missing"]
    for blob in blobs[:3]:
        pieces = (blob[start : start + 1000] for start in range(0, len(blob), 1000))
        assert store.put(sha256(blob), len(blob), pieces)
    wanted = ask(*blobs)
    offers = store.find(wanted, deep=False)
    assert offers.rows.tolist() == [0, 1, 2]
    found = {}
    for piece in store.fetch(offers.rows):
        assert isinstance(piece, FileRange)
        found[piece.row] = os.pread(piece.fd, 4 << 20, piece.offset)
    assert found == dict(enumerate(blobs[:3]))
    assert isinstance(store, Learning)


def test_objects_are_read_only_and_named_by_their_digest(store: Store) -> None:
    digest = put(store, b"data")
    (path,) = everything_below(store.folder)
    name = digest.hex()
    assert path == store.folder / "sha256" / name[:2] / name[2:] == store.path_of(digest)
    assert path.stat().st_mode & 0o777 == 0o444
    assert store.folder.stat().st_mode & 0o077 == 0


def test_a_store_that_is_not_there_is_empty_and_not_made(store: Store) -> None:
    assert len(store.find(ask(b"x"), deep=False).rows) == 0
    assert list(store.list()) == []
    assert store.verify() == ()
    assert not store.folder.exists()


@pytest.mark.parametrize(
    "pieces", [[b"wrong"], [b"rig"], [b"right", b"!"], [], [b"right" * 1000] * 1000]
)
def test_other_bytes_are_refused_and_leave_nothing(store: Store, pieces: list[bytes]) -> None:
    assert not store.put(sha256(b"right"), 5, pieces)
    assert everything_below(store.folder) == []


def test_pieces_are_not_taken_beyond_the_size_and_not_at_all_if_it_is_there(store: Store) -> None:
    taken = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield b"right"

    assert not store.put(sha256(b"right"), 5, endless())
    assert len(taken) == 2
    put(store, b"right")
    assert store.put(sha256(b"right"), 5, endless())
    assert len(taken) == 2


def test_an_error_of_the_supplier_passes_and_leaves_nothing(store: Store) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"ri"
        raise ValueError("supplier")

    with pytest.raises(ValueError, match="supplier"):
        store.put(sha256(b"right"), 5, breaks())
    assert everything_below(store.folder) == []


def test_an_object_that_is_no_longer_what_its_name_says_is_removed_when_it_is_used(
    store: Store,
) -> None:
    digest = put(store, b"right")
    fd = store.open_verified(digest, 5)
    assert fd is not None
    os.close(fd)
    damage(store, digest, b"wrong")
    assert store.holds(digest, 5)
    assert store.open_verified(digest, 5) is None
    assert not store.holds(digest, 5)


def damage(store: Store, digest: bytes, data: bytes) -> None:
    store.path_of(digest).chmod(0o644)
    store.path_of(digest).write_bytes(data)


def test_a_short_object_as_after_a_power_cut_is_not_offered_and_is_put_anew(store: Store) -> None:
    digest = put(store, b"right")
    damage(store, digest, b"")
    assert len(store.find(ask(b"right"), deep=False).rows) == 0
    assert list(store.fetch(np.array([0]))) == []
    put(store, b"right")
    assert store.path_of(digest).read_bytes() == b"right"


def test_what_the_receiver_found_wrong_is_looked_at_and_removed(store: Store) -> None:
    bad, good = put(store, b"wrong"), put(store, b"right")
    damage(store, bad, b"other")
    rows = store.find(ask(b"wrong", b"right", b"never there"), deep=False).rows
    store.learn(np.array([0, 1, 2]), ok=False)
    assert rows.tolist() == [0, 1]
    assert not store.holds(bad, 5)
    assert store.holds(good, 5)


def test_verify_removes_what_is_wrong_and_says_so(store: Store) -> None:
    digests = [put(store, b"%d" % number) for number in range(50)]
    damage(store, digests[7], b"x")
    damage(store, digests[8], b"longer than before")
    done: list[int] = []
    assert set(store.verify(done.append)) == {digests[7], digests[8]}
    assert len(done) == 50
    assert {one.digest for one in store.list()} == set(digests) - {digests[7], digests[8]}


def test_things_that_are_no_objects_are_neither_opened_nor_listed(store: Store) -> None:
    digest = put(store, b"right")
    path = store.path_of(digest)
    path.unlink()
    wanted = ask(b"right")
    for make in (os.mkfifo, lambda one: one.symlink_to("/etc/passwd"), lambda one: one.mkdir()):
        make(path)
        assert len(store.find(wanted, deep=False).rows) == 0
        assert list(store.fetch(np.array([0]))) == []
        assert list(store.list()) == []
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    (path.parent / "notes.txt").write_bytes(b"x")
    (store.folder / "sha256" / "zz").write_bytes(b"x")
    assert list(store.list()) == []
    assert store.collect(everything=True).digests == ()
    assert (path.parent / "notes.txt").exists()


def test_clones_are_copies_where_blocks_cannot_be_shared(store: Store, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "source").write_bytes(data)
    with (tmp_path / "source").open("rb") as file:
        for start, end in ((0, 100_000), (4096, 8192), (1, 99_999), (50_000, 100_000)):
            part = data[start:end]
            assert store.put_clone(file.fileno(), start, len(part), sha256(part))
            assert store.path_of(sha256(part)).read_bytes() == part
        assert not store.put_clone(file.fileno(), 0, 10, sha256(b"something else"))
        assert not store.put_clone(file.fileno(), 99_990, 100, sha256(b"past the end"))
    assert len(everything_below(store.folder)) == 4


@needs_root
def test_clones_share_blocks_where_the_file_system_can(xfs: Path) -> None:
    store = Store(xfs / "store")
    data = os.urandom((1 << 20) + 100)
    (xfs / "source").write_bytes(data)
    with (xfs / "source").open("rb") as file:
        for start, end, shared in (
            (0, len(data), (1 << 20) + 4096),  # the part block at the end of the file, too
            (8192, 65536 + 8192, 65536),
            (4096, 4096 + 10_000, 8192),  # the rest is copied
            (512, 512 + 65536, 0),  # 63-sector partitions: nothing is aligned
            (0, 100, 0),
        ):
            part = data[start:end]
            assert store.put_clone(file.fileno(), start, len(part), sha256(part))
            path = store.path_of(sha256(part))
            assert path.read_bytes() == part
            assert shared_bytes(path) == shared
            assert path.stat().st_mode & 0o777 == 0o444


@needs_root
def test_a_clone_does_not_change_with_its_source(xfs: Path) -> None:
    store = Store(xfs / "store")
    data = os.urandom(1 << 20)
    (xfs / "source").write_bytes(data)
    with (xfs / "source").open("r+b") as file:
        assert store.put_clone(file.fileno(), 0, len(data), sha256(data))
        file.write(bytes(len(data)))
        file.flush()
        assert not store.put_clone(file.fileno(), 0, len(data) - 1, sha256(data[:-1]))
    assert store.path_of(sha256(data)).read_bytes() == data
    assert store.verify() == ()


@needs_root
def test_nothing_is_shared_between_file_systems(xfs: Path, tmp_path: Path) -> None:
    store, data = Store(xfs / "store"), os.urandom(8192)
    (tmp_path / "source").write_bytes(data)
    with (tmp_path / "source").open("rb") as source:
        assert store.put_clone(source.fileno(), 0, 8192, sha256(data))
    assert store.path_of(sha256(data)).read_bytes() == data
    assert shared_bytes(store.path_of(sha256(data))) == 0


@needs_root
def test_a_full_disk_is_an_error_with_a_cure_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
    try:
        store = Store(folder / "store")
        small = put(store, b"small")
        with pytest.raises(StoreError, match="No space left") as caught:
            put(store, os.urandom(2 << 20))
        assert "vmpack store gc" in caught.value.hint
        assert everything_below(store.folder) == [store.path_of(small)]
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_root
def test_a_store_of_another_user_is_an_error_with_a_cure() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        put(Store(folder / "store"), b"mine")

        def use() -> None:
            for store in (Store(folder / "store"), Store(folder / "new")):
                with pytest.raises(StoreError, match="Permission denied") as caught:
                    put(store, b"theirs")
                assert "belongs to the user" in caught.value.hint
            with pytest.raises(StoreError):
                Store(folder / "store").find(ask(b"mine"), deep=False)
            with pytest.raises(StoreError):
                Store(folder / "store").collect()

        as_nobody(use)


def put_the_same(folder: Path) -> None:
    store = Store(folder)
    for number in range(300):
        put(store, b"%d" % number * 1000)


def test_several_processes_put_the_same_objects(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    in_processes(put_the_same, [(folder,)] * 4)
    store = Store(folder)
    assert len(list(store.list())) == 300
    assert store.verify() == ()
    assert len(everything_below(folder)) == 300


DIES_WHILE_PUTTING = """
import hashlib, os, sys
from pathlib import Path
from packer.sources.store import Store
data = bytes(1 << 20)
def pieces():
    yield data
    print("half", flush=True)
    sys.stdin.read()
    yield data
Store(Path(sys.argv[1])).put(hashlib.sha256(data * 2).digest(), len(data) * 2, pieces())
"""


def test_a_writer_that_is_killed_leaves_nothing_under_a_digest(store: Store) -> None:
    command = [sys.executable, "-c", DIES_WHILE_PUTTING, str(store.folder)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    (temporary,) = everything_below(store.folder)
    assert temporary.parent.name == "tmp"
    age(temporary, 3600)
    assert store.collect().temporary_files == 0  # its writer is alive and holds the lock
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert list(store.list()) == []
    assert temporary.exists()
    age(temporary, 0)
    assert store.collect().temporary_files == 0  # young: might be about to be locked
    age(temporary, 3600)
    assert store.collect(everything=False).temporary_files == 1
    assert everything_below(store.folder) == []


def test_collection_takes_what_a_rule_names_least_used_first(store: Store) -> None:
    digests = [put(store, bytes([number]) * 100) for number in range(10)]
    for number, digest in enumerate(digests):
        age(store.path_of(digest), 1000 * (10 - number))
    assert store.collect().digests == ()
    removed = store.collect(older_than_seconds=8500)
    assert removed.digests == tuple(digests[:2])
    assert (removed.size_bytes, removed.kept, removed.kept_bytes) == (200, 8, 800)
    assert store.collect(max_bytes=350).digests == tuple(digests[2:7])
    assert store.collect(max_bytes=350).digests == ()
    assert len(store.collect(everything=True).digests) == 3
    assert list(store.list()) == []


def test_an_object_that_is_used_counts_as_young_again(store: Store) -> None:
    digest = put(store, b"data")
    age(store.path_of(digest), 30 * 86_400)
    rows = store.find(ask(b"data"), deep=False).rows
    assert [piece.row for piece in store.fetch(rows)] == [0]
    assert store.collect(older_than_seconds=86_400).digests == ()


def test_an_object_that_is_collected_stays_readable_where_it_is_open(store: Store) -> None:
    digest = put(store, b"data")
    rows = store.find(ask(b"data"), deep=False).rows
    for piece in store.fetch(rows):
        assert store.collect(everything=True).digests == (digest,)
        assert os.pread(piece.fd, 4, piece.offset) == b"data"
    assert list(store.fetch(rows)) == []


def test_no_descriptor_is_left_open(store: Store) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    put(store, b"data")
    store.put(sha256(b"x"), 1, [b"y"])
    store.find(ask(b"data"), deep=True)
    pieces = store.fetch(np.array([0]))
    next(pieces)
    del pieces
    store.verify()
    store.collect(everything=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_store_elsewhere_is_told_apart_by_its_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path))
    assert Store(tmp_path / "data" / "store").uri == "store:"
    assert Store(tmp_path / "other").uri == f"store:{tmp_path}/other"


def test_a_file_where_a_store_should_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    store = Store(tmp_path / "file")
    for use in (lambda: list(store.list()), store.verify, store.collect):
        with pytest.raises(StoreError, match="file: expected a folder"):
            use()
    assert (tmp_path / "file").read_bytes() == b"precious"
