from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from packer.sources.store import Store
from packer.sources.store_files import StoreError
from tests.sources.stores import put, sha256


def table(*digests: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_a_vm_leases_is_never_collected(store: Store) -> None:
    kept, other = put(store, b"kept"), put(store, b"other")
    store.leases.lease("my-vm", table(kept, sha256(b"comes later")))
    assert store.collect(everything=True).digests == (other,)
    put(store, b"comes later")
    assert Store(store.folder).collect(max_bytes=0).digests == ()
    assert list(store.leases.leased()) == ["my-vm"]
    store.leases.lease("my-vm", table())
    assert len(store.collect(everything=True).digests) == 2
    store.leases.release("my-vm")
    store.leases.release("my-vm")
    assert store.leases.leased() == {}


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "@1-2", "x" * 300, "a\0"])
def test_a_lease_needs_a_plain_name(store: Store, name: str) -> None:
    with pytest.raises(StoreError):
        store.leases.lease(name, table())
    with pytest.raises(StoreError):
        store.leases.release(name)


def test_a_damaged_lease_stops_the_collection(store: Store) -> None:
    put(store, b"data")
    store.leases.lease("vm", table())
    (store.folder / "leases" / "vm").write_bytes(b"not 32 bytes")
    with pytest.raises(StoreError, match="leases/vm"):
        store.collect(everything=True)
    assert len(list(store.list())) == 1


def test_the_lease_of_a_process_ends_with_it(store: Store) -> None:
    digest = put(store, b"data")
    with store.leases.using(table(digest)):
        assert store.collect(everything=True).digests == ()
    assert store.collect(everything=True).digests == (digest,)
    assert list((store.folder / "leases").iterdir()) == []


DIES_WHILE_USING = """
import sys
from pathlib import Path
import numpy as np
from packer.sources.leases import Leases
digests = np.frombuffer(bytes.fromhex(sys.argv[2]), dtype=np.uint8).reshape(-1, 32)
with Leases(Path(sys.argv[1])).using(digests):
    print("using", flush=True)
    sys.stdin.read()
"""


def test_the_lease_of_a_killed_process_is_dropped(store: Store) -> None:
    digest = put(store, b"data")
    command = [sys.executable, "-c", DIES_WHILE_USING, str(store.folder), digest.hex()]
    user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert user.stdout is not None
    assert user.stdout.readline() == b"using\n"
    assert store.collect(everything=True).digests == ()
    user.send_signal(signal.SIGKILL)
    user.communicate()
    assert store.collect(everything=True).digests == (digest,)
    assert list((store.folder / "leases").iterdir()) == []


def test_no_descriptor_is_left_open(store: Store) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    digest = put(store, b"data")
    store.leases.lease("vm", table(digest))
    with store.leases.using(table(digest)):
        store.collect(everything=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
