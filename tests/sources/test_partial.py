"""Partial objects: what lies under their names, and how the store collects them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Contents
from packer.sources.partial import block_is_there
from packer.sources.store import Store
from packer.sources.store_files import StoreError
from tests.artifact.make import contents_of
from tests.sources.stores import put, sha256
from tests.unpack.simulated import numbered

MIB = 1 << 20
LARGE, SMALL = numbered(3 * MIB + 7, 1), numbered(100, 2)
CONTENTS = contents_of([LARGE, SMALL])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(store: Store, row: int = 0, contents: Contents = CONTENTS) -> int:
    fd = store.partials.open(contents, row, create=True)
    assert fd is not None
    return fd


def with_block(store: Store, block: int) -> Path:
    """A partial object that holds one block of the large content."""
    fd = made(store)
    os.pwrite(fd, LARGE[block * MIB : (block + 1) * MIB], block * MIB)
    os.close(fd)
    return store.partials.path_of(CONTENTS, 0)


def test_a_block_is_there_when_its_bytes_are(store: Store) -> None:
    path = with_block(store, 3)
    fd = made(store)
    assert [block_is_there(fd, CONTENTS, 0, block) for block in range(4)] == [False] * 3 + [True]
    os.close(fd)
    assert path.stat().st_size == len(LARGE)
    assert path.stat().st_blocks * 512 < MIB
    assert path.stat().st_mode & 0o777 == 0o600


def test_none_is_made_unless_asked_for(store: Store) -> None:
    assert store.partials.open(CONTENTS, 0, create=False) is None
    assert not store.folder.exists()


def test_the_same_content_cut_otherwise_is_another_partial_object(store: Store) -> None:
    other = Contents(
        CONTENTS.digest,
        CONTENTS.size,
        CONTENTS.classes,
        np.zeros_like(CONTENTS.blocks),
        CONTENTS.block_start,
    )
    paths = {store.partials.path_of(one, row) for one in (CONTENTS, other) for row in (0, 1)}
    assert len(paths) == 3  # a small content has no blocks


def test_one_that_just_begins_gets_its_size(store: Store) -> None:
    path = store.partials.path_of(CONTENTS, 0)
    path.parent.mkdir(parents=True)
    path.touch()
    os.close(made(store))
    assert path.stat().st_size == len(LARGE)


def test_what_cannot_be_removed_is_an_error(store: Store) -> None:
    path = store.partials.path_of(CONTENTS, 0)
    path.mkdir(parents=True)
    with pytest.raises(StoreError):
        made(store)
    assert store.partials.open(CONTENTS, 0, create=False) is None


def test_a_complete_one_becomes_an_object(store: Store) -> None:
    path, fd = store.partials.path_of(CONTENTS, 0), made(store)
    assert not store.take_in(path, fd, sha256(LARGE), len(LARGE))
    os.pwrite(fd, LARGE, 0)
    assert store.take_in(path, fd, sha256(LARGE), len(LARGE))
    assert not store.take_in(path, fd, sha256(LARGE), len(LARGE))  # it lies there no more
    os.close(fd)
    assert not path.exists()
    held = store.path_of(sha256(LARGE))
    assert held.read_bytes() == LARGE
    assert held.stat().st_mode & 0o777 == 0o444


def test_another_file_that_took_its_place_is_no_object(store: Store) -> None:
    path, fd = store.partials.path_of(CONTENTS, 0), made(store)
    os.pwrite(fd, LARGE, 0)
    path.unlink()
    os.close(made(store))
    assert not store.take_in(path, fd, sha256(LARGE), len(LARGE))
    os.close(fd)
    assert store.size_of(sha256(LARGE)) is None


# -- collection ------------------------------------------------------------------------------------


def test_partial_objects_are_collected_like_whole_ones(store: Store) -> None:
    path = with_block(store, 0)
    digest = put(store, SMALL)
    (one,) = store.partials.list()
    assert (one.path, one.digest) == (path, sha256(LARGE))
    assert MIB <= one.size < 2 * MIB  # what it takes on the disk
    assert store.collect().digests == ()
    then = time.time() - 1000
    os.utime(path, (then, then))
    removed = store.collect(max_bytes=MIB)
    assert removed.digests == (sha256(LARGE),)
    assert (removed.kept, removed.kept_bytes) == (1, len(SMALL))
    assert not path.exists()
    assert store.holds(digest, len(SMALL))


def test_a_leased_one_stays(store: Store) -> None:
    path = with_block(store, 1)
    store.leases.lease("demo", CONTENTS.digest)
    assert store.collect(everything=True).digests == ()
    assert path.exists()
    store.leases.release("demo")
    assert store.collect(everything=True).digests == (sha256(LARGE),)
    assert not path.exists()


def test_one_that_is_filled_while_it_is_collected_does_no_harm(store: Store) -> None:
    fd = made(store)
    store.collect(everything=True)
    os.pwrite(fd, LARGE[:MIB], 0)
    assert block_is_there(fd, CONTENTS, 0, 0)
    os.close(fd)


def test_other_names_are_none_of_the_stores(store: Store) -> None:
    with_block(store, 0)
    (store.folder / "partial" / "notes").write_text("mine")
    assert len(store.collect(everything=True).digests) == 1
    assert (store.folder / "partial" / "notes").exists()
