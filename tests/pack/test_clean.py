"""`pack --clean`: what goes, what stays, and that the image itself is never touched."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.guests import build
from formats.source import Source
from packer.artifact.contents import Class
from packer.artifact.layout.open import open_layout
from packer.artifact.opened import OpenedPack
from packer.cli.main import main
from packer.errors import Error, InputError, InUseError, UsageError
from packer.pack.clean import open_cleaned
from packer.pack.clean_rules import (
    DEFAULT,
    GROUPS,
    Group,
    Rule,
    Stat,
    for_windows,
    parse_request,
    select,
)
from packer.pack.pack import PackOptions, PackReport, pack
from packer.progress import Silent
from packer.survey.model import Survey
from packer.survey.runs import runs_of
from packer.unpack.unpack import unpack
from tests.guest.material import LINUX, Part, ext4, gpt_disk, surveyed, swap, write_tree
from tests.host import run

NOISE_BYTES = 300_000
ROOT_OFFSET_BYTES = 1 << 20  # of debian-bios
NO_KVM = {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}

# What a guest has to have for libguestfs to call it a Linux (lib/inspect-fs.c of libguestfs).
LINUX_FILES = {"/etc/fstab": b"", "/etc/debian_version": b"12.0\n", "/bin/true": b"\x7fELF"}

needs_guestfish = pytest.mark.skipif(
    shutil.which("guestfish") is None, reason="needs guestfish (package libguestfs-tools)"
)


# --- what is asked for ---


def names(groups: Sequence[Group]) -> list[str]:
    return [one.name for one in groups]


def test_without_a_word_it_takes_what_comes_back_by_itself() -> None:
    assert names(parse_request("default")) == list(DEFAULT)
    assert not {"identity", "history"} & set(DEFAULT)


def test_groups_and_guest_paths_can_be_mixed() -> None:
    groups = parse_request("logs,/opt/demo//cache/*, default")
    assert names(groups) == ["logs", "/opt/demo//cache/*", "tmp", "cache", "trash"]
    assert groups[1].rules == (Rule("/opt/demo/cache/*"),)


def test_an_unknown_group_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        parse_request("logs,rubbish")
    assert "'rubbish'" in caught.value.message
    assert all(name in caught.value.hint for name in GROUPS)


@pytest.mark.parametrize("word", ["/", "//", "/*", "/**/x", "/.", "/a/../b", "/a\nb", ""])
def test_a_pattern_that_may_select_everything_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse_request(word)


# --- what is selected ---


class Local:
    """Files of a folder of this machine, for links that stay within it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def real_folder(self, path: str) -> str | None:
        place = (self.root / path.lstrip("/")).resolve()
        return "/" + str(place.relative_to(self.root)) if place.is_dir() else None

    def names(self, folder: str) -> list[str]:
        return [one.name for one in (self.root / folder.lstrip("/")).iterdir()]

    def below(self, folder: str) -> list[str]:
        place = self.root / folder.lstrip("/")
        return sorted(str(one.relative_to(place)) for one in place.rglob("*"))

    def stats(self, folder: str, names: Sequence[str]) -> list[Stat]:
        found = [(self.root / folder.lstrip("/") / name).lstat() for name in names]
        return [
            Stat(s.st_dev, s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_blocks)
            for s in found
        ]


def test_folders_of_caches_stay_and_what_lies_in_them_goes(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "/var/cache/apt/archives/a.deb": b"a" * 9000,
            "/var/cache/debconf/config.dat": b"answers",
            "/home/eve/.cache/x/y": b"y",
            "/root/.cache/z": b"z",
        },
        {"/var/cache/apt/link": "../debconf/config.dat"},
    )
    found = select(Local(tmp_path), GROUPS["cache"])
    assert sorted(found.files) == [
        "/home/eve/.cache/x/y",
        "/root/.cache/z",
        "/var/cache/apt/archives/a.deb",
    ]
    assert (found.trees, found.emptied, found.count) == ([], [], 3)


def test_temporary_folders_are_emptied_once_although_one_is_a_link(tmp_path: Path) -> None:
    write_tree(tmp_path, {"/tmp/.X/lock": b"1", "/tmp/b": b"2"}, {"/var/tmp": "../tmp"})
    os.link(tmp_path / "tmp/b", tmp_path / "tmp/c")
    found = select(Local(tmp_path), GROUPS["tmp"])
    assert found.trees == ["/tmp/.X", "/tmp/b", "/tmp/c"]
    assert found.count == 2, "two names of one file"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other owners")
def test_a_log_of_a_service_is_emptied_so_that_it_can_write_on(tmp_path: Path) -> None:
    logs = dict.fromkeys(("own.log", "root.log", "own.log.1", "u@1.journal"), b"x" * 5000)
    write_tree(tmp_path / "var/log", {**logs, "void": b""}, {})
    for name in ("own.log", "own.log.1", "u@1.journal", "void"):
        os.chown(tmp_path / "var/log" / name, 101, 4)
    found = select(Local(tmp_path), GROUPS["logs"])
    assert found.emptied == ["/var/log/own.log"]
    assert sorted(found.files) == [
        "/var/log/own.log.1",
        "/var/log/root.log",
        "/var/log/u@1.journal",
    ]
    assert found.line().startswith("logs: 4 files, 20.0 kB below /var/log (1 of them emptied")


def test_identity_says_what_an_author_has_to_do_about_it(tmp_path: Path) -> None:
    write_tree(tmp_path, {"/etc/machine-id": b"0" * 32, "/etc/ssh/ssh_host_rsa_key": b"k"}, {})
    found = select(Local(tmp_path), GROUPS["identity"])
    assert (found.emptied, found.trees) == (["/etc/machine-id"], ["/etc/ssh/ssh_host_rsa_key"])
    assert "ssh-keygen -A" in found.line()


def test_the_trash_goes_and_its_folders_stay(tmp_path: Path) -> None:
    share = "/home/eve/.local/share/Trash"
    write_tree(tmp_path, {f"{share}/files/a/b": b"1", f"{share}/info/a.trashinfo": b"2"}, {})
    found = select(Local(tmp_path), GROUPS["trash"])
    assert sorted(found.trees) == [f"{share}/files/a", f"{share}/info/a.trashinfo"]


WINDOWS_FILES = {
    "/WinNT/TEMP/x/y.tmp": b"1",
    "/WinNT/SoftwareDistribution/Download/9d/update.cab": b"2",
    "/WinNT/SoftwareDistribution/DataStore/DataStore.edb": b"keep",
    "/WinNT/Memory.dmp": b"3",
    "/WinNT/Minidump/1.dmp": b"4",
    "/WinNT/Installer/a.msi": b"keep",
    "/WinNT/System32/WinEvt/Logs/System.evtx": b"5",
    "/users/Eve/AppData/Local/Temp/a b.tmp": b"6",
    "/users/Eve/AppData/Local/keep.txt": b"keep",
    "/$RECYCLE.BIN/S-1-5-21/$RABC/letter.doc": b"7",
    "/$RECYCLE.BIN/S-1-5-21/$IABC": b"8",
    "/$RECYCLE.BIN/S-1-5-21/desktop.ini": b"keep",
    "/RECYCLER/S-1-5-21/Dc1.doc": b"9",
    "/tmp/x": b"keep",
    "/var/log/x": b"keep",
    "/Windows/Temp/x": b"keep",  # of another Windows
}


def taken_from_windows(tmp_path: Path, what: str) -> set[str]:
    write_tree(tmp_path, WINDOWS_FILES, {})
    found: set[str] = set()
    for group in for_windows(parse_request(what), "/winnt"):
        selection = select(Local(tmp_path), group)
        assert not selection.emptied
        gone = tuple(f"{one}/" for one in (*selection.trees, *selection.files))
        found |= {path for path in WINDOWS_FILES if gone and f"{path}/".startswith(gone)}
    return found


def test_of_a_windows_only_its_own_places_are_cleaned_in_any_case(tmp_path: Path) -> None:
    kept = {path for path, data in WINDOWS_FILES.items() if data == b"keep"}
    assert taken_from_windows(tmp_path, "default") == WINDOWS_FILES.keys() - kept


def test_paths_of_a_windows_are_the_same_in_upper_and_lower_case(tmp_path: Path) -> None:
    assert taken_from_windows(tmp_path, "/winnt/installer/*.MSI") == {"/WinNT/Installer/a.msi"}


def test_a_folder_with_odd_letters_is_no_pattern() -> None:
    (group,) = for_windows(parse_request("tmp"), "/win[1]")
    assert group.rules[0].pattern == "/win[[]1]/Temp/*"
    assert all(one.folded for one in for_windows(parse_request("default,/x"), "/Windows"))


def test_what_is_for_linux_alone_is_refused_for_windows() -> None:
    with pytest.raises(UsageError, match="identity is for Linux"):
        for_windows(parse_request("default,identity"), "/Windows")


def test_a_guest_without_any_of_it_says_so(tmp_path: Path) -> None:
    assert select(Local(tmp_path), GROUPS["tmp"]).line() == "tmp: nothing found"


# --- what is refused before anything is started ---


def clean(image: str | Path, what: str = "default") -> tuple[str, ...]:
    """Return the lines of a cleaning; the cleaned disk is not looked at."""
    with open_cleaned(image, what, backing=None, progress=Silent()) as (_, lines):
        return lines


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which everything temporary lies."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    for name, value in NO_KVM.items():
        monkeypatch.setenv(name, value)
    return folder


def small_disk(folder: Path) -> Path:
    return ext4(
        folder / "disk.raw", write_tree(folder / "tree", {**LINUX_FILES, "/tmp/x": b"x"}, {})
    )


def use_guestfish(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a guestfish of our own in front of PATH."""
    folder.mkdir()
    (folder / "guestfish").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "guestfish").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_an_unknown_group_is_a_usage_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.vmpack"
    assert main(["pack", "none.raw", "-o", str(out), "--unsigned", "--clean=rubbish"]) == 2
    assert "groups: tmp, cache, logs, trash, identity, history" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_libguestfs_the_error_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    qemu_img = shutil.which("qemu-img")
    assert qemu_img is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/qemu-img").symlink_to(qemu_img)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    out = tmp_path / "out.vmpack"
    assert main(["pack", "none.raw", "-o", str(out), "--unsigned", "--clean"]) == 1
    said = capfd.readouterr().err
    assert "--clean needs guestfish, which is not installed" in said
    assert "apt install libguestfs-tools" in said
    assert not out.exists()


def test_an_export_or_an_image_with_a_backing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NBD"):
        clean("nbd://localhost/x")
    with (
        pytest.raises(UsageError, match="backing"),
        open_cleaned("a.qcow2", "tmp", backing=Path("b"), progress=Silent()),
    ):
        pass


def test_a_hibernated_guest_is_refused_before_anything_is_mounted(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = swap(tmp_path / "swap.raw")
    with area.open("r+b") as file:
        file.seek(4096 - 10)
        file.write(b"S1SUSPEND\0")
    started = tmp_path / "started"
    use_guestfish(tmp_path / "bin", monkeypatch, f"touch {started}; exit 1")
    with pytest.raises(InUseError, match="hibernated"):
        clean(gpt_disk(tmp_path / "disk.raw", [Part(LINUX, area)]))
    assert not started.exists()
    assert list(temporary.iterdir()) == []


def test_what_libguestfs_complains_of_is_said_and_nothing_is_left(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_guestfish(
        tmp_path / "bin",
        monkeypatch,
        "read line; echo '*stdin*:1: libguestfs: error: supermin: no kernel' >&2; exit 1",
    )
    with pytest.raises(Error, match=r"^libguestfs failed: supermin: no kernel$") as caught:
        clean(small_disk(tmp_path))
    assert "libguestfs-test-tool" in caught.value.hint
    assert list(temporary.iterdir()) == []


# --- with a real libguestfs ---


@needs_guestfish
@pytest.mark.guest
def test_an_interrupt_leaves_neither_an_overlay_nor_an_appliance(tmp_path: Path) -> None:
    image, temporary = small_disk(tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    command = ["pack", str(image), "-o", str(tmp_path / "out.vmpack"), "--unsigned", "--clean=tmp"]
    process = subprocess.Popen(
        [sys.executable, "-m", "packer.cli.main", *command],
        # libguestfs keeps its appliance from one run to the next, in TMPDIR if not told otherwise
        env={
            **os.environ,
            **NO_KVM,
            "TMPDIR": str(temporary),
            "LIBGUESTFS_CACHEDIR": "/var/tmp",
        },
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (started := grandchildren(process.pid)):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "out.vmpack").exists()
    assert not any(is_running(pid) for pid in started)


def grandchildren(pid: int) -> list[int]:
    """Return guestfish and what it has started, once it has started something."""
    fish = [one for one in children(pid) if name_of(one) == "guestfish"]
    below = [two for one in fish for two in children(one)]
    return fish + below if below else []


def children(pid: int) -> list[int]:
    try:
        return [int(o) for o in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@needs_guestfish
@pytest.mark.guest
@pytest.mark.slow
def test_beside_a_volume_that_nobody_reads_libguestfs_looks_for_the_system(
    tmp_path: Path, temporary: Path
) -> None:
    locked = tmp_path / "locked"
    locked.write_bytes(b"LUKS\xba\xbe\0\1" + os.urandom((2 << 20) - 8))
    image = gpt_disk(
        tmp_path / "both.raw", [Part(LINUX, small_disk(tmp_path)), Part(LINUX, locked)]
    )
    before = state_of(image)
    assert clean(image, "tmp,/none") == ("tmp: 1 file, 1 B below /tmp", "/none: nothing found")
    assert state_of(image) == before
    assert list(temporary.iterdir()) == []


@dataclass(frozen=True, slots=True)
class Packed:
    """A real guest with something to remove, and what came of it."""

    image: Path
    before: tuple[str, int]
    report: PackReport
    rebuilt: Path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("clean")
    image, rebuilt = folder / "guest.raw", folder / "rebuilt.raw"
    run("cp", "--sparse=always", build("debian-bios"), image)
    soil(image, folder / "noise")
    before = state_of(image)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NO_KVM.items():
            patch.setenv(name, value)
        options = PackOptions(
            "demo", clean="default,/opt/demo/*.bin", levels=dict.fromkeys(Class, 1)
        )
        report = pack(image, folder / "demo.vmpack", options, [])
    unpack(OpenedPack(open_layout(folder / "demo.vmpack")), rebuilt, [])
    return Packed(image, before, report, rebuilt)


def soil(image: Path, noise: Path) -> None:
    """Add files to an ext4 root as debugfs does."""
    noise.write_bytes(os.urandom(NOISE_BYTES))
    lines = [
        "mkdir /tmp/.hidden",
        f'write {noise} "/tmp/.hidden/not a plain name"',
        "symlink /tmp/link /etc",
        "mkdir /var/log/demo",
        f"write {noise} /var/log/demo/demo.log",
        "sif /var/log/demo/demo.log uid 101",
        f"write {noise} /var/log/demo/demo.log.1.gz",
        f"write {noise} /var/cache/apt/archives/demo.deb",
        f"write {noise} /var/cache/keep",
        "mkdir /opt/demo",
        f"write {noise} /opt/demo/one.bin",
        f"write {noise} /opt/demo/two.txt",
    ]
    where = f"{image}?offset={ROOT_OFFSET_BYTES}"
    run("debugfs", "-w", "-f", "/dev/stdin", where, stdin="\n".join(lines) + "\n")


def state_of(image: Path) -> tuple[str, int]:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), image.stat().st_mtime_ns


def files_of(image: Path) -> dict[str, bytes]:
    """Return {path: digest} of the files of every volume."""
    found, source = surveyed(image)
    return {
        name: digest_of(found, source, int(stream))
        for name, stream in zip(found.name, found.name_stream, strict=True)
    }


def digest_of(found: Survey, source: Source, stream: int) -> bytes:
    runs = runs_of(found, stream, int(found.file_size[stream]))
    assert runs is not None
    digest = hashlib.sha256()
    for _, start, length in runs.tolist():
        digest.update(length.to_bytes(8, "little"))
        if start >= 0:
            digest.update(source.pread(start, length))
    return digest.digest()


@needs_guestfish
@pytest.mark.guest
@pytest.mark.slow
def test_what_was_named_is_gone_and_all_other_files_are_the_same(packed: Packed) -> None:
    old, new = files_of(packed.image), files_of(packed.rebuilt)
    gone = old.keys() - new.keys()
    assert gone - {"/var/cache/apt/archives/lock", "/var/lib/apt/lists/lock"} == {
        "/tmp/.hidden/not a plain name",
        "/var/log/demo/demo.log.1.gz",
        "/var/cache/apt/archives/demo.deb",
        "/opt/demo/one.bin",
    }
    assert new.keys() <= old.keys()
    changed = {name for name in new if new[name] != old[name]}
    assert changed == {"/var/log/demo/demo.log"}


@needs_guestfish
@pytest.mark.guest
@pytest.mark.slow
def test_e2fsck_and_debugfs_agree(packed: Packed) -> None:
    where = f"{packed.rebuilt}?offset={ROOT_OFFSET_BYTES}"
    run("e2fsck", "-fn", where)
    script = "stat /var/log/demo/demo.log\nls -l /tmp\nls -l /var/cache/apt\n"
    said = run("debugfs", "-f", "/dev/stdin", where, stdin=script)
    assert "User:   101" in said
    assert "Size: 0" in said
    assert ".hidden" not in said
    assert "link" not in said.rpartition("ls -l /tmp")[2]
    assert "archives" in said, "the folder that apt needs is there"


@needs_guestfish
@pytest.mark.guest
@pytest.mark.slow
def test_the_report_counts_what_went_and_names_the_image(packed: Packed) -> None:
    tmp, cache, logs, trash, own = packed.report.removed
    assert tmp == "tmp: 2 files, 300 kB below /tmp"
    assert cache.startswith("cache: ")
    assert logs == "logs: 2 files, 600 kB below /var/log (1 of them emptied, not removed)"
    assert trash == "trash: nothing found"
    assert own == "/opt/demo/*.bin: 1 file, 300 kB"
    assert "overlay" not in " ".join(packed.report.warnings)


@needs_guestfish
@pytest.mark.guest
@pytest.mark.slow
def test_the_image_is_untouched_to_the_byte_and_the_time(packed: Packed) -> None:
    assert state_of(packed.image) == packed.before


@needs_guestfish
@pytest.mark.guest
def test_a_guest_that_cannot_be_read_is_no_reason_to_leave_anything(
    tmp_path: Path, temporary: Path
) -> None:
    with pytest.raises(InputError):
        clean(tmp_path / "none.raw")
    assert list(temporary.iterdir()) == []
