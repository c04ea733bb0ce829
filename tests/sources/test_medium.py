"""medium: with images captured by wimlib-imagex, in ISO images of genisoimage and as folders."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from packer.errors import InputError
from packer.sources import packed_files
from packer.sources import wim as wim_module
from packer.sources.against import holds
from packer.sources.base import Learning, SourceError, Wanted, is_sequential
from packer.sources.medium import MediumSource
from packer.sources.packed_files import PackedFile, PackedFiles, packed_name
from packer.sources.tree import Tree
from packer.sources.wim import Wim, WimFile, _listed
from tests.artifact.make import contents_of
from tests.formats.damage import damaged
from tests.host import run
from tests.sources.asking import as_hints, whole_files
from tests.sources.programs import Program, cabinet
from tests.sources.test_symbols import add, assembled

MIB = 1 << 20
SHELL = os.urandom(2 * MIB + 99)
HOME = {
    "/Windows/System32/ntdll.dll": b"MZ ntdll" * 2000,
    "/Windows/System32/shell32.dll": SHELL,
    "/Windows/System32/de-DE/shell32.dll.mui": b"mui" * 700,
    "/Windows/WinSxS/x86_a/edition.dat": b"home edition",
    "/Windows/Fonts/segoe ui.ttf": b"font" * 999,
    "/Windows/empty": b"",
}
PRO = {
    "/Windows/System32/ntdll.dll": HOME["/Windows/System32/ntdll.dll"],
    "/Windows/WinSxS/x86_a/edition.dat": b"pro  edition",
    "/Windows/System32/gpedit.dll": b"MZ only in pro" * 50,
}
LOOSE = {"/bootmgr": b"bootmgr" * 3000, "/efi/boot/bootx64.efi": b"MZ efi" * 400}
GUEST = {
    "/windows/SYSTEM32/NTDLL.DLL": HOME["/Windows/System32/ntdll.dll"],
    "/Windows/System32/shell32.dll": SHELL,
    "/Windows/System32/DE-de/shell32.dll.mui": b"mui" * 700,
    "/Windows/WinSxS/x86_a/edition.dat": b"pro  edition",
    "/Windows/Fonts/Segoe UI.ttf": b"font" * 999,
    "/Windows/System32/gpedit.dll": b"MZ only in pro" * 50,
    "/BOOTMGR": LOOSE["/bootmgr"],
    "/EFI/Boot/bootx64.efi": LOOSE["/efi/boot/bootx64.efi"],
    "/Users/ann/letter.txt": b"Dear Bob",
}
EXPECTED = {row: data for row, data in enumerate(GUEST.values()) if data != b"Dear Bob"}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        file = root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def wim(home: Path) -> Path:
    """Two editions, and a hard link and a symbolic one in the first."""
    first = write(home / "home", HOME)
    (first / "Windows" / "copy.dll").hardlink_to(first / "Windows" / "System32" / "ntdll.dll")
    (first / "Windows" / "link.dll").symlink_to("copy.dll")
    second = write(home / "pro", PRO)
    run("wimlib-imagex", "capture", first, home / "install.wim", "Home", "--compress=LZX")
    run("wimlib-imagex", "append", second, home / "install.wim", "Pro")
    return home / "install.wim"


@pytest.fixture(scope="module")
def esd(home: Path, wim: Path) -> Path:
    """The same in one solid LZMS resource, as install.esd is."""
    solid = home / "install.esd"
    run("wimlib-imagex", "export", wim, "all", solid, "--solid")
    return solid


@pytest.fixture(scope="module")
def mounted(home: Path, wim: Path) -> Path:
    """What a mounted medium looks like."""
    medium = write(home / "medium", LOOSE)
    (medium / "Sources").mkdir()
    (medium / "Sources" / "Install.WIM").write_bytes(wim.read_bytes())
    return medium


@pytest.fixture(scope="module")
def iso(home: Path, mounted: Path) -> Path:
    """UDF, of which readers of ISO 9660 see next to nothing."""
    hidden = [word for name in ("Sources", "bootmgr") for word in ("-hide", name)]
    run("genisoimage", "-quiet", "-udf", *hidden, "-o", home / "windows.iso", mounted)
    return home / "windows.iso"


def had(path: Path, folder: Path, wanted: Wanted | None = None) -> dict[int, bytes]:
    source = MediumSource(path, folder / "media")
    wanted = wanted or whole_files(GUEST)
    try:
        found: dict[int, bytes] = {}
        for _ in range(3):  # as who rebuilds does: what was wrong is asked for again
            rows = source.find(wanted, deep=False).rows
            found |= assembled(source, wanted, rows)
            wrong = [row for row in rows.tolist() if found[row] != list(GUEST.values())[row]]
            if not wrong:
                break
            source.learn(np.array(wrong), ok=False)
        return found
    finally:
        source.close()


@pytest.mark.parametrize("kind", ["wim", "esd", "mounted", "iso"])
def test_files_come_from_all_editions_in_any_case(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    loose = {6, 7}
    expected = {
        row: data
        for row, data in EXPECTED.items()
        if kind in ("mounted", "iso") or row not in loose
    }
    assert had(request.getfixturevalue(kind), tmp_path) == expected
    media = tmp_path / "media"
    assert not media.exists() or not list(media.iterdir()), "copies vanish"


def test_a_plain_iso_9660_image_will_do(home: Path, mounted: Path, tmp_path: Path) -> None:
    run("genisoimage", "-quiet", "-R", "-J", "-o", tmp_path / "plain.iso", mounted)
    assert had(tmp_path / "plain.iso", tmp_path) == EXPECTED


def test_an_image_in_parts_is_read_from_a_folder_and_not_from_an_iso(
    home: Path, wim: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = home / "parts" / "sources"
    sources.mkdir(parents=True)
    run("wimlib-imagex", "split", wim, sources / "install.swm", "1")
    assert len(list(sources.iterdir())) > 1
    assert had(home / "parts", tmp_path) == {r: d for r, d in EXPECTED.items() if r < 6}
    run("genisoimage", "-quiet", "-udf", "-o", tmp_path / "parts.iso", home / "parts")
    assert had(tmp_path / "parts.iso", tmp_path) == {}
    assert "install.swm in parts in this ISO image; mount it" in caplog.text


def test_it_is_asked_for_everything_at_once(iso: Path, tmp_path: Path) -> None:
    source = MediumSource(iso, tmp_path)
    assert source.local
    assert is_sequential(source)
    assert isinstance(source, Learning)
    source.close()


def test_parts_of_files_are_had(wim: Path, tmp_path: Path) -> None:
    contents = contents_of([SHELL[MIB:]])
    hints = as_hints([(0, "/Windows/System32/shell32.dll", len(SHELL), MIB)])
    source = MediumSource(wim, tmp_path)
    assert holds(source, Wanted(contents, np.arange(1), hints)).tolist() == [0]
    source.close()


def test_batches_are_small_and_in_the_order_of_the_image(
    esd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wim_module, "BATCH_BYTES", 10_000)
    assert had(esd, tmp_path) == {r: d for r, d in EXPECTED.items() if r < 6}
    batches = list(wim_module._batches(Wim(esd).files()))
    assert len(batches) > 3
    for batch in batches:
        assert len(batch) == 1 or sum(one.size for one in batch) <= 10_000
        assert len({one.image for one in batch}) == 1
        assert [one.order for one in batch] == sorted(one.order for one in batch)


def test_links_and_empty_files_are_not_listed(wim: Path) -> None:
    listed = {one.path for one in Wim(wim).files()}
    assert listed == {path for path, data in (HOME | PRO).items() if data} | {"/Windows/copy.dll"}


def test_without_wimlib_what_is_loose_is_had_and_one_note_says_what_to_install(
    iso: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert had(iso, tmp_path) == {row: EXPECTED[row] for row in (6, 7)}
    (note,) = [one.message for one in caplog.records]
    assert "wimlib-imagex is not installed; install wimlib-imagex (package wimtools" in note
    assert not (tmp_path / "media").exists(), "nothing was copied for nothing"


def test_a_damaged_image_is_one_note(
    wim: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = wim.read_bytes()
    (tmp_path / "cut.wim").write_bytes(data[: len(data) // 2])
    assert had(tmp_path / "cut.wim", tmp_path) == {}
    assert len(caplog.records) == 1
    assert "wimlib-imagex: " in caplog.text


def test_damage_costs_what_it_hits(
    wim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wim_module, "BATCH_BYTES", 10_000)
    data = bytearray(wim.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 100] = bytes(100)  # within shell32.dll
    (tmp_path / "bad.wim").write_bytes(data)
    source = MediumSource(tmp_path / "bad.wim", tmp_path)
    wanted = whole_files(GUEST)
    found: dict[int, bytes] = {}
    with pytest.raises(SourceError, match="wimlib-imagex: A WIM resource is corrupted"):
        fetch(source, wanted, found)
    assert {row for row, data in found.items() if data == EXPECTED[row]} == {0, 2, 4, 5}
    source.close()


def test_damaged_images_cost_a_note_or_nothing(
    wim: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = wim.read_bytes()
    wanted = whole_files(GUEST)
    areas = [(0, 208), (len(data) - 6000, len(data)), (0, len(data))]
    noted = 0
    for number, broken in enumerate(damaged(data, areas, 60, seed=3)):
        (tmp_path / "bad.wim").write_bytes(broken)
        began = time.monotonic()
        try:
            source = MediumSource(tmp_path / "bad.wim", tmp_path)
        except InputError:  # it begins like no Windows image any more
            continue
        found: dict[int, bytes] = {}
        with suppress(SourceError):
            fetch(source, wanted, found)
        source.close()
        noted += bool(caplog.records)
        caplog.clear()
        assert time.monotonic() - began < 10, number
    assert noted > 5


def offered(source: MediumSource, wanted: Wanted) -> np.ndarray:
    return source.find(wanted, deep=False).rows


def fetch(source: MediumSource, wanted: Wanted, found: dict[int, bytes]) -> None:
    """Add what comes; what came before an error stands."""
    for piece in source.fetch(offered(source, wanted)):
        add(found, piece, wanted)


def test_copies_of_runs_that_died_vanish_and_copies_in_use_stay(iso: Path, tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "dead.copy.wim").write_bytes(b"x")
    first, second = MediumSource(iso, media), MediumSource(iso, media)
    for source in (first, second):
        assert len(offered(source, whole_files(GUEST))) > 5
    assert len(list(media.iterdir())) == 2
    assert not (media / "dead.copy.wim").exists()
    for source in (first, second):
        source.close()
    assert not list(media.iterdir())


def test_what_comes_out_beyond_all_bounds_is_stopped(tmp_path: Path) -> None:
    """A list that calls a folder a file, as one with line feeds in names can be made to."""
    tree = write(tmp_path / "tree", {f"/folder/{number}": bytes(900_000) for number in range(5)})
    run("wimlib-imagex", "capture", tree, tmp_path / "x.wim")
    liar = WimFile(1, "/folder", 10, "", (1, 0, 0))
    with pytest.raises(SourceError, match="expected 1114122 at most"):
        list(Wim(tmp_path / "x.wim").extract([liar]))


def test_no_listed_path_leads_out_of_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names with line feeds can make the list say any path; links come out as links."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write(tmp_path, {"/secret": b"12345"})
    tree = write(tmp_path / "tree", {"/file": b"67890"})
    (tree / "link").symlink_to(tmp_path)
    (tree / "secret").symlink_to(tmp_path / "secret")
    run("wimlib-imagex", "capture", "--norpfix", tree, tmp_path / "x.wim")
    outside = ("/../../secret", "/./../../secret", "/link/secret", "/secret")
    for path in outside:
        found: list[tuple[WimFile, int]] = []
        with suppress(SourceError):
            found += Wim(tmp_path / "x.wim").extract([WimFile(1, path, 5, "", (1, 0, 0))])
        assert found == [], path
    assert len(list(Wim(tmp_path / "x.wim").extract([WimFile(1, "/file", 5, "", (1, 0, 0))]))) == 1
    assert not list(tmp_path.glob("vmpack-wim-*"))


def test_without_room_for_temporary_files_there_is_one_clear_error(
    wim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(SourceError, match="none: No such file"):
        list(Wim(wim).extract([WimFile(1, "/Windows/Fonts/segoe ui.ttf", 5, "", (1, 0, 0))]))


def test_names_that_no_list_can_hold_are_left_out() -> None:
    def entry(path: str) -> list[bytes]:
        lines = [f'Full Path           = "{path}"', "Attributes = 0x80", "\tUnnamed data stream:"]
        lines += ["Uncompressed size = 5 bytes", "Offset in WIM = 7 bytes", "Flags             = "]
        return [line.encode() for line in lines]

    good = list(_listed(entry("/a b"), 3))
    assert good == [WimFile(3, "/a b", 5, "", (1 << 62, 0, 7))]
    for path in ("/a ", "a", "/a\rb", "/\x1b[2J", ""):
        assert list(_listed(entry(path), 3)) == []


OLD = {"/WINDOWS/system32/ntdll.dll": b"MZ xp" * 3000, "/WINDOWS/inf/x.inf": b"inf" * 900}


@pytest.fixture(scope="module")
def old(home: Path) -> Path:
    """As a medium of Windows XP: most files in cabinets, some as they are."""
    tree = home / "old"
    for path, data in OLD.items():
        name = packed_name(path).upper()
        write(tree, {f"/I386/{name}": cabinet(Program(path, data))})
    write(tree, {"/I386/NTLDR": b"ntldr" * 1000})
    return tree


@pytest.mark.parametrize("as_image", [False, True])
def test_compressed_files_of_old_media_are_expanded(
    old: Path, tmp_path: Path, as_image: bool
) -> None:
    path = old
    if as_image:
        path = tmp_path / "old.iso"
        run("genisoimage", "-quiet", "-o", path, old)
    wanted = whole_files(OLD | {"/WINDOWS/system32/shell.dll": b"MZ none"})
    source = MediumSource(path, tmp_path)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == [0, 1]
    assert assembled(source, wanted, rows) == dict(enumerate(OLD.values()))
    source.close()


@pytest.mark.parametrize(
    ("path", "packed"),
    [
        ("/W/NTDLL.dll", "ntdll.dl_"),
        ("/a.c", "a.c_"),
        ("/x.y.sys", "x.y.sy_"),
        ("/ntldr", "ntldr._"),
    ],
)
def test_names_of_compressed_files(path: str, packed: str) -> None:
    assert packed_name(path) == packed


def test_what_is_no_medium_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(os.urandom(100_000))
    with pytest.raises(InputError, match="junk"):
        MediumSource(tmp_path / "junk", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file"):
        MediumSource(tmp_path / "pipe", tmp_path)
    with pytest.raises(SourceError, match="No such file"):
        MediumSource(tmp_path / "none", tmp_path)


def iso_of(tree: Path, image: Path) -> bytearray:
    run("genisoimage", "-quiet", "-R", "-D", "-o", image, tree)
    return bytearray(image.read_bytes())


def test_folders_that_are_all_one_large_folder_are_not_read_for_ever(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree", {"/large": bytes(4 * MIB)})
    for number in range(200):
        (tree / f"d{number:03}").mkdir()
    data = iso_of(tree, tmp_path / "x.iso")
    at = data.index(b"LARGE.;1") - 33  # the directory record that has this name
    for number in range(200):
        record = data.index(b"\x04D%03d" % number) - 32
        data[record + 2 : record + 18] = data[at + 2 : at + 18]  # extent and length
    (tmp_path / "x.iso").write_bytes(data)
    began = time.monotonic()
    with pytest.raises(InputError, match="at most 16777216 bytes of folders, found more"):
        MediumSource(tmp_path / "x.iso", tmp_path)
    assert time.monotonic() - began < 10


def test_paths_of_an_image_are_not_endless(tmp_path: Path) -> None:
    write(tmp_path / "tree", {f"/{'/'.join('abcde' * 40 for _ in range(6))}/file": b"x"})
    iso_of(tmp_path / "tree", tmp_path / "x.iso")
    with pytest.raises(InputError, match="at most 1024 letters a path, found more"):
        MediumSource(tmp_path / "x.iso", tmp_path)


def test_a_large_compressed_file_is_copied_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A medium that lies about sizes must not make us allocate them."""
    data = cabinet(Program("ntdll.dll", SHELL))
    asked: list[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    monkeypatch.setattr(packed_files, "COPY_BYTES", 4096)
    source = PackedFiles("medium:x", [PackedFile("/I386/NTDLL.DL_", len(data), read)])
    wanted = whole_files({"/ntdll.dll": SHELL})
    rows = source.find(wanted, deep=False).rows
    assert assembled(source, wanted, rows) == {0: SHELL}
    assert len(asked) > 2
    assert max(asked) == 4096
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(SourceError, match=r"medium:x: .*none: No such file"):
        list(source.fetch(rows))


def test_a_medium_without_windows_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "tree", {"/readme.txt": b"hello"})
    subprocess.run(
        ["genisoimage", "-quiet", "-o", tmp_path / "x.iso", tmp_path / "tree"], check=True
    )
    MediumSource(tmp_path / "x.iso", tmp_path).close()
    assert "no Windows image (sources/install.wim) in this ISO image; mount it" in caplog.text


def test_a_public_tree_needs_no_rights_of_others(tmp_path: Path) -> None:
    """As desktops mount a disc: for one user alone."""
    write(tmp_path / "tree", {"/a/file": b"x"})
    for path in (tmp_path / "tree", tmp_path / "tree" / "a"):
        path.chmod(0o500)
    (tmp_path / "tree" / "a" / "file").chmod(0o400)
    with pytest.raises(SourceError, match="may not enter"):
        Tree(tmp_path / "tree", explicit=True)
    tree = Tree(tmp_path / "tree", explicit=True, public=True)
    assert tree.look_up("/A/File") is not None
    assert tree.walk(None).path == ["/a/file"]
    tree.close()
