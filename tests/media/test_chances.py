"""What the audience of a medium lacks: guessed by package, or known of some hosts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class, Contents
from packer.artifact.hints import Hints, Package
from packer.media.chances import KERNEL, LISTED, UNLISTED, chances
from packer.pack.against import Against, Rows
from tests.artifact.make import contents_of
from tests.artifact.real_packs import hints_of, no_hints, write_pack

DATA = [bytes([row]) * 100 for row in range(6)]
CLASSES = [Class.BOOT, *[Class.SHARED] * 5]
PACKAGES = (
    Package("dpkg", "linux-image-6.1.0-1-amd64", "1", "amd64", "pool/l.deb", "0" * 64, 1),
    Package("dpkg", "libc6", "1", "amd64", "pool/c.deb", "0" * 64, 1),
    Package("dpkg", "in-house", "1", "amd64"),
)


def lacks(*rows: int) -> Against:
    """A host that has all contents but these."""

    def held(contents: Contents, hints: Hints, asked: Rows) -> Rows:
        assert len(hints.content) <= len(contents)
        return np.setdiff1d(asked, rows)

    return held


def test_without_knowledge_the_package_tells(tmp_path: Path) -> None:
    places = [(1, "/boot/vmlinuz", 0), (2, "/usr/lib/libc.so", 1), (3, "/opt/x", 2), (4, "/y", -1)]
    places += [(5, "/opt/z", 2), (5, "/usr/z", 1)]  # who has either package has it
    hints = hints_of(contents_of(DATA, CLASSES), places, PACKAGES)
    with write_pack(tmp_path / "a.vmpack", DATA, CLASSES, hints=hints) as pack:
        found = chances(pack, [])
    assert found.tolist() == [UNLISTED, KERNEL, LISTED, UNLISTED, UNLISTED, LISTED]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_pack_without_hints_has_chances_all_the_same(tmp_path: Path, count: int) -> None:
    with write_pack(tmp_path / "a.vmpack", DATA, CLASSES, hints=no_hints()) as pack:
        found = chances(pack, [lacks()] * count)
    assert found.tolist() == [0.0 if count else UNLISTED] * len(DATA)


def test_a_pack_of_nothing_has_no_chances(tmp_path: Path) -> None:
    with write_pack(tmp_path / "a.vmpack", [], []) as pack:
        assert chances(pack, []).tolist() == chances(pack, [lacks()]).tolist() == []


def test_of_known_hosts_each_counts_the_same(tmp_path: Path) -> None:
    with write_pack(tmp_path / "a.vmpack", DATA, CLASSES) as pack:
        found = chances(pack, [lacks(1, 2), lacks(2), lacks(2, 5), lacks()])
    assert found.tolist() == [0, 0.25, 0.75, 0, 0, 0.25]
