"""kill -9 while an ISO image or a stick is written: nothing half done is taken for a pack."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hostile.refusal import INPUT, refused
from tests.hostile.test_interruption import end, names, signalled
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.packs import author
from tests.round_trip.small import make_disk, write_files

MIB = 1 << 20
MOMENTS = 20


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack, a folder, of a disk with some 20 MB of noise in files."""
    folder = tmp_path_factory.mktemp("media")
    files = write_files(folder / "files", seed=12, big=10, small=50)
    image = make_disk(folder / "media.raw", files, size_mib=48)
    author().good("pack", image, "-o", f"{folder}/full/", "--no-packages", "--name", "media")
    return folder / "full"


@pytest.fixture(scope="module")
def whole(medium: Path) -> int:
    return sum(path.stat().st_size for path in (medium / "blobs/sha256").iterdir())


RENAMED = """
import os, signal, sys
from pathlib import Path
from packer.cli.main import main
left = int(os.environ["RENAMES"])
rename = Path.replace
def counted(path, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(path, target)
Path.replace = counted
sys.exit(main())
"""
"""The command that kills itself before it gives so many files their names, and one more."""


def killed_before_a_name(
    host: Vmpack, command: list[str | Path], renames: int
) -> subprocess.CompletedProcess[str]:
    program = Vmpack(host.home, (sys.executable, "-c", RENAMED))
    return program(*command, environment={"RENAMES": str(renames)})


@pytest.mark.slow
def test_an_image_that_was_killed_is_not_there_and_then_is_right(
    run_vmpack: Vmpack, medium: Path, whole: int, room: Path
) -> None:
    """Half of the moments lie in the collecting of blobs, half in the writing of the image."""
    image = room / "media.iso"
    command: list[str | Path] = ["copy", medium, image, "-q"]
    chance = random.Random("iso")
    for _ in range(MOMENTS // 2):
        done = signalled(run_vmpack, command, signal.SIGKILL, chance.randrange(whole - MIB))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not image.exists()
        assert list(room.glob("media.iso.*.partial")), "nothing was under way"
    for _ in range(MOMENTS // 2):
        process = run_vmpack.start(*command)
        wait_for_image(process, room, chance.randrange(whole))
        end(process, signal.SIGKILL)
        if image.exists():
            run_vmpack.good("inspect", image)
            image.unlink()
    run_vmpack.good(*command)
    run_vmpack.good("copy", medium, room / "undisturbed.iso")
    tool("cmp", image, room / "undisturbed.iso")
    assert names(room) == {"media.iso", "undisturbed.iso", "home"}


def wait_for_image(process: subprocess.Popen[str], room: Path, count: int) -> None:
    """Return when a running process has so many bytes of an image, or has ended."""
    while process.poll() is None:
        for path in room.glob("media.iso.*.partial/whole.iso"):
            try:
                if path.stat().st_size > count:
                    return
            except FileNotFoundError:
                return  # it has its name now
        time.sleep(0.0005)


@pytest.mark.slow
def test_a_stick_that_was_killed_holds_no_half_pack_and_then_a_whole_one(
    run_vmpack: Vmpack, medium: Path, whole: int, room: Path
) -> None:
    stick = room / "stick"
    stick.mkdir()
    (stick / "mine.txt").write_text("mine")
    command: list[str | Path] = ["copy", medium, f"{stick}/", "-q"]
    chance = random.Random("stick")
    for _ in range(MOMENTS // 2):
        done = signalled(run_vmpack, command, signal.SIGKILL, chance.randrange(whole))
        if done.returncode == 0:  # what earlier runs left was taken up: too little was written
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (stick / "index.json").exists()
        refused(run_vmpack("inspect", stick), INPUT, str(stick))
    else:
        assert any((stick / "blobs" / "sha256").iterdir()), "nothing was under way"
    run_vmpack.good(*command, "--force")
    run_vmpack.good("copy", medium, f"{room}/undisturbed/")
    assert (stick / "mine.txt").read_text() == "mine"
    (stick / "mine.txt").unlink()
    tool("diff", "-r", stick, room / "undisturbed")


@pytest.mark.slow
def test_a_stick_that_is_killed_while_it_is_replaced_holds_one_of_both_packs(
    run_vmpack: Vmpack, medium: Path, room: Path
) -> None:
    """Before each file that gets its name: blobs, page and at last index.json."""
    stick = room / "stick"
    run_vmpack.good("copy", medium, "--boot", f"{stick}/")
    run_vmpack.good("copy", medium, f"{room}/undisturbed/")
    command: list[str | Path] = ["copy", medium, f"{stick}/", "--force", "-q"]
    boot = (stick / "index.json").read_bytes()
    full = (room / "undisturbed" / "index.json").read_bytes()
    renames = 0
    while True:
        done = killed_before_a_name(run_vmpack, command, renames)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (stick / "index.json").read_bytes() == boot
        found = run_vmpack.json("copy", stick, "--boot", room / f"proof-{renames}.vmpack")
        assert found["packs"]
        renames += 1
    assert renames >= 4, "index, manifest, page and index.json get their names"
    assert (stick / "index.json").read_bytes() == full
    tool("diff", "-r", stick, room / "undisturbed")


def test_an_interrupted_copy_to_a_stick_says_so_and_leaves_nothing(
    run_vmpack: Vmpack, medium: Path, whole: int, room: Path
) -> None:
    stick = room / "stick"
    stick.mkdir()
    (stick / "mine.txt").write_text("mine")
    command: list[str | Path] = ["copy", medium, f"{stick}/", "-q"]
    done = signalled(run_vmpack, command, signal.SIGINT, whole // 2)
    assert (done.returncode, done.stderr.strip()) == (130, "vmpack: interrupted")
    assert names(stick) == {"mine.txt"}
    assert not os.path.lexists(stick / "blobs")
