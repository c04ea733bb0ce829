"""update at its worst moments: the disk is what it was, whole, or what it shall be, whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host import run
from tests.hostile.refusal import IN_USE, INPUT, MISMATCH, TRUST, USAGE, refused
from tests.hostile.test_interruption import end, names, wait_for_bytes, wait_until
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.disks import tool
from tests.round_trip.layouts import drop_layer
from tests.round_trip.mirror import Mirror, mirror
from tests.round_trip.packs import author_key, trusting_host
from tests.round_trip.small import make_disk, write_files

MIB = 1 << 20
MOMENTS = 20
WHILE_COPYING, WHILE_SENDING = 8, 16
"""Moments before the first number fall into the copying from the old disk, those before the second
into the fetching, the others after the last byte, while the new disk gets its name."""

BYTES_PER_SECOND = 40e6


class Versions:
    """Two versions of a disk with 100 MB of noise, of which the second has 20 MB anew."""

    def __init__(self, folder: Path) -> None:
        author, host = Vmpack(author_key().parents[1]), trusting_host(folder / "home")
        files = write_files(folder / "files", seed=41, big=48, small=200)
        self.packs: list[Path] = []
        self.disks: list[Path] = []
        for version in (1, 2):
            image = make_disk(folder / f"{version}.raw", files, size_mib=160)
            pack = folder / f"pack-{version}"
            author.good("pack", image, "-o", f"{pack}/", "--no-packages", "--name", "noise",
                        "--pack-version", str(version), "--level", "1")  # fmt: skip
            disk = folder / f"disk-{version}.raw"
            host.good("unpack", pack, "-o", disk, "--from", "store:", "--no-store")
            self.packs.append(pack)
            self.disks.append(disk)
            chance = random.Random(version)
            for path in sorted((files / "srv" / "big").iterdir())[::5]:
                path.write_bytes(chance.randbytes(path.stat().st_size))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def disk(run_vmpack: Vmpack, versions: Versions, room: Path) -> Path:
    """Version 1, written on this host."""
    path = room / "vms" / "noise.raw"
    path.parent.mkdir()
    run_vmpack.good("unpack", versions.packs[0], "-o", path, "--from", "store:", "--no-store")
    return path


@pytest.fixture(scope="module")
def sent_bytes(versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> int:
    """What one update that nobody interrupts makes the mirror send."""
    folder = tmp_path_factory.mktemp("undisturbed")
    host, disk = trusting_host(folder / "home"), folder / "noise.raw"
    host.good("unpack", versions.packs[0], "-o", disk, "--from", "store:", "--no-store")
    with mirror(versions.packs[1]) as one:
        report = host.json(*arguments(one, disk))
        assert same(disk, versions.disks[1])
        assert content_bytes(report, "disk:") > 70e6
        disk.unlink()
        return one.sent_bytes


def arguments(one: Mirror, disk: Path) -> list[str | Path]:
    return ["update", disk, one.url, "--from", "store:", "--no-store", "--quiet"]


def same(left: Path, right: Path) -> bool:
    done = subprocess.run(["cmp", "-s", left, right], check=False)
    assert done.returncode in (0, 1)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_killed_update_leaves_version_1_and_ends_as_version_2(
    run_vmpack: Vmpack, disk: Path, versions: Versions, sent_bytes: int, moment: int
) -> None:
    """Moments are counted in bytes, of the partial disk or of the mirror, so that a slow host
    changes nothing.
    """
    chance = random.Random(f"update {moment}")
    with mirror(versions.packs[1], bytes_per_second=BYTES_PER_SECOND) as one:
        process = run_vmpack.start(*arguments(one, disk))
        if moment < WHILE_COPYING:
            partial = disk.with_name("noise.raw.partial")
            wait_for_bytes(process, partial, chance.randrange(70 * MIB))
        elif moment < WHILE_SENDING:
            one.send_until(chance.randrange(sent_bytes - MIB))
        else:
            one.wait_until_sent(sent_bytes)
            time.sleep(chance.uniform(0, 0.4))
        end(process, signal.SIGKILL)
        one.go_on()
        if not same(disk, versions.disks[0]):
            assert moment >= WHILE_SENDING, "the disk changed before the new one was complete"
            assert same(disk, versions.disks[1]), "neither of the two versions"
        report = run_vmpack.json(*arguments(one, disk))
    assert report["after"] == "noise:2"
    assert same(disk, versions.disks[1])
    assert run_vmpack.json("verify", disk, versions.packs[1], "--exact")["right"]
    assert names(disk.parent) == {"noise.raw"}
    assert "already" in run_vmpack.good("update", disk, versions.packs[1])


@pytest.mark.slow
def test_an_update_that_is_killed_again_and_again_still_ends(
    run_vmpack: Vmpack, disk: Path, versions: Versions, sent_bytes: int
) -> None:
    chance = random.Random(7)
    with mirror(versions.packs[1], bytes_per_second=BYTES_PER_SECOND) as one:
        for _ in range(4):
            process = run_vmpack.start(*arguments(one, disk))
            one.send_until(one.sent_bytes + chance.randrange(MIB, sent_bytes // 8))
            end(process, signal.SIGKILL)
            one.go_on()
            assert same(disk, versions.disks[0])
        report = run_vmpack.json(*arguments(one, disk))
        assert report["resumed_bytes"] > 70e6
    assert same(disk, versions.disks[1])


def test_an_interrupted_update_says_so_in_one_line_and_goes_on(
    run_vmpack: Vmpack, disk: Path, versions: Versions, sent_bytes: int
) -> None:
    with mirror(versions.packs[1], bytes_per_second=BYTES_PER_SECOND) as one:
        process = run_vmpack.start(*arguments(one, disk))
        one.send_until(sent_bytes // 2)
        os.kill(process.pid, signal.SIGINT)
        one.go_on()
        _, complaint = process.communicate(timeout=60)
        assert (process.returncode, complaint) == (130, "vmpack: interrupted\n")
        assert same(disk, versions.disks[0])
        run_vmpack.good(*arguments(one, disk))
    assert same(disk, versions.disks[1])


def test_the_new_disk_is_flushed_before_it_gets_the_name_and_the_name_after(
    run_vmpack: Vmpack, disk: Path, versions: Versions, room: Path
) -> None:
    """As the kernel sees it: after a power cut the name leads to one of the two, whole."""
    traced = "trace=fsync,rename,renameat,renameat2,openat"
    command = ["strace", "-ff", "-y", "-e", traced, "-o", str(room / "calls")]
    run_vmpack.good("update", disk, versions.packs[1], "-q", "--no-store", before=command)
    threads = [path.read_text() for path in room.glob("calls.*")]
    (log,) = [text for text in threads if "rename" in text and str(disk) in text]
    lines = [line for line in log.splitlines() if str(disk.parent) in line]
    calls = [line for line in lines if "openat(" not in line]
    order = [line.partition("(")[0] for line in calls]
    assert order == ["fsync", "rename", "fsync"], calls
    assert f"{disk}.partial>" in calls[0]
    assert f'"{disk}.partial", "{disk}"' in calls[1]
    assert f"{disk.parent}>" in calls[2]
    assert all(line.endswith("= 0") for line in calls), calls
    # Whether somebody uses the old disk is asked after the flush, which can take minutes.
    between = lines[lines.index(calls[0]) : lines.index(calls[1])]
    assert any(f'"{disk}", O_RDONLY' in line for line in between), lines


# -- refusals --------------------------------------------------------------------------------------


def test_a_disk_that_a_guest_runs_from_is_refused(
    run_vmpack: Vmpack, disk: Path, versions: Versions, room: Path
) -> None:
    with running(room, f"file={disk},format=raw,if=virtio") as process:
        done = run_vmpack("update", disk, versions.packs[1])
        refused(done, IN_USE, str(disk), f"process {process.pid}", "shut the guest down")
    assert same(disk, versions.disks[0])
    run_vmpack.good("update", disk, versions.packs[1])


def test_a_disk_under_a_running_overlay_elsewhere_is_refused(
    run_vmpack: Vmpack, disk: Path, versions: Versions, room: Path
) -> None:
    overlay = room / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay)
    with running(room, f"file={overlay},format=qcow2,if=virtio") as process:
        done = run_vmpack("update", disk, versions.packs[1], "--force")
        refused(done, IN_USE, str(disk), f"process {process.pid}", "reads it")
    done = run_vmpack("update", disk, versions.packs[1], "--overlays", room)
    refused(done, IN_USE, f"{disk} is the backing file of {overlay}")
    assert same(disk, versions.disks[0])


@contextmanager
def running(room: Path, drive: str) -> Iterator[subprocess.Popen[bytes]]:
    """A paused guest of a real QEMU with a drive."""
    ready = room / "qmp"
    program = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none", "-nodefaults"]
    monitor = ["-qmp", f"unix:{ready},server=on,wait=off"]
    process = subprocess.Popen([*program, *monitor, "-drive", drive])
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None)
        time.sleep(0.3)  # it opens its drives after its monitor
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def test_an_overlay_beside_the_disk_is_refused(
    run_vmpack: Vmpack, disk: Path, versions: Versions
) -> None:
    overlay = disk.with_name("overlay.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "noise.raw", "-F", "raw", overlay)
    done = run_vmpack("update", disk, versions.packs[1], "--force")
    refused(done, IN_USE, f"{disk} is the backing file of {overlay}", "another name")
    done = run_vmpack("update", overlay, versions.packs[1], "--force")
    refused(done, INPUT, f"{overlay} is an overlay")
    assert same(disk, versions.disks[0])


def test_what_a_guest_has_written_is_lost_only_by_force(
    run_vmpack: Vmpack, disk: Path, versions: Versions
) -> None:
    run("debugfs", "-w", "-R", "mkdir /written", f"{disk}?offset={MIB}")
    with disk.open("rb") as file:
        written = os.pread(file.fileno(), 4 * MIB, 0)
    done = run_vmpack("update", disk, versions.packs[1])
    refused(done, MISMATCH, str(disk), "are not what noise:1 says", "--force")
    with disk.open("rb") as file:
        assert os.pread(file.fileno(), 4 * MIB, 0) == written
    run_vmpack.good("update", disk, versions.packs[1], "--force")
    assert same(disk, versions.disks[1])


def test_going_back_is_refused_unless_it_is_wanted(
    run_vmpack: Vmpack, disk: Path, versions: Versions
) -> None:
    run_vmpack.good("update", disk, versions.packs[1])
    done = run_vmpack("update", disk, versions.packs[0])
    refused(done, TRUST, "version 1 of 'noise'", "--allow-older")
    assert same(disk, versions.disks[1])
    out = run_vmpack.good("update", disk, versions.packs[0], "--allow-older")
    assert "noise:2 -> noise:1" in out
    assert same(disk, versions.disks[0])


def test_a_pack_of_a_stranger_changes_nothing(
    stranger: Vmpack, disk: Path, versions: Versions
) -> None:
    done = stranger("update", disk, versions.packs[1], "--force")
    refused(done, TRUST, "does not trust")
    assert same(disk, versions.disks[0])
    assert names(disk.parent) == {"noise.raw"}


def test_a_disk_from_another_host_needs_a_word_what_it_was(
    run_vmpack: Vmpack, versions: Versions, room: Path
) -> None:
    disk = room / "brought.raw"
    shutil.copyfile(versions.disks[0], disk)
    done = run_vmpack("update", disk, versions.packs[1])
    refused(done, USAGE, str(disk), "does not know what it should be", "--was")
    done = run_vmpack("update", disk, versions.packs[1], "--was", versions.packs[0], "--dry-run",
                      "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert steps[0]["source"] == f"disk:{disk}"
    assert same(disk, versions.disks[0])
    out = run_vmpack.good("update", disk, versions.packs[1], "--was", versions.packs[0])
    assert f"{disk}  noise:1 -> noise:2" in out
    assert same(disk, versions.disks[1])


def test_a_strangers_word_what_a_disk_was_proves_nothing(
    run_vmpack: Vmpack, versions: Versions, room: Path
) -> None:
    """The map of a stranger's pack could call all unused that a guest has written."""
    disk, stripped = room / "brought.raw", room / "stripped"
    shutil.copyfile(versions.disks[0], disk)
    shutil.copytree(versions.packs[0], stripped)
    drop_layer(stripped, "envelope")
    done = run_vmpack("update", disk, versions.packs[1], "--was", stripped)
    refused(done, TRUST, str(stripped), "not signed")
    assert same(disk, versions.disks[0])


def test_the_old_version_is_believed_although_a_newer_one_was_used(
    run_vmpack: Vmpack, disk: Path, versions: Versions, room: Path
) -> None:
    run_vmpack.good("update", disk, versions.packs[1])
    brought = room / "brought.raw"
    shutil.copyfile(versions.disks[0], brought)
    run_vmpack.good("update", brought, versions.packs[1], "--was", versions.packs[0])
    assert same(brought, versions.disks[1])


def test_unpack_replaces_no_disk_that_a_guest_runs_from(
    run_vmpack: Vmpack, disk: Path, versions: Versions, room: Path
) -> None:
    with running(room, f"file={disk},format=raw,if=virtio") as process:
        done = run_vmpack("unpack", versions.packs[1], "-o", disk, "--force")
        refused(done, IN_USE, str(disk), f"process {process.pid}")
    assert same(disk, versions.disks[0])
    run_vmpack.good("unpack", versions.packs[1], "-o", disk, "--force")
    assert same(disk, versions.disks[1])


def test_a_bundle_that_lies_leaves_version_1(
    run_vmpack: Vmpack, disk: Path, versions: Versions, room: Path
) -> None:
    spoilt = room / "spoilt"
    shutil.copytree(versions.packs[1], spoilt)
    for blob in (spoilt / "blobs/sha256").iterdir():
        if blob.stat().st_size > MIB:
            blob.write_bytes(bytes(blob.stat().st_size))
    done = run_vmpack("update", disk, spoilt, "--from", "store:")
    assert done.returncode == 5, done.stderr
    assert same(disk, versions.disks[0])
    run_vmpack.good("update", disk, versions.packs[1], "--from", "store:")
    assert same(disk, versions.disks[1])


def test_qcow2_stays_qcow2(run_vmpack: Vmpack, versions: Versions, room: Path) -> None:
    disk = room / "vms" / "noise.qcow2"
    disk.parent.mkdir()
    run_vmpack.good("unpack", versions.packs[0], "-o", disk, "--format", "qcow2")
    report = run_vmpack.json("update", disk, versions.packs[1])
    assert content_bytes(report, "disk:") > 70e6
    tool("qemu-img", "check", disk)
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", disk, versions.disks[1])
    assert names(disk.parent) == {"noise.qcow2"}
