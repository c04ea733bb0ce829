"""vmpack write: the disk of a pack on a device, asked for, refused, proven, booted."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fixtures.boot import boot
from fixtures.loop_devices import losetup
from packer.media.block_tree import BlockTree
from packer.media.device_output import MARK
from tests.host import needs_root, run
from tests.hostile.refusal import (
    FAILED,
    IN_USE,
    INTERRUPTED,
    MISMATCH,
    MISSING,
    TRUST,
    USAGE,
    refused,
)
from tests.media.devices import asked, at_a_terminal, cheating_stick, noisy, same_start
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.mirror import mirror
from tests.round_trip.packs import Packed
from tests.round_trip.small import make_disk, pack_small, write_files
from tests.survey.disks import DISK_BYTES, MIB, empty, loop_device, whole_disk, write_at

MB = 1_000_000
SMALL = 16 * MIB
ONLY = ("--from", "store:", "--no-store")
"""Sources that have nothing: all comes from the pack."""
HELD_AT = 1_500_000
"""Bytes of a small pack after which a mirror makes its client wait: about a third."""


@pytest.fixture
def small(author: Vmpack, tmp_path: Path) -> Path:
    """The pack of a disk of 16 MiB with an ext4."""
    return pack_small(author, tmp_path / "packs")


@pytest.fixture
def rebuilt(run_vmpack: Vmpack, small: Path, tmp_path: Path) -> Path:
    """The disk as unpack gives it."""
    path = tmp_path / "rebuilt.raw"
    run_vmpack.good("unpack", small, "-o", path, *ONLY)
    return path


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    return noisy(tmp_path / "noise.img", SMALL + 3 * MIB)


# -- real guests -----------------------------------------------------------------------------------


@pytest.mark.guest
@needs_root
@pytest.mark.parametrize("name", ["busybox", pytest.param("debian-bios", marks=pytest.mark.slow)])
def test_a_guest_on_a_device_is_what_unpack_gives_and_boots(
    run_vmpack: Vmpack, pack_guest: Callable[[str], Packed], name: str, room: Path
) -> None:
    pack = pack_guest(name)
    size = int(pack.guest.facts["disk_size_bytes"])
    expected = room / "rebuilt.raw"
    run_vmpack.good("unpack", pack.full, "-o", expected, *ONLY)
    image = noisy(room / "device.img", 64 * MIB)  # the rest stays a hole
    os.truncate(image, size + 64 * MIB)
    write_at(image, size, b"behind the disk")
    with loop_device(image) as path:
        report = run_vmpack.json("write", pack.full, path, "--yes", *ONLY)
        assert (report["disk_bytes"], report["device_bytes"]) == (size, size + 64 * MIB)
        assert content_bytes(report, "pack:") == report["content_bytes"]
        assert same_start(path, expected, size)
        assert run_vmpack.json("verify", expected, pack.full, "--exact")["right"]
        nonce = secrets.token_hex(8)
        result = boot(path, firmware=pack.guest.firmware, nonce=nonce)
        assert (result.nonce, result.digests_ok) == (nonce, True), result.console[-3000:]
        assert result.disk_nonce == pack.guest.facts["nonce"]
    with image.open("rb") as file:
        file.seek(size)
        assert file.read(15) == b"behind the disk"
    assert image.stat().st_blocks * 512 < report["content_bytes"] + 100 * MB, "zeros take space"


# -- devices and files -----------------------------------------------------------------------------


@needs_root
def test_noise_becomes_the_disk_and_what_lies_behind_it_stays(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, noise: Path
) -> None:
    before = noise.read_bytes()
    with loop_device(noise) as path:
        done = run_vmpack("write", small, path, "--yes", *ONLY)
        assert done.returncode == 0, done.stderr
        assert "every byte read back" in done.stdout
        assert f"{path}: the last 3,145,728 bytes (3.1 MB) are as they were" in done.stderr
        assert "GPT" not in done.stderr
        assert run_vmpack.json("verify", path, small, "--exact")["right"]
    assert noise.read_bytes() == rebuilt.read_bytes() + before[SMALL:]


@needs_root
def test_a_blank_device_is_written_without_a_question(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, tmp_path: Path
) -> None:
    image = empty(tmp_path / "blank.img", SMALL)
    with loop_device(image) as path:
        done = run_vmpack("write", small, path, *ONLY)
        assert (done.returncode, done.stderr) == (0, "")
    assert image.read_bytes() == rebuilt.read_bytes()


@contextmanager
def partitioned(image: Path) -> Iterator[Path]:
    """A loop device whose partitions the kernel knows."""
    with loop_device(image, "--partscan") as path:
        if not list(Path(f"/sys/block/{path.name}").glob("loop*p*")):
            run("partx", "--add", path)  # a kernel that reads no tables is told
        try:
            yield path
        finally:
            subprocess.run(["partx", "--delete", path], check=False, stderr=subprocess.DEVNULL)


@needs_root
def test_the_kernel_forgets_the_partitions_that_were_there(
    run_vmpack: Vmpack, small: Path, tmp_path: Path
) -> None:
    """Whoever mounted one of them would write into the new disk at an old place."""
    with partitioned(whole_disk(tmp_path)) as path:
        known = Path(f"/sys/block/{path.name}")
        assert len(list(known.glob("loop*p*"))) == 4
        run_vmpack.good("write", small, path, "--yes", *ONLY)
        assert len(list(known.glob("loop*p*"))) <= 1


@needs_root
def test_what_lies_hidden_in_the_middle_of_a_blank_device_is_no_failure_of_it(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, tmp_path: Path
) -> None:
    """The disk wants zeros there."""
    image = empty(tmp_path / "image", SMALL)
    free = np.frombuffer(rebuilt.read_bytes(), dtype=np.uint8).reshape(-1, 4096)
    block = next(one for one in range(1000, len(free)) if not free[one : one + 2].any())
    write_at(image, block * 4096 + 512, b"hidden")
    with loop_device(image) as path:
        run_vmpack.good("write", small, path, "--yes", *ONLY)
    assert image.read_bytes() == rebuilt.read_bytes()


def test_an_image_file_is_written_in_place_and_keeps_its_size(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, noise: Path
) -> None:
    before, inode = noise.read_bytes(), noise.stat().st_ino
    run_vmpack.good("write", small, noise, "--yes", *ONLY)
    assert noise.read_bytes() == rebuilt.read_bytes() + before[SMALL:]
    assert noise.stat().st_ino == inode


def test_a_new_image_file_needs_no_question_and_gets_its_name_when_it_is_proven(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, room: Path
) -> None:
    report = run_vmpack.json("write", small, room / "new.img", *ONLY)
    assert report["notes"] == []
    assert (room / "new.img").read_bytes() == rebuilt.read_bytes()
    assert not list(room.glob("*.partial"))


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    run_vmpack: Vmpack, small: Path, noise: Path
) -> None:
    before = noise.read_bytes()
    printed = run_vmpack.good("write", small, noise, "--dry-run", *ONLY)
    assert "a disk of 16.8 MB would come from:" in printed
    assert noise.read_bytes() == before


@needs_root
def test_a_gpt_on_a_larger_device_is_told_of_its_backup(author: Vmpack, tmp_path: Path) -> None:
    """sgdisk agrees before and after it has done what the note says."""
    author.good("pack", whole_disk(tmp_path), "-o", tmp_path / "gpt.vmpack", "--no-packages")
    with loop_device(noisy(tmp_path / "larger.img", DISK_BYTES + 8 * MIB)) as path:
        done = author("write", tmp_path / "gpt.vmpack", path, "--yes", *ONLY)
        assert done.returncode == 0, done.stderr
        assert f"sgdisk -e {path} moves it there" in done.stderr
        assert "secondary header's self-pointer" in run("sgdisk", "--verify", path)
        run("sgdisk", "-e", path)
        assert "No problems found" in run("sgdisk", "--verify", path)


@needs_root
def test_a_newer_version_over_an_older_one_fetches_only_what_differs(
    run_vmpack: Vmpack, author: Vmpack, tmp_path: Path
) -> None:
    files = write_files(tmp_path / "files", seed=5, big=6, small=4)
    made = []
    for version in (1, 2):
        image = make_disk(tmp_path / f"{version}.raw", files, size_mib=32)
        made.append(tmp_path / f"v{version}")
        author.good("pack", image, "-o", f"{made[-1]}/", "--no-packages", "--name", "demo",
                    "--pack-version", str(version))  # fmt: skip
        (files / "srv" / "new").write_bytes(b"one more file" * 1000)
    with loop_device(empty(tmp_path / "stick.img", 32 * MIB)) as path:
        run_vmpack.good("write", made[0], path, *ONLY)
        with mirror(made[1]) as one:
            report = run_vmpack.json("write", one.url, path, "--yes", *ONLY)
    fetched = content_bytes(report, "pack:")
    assert report["resumed_bytes"] + fetched == report["content_bytes"]
    assert report["resumed_bytes"] > 6 * MB
    assert fetched < 2 * MB, "the same files were fetched again"


# -- the question ----------------------------------------------------------------------------------


@needs_root
def test_a_person_sees_what_would_be_lost_and_types_its_name(
    author: Vmpack, small: Path, rebuilt: Path, tmp_path: Path
) -> None:
    image = whole_disk(tmp_path)
    with loop_device(image) as path:
        done = at_a_terminal(author, f"{path.name}\n", "write", small, path, *ONLY)
        assert done.returncode == 0, done.stderr
    shown = done.stderr.split("\n")
    assert shown[:8] == [
        f"{path}: loop device on {image}, 101 MB",
        "  GPT, 4 partitions",
        '    1  ext                   "root"  50.3 MB',
        '    2  FAT                   "ESP"   16.8 MB',
        '    3  swap                  "sw"     8.4 MB',
        "    4  no known file system          18.9 MB",
        "Its first 16.8 MB will be lost.",
        f"Type {path.name} to overwrite it: vmpack: note: {path}: the last 83,886,080 bytes "
        "(83.9 MB) are as they were; the disk ends at 16,777,216",
    ]
    assert image.read_bytes()[:SMALL] == rebuilt.read_bytes()


@pytest.mark.parametrize("answer", ["yes\n", "y\n", "\n", "loop99\n", "\udcff\n", "\x04"])
def test_any_other_answer_leaves_every_byte(
    run_vmpack: Vmpack, small: Path, noise: Path, answer: str
) -> None:
    before = noise.read_bytes()
    done = at_a_terminal(run_vmpack, answer, "write", small, noise, *ONLY)
    assert done.returncode == FAILED
    assert "expected 'noise.img', found" in done.stderr
    assert "nothing written" in done.stderr
    assert done.stdout == ""
    assert noise.read_bytes() == before


@needs_root
def test_a_partition_is_called_one(run_vmpack: Vmpack, small: Path, tmp_path: Path) -> None:
    """No firmware starts a disk from there; most people mean the device that it is a part of."""
    with partitioned(whole_disk(tmp_path)) as path:
        part = path.with_name(f"{path.name}p1")
        done = at_a_terminal(run_vmpack, "no\n", "write", small, part, *ONLY)
        assert done.returncode == FAILED
        assert f"{part}: a partition of {path.name}, loop device on" in done.stderr
        done = run_vmpack("write", small, part, "--yes", *ONLY)
        assert done.returncode == 0, done.stderr
        assert f"{part}: is a partition; firmware starts from {path.name} only" in done.stderr


@needs_root
def test_another_medium_that_gets_the_name_while_somebody_reads_the_question_is_left_alone(
    run_vmpack: Vmpack, small: Path, noise: Path, tmp_path: Path
) -> None:
    """As large as the one that was shown, and of the same maker; only the kernel counted on."""
    other = tmp_path / "other"
    run("cp", noise, other)
    before = other.read_bytes()
    with (
        loop_device(noise) as path,
        asked(run_vmpack, "write", small, path, *ONLY) as (process, shown, keyboard),
    ):
        assert f"loop device on {noise}" in shown
        losetup("--detach", path)
        other.replace(noise)
        losetup(path, noise)
        os.write(keyboard, f"{path.name}\n".encode())
        _, said = process.communicate(timeout=60)
        assert process.returncode == IN_USE, said
        assert f"{path}: is not what it was when it was shown" in said
    assert noise.read_bytes() == before


def test_where_nobody_can_be_asked_it_is_refused(
    run_vmpack: Vmpack, small: Path, noise: Path
) -> None:
    before = noise.read_bytes()
    done = run_vmpack("write", small, noise, *ONLY)
    refused(done, USAGE, "noise.img: is not empty (no known file system)", "--yes overwrites it")
    assert noise.read_bytes() == before


# -- refused, whoever agrees -----------------------------------------------------------------------


def test_a_pack_that_is_not_trusted_is_refused_before_the_device_is_looked_at(
    stranger: Vmpack, small: Path, noise: Path
) -> None:
    before = noise.read_bytes()
    refused(stranger("write", small, noise, "--yes", *ONLY), TRUST)
    assert noise.read_bytes() == before


@pytest.mark.parametrize("size", [0, 512, SMALL - 512])
def test_a_device_that_is_too_small_is_left_alone(
    run_vmpack: Vmpack, small: Path, tmp_path: Path, size: int
) -> None:
    image = noisy(tmp_path / "image", size)
    before = image.read_bytes()
    done = run_vmpack("write", small, image, "--yes", *ONLY)
    refused(done, USAGE, f"too small: the disk has 16,777,216 bytes (16.8 MB), this {size:,} (")
    assert image.read_bytes() == before


@needs_root
def test_a_device_with_other_sectors_is_left_alone(
    run_vmpack: Vmpack, small: Path, noise: Path
) -> None:
    before = noise.read_bytes()
    with loop_device(noise, "--sector-size", "4096") as path:
        done = run_vmpack("write", small, path, "--yes", *ONLY)
    refused(done, USAGE, "expected sectors of 512 bytes", "found 4096")
    assert noise.read_bytes() == before


def test_another_pack_is_left_alone(run_vmpack: Vmpack, small: Path, tmp_path: Path) -> None:
    """Names that were mixed up must not cost a pack."""
    for name in ("other.vmpack", "other.iso"):
        run_vmpack.good("copy", small, tmp_path / name)
        os.truncate(tmp_path / name, SMALL)
        before = (tmp_path / name).read_bytes()
        done = run_vmpack("write", small, tmp_path / name, "--yes", *ONLY)
        refused(done, USAGE, f"{name}: is a pack")
        assert (tmp_path / name).read_bytes() == before


def test_a_disk_that_bytes_are_to_come_from_is_left_alone(
    run_vmpack: Vmpack, small: Path, noise: Path
) -> None:
    before = noise.read_bytes()
    sources = ("--from", f"disk:{noise}", "--no-store")
    done = run_vmpack("write", small, noise, "--yes", *sources)
    refused(done, IN_USE, f"{noise}: is disk:{noise}, or a part of it")
    assert noise.read_bytes() == before


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(device, mount point) of an ext4 with a file."""
    image, point = empty(tmp_path / "mounted.img", 32 * MIB), tmp_path / "point"
    point.mkdir()
    with loop_device(image) as path:
        run("mke2fs", "-q", "-t", "ext4", path)
        run("mount", path, point)
        (point / "precious").write_bytes(b"precious")
        try:
            yield path, point
            assert (point / "precious").read_bytes() == b"precious"
        finally:
            run("umount", point)
        run("e2fsck", "-fn", path)


@needs_root
def test_what_is_mounted_is_refused_with_the_way_out(
    run_vmpack: Vmpack, small: Path, mounted: tuple[Path, Path]
) -> None:
    path, point = mounted
    done = run_vmpack("write", small, path, "--yes", *ONLY)
    refused(done, IN_USE, f"{path}: is mounted at {point}", f"umount {point}")


@needs_root
def test_the_device_with_the_pack_is_refused(
    run_vmpack: Vmpack, small: Path, mounted: tuple[Path, Path]
) -> None:
    path, point = mounted
    run("cp", "-r", small, point / "demo")
    done = run_vmpack("write", point / "demo", path, "--yes", *ONLY)
    refused(done, IN_USE, f"{path}: is a disk that this host runs from; it holds the pack")


@needs_root
def test_the_system_disk_is_refused_whatever_is_said(run_vmpack: Vmpack, small: Path) -> None:
    """The real one; nothing opens it."""
    name = BlockTree().name_of(run("findmnt", "-n", "-o", "MAJ:MIN", "/").strip())
    if not name:
        pytest.skip("the root of this host is not on a block device")
    done = run_vmpack("write", small, f"/dev/{name}", "--yes", *ONLY)
    refused(done, IN_USE, "a disk that this host runs from; it holds /", "nothing overrides this")


def test_a_device_that_is_not_there_does_not_become_a_file(run_vmpack: Vmpack, small: Path) -> None:
    refused(run_vmpack("write", small, "/dev/sdzz9", *ONLY), USAGE, "there is no such device")
    assert not Path("/dev/sdzz9").exists()


def test_no_guest_starts_from_what_is_being_written(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, noise: Path
) -> None:
    with mirror(small) as one:
        one.hold_at = HELD_AT
        process = run_vmpack.start("write", one.url, noise, "--yes", "-q", *ONLY)
        one.wait_until_sent(HELD_AT)
        with pytest.raises(AssertionError, match=r"Failed to get .write. lock"):
            run("qemu-io", "-f", "raw", "-c", "write 8M 4k", noise)
        one.go_on()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert same_start(noise, rebuilt, SMALL)


# -- what goes wrong -------------------------------------------------------------------------------


@needs_root
def test_a_stick_that_is_smaller_than_it_says_is_found_out(
    run_vmpack: Vmpack, busybox: Packed, room: Path
) -> None:
    """It takes every byte without a word; only reading back tells. It is left as no disk at all."""
    with cheating_stick(room, claimed=128 * MIB, real=32 * MIB) as (stick, memory):
        done = run_vmpack("write", busybox.full, stick, *ONLY)
        assert done.returncode == MISMATCH, done.stderr
        assert done.stdout == ""
        first, *rest = done.stderr.rstrip("\n").split("\n")
        assert f"{stick}: " in first
        assert "bytes do not read back as they were written, the first at byte" in first
        assert "smaller than it says" in rest[-1]
        assert any("expected sha256:" in line for line in rest), rest
        assert memory.read_bytes()[510:512] != b"\x55\xaa"


@needs_root
def test_a_medium_that_changes_a_byte_is_found_out_and_mended_by_running_again(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, tmp_path: Path
) -> None:
    """While the mirror makes vmpack wait, the memory of the device is damaged where it was written
    already.
    """
    image = empty(tmp_path / "image", SMALL)
    command: list[str | Path] = ["--yes", "--quiet", *ONLY]
    with loop_device(image) as path, mirror(small) as one:
        one.hold_at = HELD_AT
        process = run_vmpack.start("write", one.url, path, *command)
        one.wait_until_sent(HELD_AT)
        offset = block_in_place(path, image, rebuilt)
        right = rebuilt.read_bytes()[offset]
        write_at(image, offset, bytes([right ^ 1]))
        one.go_on()
        _, said = process.communicate(timeout=60)
        assert process.returncode == MISMATCH, said
        assert f"{path}: " in said
        (line,) = (line for line in said.split("\n") if "expected sha256:" in line)
        start, end = (int(text) for text in line.strip(" [").split(")")[0].split(", "))
        assert start <= offset < end
        assert "  /srv/" in line
        assert image.read_bytes().startswith(MARK)
        run_vmpack.good("write", one.url, path, *command)
    assert image.read_bytes() == rebuilt.read_bytes()


def block_in_place(path: Path, image: Path, rebuilt: Path) -> int:
    """Wait until a block of a file's noise is in a device's memory; where it lies."""
    expected = np.frombuffer(rebuilt.read_bytes(), dtype=np.uint8).reshape(-1, 4096)
    noisy_blocks = np.flatnonzero(expected.std(axis=1) > 70)
    noisy_blocks = noisy_blocks[noisy_blocks * 4096 > 2 * MIB]
    deadline = time.monotonic() + 30
    while True:
        run("blockdev", "--flushbufs", path)
        held = np.frombuffer(image.read_bytes(), dtype=np.uint8).reshape(-1, 4096)
        same = (held[noisy_blocks] == expected[noisy_blocks]).all(axis=1)
        if same.any():
            return int(noisy_blocks[same][0]) * 4096
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.1)


def test_what_nobody_has_is_listed_and_the_next_run_goes_on(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, noise: Path, tmp_path: Path
) -> None:
    run_vmpack.good("copy", small, "--boot", tmp_path / "boot.vmpack")
    done = run_vmpack("write", tmp_path / "boot.vmpack", noise, "--yes", *ONLY)
    refused(done, MISSING, "nobody has", "the same command goes on from there")
    assert noise.read_bytes().startswith(MARK)
    done = run_vmpack("write", small, noise, *ONLY)
    refused(done, USAGE, "vmpack: half written, not usable yet.", "small:1 sha256:")
    run_vmpack.good("write", small, noise, "--yes", *ONLY)
    assert same_start(noise, rebuilt, SMALL)


def test_an_interruption_is_one_line_and_leaves_no_disk(
    run_vmpack: Vmpack, small: Path, rebuilt: Path, noise: Path
) -> None:
    with mirror(small) as one:
        one.hold_at = 2 * MIB
        process = run_vmpack.start("write", one.url, noise, "--yes", "-q", *ONLY)
        one.wait_until_sent(2 * MIB)
        os.kill(process.pid, signal.SIGINT)
        one.go_on()
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (INTERRUPTED, "vmpack: interrupted\n")
        assert noise.read_bytes().startswith(MARK)
        run_vmpack.good("write", one.url, noise, "--yes", "-q", *ONLY)
    assert same_start(noise, rebuilt, SMALL)
