"""A disk to adopt, where it goes, and what must come of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from packer.density.adopt import AdoptOptions, AdoptReport
from packer.progress import Advance, Silent
from packer.run.vm.vm import OWN_PACK, vms_folder
from packer.sources.open import open_pack
from packer.sources.store import Store
from packer.unpack.verify import verify
from tests.density.places import digest
from tests.guest.dpkg_guest import Deb, DpkgRoot, build_deb
from tests.round_trip.disks import copy_sparse
from tests.round_trip.small import make_disk

FILES = 40
SHIPPED = FILES + 1
"""With the list of their digests, which the package brings along."""


def noise(seed: int, count: int) -> bytes:
    return hashlib.shake_256(str(seed).encode()).digest(count)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with files that a package ships, and a few of its own."""
    folder = tmp_path_factory.mktemp("original")
    guest_root = DpkgRoot(folder)
    files = {f"/usr/lib/noise/{one}": noise(one, 3000 + 90_000 * (one % 3)) for one in range(FILES)}
    guest_root.dpkg("--install", build_deb(folder, Deb("noise", files)))
    (guest_root.root / "srv").mkdir()
    (guest_root.root / "srv/own").write_bytes(noise(1000, 200_000))
    return make_disk(folder / "disk.raw", guest_root.root, size_mib=32)


@pytest.fixture
def disk(original: Path, tmp_path: Path) -> Path:
    (tmp_path / "disks").mkdir()
    return copy_sparse(original, tmp_path / "disks" / "mail.raw")


@pytest.fixture
def options(tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AdoptOptions:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    return AdoptOptions(
        "mail", "mail", Store(tmp_path / "store"), state=tmp_path / "state", remove=always
    )


def always(_: AdoptReport) -> bool:
    return True


def objects(options: AdoptOptions) -> int:
    return len(list(options.store.list()))


def names_in_state(options: AdoptOptions) -> list[str]:
    folder = vms_folder(options.state)
    return sorted(os.listdir(folder)) if folder.exists() else []  # noqa: PTH208


def comes_back(report: AdoptReport, original: Path, options: AdoptOptions) -> bool:
    """By another way than adopt's own: the own pack proves the original, the store has the rest."""
    with open_pack(str(report.vm.folder / OWN_PACK)) as own:
        contents = own.map.contents
        carried = set(own.index.content.tolist())
        for row in range(len(contents)):
            if row in carried:
                continue
            fd = options.store.open_verified(
                contents.digest[row].tobytes(), int(contents.size[row])
            )
            if fd is None:
                return False
            os.close(fd)
        return verify(original, own.map).right


class At:
    """Progress by which something happens as a stage begins."""

    def __init__(self, title: str, happens: Callable[[], None]) -> None:
        self._title = title
        self._happens = happens

    def stage(self, title: str, total_bytes: int) -> AbstractContextManager[Advance]:
        if title == self._title:
            self._happens()
        return Silent().stage(title, total_bytes)


@contextmanager
def nothing_happens_to(disk: Path, options: AdoptOptions) -> Iterator[None]:
    """The disk stays, and there is neither a VM nor anything in the store or the state folder."""
    before = digest(disk), disk.stat().st_mtime_ns
    yield
    assert (digest(disk), disk.stat().st_mtime_ns) == before
    assert names_in_state(options) == []
    assert objects(options) == 0
