"""What a copy of a pack holds, what it leaves to others, and where that can be had."""

from __future__ import annotations

from pathlib import Path

from packer.artifact.contents import Class
from packer.artifact.copy import Extent, copy_packs
from packer.artifact.hints import Package
from packer.artifact.keys import generate
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.opened import OpenedPack
from packer.inspect.pack import Stub, inspect_pack, stubs_of
from tests.artifact.make import contents_of
from tests.artifact.real_packs import hints_of, write_pack
from tests.unpack.simulated import CLASSES, DATA

PACKAGES = (
    Package("dpkg", "bash", "5.2", "amd64", filename="pool/bash.deb"),
    Package("dpkg", "old", "1", "all"),
    Package("windows", "Windows", "10.0.1.2", "amd64"),
)
PLACES = [
    *((1, "/etc/secret", -1), (2, "/usr/bin/bash", 0), (3, "/usr/share/old", 1)),
    (4, "/Windows/notepad.exe", 2),
]


def full_pack(folder: Path) -> OpenedPack:
    hints = hints_of(contents_of(DATA, CLASSES), PLACES, PACKAGES)
    keys = [generate(folder / "key"), generate(folder / "other")]
    return write_pack(folder / "full.vmpack", DATA, CLASSES, hints=hints, keys=keys)


def test_a_full_pack_carries_all_its_contents(tmp_path: Path) -> None:
    pack = full_pack(tmp_path)
    summary = inspect_pack(pack)
    for one in Class:
        mine = [len(data) for data, its in zip(DATA, CLASSES, strict=True) if its == one]
        assert summary.carried[one.name.lower()] == (len(mine), sum(mine))
    assert list(summary.bundles) == ["boot", "private", "shared-000"]
    assert summary.identity == pack.config_digest
    assert summary.packages == 2
    assert 0 < summary.stored_bytes <= (tmp_path / "full.vmpack").stat().st_size
    assert list(stubs_of(pack)) == []
    assert len(summary.signers) == 2
    assert generate(tmp_path / "third").public.fingerprint not in summary.signers
    pack.close()


def test_an_unsigned_pack_has_no_signers(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "a.vmpack", DATA, CLASSES)
    assert inspect_pack(pack).signers == ()
    pack.close()


def test_the_stubs_of_a_copy_say_what_they_are_and_who_can_supply_them(tmp_path: Path) -> None:
    pack = full_pack(tmp_path)
    with create_layout(tmp_path / "boot.vmpack") as writer:
        copy_packs([pack], writer, Extent.BOOT)
    copy = OpenedPack(open_layout(tmp_path / "boot.vmpack"))
    assert inspect_pack(copy).carried["private"] == (0, 0)
    stubs = list(stubs_of(copy))
    contents = pack.map.contents
    assert {stub.content for stub in stubs} == {contents.name(row) for row in range(1, len(DATA))}
    assert stubs == sorted(stubs, key=lambda stub: stub.path)
    by_path = {stub.path: stub for stub in stubs}
    elsewhere = "another copy of this pack"
    assert by_path["/etc/secret"] == Stub("/etc/secret", contents.name(1), 40_000, elsewhere)
    assert by_path["/usr/bin/bash"].where == "package bash 5.2 (amd64), pool/bash.deb"
    assert by_path["/usr/share/old"].where == "package old 1 (all)"
    assert by_path["/Windows/notepad.exe"].where == "Windows 10.0.1.2 amd64"
    assert by_path["(file-system metadata)"].where == elsewhere
    pack.close()
    copy.close()
