"""What nobody can read is given back, and every file stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.boot import boot
from fixtures.loop_devices import loop_device
from packer.density import compact as compacting
from packer.density.discard import discard
from packer.errors import InputError, InUseError, UsageError
from packer.progress import Advance, Silent
from packer.survey.in_use import kept_from_everybody
from tests.density.places import BLOCK, MIB, digest
from tests.host import as_nobody, needs_root, run
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import (
    check_ext4,
    copy_sparse,
    differences,
    filled,
    mounted,
    tool,
    tree,
    write_noise,
)
from tests.round_trip.ext4_oracle import unseen
from tests.round_trip.oracle import nobody_sees
from tests.round_trip.packs import Guest
from tests.round_trip.small import ROOT_OFFSET, make_disk, make_swap_disk, write_files
from tests.round_trip.windows import (
    dropped_files,
    files_on_disk,
    pages_of,
    take_out,
    unseen_of,
)
from tests.survey.test_in_use import holding, qemu

SIZE_MIB = 64
OF_THE_HOST_BYTES = 64 * 1024
"""What the host's file system may need to say where a file's pieces lie."""


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    return make_disk(folder / "disk.raw", write_files(folder / "files", seed=3), size_mib=SIZE_MIB)


@pytest.fixture
def noisy(original: Path, tmp_path: Path) -> Path:
    """A disk with noise wherever nobody sees it, by e2fsprogs' word."""
    disk = copy_sparse(original, tmp_path / "guest.raw")
    assert write_noise(disk, unseen(original, ROOT_OFFSET).all(), seed=1) > 40 * MIB
    check_ext4(disk, ROOT_OFFSET)
    return disk


def as_qcow2(disk: Path, *options: str) -> Path:
    target = disk.with_suffix(".qcow2")
    run("qemu-img", "convert", "-O", "qcow2", *options, disk, target)
    return target


def same_but_for(original: Path, disk: Path, lost: list[tuple[int, int]]) -> None:
    """All is as it was, but for what nobody sees."""
    assert differences(original, disk, lost) == []


def used_blocks(disk: Path, offset: int) -> int:
    """Bytes of the blocks that an ext4 uses, by its own count."""
    listing = tool("dumpe2fs", "-h", f"{disk}?offset={offset}").splitlines()
    facts = dict(line.split(":", 1) for line in listing if ":" in line)
    return (int(facts["Block count"]) - int(facts["Free blocks"])) * int(facts["Block size"])


def test_noise_that_nobody_sees_goes_and_nothing_else(noisy: Path, original: Path) -> None:
    before = taken(noisy)
    assert before > 40 * MIB + used_blocks(original, ROOT_OFFSET)
    report = compacting.compact(noisy)
    assert report.before_bytes == before
    assert report.after_bytes == taken(noisy) <= 1.02 * used_blocks(original, ROOT_OFFSET)
    assert taken(noisy) <= 1.02 * report.used_bytes + OF_THE_HOST_BYTES
    assert report.given_bytes == pytest.approx(before - taken(noisy), abs=OF_THE_HOST_BYTES)
    check_ext4(noisy, ROOT_OFFSET)
    same_but_for(original, noisy, unseen(original, ROOT_OFFSET).all())


def test_what_lies_in_a_block_with_used_bytes_stays(noisy: Path, original: Path) -> None:
    """Slack is not cleared: what is not given back is not touched."""
    where = unseen(original, ROOT_OFFSET)
    whole = sum((end // BLOCK - -(-start // BLOCK)) for start, end in where.tails)
    compacting.compact(noisy)
    assert whole == 0
    assert filled(noisy, where.tails)
    assert not filled(noisy, where.free)


@pytest.mark.root
@needs_root
def test_every_file_reads_as_before(noisy: Path, original: Path, tmp_path: Path) -> None:
    part = (ROOT_OFFSET, SIZE_MIB * MIB)
    compacting.compact(noisy)
    with (
        mounted(noisy, part, tmp_path / "one") as one,
        mounted(original, part, tmp_path / "other") as other,
    ):
        assert tree(one) == tree(other)


def test_a_dry_run_says_what_would_go(noisy: Path) -> None:
    before, stamp = digest(noisy), noisy.stat()
    could = compacting.compact(noisy, dry_run=True)
    assert (digest(noisy), taken(noisy)) == (before, could.before_bytes)
    assert noisy.stat().st_mtime_ns == stamp.st_mtime_ns
    done = compacting.compact(noisy)
    assert could.given == done.given
    assert could.after_bytes == pytest.approx(done.after_bytes, abs=OF_THE_HOST_BYTES)


def test_a_second_time_nothing_is_left_to_go(noisy: Path) -> None:
    compacting.compact(noisy)
    stamp = noisy.stat().st_mtime_ns
    again = compacting.compact(noisy)
    assert (again.given, again.before_bytes) == ((), again.after_bytes)
    assert noisy.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("options", [(), ("-o", "compat=0.10"), ("-o", "cluster_size=4k"),
                                     ("-o", "extended_l2=on,cluster_size=128k"), ("-c",)],
                         ids=["version-3", "version-2", "small-clusters", "subclusters",
                              "compressed"])  # fmt: skip
def test_a_qcow2_gives_clusters_back(
    noisy: Path, original: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    image = as_qcow2(noisy, *options)
    before = taken(image)
    report = compacting.compact(image)
    assert report.container == "qcow2"
    assert report.after_bytes == taken(image) < before / 2
    run("qemu-img", "check", image)
    flat = tmp_path / "flat.raw"
    run("qemu-img", "convert", "-O", "raw", image, flat)
    check_ext4(flat, ROOT_OFFSET)
    same_but_for(original, flat, unseen(original, ROOT_OFFSET).all())


def test_a_snapshot_inside_a_qcow2_keeps_what_it_holds(noisy: Path, tmp_path: Path) -> None:
    image = as_qcow2(noisy)
    run("qemu-img", "snapshot", "-c", "before", image)
    compacting.compact(image)
    run("qemu-img", "check", image)
    flat = tmp_path / "flat.raw"
    run("qemu-img", "convert", "-O", "raw", "-l", "snapshot.name=before", image, flat)
    assert digest(flat) == digest(noisy)


def test_zeros_that_take_room_go(tmp_path: Path) -> None:
    """Of a volume that nobody can parse, too."""
    disk = tmp_path / "unknown.raw"
    data = os.urandom(3 * MIB)
    disk.write_bytes(data[:MIB] + bytes(8 * MIB) + data[MIB:])
    report = compacting.compact(disk)
    assert report.given == (("zeros", 8 * MIB),)
    assert disk.read_bytes() == data[:MIB] + bytes(8 * MIB) + data[MIB:]
    assert taken(disk) <= 3 * MIB + OF_THE_HOST_BYTES


def test_swap_goes_and_keeps_its_header(tmp_path: Path) -> None:
    disk = make_swap_disk(tmp_path / "swap.raw", hibernated=False)
    table = json.loads(run("sfdisk", "--json", disk))["partitiontable"]["partitions"]
    [offset] = [part["start"] * 512 for part in table if part["type"] == "82"]
    header = disk.read_bytes()[offset : offset + BLOCK]
    write_noise(disk, [(offset + BLOCK, offset + 6 * MIB)], seed=2)
    report = compacting.compact(disk)
    [(what, size)] = report.given
    assert what == "swap partition 5"
    assert 6 * MIB - BLOCK <= size < 8 * MIB
    after = disk.read_bytes()[offset:]
    assert after[:BLOCK] == header
    assert not any(after[BLOCK : 6 * MIB])


def test_a_suspended_guest_is_refused(tmp_path: Path) -> None:
    disk = make_swap_disk(tmp_path / "swap.raw", hibernated=True)
    refused(disk, InUseError, "holds a hibernated system")


def refused(disk: Path, kind: type[Exception], words: str) -> Exception:
    """It is refused, and nothing of it was touched."""
    before, touched_ns = digest(disk), disk.stat().st_mtime_ns
    with pytest.raises(kind, match=words) as caught:
        compacting.compact(disk)
    assert (digest(disk), disk.stat().st_mtime_ns) == (before, touched_ns)
    return caught.value


def test_a_file_system_that_is_not_clean_is_refused(noisy: Path) -> None:
    tool("debugfs", "-w", "-R", "feature needs_recovery", f"{noisy}?offset={ROOT_OFFSET}")
    refused(noisy, InUseError, "is not clean")


def test_a_disk_that_somebody_writes_to_is_refused(noisy: Path, tmp_path: Path) -> None:
    with holding("file = open(path, 'r+b')", noisy):
        refused(noisy, InUseError, "has it open to write")
    drive = f"file={noisy},format=raw,if=virtio"
    with qemu("-drive", drive, ready=tmp_path / "qmp"):
        refused(noisy, InUseError, "QEMU|qemu")
    assert compacting.compact(noisy).given_bytes > 40 * MIB


@pytest.mark.root
@needs_root
def test_a_disk_behind_a_loop_device_is_refused(noisy: Path) -> None:
    with loop_device(noisy) as device:
        refused(noisy, InUseError, "loop device")
        with pytest.raises(UsageError, match="block device"):
            compacting.compact(device)


def test_a_base_of_overlays_is_refused_and_so_are_they(noisy: Path) -> None:
    overlay = noisy.with_name("overlay.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", noisy, "-F", "raw", overlay)
    refused(noisy, InUseError, "overlays stand on it")
    error = refused(overlay, InputError, "is an overlay")
    assert isinstance(error, InputError)
    assert "--backing" not in error.hint, "compact has no such option"


def test_other_containers_are_refused(noisy: Path) -> None:
    target = noisy.with_suffix(".vmdk")
    run("qemu-img", "convert", "-O", "vmdk", noisy, target)
    refused(target, InputError, "raw and qcow2 images are compacted")


def test_a_qcow2_with_wrong_books_is_refused(noisy: Path) -> None:
    """QEMU would give away a cluster that is used."""
    image = as_qcow2(noisy)
    with image.open("r+b") as file:
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        file.write(bytes(64))
    refused(image, InputError, "qemu-img refused")


def test_a_disk_that_contradicts_itself_is_refused(noisy: Path) -> None:
    """Two partitions that overlap: whose word would count?"""
    with noisy.open("r+b") as file:
        file.seek(0x1BE)
        entry = file.read(16)
        file.seek(0x1BE + 16)
        file.write(entry)
    refused(noisy, InputError, "partition")


class Meddling(Silent):
    """Does something to the disk in the moment before it is changed."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self.deed = deed

    def stage(self, title: str, total_bytes: int) -> Any:
        if title == "giving back":
            self.deed()
        return super().stage(title, total_bytes)


@pytest.mark.parametrize("container", ["raw", "qcow2"])
def test_a_disk_that_changes_meanwhile_is_left_alone(noisy: Path, container: str) -> None:
    disk = noisy if container == "raw" else as_qcow2(noisy)
    before = taken(disk)
    with pytest.raises(InUseError, match="was changed meanwhile"):
        compacting.compact(disk, progress=Meddling(disk.touch))
    assert taken(disk) == before


WRITES_JUST_BEFORE = """
import fcntl, sys
from packer.density.compact import compact
from packer.errors import InUseError

path, offset, calls = sys.argv[1], int(sys.argv[2]), []

def write(event, arguments):
    if event == "fcntl.fcntl" and arguments[1:] == (fcntl.F_SETLEASE, fcntl.F_WRLCK) and not calls:
        calls.append(event)
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"written")

sys.addaudithook(write)
try:
    compact(path)
except InUseError as error:
    print(error)
"""


def test_what_is_written_just_before_nobody_can_open_the_disk_is_not_lost(
    noisy: Path, original: Path
) -> None:
    """By somebody who opened and closed the disk after we had looked at it."""
    offset = int(unseen(original, ROOT_OFFSET).free[0][0])
    said = run(sys.executable, "-c", WRITES_JUST_BEFORE, noisy, str(offset))
    assert "was changed meanwhile" in said
    with noisy.open("rb") as file:
        file.seek(offset)
        assert file.read(7) == b"written"


@pytest.mark.root
@needs_root
def test_a_disk_that_may_not_be_read_is_named() -> None:
    def ask() -> None:
        with pytest.raises(InputError, match=r"disk\.raw cannot be read: Permission denied"):
            compacting.compact(disk)

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        disk = Path(folder, "disk.raw")
        disk.write_bytes(bytes(MIB))
        disk.chmod(0)
        as_nobody(ask)


@pytest.mark.parametrize("container", ["raw", "qcow2"])
def test_another_file_that_takes_its_name_meanwhile_is_left_alone(
    noisy: Path, container: str
) -> None:
    disk = noisy if container == "raw" else as_qcow2(noisy)
    other, kept = disk.with_name("other"), disk.with_name("kept")
    copy_sparse(disk, other)
    before = digest(disk)

    def replace() -> None:
        disk.rename(kept)
        other.rename(disk)

    with pytest.raises(InUseError, match="was changed meanwhile"):
        compacting.compact(disk, progress=Meddling(replace))
    assert digest(disk) == digest(kept) == before


def test_qemu_changes_the_open_file_whatever_has_its_name(noisy: Path) -> None:
    image = as_qcow2(noisy)
    other = copy_sparse(image, image.with_name("other"))
    before = digest(other)
    with image.open("r+b") as file:
        other.rename(image)
        discard(image, file.fileno(), [(32 * MIB, 48 * MIB)])
        assert os.fstat(file.fileno()).st_blocks * 512 < taken(image) - 8 * MIB
    assert digest(image) == before


def test_nobody_can_open_the_disk_while_holes_are_made(noisy: Path) -> None:
    opener = "import os, sys; os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)"
    command = ["python3", "-c", opener, str(noisy)]
    with noisy.open("r+b") as file:
        with kept_from_everybody(noisy, file.fileno()):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "BlockingIOError" in done.stderr
        subprocess.run(command, check=True)


def test_whoever_reads_the_disk_when_holes_are_made_stops_it(noisy: Path) -> None:
    """They might open it to write in the next moment, and nobody could keep them from it."""
    before = digest(noisy)
    with (
        holding("file = open(path, 'rb')", noisy),
        pytest.raises(InUseError, match="has it open"),
    ):
        compacting.compact(noisy)
    assert digest(noisy) == before


def test_whoever_opens_the_disk_meanwhile_stops_it(noisy: Path) -> None:
    before = digest(noisy)
    command = ["python3", "-c", "import sys; f = open(sys.argv[1], 'r+b'); sys.stdin.read()"]
    started: list[subprocess.Popen[bytes]] = []

    def open_it() -> None:
        started.append(subprocess.Popen([*command, noisy], stdin=subprocess.PIPE))
        time.sleep(1)

    try:
        with pytest.raises(InUseError, match="has it open to write"):
            compacting.compact(noisy, progress=Meddling(open_it))
    finally:
        for process in started:
            process.communicate()
    assert digest(noisy) == before


def test_an_interruption_leaves_a_good_disk_and_the_next_run_goes_on(
    noisy: Path, original: Path
) -> None:
    class Interrupting(Silent):
        def stage(self, title: str, total_bytes: int) -> Any:
            class Stage:
                def __enter__(self) -> Advance:
                    return advance

                def __exit__(self, *_: object) -> None:
                    pass

            def advance(done_bytes: int) -> None:
                if title == "giving back":
                    raise KeyboardInterrupt

            return Stage()

    with pytest.raises(KeyboardInterrupt):
        compacting.compact(noisy, progress=Interrupting())
    check_ext4(noisy, ROOT_OFFSET)
    same_but_for(original, noisy, unseen(original, ROOT_OFFSET).all())
    compacting.compact(noisy)
    assert taken(noisy) <= 1.02 * used_blocks(original, ROOT_OFFSET)


def test_qemu_that_refuses_is_quoted(tmp_path: Path) -> None:
    image = tmp_path / "none.qcow2"
    with (
        image.open("w+b") as file,
        pytest.raises(InputError, match=r"qemu-io refused: .*none\.qcow2"),
    ):
        discard(image, file.fileno(), [(0, 65536)])


def test_the_command_prints_before_and_after(noisy: Path, run_vmpack: Vmpack) -> None:
    could = run_vmpack.json("compact", "--dry-run", noisy)
    assert could["after_bytes"] < could["before_bytes"] / 2
    said = run_vmpack.good("compact", noisy)
    assert "->" in said
    assert "unused" in said
    with holding("file = open(path, 'r+b')", noisy):
        assert run_vmpack("compact", noisy).returncode == 6
    assert run_vmpack("compact", noisy.with_name("none")).returncode == 2


@pytest.mark.guest
@pytest.mark.parametrize("name", ["busybox", pytest.param("debian-bios", marks=pytest.mark.slow)])
def test_real_guests_are_as_small_as_what_they_use_and_start(
    build_guest: Callable[[str], Guest], name: str, tmp_path: Path
) -> None:
    """With noise in all of busybox' free room, and in a part of Debian's: that takes long."""
    guest = build_guest(name)
    disk = copy_sparse(guest.image, tmp_path / "guest.raw")
    lost = nobody_sees(guest)
    write_noise(disk, lost if name == "busybox" else lost[::10], seed=4)
    report = compacting.compact(disk)
    assert taken(disk) <= 1.02 * used_blocks(guest.image, guest.root_offset)
    assert taken(disk) <= 1.02 * report.used_bytes
    check_ext4(disk, guest.root_offset)
    same_but_for(guest.image, disk, lost)
    assert boot(disk, firmware=guest.firmware).digests_ok
    disk.unlink()


@pytest.mark.guest
@needs_root
@pytest.mark.parametrize("name", ["windows-xp", "windows-10-uefi"])
def test_windows_loses_free_clusters_and_what_it_paged_out(
    build_guest: Callable[[str], Guest], name: str, tmp_path: Path
) -> None:
    guest = build_guest(name)
    disk = copy_sparse(guest.image, tmp_path / "guest.raw")
    volume = take_out(guest, guest.image, "root", tmp_path / "root.ntfs")
    pages = pages_of(guest, volume)
    unused = unseen_of(guest, tmp_path)
    write_noise(disk, [*unused, *pages], seed=6)
    report = compacting.compact(disk)
    named = {what.partition(" ")[0] for what, _ in report.given}
    assert {"hiberfil.sys", "pagefile.sys", "unused"} <= named
    assert taken(disk) <= 1.02 * report.used_bytes
    whole_files = files_on_disk(guest, dropped_files(guest), volume)
    same_but_for(guest.image, disk, [*unused, *whole_files])
    assert not filled(disk, pages)
    ntfs = take_out(guest, disk, "root", tmp_path / "after.ntfs")
    tool("ntfsfix", "--no-action", ntfs)


@pytest.mark.guest
def test_a_windows_with_snapshots_keeps_what_they_may_read(
    build_guest: Callable[[str], Guest], tmp_path: Path
) -> None:
    guest = build_guest("windows-7")
    disk = copy_sparse(guest.image, tmp_path / "guest.raw")
    report = compacting.compact(disk)
    assert any("has snapshots" in text for text in report.notes)
    assert digest(disk) == digest(guest.image)
