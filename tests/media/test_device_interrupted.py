"""kill -9 at any moment of a write: no half-written device is a disk, and running again ends it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from packer.media.device_output import MARK
from tests.host import ROOT
from tests.media.devices import noisy, same_start
from tests.round_trip.command import Vmpack
from tests.round_trip.mirror import Mirror, mirror
from tests.round_trip.packs import author_key, trusting_host
from tests.round_trip.small import make_disk, write_files
from tests.survey.disks import MIB, loop_device

pytestmark = [*ROOT, pytest.mark.slow]
MOMENTS = 10
LATE = 3
"""So many of the moments come after the last byte has been sent, while it is flushed and read."""
SIZE = 64 * MIB
UNDER_WAY = 12 * MIB
"""What can have been sent and is not yet on the device; see tests/hostile/test_interruption.py."""
BYTES_PER_SECOND = 30e6
ONLY = ("--from", "store:", "--no-store", "--yes", "--quiet")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack, a folder, of a disk with 40 MB of noise in files."""
    folder = tmp_path_factory.mktemp("medium")
    files = write_files(folder / "files", seed=21, big=20, small=80)
    image = make_disk(folder / "medium.raw", files, size_mib=SIZE // MIB)
    author = Vmpack(author_key().parents[1])
    author.good("pack", image, "-o", f"{folder}/medium/", "--no-packages")
    return folder / "medium"


@pytest.fixture(scope="module")
def rebuilt(medium: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(the disk as unpack gives it, bytes that a mirror sends for it)."""
    folder = tmp_path_factory.mktemp("rebuilt")
    with mirror(medium) as one:
        trusting_host(folder / "home").good("unpack", one.url, "-o", folder / "disk", *ONLY[:3])
        return folder / "disk", one.sent_bytes


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def kill_at(
    process: subprocess.Popen[str], one: Mirror, whole: int, chance: random.Random, *, late: bool
) -> None:
    """Kill it at a random byte that the mirror sends it, or up to half a second after the last."""
    if late:
        one.wait_until_sent(whole)
        time.sleep(chance.uniform(0, 0.5))
    else:
        one.send_until(chance.randrange(whole - MIB))
    kill(process)
    one.go_on()


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_write_that_was_killed_goes_on_where_it_was(
    run_vmpack: Vmpack, medium: Path, rebuilt: tuple[Path, int], room: Path, moment: int
) -> None:
    """On a device full of noise. Moments are counted in bytes that the mirror has sent."""
    expected, whole = rebuilt
    chance = random.Random(f"write {moment}")
    late = moment >= MOMENTS - LATE
    with (
        loop_device(noisy(room / "device.img", SIZE + MIB)) as path,
        mirror(medium, bytes_per_second=BYTES_PER_SECOND) as one,
    ):
        process = run_vmpack.start("write", one.url, path, *ONLY)
        kill_at(process, one, whole, chance, late=late)
        start = path.read_bytes()[: 4 * MIB]
        if start[510:512] == b"\x55\xaa":
            assert late, "it was a disk before it was complete"
            assert same_start(path, expected, SIZE)
        else:
            assert start.startswith(MARK)
            assert start[512:MIB] == bytes(MIB - 512)
        before = one.sent_bytes
        report = run_vmpack.json("write", one.url, path, *ONLY)
        supplied = sum(source["content_bytes"] for source in report["supplied"])
        assert supplied + report["resumed_bytes"] == report["content_bytes"]
        assert one.sent_bytes <= whole + UNDER_WAY + MIB, f"killed after {before} bytes"
        assert same_start(path, expected, SIZE)


def test_a_write_that_is_killed_again_and_again_still_ends(
    run_vmpack: Vmpack, medium: Path, rebuilt: tuple[Path, int], room: Path
) -> None:
    expected, whole = rebuilt
    chance = random.Random(78)
    kills = 4
    with (
        loop_device(noisy(room / "device.img", SIZE)) as path,
        mirror(medium, bytes_per_second=BYTES_PER_SECOND) as one,
    ):
        for _ in range(kills):
            process = run_vmpack.start("write", one.url, path, *ONLY)
            one.send_until(one.sent_bytes + chance.randrange(2 * MIB, whole // 6))
            kill(process)
            one.go_on()
            with path.open("rb") as device:
                assert device.read(len(MARK)) == MARK
        run_vmpack.good("write", one.url, path, *ONLY)
        assert one.sent_bytes <= whole + kills * (UNDER_WAY + MIB)
        assert same_start(path, expected, SIZE)
