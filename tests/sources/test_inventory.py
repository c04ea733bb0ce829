from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest

from packer.artifact import zstd
from packer.columns import PackedColumn, encode_column
from packer.errors import Error, InputError
from packer.sources.against import holds
from packer.sources.directory import DirectorySource
from packer.sources.inventory import MAGIC, Inventory, decode, encode, take_inventory
from packer.sources.memory import Memory
from tests.sources.asking import whole_files
from tests.sources.test_directory import root as _root
from tests.sources.test_directory import write

root = _root


def some(count: int, *, names: bool = False) -> Inventory:
    rows = sorted(hashlib.sha256(b"%d" % number).digest() for number in range(count))
    digest = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 32)
    name = tuple(f"/file-{number}" for number in range(count)) if names else ()
    return Inventory(digest, np.arange(1, count + 1), name)


@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("names", [False, True])
def test_what_is_saved_is_loaded(tmp_path: Path, count: int, names: bool) -> None:
    inventory = some(count, names=names)
    inventory.save(tmp_path / "host.inv")
    loaded = Inventory.load(tmp_path / "host.inv")
    assert np.array_equal(loaded.digest, inventory.digest)
    assert np.array_equal(loaded.size, inventory.size)
    assert loaded.name == inventory.name
    assert encode(loaded) == encode(inventory)
    assert [path.name for path in tmp_path.iterdir()] == ["host.inv"]


def test_it_says_what_it_contains() -> None:
    inventory = some(1000)
    digests = inventory.digest[[5, 999, 0, 5]].copy()
    digests[2, 31] ^= 1
    assert inventory.contains(digests).tolist() == [True, True, False, True]
    assert inventory.contains(digests[:0]).tolist() == []
    assert some(0).contains(digests).tolist() == [False] * 4


def wire(**changes: object) -> bytes:
    inventory = some(3)
    fields: dict[str, object] = {
        "digest": inventory.digest.tobytes(),
        "size": encode_column(inventory.size),
        "names": None,
    }
    plain = msgspec.msgpack.encode(fields | changes)
    return MAGIC + struct.pack("<Q", len(plain)) + zstd.compress(plain, 1)


BROKEN = {
    "empty": b"",
    "another file": b"\x7fELF" + bytes(100),
    "another version": b"vmpackinv2\n" + wire()[len(MAGIC) :],
    "header only": MAGIC,
    "no frame": MAGIC + struct.pack("<Q", 10) + b"not zstd",
    "size too small": MAGIC + struct.pack("<Q", 10) + wire()[len(MAGIC) + 8 :],
    "size beyond all bounds": MAGIC + struct.pack("<Q", 2**62) + wire()[len(MAGIC) + 8 :],
    "bytes after the end": wire() + b"x",
    "no inventory": wire(digest=7),
    "half a digest": wire(digest=bytes(40)),
    "unsorted": wire(digest=some(3).digest[::-1].tobytes()),
    "twice the same": wire(digest=some(3).digest[[0, 0, 1]].tobytes()),
    "too few sizes": wire(size=encode_column(np.array([1, 2]))),
    "a size of 0": wire(size=encode_column(np.array([1, 0, 2]))),
    "a column that lies": wire(size=PackedColumn(8, 3, b"x")),
    "too few names": wire(names=b"/a\0/b"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "broken.inv"
    path.write_bytes(BROKEN[what])
    with pytest.raises(InputError, match=r"broken\.inv"):
        Inventory.load(path)


def test_names_of_nothing_but_nul_are_counted_before_they_take_memory() -> None:
    data = wire(names=bytes(32 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="names: expected 3"):
            decode(data, "bomb")
        assert tracemalloc.get_traced_memory()[1] < 150 << 20  # cut, they would be 256 MiB of rows
    finally:
        tracemalloc.stop()


def test_every_truncation_is_refused() -> None:
    whole = encode(some(20, names=True))
    for length in range(len(whole)):
        with pytest.raises(InputError):
            decode(whole[:length], "cut")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Inventory.load(tmp_path / "missing")
    with pytest.raises(Error, match="No such file"):
        some(1).save(tmp_path / "missing" / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_inventory_lists_what_everybody_can_read(root: Path, tmp_path: Path) -> None:
    files = {"/a": b"first", "/b/c": b"second", "/b/twin": b"second", "/empty": b""}
    for path, data in files.items():
        write(root, path, data)
    write(root, "/closed/secret", b"secret")
    (root / "closed").chmod(0o700)
    write(root, "/local/mine", b"mine")
    os.mkfifo(root / "fifo")
    memory = Memory(tmp_path / "m", racy_ns=0)
    for _ in range(2):
        found = take_inventory([(root, ("/local",))], memory, with_names=True)
        digests = {data: hashlib.sha256(data).digest() for data in (b"first", b"second")}
        assert [row.tobytes() for row in found.digest] == sorted(digests.values())
        names = dict(zip((row.tobytes() for row in found.digest), found.name, strict=True))
        assert names[digests[b"first"]] == f"{root}/a"
        assert sorted(found.size.tolist()) == [5, 6]
    memory.close()
    assert take_inventory([(root, ("/local",))]).name == ()


def test_what_a_source_holds_is_proven_by_reading(root: Path) -> None:
    large = os.urandom((2 << 20) + 5)
    write(root, "/right", b"right")
    write(root, "/wrong", b"wrong")
    write(root, "/large", large)
    wanted = whole_files({"/right": b"right", "/wrong": b"other", "/large": large, "/no": b"no"})
    done: list[int] = []
    assert holds(DirectorySource(root), wanted, progress=done.append).tolist() == [0, 2]
    assert sorted(done) == [5, len(large)]
    assert holds(DirectorySource(root), wanted, deep=False).tolist() == [0, 2]
