"""Disks that were built apart share their equal files, and hold the same bytes as before."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.boot import boot
from fixtures.guests import build
from packer.cli.main import main
from packer.density import dedupe as deduping
from packer.density.dedupe import DedupeReport
from packer.density.settled import Settled
from packer.errors import InputError, UsageError
from packer.progress import Advance
from tests.density.places import BLOCK, BTRFS, allowed_bytes, built_apart, digest, sharing
from tests.density.places import used_bytes as used
from tests.host import ROOT, as_nobody, run, shared_bytes
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import check_ext4, copy_sparse
from tests.round_trip.small import ROOT_OFFSET

pytestmark = [*ROOT]
DISK_BYTES = 64 << 20
PART = (ROOT_OFFSET, DISK_BYTES)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three disks that nobody changes."""
    folder = tmp_path_factory.mktemp("apart")
    return [built_apart(folder, f"disk-{seed}", seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def allowed(apart: list[Path], tmp_path_factory: pytest.TempPathFactory) -> int:
    return allowed_bytes([(path, PART) for path in apart], tmp_path_factory.mktemp("oracle"))


@pytest.fixture(scope="module")
def mounted_xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with sharing(tmp_path_factory.mktemp("mounted"), 400) as point:
        yield point


@pytest.fixture
def xfs(mounted_xfs: Path) -> Iterator[Path]:
    """An empty folder on XFS."""
    folder = mounted_xfs / "disks"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        if path.is_file():
            os.truncate(path, 0)  # frees at once; what is only deleted is freed some time later
    shutil.rmtree(folder)


@pytest.fixture
def settled(tmp_path: Path) -> Settled:
    return Settled(tmp_path / "dedupe.json")


def place(disks: list[Path], point: Path, *, container: str = "raw") -> list[Path]:
    found = []
    for disk in disks:
        target = point / f"{disk.stem}.{container}"
        if container == "raw":
            copy_sparse(disk, target)
        else:
            run("qemu-img", "convert", "-O", container, disk, target)
        found.append(target)
    run("sync", "-f", point)
    return found


def age(paths: list[Path]) -> None:
    """Let the last change of files lie long enough ago to be told from the next one."""
    newest = max(path.stat().st_ctime for path in paths)
    time.sleep(max(0.0, newest + 2.1 - time.time()))


def test_what_equal_files_allow_is_gained(
    apart: list[Path], allowed: int, xfs: Path, settled: Settled
) -> None:
    disks = place(apart, xfs)
    before = used(xfs)
    report = deduping.dedupe(disks, settled=settled)
    gained = before - used(xfs)
    assert allowed > 8 << 20
    assert gained >= 0.95 * allowed
    assert report.gained_bytes == pytest.approx(gained, rel=0.02)
    assert [digest(path) for path in disks] == [digest(path) for path in apart]
    for path in disks:
        check_ext4(path, ROOT_OFFSET)


def test_btrfs_shares_and_what_it_keeps_is_said(
    tmp_path: Path, apart: list[Path], allowed: int, settled: Settled
) -> None:
    """It frees an extent when nothing of it is used any more: in a fresh copy they are large."""
    with sharing(tmp_path, 400, BTRFS) as point:
        disks = place(apart, point)
        report = deduping.dedupe(disks, settled=settled)
        assert report.gained_bytes >= 0.95 * allowed
        assert deduping.dedupe(disks, settled=settled, again=True).gained_bytes == 0
        assert shared_bytes(disks[1]) > 0.9 * report.disks[1].gained_bytes
        assert any("btrfs" in text for text in report.notes)
        assert [digest(path) for path in disks] == [digest(path) for path in apart]


def test_a_dry_run_says_so_beforehand_and_changes_nothing(
    apart: list[Path], xfs: Path, settled: Settled
) -> None:
    disks = place(apart, xfs)
    before = used(xfs)
    could = deduping.dedupe(disks, settled=settled, dry_run=True)
    assert used(xfs) == before
    done = deduping.dedupe(disks, settled=settled)
    assert could.gained_bytes == pytest.approx(done.gained_bytes, rel=0.01)


def test_qcow2_images_share_with_raw_ones(
    apart: list[Path], allowed: int, xfs: Path, settled: Settled
) -> None:
    disks = [*place(apart[:1], xfs), *place(apart[1:], xfs, container="qcow2")]
    before = used(xfs)
    deduping.dedupe(disks, settled=settled)
    assert before - used(xfs) >= 0.95 * allowed
    for disk, original in zip(disks, apart, strict=True):
        run("qemu-img", "compare", disk, original)
    for disk in disks[1:]:
        run("qemu-img", "check", disk)


def test_equal_files_of_one_disk_share_too(
    apart: list[Path], xfs: Path, settled: Settled, tmp_path: Path
) -> None:
    disks = place(apart[:1], xfs)
    report = deduping.dedupe(disks, settled=settled)
    assert report.gained_bytes == allowed_bytes([(apart[0], PART)], tmp_path) >= 300_000
    assert digest(disks[0]) == digest(apart[0])


def test_what_is_shared_already_is_not_counted_again(
    apart: list[Path], xfs: Path, settled: Settled
) -> None:
    disks = place(apart, xfs)
    first = deduping.dedupe(disks, settled=settled)
    second = deduping.dedupe(disks, settled=settled, again=True)
    assert second.gained_bytes == 0
    assert second.shared_bytes == pytest.approx(first.gained_bytes, rel=0.01)


def test_disks_that_have_not_changed_are_compared_with_new_ones_only(
    apart: list[Path], xfs: Path, settled: Settled
) -> None:
    disks = place(apart[:2], xfs)
    age(disks)
    assert not deduping.dedupe(disks, settled=settled).unchanged
    assert deduping.dedupe(disks, settled=settled).unchanged
    assert deduping.dedupe(disks[:1], settled=settled).unchanged
    assert not deduping.dedupe(disks, settled=settled, again=True).unchanged
    disks += place(apart[2:], xfs)
    before = used(xfs)
    report = deduping.dedupe(disks, settled=settled)
    assert before - used(xfs) == pytest.approx(report.gained_bytes, rel=0.02)
    assert report.gained_bytes > 3 << 20
    everything = deduping.dedupe(disks, settled=settled, again=True)
    assert everything.gained_bytes == 0
    disks[1].touch()
    assert not deduping.dedupe(disks[:2], settled=settled).unchanged


def test_volumes_that_nobody_can_read_share_equal_runs(xfs: Path, settled: Settled) -> None:
    data = os.urandom(8 << 20)
    disks = [xfs / "one.raw", xfs / "two.raw"]
    disks[0].write_bytes(data)
    disks[1].write_bytes(data[: 3 << 20] + os.urandom(1 << 20) + data[4 << 20 :])
    report = deduping.dedupe(disks, settled=settled)
    assert report.gained_bytes == 7 << 20
    assert disks[0].read_bytes() == data


def test_volumes_that_lie_unevenly_gain_nothing_and_that_is_said(
    apart: list[Path], xfs: Path, settled: Settled
) -> None:
    """A partition at sector 63, as Windows XP makes them."""
    even = place(apart[:1], xfs)[0]
    uneven = xfs / "uneven.raw"
    with even.open("rb") as file, uneven.open("wb") as target:
        file.seek(ROOT_OFFSET)
        target.seek(63 * 512)
        shutil.copyfileobj(file, target)
        table = bytearray(64)
        size = DISK_BYTES - ROOT_OFFSET
        table[:16] = (
            bytes.fromhex("00000000 83000000")
            + (63).to_bytes(4, "little")
            + (size // 512).to_bytes(4, "little")
        )
        target.seek(446)
        target.write(bytes(table) + b"\x55\xaa")
    deduping.dedupe([even], settled=settled)
    report = deduping.dedupe([even, uneven], settled=settled)
    assert report.disks[0].gained_bytes == 0
    assert any("begins at byte 32256" in text for text in report.notes)
    # What lies twice on the uneven disk, as unevenly both times, shares all its inner blocks.
    assert report.disks[1].gained_bytes == 300_000 // BLOCK * BLOCK


class Flipping:
    """Changes a byte of a disk in every file that is about to be shared, as a guest might."""

    def __init__(self, disk: Path, offset: int) -> None:
        self.disk = disk
        self.offset = offset

    def stage(self, title: str, total_bytes: int) -> Flipping:
        if title == "sharing":
            with self.disk.open("r+b") as file:
                for number in range(64):
                    file.seek(self.offset + number * (1 << 20))
                    file.write(b"\xa5")
        return self

    def __enter__(self) -> Advance:
        return lambda _: None

    def __exit__(self, *_: object) -> None:
        pass


def test_what_changes_after_the_survey_keeps_its_change(
    apart: list[Path], xfs: Path, settled: Settled
) -> None:
    """The kernel compares: a hint that is out of date shares nothing that differs."""
    disks = place(apart[:2], xfs)
    deduping.dedupe(disks, settled=settled, progress=Flipping(disks[1], 1000))
    expected = bytearray(apart[1].read_bytes())
    for number in range(64):
        expected[1000 + number * (1 << 20)] = 0xA5
    assert disks[1].read_bytes() == expected
    assert digest(disks[0]) == digest(apart[0])


def test_an_interruption_harms_nothing_and_the_next_run_goes_on(
    apart: list[Path], allowed: int, xfs: Path, settled: Settled
) -> None:
    class Interrupting(Flipping):
        def stage(self, title: str, total_bytes: int) -> Flipping:
            self.count = 0
            return self

        def __enter__(self) -> Advance:
            def advance(done_bytes: int) -> None:
                self.count += 1
                if self.count == 3:
                    raise KeyboardInterrupt

            return advance

    disks = place(apart, xfs)
    before = used(xfs)
    with pytest.raises(KeyboardInterrupt):
        deduping.dedupe(disks, settled=settled, progress=Interrupting(disks[0], 0))
    assert [digest(path) for path in disks] == [digest(path) for path in apart]
    assert not deduping.dedupe(disks, settled=settled).unchanged
    assert before - used(xfs) >= 0.95 * allowed


def test_a_file_system_that_cannot_share_is_named(
    apart: list[Path], settled: Settled, run_vmpack: Vmpack
) -> None:
    with pytest.raises(InputError, match="cannot share blocks of files") as caught:
        deduping.dedupe(apart, settled=settled)
    assert caught.value.exit_code == 3
    assert "XFS" in caught.value.hint
    done = run_vmpack("dedupe", *apart)
    assert done.returncode == 3
    assert "cannot share blocks" in done.stderr


def test_xfs_without_reflinks_is_refused_as_well(
    apart: list[Path], tmp_path: Path, settled: Settled
) -> None:
    maker = ("mkfs.xfs", "-q", "-m", "reflink=0")
    with (
        sharing(tmp_path, 400, maker) as point,
        pytest.raises(InputError, match=r"\(xfs\) cannot share blocks"),
    ):
        deduping.dedupe(place(apart[:2], point), settled=settled)


def test_a_disk_that_is_named_twice_is_a_mistake(
    apart: list[Path], xfs: Path, settled: Settled
) -> None:
    one = place(apart[:1], xfs)[0]
    (xfs / "link.raw").hardlink_to(one)
    with pytest.raises(UsageError, match="the same file"):
        deduping.dedupe([one, xfs / "link.raw"], settled=settled)


def test_a_disk_that_cannot_be_read_does_not_stop_the_others(
    apart: list[Path], xfs: Path, settled: Settled
) -> None:
    disks = place(apart[:2], xfs)
    vmdk = place(apart[2:], xfs, container="vmdk")
    report = deduping.dedupe([*disks, *vmdk], settled=settled)
    assert report.gained_bytes > 3 << 20
    assert any("vmdk" in text for text in report.notes)
    overlay = xfs / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disks[0], "-F", "raw", overlay)
    with pytest.raises(InputError, match="overlays on another file take no part") as caught:
        deduping.dedupe([overlay], settled=settled)
    assert "--backing" not in caught.value.hint, "dedupe has no such option"
    with pytest.raises(InputError, match="vmdk"):
        deduping.dedupe(vmdk, settled=settled)


def test_a_folder_that_may_not_be_read_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place, "disks")
        folder.mkdir(mode=0)

        def ask() -> None:
            assert main(["dedupe", str(folder)]) == 3

        as_nobody(ask)
    assert f"{folder} cannot be read: Permission denied" in capfd.readouterr().err


def test_the_command_prints_what_was_gained_and_watches(
    apart: list[Path], xfs: Path, run_vmpack: Vmpack
) -> None:
    disks = place(apart[:2], xfs)
    could = run_vmpack.json("dedupe", "--dry-run", *disks)
    assert could["gained_bytes"] > 3 << 20
    said = run_vmpack.good("dedupe", xfs)
    assert " gained, " in said
    assert str(disks[1]) in said
    age(disks)
    run_vmpack.good("dedupe", *disks, "--again")
    assert "nothing has changed" in run_vmpack.good("dedupe", xfs)
    (xfs / "empty").mkdir()
    assert run_vmpack("dedupe", xfs / "empty").returncode == 2

    with run_vmpack.start("dedupe", "--watch=0.01", xfs) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines, notes = iter(process.stdout.readline, ""), iter(process.stderr.readline, "")
        assert any("nothing has changed" in line for line in lines)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        assert "idle" in run("ionice", "-p", str(process.pid))
        away = [path.rename(xfs / "empty" / path.name) for path in disks]
        assert any("no disk image" in line for line in notes)
        for path, back in zip(away, disks, strict=True):
            path.rename(back)
        assert any("gained" in line for line in lines), "one round without disks has ended it"
        process.send_signal(2)
        assert process.wait(30) == 130


@pytest.mark.guest
def test_a_guest_that_runs_meanwhile_is_not_disturbed(xfs: Path, settled: Settled) -> None:
    """Two copies that share nothing; one is booted, checks every file and writes while files are
    shared again and again. The other one stays what it was, to the byte.
    """
    image = build("busybox")
    disks = [xfs / f"guest-{number}.raw" for number in range(2)]
    for path in disks:
        run("cp", "--reflink=never", "--sparse=always", image, path)
    before = used(xfs)
    reports: list[DedupeReport] = []
    ended = threading.Event()

    def share() -> None:
        while not ended.wait(2):
            reports.append(deduping.dedupe(disks, settled=settled, again=True))

    work = threading.Thread(target=share)
    work.start()
    try:
        running = boot(disks[1], snapshot=False, check_all=True)
    finally:
        ended.set()
        work.join()
    assert running.digests_ok
    assert running.powered_off
    assert len(reports) >= 2
    assert reports[0].gained_bytes > 10 << 20
    assert before - used(xfs) > 10 << 20
    for path in disks:
        facts = json.loads(image.with_suffix(".json").read_text())
        check_ext4(path, facts["root_offset_bytes"])
    assert digest(disks[0]) == digest(image)


def root_of(image: Path) -> tuple[int, int]:
    """Where the file system of a fixture's root lies on its disk."""
    root = json.loads(image.with_suffix(".json").read_text())["partitions"]["root"]
    return root["offset_bytes"], root["offset_bytes"] + root["size_bytes"]


def gained_by(command: Callable[[], object], images: list[Path], point: Path) -> tuple[int, float]:
    """How many bytes come free when a command is run on fresh copies that no cache has; seconds."""
    for path in point.iterdir():
        os.truncate(path, 0)  # frees at once
    for path in (*place(images, point), point.with_name(f"{point.name}.img")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = used(point)
    started = time.monotonic()
    command()
    seconds = time.monotonic() - started
    return before - used(point), seconds


@pytest.mark.guest
@pytest.mark.slow
def test_debian_guests_gain_what_they_can_and_faster_than_others(
    tmp_path: Path, run_vmpack: Vmpack
) -> None:
    """Two real guests built apart. As duperemove usually is, it finds little of what lies
    elsewhere; asked to look at every block it finds more, in more time, but never as much.
    """
    images = [build("debian-bios"), build("debian-uefi")]
    allowed = allowed_bytes([(image, root_of(image)) for image in images], tmp_path)
    rates: dict[str, float] = {}
    with sharing(tmp_path, 5000) as point:
        disks = [point / image.name for image in images]
        commands: dict[str, Callable[[], object]] = {
            "usual": lambda: run("duperemove", "-dr", point),
            "thorough": lambda: run(
                *("duperemove", "-dr", "-b", "4k", "--dedupe-options=partial"), point
            ),
            "vmpack": lambda: run_vmpack.good("dedupe", *disks),
        }
        found = {name: gained_by(commands[name], images, point) for name in commands}
        for path, original in zip(disks, images, strict=True):
            run("cmp", path, original)
    for name, (gained, seconds) in found.items():
        print(f"{name}: {gained / 1e6:.0f} MB in {seconds:.1f} s")
        rates[name] = gained / seconds
    assert found["vmpack"][0] >= 0.95 * allowed
    assert found["vmpack"][0] > max(found["usual"][0], found["thorough"][0])
    assert found["vmpack"][1] < found["thorough"][1]
    assert rates["vmpack"] > 2 * max(rates["usual"], rates["thorough"])


@pytest.mark.guest
@pytest.mark.slow
def test_debian_guests_start_afterwards_though_one_ran_meanwhile(
    tmp_path: Path, settled: Settled
) -> None:
    images = [build("debian-bios"), build("debian-uefi")]
    with sharing(tmp_path, 5000) as point, ThreadPoolExecutor(2) as pool:
        bios, uefi = disks = place(images, point)
        untouched_ns = bios.stat().st_mtime_ns
        running = pool.submit(boot, bios, snapshot=False)
        while bios.stat().st_mtime_ns == untouched_ns:
            assert not running.done(), "it has not written anything"
            time.sleep(0.2)
        report = deduping.dedupe(disks, settled=settled)
        assert not running.done()
        assert report.gained_bytes > 600 << 20
        run("cmp", uefi, images[1])
        other = pool.submit(boot, uefi, firmware="uefi")
        assert running.result().digests_ok
        assert running.result().powered_off
        check_ext4(bios, root_of(images[0])[0])
        assert boot(bios).digests_ok
        assert other.result().digests_ok
