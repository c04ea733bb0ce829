"""dir: with a Windows tree: names in any case, and a volume mounted by ntfs-3g."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.sources.base import FileRange, Wanted
from packer.sources.directory import DirectorySource
from packer.sources.tree import Tree
from tests.formats.windows.test_security_descriptor import ADMINS_ONLY, USERS, descriptor, entry
from tests.host import needs_root
from tests.sources.asking import whole_files
from tests.sources.ntfs_volume import ntfs_3g
from tests.sources.test_directory import write

NTDLL = b"MZ" + bytes(range(256)) * 300
FILES = {"/Windows/System32/ntdll.dll": NTDLL, "/Program Files/Game/game.dat": b"dat" * 5000}
ACL = "system.ntfs_acl"
PRIVATE = descriptor(*ADMINS_ONLY)
OPEN = descriptor(*ADMINS_ONLY, entry(USERS, 0x1200A9))


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for one in (tree.parent, tree):
            one.chmod(0o755)
        yield tree


def had(source: DirectorySource, wanted: Wanted, *, deep: bool = False) -> dict[int, bytes]:
    found = {}
    for piece in source.fetch(source.find(wanted, deep=deep).rows):
        assert isinstance(piece, FileRange)
        found[piece.row] = os.pread(piece.fd, int(wanted.contents.size[piece.row]), piece.offset)
    source.close()
    return found


@pytest.mark.parametrize(
    "spelled",
    [
        "/windows/system32/NTDLL.DLL",
        "/WINDOWS/SYSTEM32/ntdll.dll",
        "/Windows/System32/ntdll.dll",
        "/windows/System32/Ntdll.dll",
    ],
)
def test_names_are_found_in_any_case(root: Path, spelled: str) -> None:
    write(root, spelled, NTDLL)
    wanted = whole_files({"/Windows/System32/ntdll.dll": NTDLL, "/Windows/other.dll": b"MZ"})
    assert had(DirectorySource(root), wanted) == {0: NTDLL}


def test_the_exact_name_comes_first(root: Path) -> None:
    other = NTDLL[::-1]
    write(root, "/windows/system32/ntdll.dll", other)
    write(root, "/Windows/System32/ntdll.dll", NTDLL)
    write(root, "/Windows/System32/NTDLL.dll", other)
    assert had(DirectorySource(root), whole_files(FILES)) == {0: NTDLL}


@pytest.mark.parametrize("name", ["Windows", "WINDOWS"])
def test_a_root_may_be_a_folder_of_the_guest(root: Path, name: str) -> None:
    write(root / name, "/system32/ntdll.dll", NTDLL)
    assert had(DirectorySource(root / name), whole_files(FILES)) == {0: NTDLL}


def test_a_folder_that_others_may_not_list_tells_no_names(root: Path) -> None:
    write(root, "/Windows/system32/NTDLL.DLL", NTDLL)
    (root / "Windows" / "system32").chmod(0o711)
    tree = Tree(root, explicit=True)
    assert tree.look_up("/windows/System32/ntdll.dll") is None
    assert tree.look_up("/windows/System32/NTDLL.DLL") is not None
    tree.close()


def test_links_are_followed_in_any_case_but_not_out_of_the_root(root: Path) -> None:
    write(root, "/Real/System32/NTDLL.dll", NTDLL)
    (root / "windows").symlink_to("REAL")
    (root / "Outside").symlink_to(root.parent)
    write(root.parent, "/secret.dll", NTDLL)
    tree = Tree(root, explicit=True)
    found = tree.look_up("/Windows/System32/ntdll.dll")
    assert found is not None
    assert found[0] == "/Real/System32/NTDLL.dll"
    assert tree.look_up("/outside/secret.dll") is None
    tree.close()


@pytest.fixture
def volume(root: Path) -> Iterator[Path]:
    """A small NTFS volume, mounted with the modes that ntfs-3g makes up: 0777 for everything."""
    with ntfs_3g(root.parent / "ntfs.raw", root):
        for path, data in FILES.items():
            write(root, path, data)
        yield root


def set_rights(folder: Path, path: str, rights: bytes) -> None:
    os.setxattr(folder / path.lstrip("/"), ACL, rights)


@needs_root
@pytest.mark.parametrize("deep", [False, True])
def test_on_a_mounted_windows_volume_its_own_rights_count(volume: Path, deep: bool) -> None:
    write(volume, "/Users/ann/letter.txt", b"Dear Bob" * 1000)
    set_rights(volume, "/Users/ann/letter.txt", PRIVATE)
    set_rights(volume, "/Windows/System32/ntdll.dll", OPEN)
    paths = {
        "/windows/system32/NTDLL.dll": NTDLL,
        "/users/ann/letter.txt": b"Dear Bob" * 1000,
    }
    assert (volume / "Users" / "ann" / "letter.txt").stat().st_mode & 0o777 == 0o777
    assert had(DirectorySource(volume), whole_files(paths), deep=deep) == {0: NTDLL}


@needs_root
def test_a_folder_that_may_not_be_listed_is_not_searched(volume: Path) -> None:
    write(volume, "/Users/ann/ntdll.dll", NTDLL)
    set_rights(volume, "/Users/ann/ntdll.dll", OPEN)
    set_rights(volume, "/Users/ann", PRIVATE)
    (volume / "Windows" / "System32" / "ntdll.dll").unlink()
    wanted = whole_files({"/Windows/System32/ntdll.dll": NTDLL})
    assert had(DirectorySource(volume), wanted, deep=True) == {}
    # Who knows its path may read it, as in Windows.
    assert had(DirectorySource(volume), whole_files({"/Users/ann/ntdll.dll": NTDLL})) == {0: NTDLL}


@needs_root
def test_rights_that_change_after_the_offer_count(volume: Path) -> None:
    source = DirectorySource(volume)
    wanted = whole_files(FILES)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == [0, 1]
    path = volume / "Windows" / "System32" / "ntdll.dll"
    before = path.stat()
    set_rights(volume, "/Windows/System32/ntdll.dll", PRIVATE)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [piece.row for piece in source.fetch(rows)] == [1]
    source.close()
