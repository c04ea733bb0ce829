"""Which package ships a file, as dpkg's own database has it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from packer.artifact.hints import Package
from packer.guest.provenance import Provenance, find_provenance
from packer.guest.tree import Tree
from tests.guest.dpkg_guest import HAS_DPKG, Deb, DpkgRoot, own_architecture
from tests.guest.material import ext4, tree_of, write_tree
from tests.host import ROOT

pytestmark = [
    *ROOT,
    pytest.mark.skipif(not HAS_DPKG, reason="needs dpkg-deb"),
]
FOREIGN = "s390x"


class Guest:
    """A guest, its provenance, and the answers asked by path."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.provenance: Provenance = find_provenance(tree)

    def package(self, path: str) -> str:
        """Name of the package that ships the file at a path, "" for nobody."""
        row = int(self.provenance.package[self.stream(path)])
        return self.provenance.packages[row].name if row >= 0 else ""

    def md5_is_right(self, path: str) -> bool | None:
        expected = self.provenance.expected[self.stream(path)]
        if expected is None:
            return None
        return hashlib.md5(self.tree.read(path, 1 << 20)).digest() == expected

    def stream(self, path: str) -> int:
        stream = self.tree.stream_of(path)
        assert stream is not None, path
        return stream


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    folder = tmp_path_factory.mktemp("dpkg")
    system = DpkgRoot(folder, foreign=FOREIGN)
    doc = {"/usr/share/doc/same/copyright": b"the same in each architecture"}
    same = {"Multi-Arch": "same"}
    system.install(
        Deb(
            "plain",
            {
                "/usr/share/plain/data": b"data",
                "/usr/share/plain/diverted": b"of plain",
                "/usr/share/plain/changed": b"as shipped",
                "/usr/share/plain/два слова": b"blank and Cyrillic",
                "/bin/plain": b"by the way of a link",
            },
            conffiles={"/etc/plain.conf": b"conf", "/etc/plain-edited.conf": b"conf 2"},
            control={"templates": b"Template: plain/x\nType: note\nDescription: x\n"},
        ),
        Deb(
            "same",
            {f"/usr/lib/{FOREIGN}/libsame.so": b"foreign"} | doc,
            architecture=FOREIGN,
            fields=same,
        ),
        Deb(
            "same",
            {"/usr/lib/own/libsame.so": b"own"} | doc,
            architecture=own_architecture(),
            fields=same,
        ),
        Deb("older", {"/usr/share/shared/tool": b"of older", "/usr/share/older/x": b"x"}),
        Deb("gone", {"/usr/share/gone/x": b"gone"}, conffiles={"/etc/gone.conf": b"left behind"}),
    )
    system.divert("/usr/share/plain/diverted", "/usr/share/plain/diverted.distrib", "diverter")
    system.install(
        Deb("diverter", {"/usr/share/plain/diverted": b"of diverter"}),
        Deb("newer", {"/usr/share/shared/tool": b"of newer"}, fields={"Replaces": "older"}),
    )
    system.dpkg("--remove", "gone")
    root = system.root
    (root / "etc/plain-edited.conf").write_bytes(b"edited")
    (root / "usr/share/plain/changed").write_bytes(b"changed!!!")
    (root / "usr/share/plain/data.pyc").write_bytes(b"generated")
    (root / "usr/share/plain/linked").hardlink_to(root / "usr/share/plain/data")
    return Guest(tree_of(ext4(folder / "disk.raw", root)))


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("/usr/share/plain/data", "plain"),
        ("/usr/share/plain/два слова", "plain"),
        ("/usr/bin/plain", "plain"),
        ("/etc/plain.conf", "plain"),
        ("/usr/lib/own/libsame.so", "same"),
        (f"/usr/lib/{FOREIGN}/libsame.so", "same"),
        ("/usr/share/doc/same/copyright", "same"),
        ("/usr/share/plain/diverted", "diverter"),
        ("/usr/share/plain/diverted.distrib", "plain"),
        ("/usr/share/shared/tool", "newer"),
        ("/usr/share/older/x", "older"),
    ],
)
def test_a_file_that_a_package_ships_is_found_with_its_md5(
    guest: Guest, path: str, package: str
) -> None:
    assert guest.package(path) == package
    assert guest.md5_is_right(path)


@pytest.mark.parametrize("path", ["/etc/plain-edited.conf", "/usr/share/plain/changed"])
def test_a_file_that_was_changed_has_the_md5_of_what_was_shipped(guest: Guest, path: str) -> None:
    assert guest.package(path) == "plain"
    assert guest.md5_is_right(path) is False


@pytest.mark.parametrize(
    "path",
    [
        "/usr/share/plain/data.pyc",
        "/etc/os-release",
        "/etc/gone.conf",
        "/var/lib/dpkg/status",
        "/var/lib/dpkg/info/plain.list",
        "/var/lib/dpkg/info/gone.list",
    ],
)
def test_what_was_generated_or_left_behind_is_nobodys(guest: Guest, path: str) -> None:
    assert guest.package(path) == ""
    assert guest.md5_is_right(path) is None


def test_members_of_control_archives_belong_to_their_package_without_md5(guest: Guest) -> None:
    own = own_architecture()
    for member, package in {
        "plain.md5sums": "plain",
        "plain.conffiles": "plain",
        "plain.templates": "plain",
        f"same:{own}.md5sums": "same",
        f"same:{FOREIGN}.md5sums": "same",
    }.items():
        path = f"/var/lib/dpkg/info/{member}"
        assert guest.package(path) == package
        assert guest.md5_is_right(path) is None


def test_each_architecture_is_a_package_of_its_own(guest: Guest) -> None:
    provenance = guest.provenance
    foreign = int(provenance.package[guest.stream(f"/usr/lib/{FOREIGN}/libsame.so")])
    own = int(provenance.package[guest.stream("/usr/lib/own/libsame.so")])
    assert provenance.packages[foreign] == Package("dpkg", "same", "1.0-1", FOREIGN)
    assert provenance.packages[own] == Package("dpkg", "same", "1.0-1", own_architecture())


def test_packages_that_are_not_installed_are_not_listed(guest: Guest) -> None:
    names = [package.name for package in guest.provenance.packages]
    assert sorted(set(names)) == ["diverter", "newer", "older", "plain", "same"]


def test_a_file_with_two_names_is_one_stream(guest: Guest) -> None:
    assert guest.package("/usr/share/plain/linked") == "plain"


STATUS = b"""Package: broken
Status: install ok installed
Version: 1
Architecture: all

"""


@pytest.mark.parametrize(
    ("files", "packages"),
    [
        ({}, 0),
        ({"/var/lib/dpkg/status": b"\xff\xfe\0" * 5000}, 0),
        ({"/var/lib/dpkg/status": STATUS}, 1),
        ({"/var/lib/dpkg/status": STATUS, "/var/lib/dpkg/info/broken.md5sums": b"\0" * 5000}, 1),
        (
            {
                "/var/lib/dpkg/status": STATUS,
                "/var/lib/dpkg/info/broken.md5sums": b"zz  usr/x\n\n" + b"0" * 32 + b"\n",
                "/var/lib/dpkg/diversions": b"one line\nand a second",
            },
            1,
        ),
        (
            {
                "/var/lib/dpkg/status": STATUS.replace(b"broken", b"../../../etc/broken"),
                "/etc/broken.md5sums": b"d41d8cd98f00b204e9800998ecf8427e  etc/os-release\n",
            },
            0,
        ),
    ],
)
def test_a_damaged_database_costs_stubs_and_nothing_else(
    tmp_path: Path, files: dict[str, bytes], packages: int
) -> None:
    root = write_tree(tmp_path / "root", {"/etc/os-release": b"ID=debian\n"} | files, {})
    found = find_provenance(tree_of(ext4(tmp_path / "disk.raw", root)))
    assert len(found.packages) <= packages
    assert all(md5 is None for md5 in found.expected)
