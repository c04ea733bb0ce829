"""What is made once and kept in the cache, a folder each: whole, or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from packer import host
from packer.artifact.layout.staging import writing
from packer.durable import sync_directory

KEPT = 4
"""How many of a kind are kept, those that were used last: of other versions, other Pythons."""

_WORK = ".work-"


def made_once(kind: str, key: str, make: Callable[[Path, Path], None]) -> Path:
    """Return the folder KIND-KEY of the cache, which `make` fills if it is not there.

    make: called with an empty folder for what is kept and one for what lies about meanwhile.
    Raises Error when the cache cannot be written.
    """
    folder = host.cache_dir() / "unpacker"
    place = folder / f"{kind}-{key}"
    with _locked(folder):
        if not place.is_dir():
            with _work(folder) as (made, work), writing(place):
                make(made, work)
                _sync(made)
                made.rename(place)
                sync_directory(folder)
        with writing(place):
            os.utime(place)
            used = sorted(folder.glob(f"{kind}-*"), key=lambda one: one.stat().st_mtime_ns)
            for old in used[:-KEPT]:
                shutil.rmtree(old)
    return place


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def _work(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Give two empty folders, and remove them and what killed runs left; needs the lock."""
    for left_behind in folder.glob(f"{_WORK}*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    with writing(folder):
        room = Path(tempfile.mkdtemp(prefix=_WORK, dir=folder))
        for name in ("made", "work"):
            (room / name).mkdir()
    try:
        yield room / "made", room / "work"
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make the files of a folder durable, before it gets a name that says they are whole."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)
