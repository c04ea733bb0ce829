from __future__ import annotations

import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from packer.sources.base import FileRange, Learning, Provable, SourceError, Wanted
from packer.sources.directory import DirectorySource, default_sources, package_owned_roots
from packer.sources.memory import Memory
from tests.artifact.make import contents_of
from tests.host import as_nobody, needs_root
from tests.sources.asking import as_hints, whole_files

BLOCK = 1 << 20


def fetched(source: DirectorySource, rows: np.ndarray, wanted: Wanted) -> dict[int, bytes]:
    found = {}
    for piece in source.fetch(rows):
        assert isinstance(piece, FileRange)
        size = int(wanted.contents.size[piece.row])
        found[piece.row] = os.pread(piece.fd, size, piece.offset)
    return found


def offered(source: DirectorySource, wanted: Wanted, *, deep: bool = False) -> list[int]:
    rows: list[int] = source.find(wanted, deep=deep).rows.tolist()
    return rows


def write(root: Path, path: str, data: bytes) -> Path:
    """Write a file that everybody can read, below folders that everybody can enter."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    file.chmod(0o644)
    for folder in file.parents:
        folder.chmod(0o755)
        if folder == root:
            break
    return file


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = Path(folder) / "tree"
        tree.mkdir()
        tree.chmod(0o755)
        yield tree


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    memory = Memory(tmp_path / "cache" / "files.sqlite", racy_ns=0)
    yield memory
    memory.close()


def test_a_file_at_the_same_path_with_the_same_size_is_offered_and_fetched(root: Path) -> None:
    files = {"/usr/bin/a": b"a" * 100, "/usr/bin/b": b"b" * 5000, "/usr/lib/c": b"c"}
    for path, data in files.items():
        write(root, path, data)
    wanted = whole_files(files)
    source = DirectorySource(root)
    offers = source.find(wanted, deep=False)
    assert offers.rows.tolist() == [0, 1, 2]
    assert offers.cost_bytes.tolist() == [0, 0, 0]
    assert fetched(source, offers.rows, wanted) == dict(enumerate(files.values()))
    source.close()


def test_after_renewal_files_are_found_that_have_come(root: Path) -> None:
    source = DirectorySource(root)
    wanted = whole_files({"/new/file": b"new"})
    assert offered(source, wanted) == []
    write(root, "/new/file", b"new")
    assert offered(source, wanted) == []  # that there is no such folder is remembered
    source.renew()
    assert offered(source, wanted) == [0]
    source.close()


def test_another_size_is_not_offered_and_a_row_that_is_not_wanted_is_not_looked_for(
    root: Path,
) -> None:
    write(root, "/a", b"longer")
    write(root, "/b", b"bb")
    wanted = whole_files({"/a": b"short", "/b": b"bb", "/missing": b"x"})
    assert offered(DirectorySource(root), wanted) == [1]
    assert offered(DirectorySource(root), wanted.only(np.array([0, 2]))) == []


def test_it_is_a_source_that_learns_and_proves(root: Path) -> None:
    source = DirectorySource(root)
    assert isinstance(source, Learning)
    assert isinstance(source, Provable)
    assert source.uri == f"dir:{root}"
    assert source.local


def test_guest_paths_are_also_looked_up_below_a_root_that_has_their_beginning(root: Path) -> None:
    write(root, "/share/doc", b"doc")
    wanted = whole_files({f"{root}/share/doc": b"doc"})
    assert offered(DirectorySource(root), wanted) == [0]


HOSTILE_PATHS = [
    "/../secret",
    "/../../../../../../../../etc/passwd",
    "/inside/../../secret",
    "/inside/../inside/file",
    "/./inside/file",
    "//inside/file",
    "/inside//file",
    "/inside/file/",
    "/inside/file/.",
    "/inside/.",
    "/inside/..",
    "/",
    "",
    "inside/file",
    "/inside\0/file",
    "/inside/file\0",
    "/inside/\ud800",
    "/\ud800/file",
    "/" + "x" * 300,
    "/" + "x" * 300 + "/file",
    "/" + "x/" * 3000 + "file",
    "/up/secret",
    "/absolute/passwd",
    "/away/secret",
    "/loop/file",
    "/left/right/left/file",
    "/to_file/x",
    "/link",
]


@pytest.fixture
def trap(root: Path) -> Path:
    """A tree full of links, with a secret next to it."""
    write(root, "/inside/file", b"secret")
    (root.parent / "secret").write_bytes(b"secret")
    (root.parent / "secret").chmod(0o644)
    (root / "up").symlink_to("..")
    (root / "away").symlink_to(root.parent)
    (root / "absolute").symlink_to("/etc")
    (root / "loop").symlink_to("loop")
    (root / "left").mkdir()
    (root / "left" / "right").symlink_to("../left")
    (root / "to_file").symlink_to("inside/file")
    (root / "link").symlink_to("inside/file")
    return root


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=lambda path: ascii(path)[:40])
def test_no_hint_leads_out_of_the_root_or_through_a_link_to_a_file(trap: Path, path: str) -> None:
    sizes = {6, Path("/etc/passwd").stat().st_size}
    for size in sizes:
        contents = contents_of([b"s" * size])
        wanted = Wanted(contents, np.arange(1), as_hints([(0, path, size, 0)]))
        source = DirectorySource(trap)
        assert offered(source, wanted) == []
        assert offered(source, wanted, deep=True) == []
        source.close()


def test_hints_that_contradict_the_contents_are_ignored(root: Path) -> None:
    write(root, "/a", b"0123456789")
    contents = contents_of([b"0123456789"])
    for file_size, offset in ((10, 5), (10, -5), (10, 2**62), (5, 0), (-1, 0)):
        wanted = Wanted(contents, np.arange(1), as_hints([(0, "/a", file_size, offset)]))
        assert offered(DirectorySource(root), wanted) == []


def test_a_folder_that_is_a_link_inside_the_root_is_followed(root: Path) -> None:
    write(root, "/usr/lib/x.so", b"library")
    (root / "lib").symlink_to("usr/lib")
    (root / "lib64").symlink_to("/usr/lib")  # absolute: from ROOT, as a guest's tree means it
    (root / "usr" / "lib" / "deep").symlink_to("../../usr/lib")
    files = dict.fromkeys(("/lib/x.so", "/lib64/x.so", "/lib/deep/x.so"), b"library")
    for path, data in files.items():
        wanted = whole_files({path: data})
        source = DirectorySource(root)
        assert fetched(source, np.array(offered(source, wanted)), wanted) == {0: data}


def test_links_that_multiply_are_given_up(root: Path) -> None:
    write(root, "/end/file", b"file")
    (root / "l0").symlink_to("end")
    for level in range(1, 12):
        (root / f"l{level}").symlink_to("/".join([f"l{level - 1}/.."] * 20 + [f"l{level - 1}"]))
    assert offered(DirectorySource(root), whole_files({"/l11/file": b"file"})) == []


@pytest.mark.parametrize("deep", [False, True])
def test_only_what_every_user_can_read_is_offered(root: Path, deep: bool) -> None:
    data = {name: name.encode() for name in ("/file", "/group/file", "/closed/sub/file", "/open")}
    for path, content in data.items():
        write(root, path, content)
    (root / "file").chmod(0o640)
    (root / "group").chmod(0o750)
    (root / "closed").chmod(0o700)
    assert offered(DirectorySource(root), whole_files(data), deep=deep) == [3]


def test_a_folder_that_others_may_enter_but_not_list_is_found_by_name_only(root: Path) -> None:
    write(root, "/public/known", b"known")
    (root / "public").chmod(0o711)
    assert offered(DirectorySource(root), whole_files({"/public/known": b"known"})) == [0]
    elsewhere = whole_files({"/elsewhere": b"known"})
    assert offered(DirectorySource(root), elsewhere, deep=True) == []


def test_a_root_that_others_may_not_enter_is_an_error_with_a_cure(root: Path) -> None:
    root.chmod(0o700)
    with pytest.raises(SourceError, match="others may not enter") as caught:
        DirectorySource(root)
    assert "chmod o+x" in caught.value.hint


@pytest.mark.parametrize("path", ["missing", "file", "nul\0"])
def test_a_root_that_is_no_folder_is_an_error(root: Path, path: str) -> None:
    (root / "file").write_bytes(b"")
    with pytest.raises(SourceError):
        DirectorySource(root / path)


@pytest.mark.parametrize("path", ["/proc", "/sys"])
def test_pseudo_file_systems_are_refused(path: str) -> None:
    with pytest.raises(SourceError, match="no stored files"):
        DirectorySource(Path(path))


@needs_root
def test_another_file_system_below_the_root_is_not_entered(root: Path) -> None:
    write(root, "/mnt/file", b"file")
    write(root, "/file", b"other")
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "mnt"], check=True)
    try:
        write(root, "/mnt/file", b"file")
        wanted = whole_files({"/mnt/file": b"file", "/file": b"other"})
        for path, question, answer in (
            (root, wanted, [1]),
            (root / "mnt", whole_files({"/file": b"file"}), [0]),
        ):
            source = DirectorySource(path)
            found = [offered(source, question, deep=deep) for deep in (False, True)]
            source.close()
            assert found == [answer, answer]
    finally:
        subprocess.run(["umount", root / "mnt"], check=True)


def special_files(root: Path) -> None:
    os.mkfifo(root / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "socket"))
    server.close()
    if os.geteuid() == 0:
        os.mknod(root / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zero: has no end
    for name in ("fifo", "socket"):
        (root / name).chmod(0o666)


def test_fifos_sockets_and_devices_are_never_opened(root: Path) -> None:
    special_files(root)
    write(root, "/file", b"file")
    wanted = whole_files(dict.fromkeys(("/fifo", "/socket", "/device", "/file"), b"file"))
    assert offered(DirectorySource(root), wanted) == [3]
    source = DirectorySource(root)
    assert offered(source, wanted.only(np.array([3])), deep=True) == [3]


def replace_by_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def replace_folder_by_link(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))
    file.parent.symlink_to("moved")


CHANGES: list[Callable[[Path], object]] = [
    lambda file: file.write_bytes(b"other"),
    lambda file: file.unlink(),
    lambda file: file.chmod(0o600),
    lambda file: file.parent.chmod(0o700),
    replace_by_fifo,
    replace_by_link,
    replace_folder_by_link,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_find_and_fetch_is_left_out(
    root: Path, change: Callable[[Path], object]
) -> None:
    file = write(root, "/folder/a", b"aaaaa")
    write(root, "/z", b"zzz")
    wanted = whole_files({"/folder/a": b"aaaaa", "/z": b"zzz"})
    source = DirectorySource(root)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == [0, 1]
    change(file)
    assert fetched(source, rows, wanted) == {1: b"zzz"}
    assert source.prove(rows).tolist() == [1]


def test_no_descriptor_is_left_open(root: Path) -> None:
    files = {f"/{number % 7}/{number % 3}/{number}": b"%d" % number for number in range(100)}
    for path, data in files.items():
        write(root, path, data)
    before = len(list(Path("/proc/self/fd").iterdir()))
    wanted = whole_files(files)
    source = DirectorySource(root)
    rows = source.find(wanted, deep=True).rows
    assert len(fetched(source, rows, wanted)) == 100
    pieces = source.fetch(rows)
    next(pieces)
    del pieces
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_piece_of_a_sparse_file_is_found_at_its_offset(root: Path) -> None:
    data = b"first" + bytes(8192) + b"second"
    write(root, "/sparse", data)
    contents = contents_of([b"first", b"second"])
    hints = as_hints([(0, "/sparse", len(data), 0), (1, "/sparse", len(data), 5 + 8192)])
    wanted = Wanted(contents, np.arange(2), hints)
    for deep in (False, True):
        source = DirectorySource(root)
        rows = source.find(wanted, deep=deep).rows
        assert fetched(source, rows, wanted) == {0: b"first", 1: b"second"}
        assert source.prove(rows).tolist() == [0, 1]


def test_a_deep_search_finds_a_moved_file_by_its_bytes(root: Path, memory: Memory) -> None:
    write(root, "/new/place/of/it", b"moved")
    os.link(root / "new/place/of/it", root / "second")
    write(root, "/same", b"same size, other bytes"[:5])
    wanted = whole_files({"/old": b"moved", "/same": b"moved"[::-1]})
    source = DirectorySource(root, memory)
    assert offered(source, wanted) == [1]  # path and size are right
    rows = source.find(wanted, deep=True).rows
    assert rows.tolist() == [0]  # by now it is known that the bytes are not
    assert fetched(source, rows, wanted) == {0: b"moved"}


def test_without_hints_a_deep_search_goes_by_size(root: Path) -> None:
    write(root, "/x", b"bytes")
    wanted = Wanted(contents_of([b"bytes"]), np.arange(1), as_hints([]))
    assert offered(DirectorySource(root), wanted) == []
    assert offered(DirectorySource(root), wanted, deep=True) == [0]


def test_a_second_deep_search_reads_no_file_again(root: Path, memory: Memory) -> None:
    big = os.urandom(8 << 20)
    write(root, "/big", big)
    write(root, "/decoy", os.urandom(8 << 20))
    wanted = whole_files({"/elsewhere": big})
    before = bytes_read()
    assert offered(DirectorySource(root, memory), wanted, deep=True) == [0]
    first = bytes_read() - before
    before = bytes_read()
    assert offered(DirectorySource(root, memory), wanted, deep=True) == [0]
    assert first >= 16 << 20
    assert bytes_read() - before < 1 << 20


def test_files_of_unwanted_sizes_are_not_read(root: Path) -> None:
    write(root, "/big", os.urandom(4 << 20))
    before = bytes_read()
    assert offered(DirectorySource(root), whole_files({"/x": b"small"}), deep=True) == []
    assert bytes_read() - before < 1 << 20


def test_what_is_proven_once_needs_no_reading_and_what_is_disproved_is_not_offered(
    root: Path, memory: Memory
) -> None:
    write(root, "/right", b"right")
    write(root, "/wrong", b"wrong")
    wanted = whole_files({"/right": b"right", "/wrong": b"other"})
    source = DirectorySource(root, memory)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == [0, 1]
    assert source.prove(rows).tolist() == [0]
    assert fetched(source, rows, wanted) == {0: b"right"}
    assert offered(DirectorySource(root, memory), wanted) == [0]


def test_what_the_receiver_has_verified_is_remembered(root: Path, memory: Memory) -> None:
    write(root, "/right", b"right")
    write(root, "/twin", b"right")
    wanted = whole_files({"/right": b"right"})
    source = DirectorySource(root, memory)
    rows = source.find(wanted, deep=False).rows
    fetched(source, rows, wanted)
    source.learn(rows, ok=True)
    again = whole_files({"/right": b"wrong"})
    assert offered(DirectorySource(root, memory), again) == []
    assert offered(DirectorySource(root), again) == [0]


def test_when_the_first_candidate_is_wrong_the_next_one_is_offered(root: Path) -> None:
    write(root, "/a", b"wrong")
    write(root, "/b", b"right")
    contents = contents_of([b"right"])
    wanted = Wanted(contents, np.arange(1), as_hints([(0, "/a", 5, 0), (0, "/b", 5, 0)]))
    source = DirectorySource(root)
    rows = source.find(wanted, deep=False).rows
    assert fetched(source, rows, wanted) == {0: b"wrong"}
    source.learn(rows, ok=False)
    rows = source.find(wanted, deep=False).rows
    assert fetched(source, rows, wanted) == {0: b"right"}
    source.learn(rows, ok=False)
    assert offered(source, wanted) == []


def test_a_file_that_was_changed_is_not_remembered_as_verified(root: Path, memory: Memory) -> None:
    file = write(root, "/a", b"first")
    wanted = whole_files({"/a": b"first"})
    source = DirectorySource(root, memory)
    rows = source.find(wanted, deep=False).rows
    for _ in source.fetch(rows):
        file.write_bytes(b"other")
    source.learn(rows, ok=True)
    other = whole_files({"/a": b"other"})
    assert offered(DirectorySource(root, memory), other) == [0]


def test_another_pack_gets_its_own_answers(root: Path) -> None:
    write(root, "/a", b"aaa")
    write(root, "/b", b"bbb")
    source = DirectorySource(root)
    first = whole_files({"/a": b"aaa", "/b": b"bbb"})
    second = whole_files({"/b": b"bbb"})
    assert offered(source, first) == [0, 1]
    assert offered(source, second) == [0]
    assert fetched(source, np.array([0, 1]), second) == {0: b"bbb"}


@needs_root
def test_an_ordinary_user_leaves_out_what_it_may_not_open(root: Path) -> None:
    write(root, "/mine", b"mine")
    os.chown(root / "mine", 65534, 65534)
    (root / "mine").chmod(0o004)  # others may, the owner may not
    write(root, "/theirs", b"theirs")
    wanted = whole_files({"/mine": b"mine", "/theirs": b"theirs"})

    def look() -> None:
        source = DirectorySource(root)
        rows = source.find(wanted, deep=False).rows
        assert rows.tolist() == [0, 1]
        assert fetched(source, rows, wanted) == {1: b"theirs"}
        assert offered(DirectorySource(root), wanted, deep=True) == [0, 1]
        assert source.prove(rows).tolist() == [1]

    as_nobody(look)


def test_the_default_roots_are_folders_of_packages_and_never_the_whole_host() -> None:
    roots = dict(package_owned_roots())
    assert Path("/") not in roots
    assert Path("/etc") not in roots
    assert roots[Path("/usr")] == ("/local",)
    assert all(root.is_dir() and not root.is_symlink() for root in roots)


def test_what_lies_in_usr_local_is_left_out(root: Path) -> None:
    write(root, "/local/bin/mine", b"mine")
    write(root, "/bin/theirs", b"theirs")
    (root / "alias").symlink_to("local")
    source = DirectorySource(root, excluded=("/local",))
    for path in ("/local/bin/mine", "/alias/bin/mine"):
        wanted = whole_files({path: b"mine", "/bin/theirs": b"theirs"})
        assert offered(source, wanted) == [1]
        assert offered(source, wanted, deep=True) == [1]


def test_the_default_sources_can_be_opened() -> None:
    sources = default_sources(None)
    assert "dir:/usr" in [source.uri for source in sources]
    for source in sources:
        source.close()


def test_fetching_contents_that_were_not_found_yields_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    source = DirectorySource(tmp_path)
    wanted = Wanted(contents_of([b"nowhere"]), np.array([0]), as_hints([]))
    assert offered(source, wanted) == []
    assert list(source.fetch(wanted.rows)) == []
