"""What the tests of the whole command share: a home for each, packs made once for all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.packs import Guest, Packed, author_key, guest, packed, trusting_host


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for disks; unlike tmp_path it is emptied after the test."""
    yield tmp_path
    for path in tmp_path.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets in folders of it."""
    folder = Path(tempfile.mkdtemp(prefix="vm-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def build_guest() -> Callable[[str], Guest]:
    """`build_guest(name)`: a fixture guest."""
    return guest


@pytest.fixture(scope="session")
def pack_guest() -> Callable[[str], Packed]:
    """`pack_guest(name)`: the copies of a guest's pack, signed by the tests' author."""
    return packed


@pytest.fixture(scope="session")
def busybox() -> Packed:
    return packed("busybox")


@pytest.fixture
def run_vmpack(tmp_path: Path) -> Vmpack:
    """The command on a host that trusts the tests' author and has used nothing yet."""
    return trusting_host(tmp_path / "home")


@pytest.fixture
def stranger(tmp_path: Path) -> Vmpack:
    """The command on a host that trusts nobody and has no key."""
    return Vmpack(tmp_path / "stranger")


@pytest.fixture
def author(tmp_path: Path) -> Vmpack:
    """The command with the author's key; what it remembers is its own."""
    key = author_key()
    home = tmp_path / "author"
    shutil.copytree(key.parent, home / "config")
    return Vmpack(home)
