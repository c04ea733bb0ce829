"""kill -9 and Ctrl-C at any moment: nothing half done has the final name, nothing is done twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.hostile.refusal import INTERRUPTED, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.mirror import Mirror, mirror
from tests.round_trip.packs import author_key, trusting_host
from tests.round_trip.small import make_disk, write_files

MIB = 1 << 20
MOMENTS = 20
UNDER_WAY = 12 * MIB
"""What can have been sent and is not yet in the disk: four connections, each two pieces of up to
1 MiB ahead and one in the making."""

BYTES_PER_SECOND = 40e6


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack, a folder, of a disk with 100 MB of noise in files."""
    folder = tmp_path_factory.mktemp("medium")
    files = write_files(folder / "files", seed=11, big=48, small=200)
    image = make_disk(folder / "medium.raw", files, size_mib=160)
    author = Vmpack(author_key().parents[1])
    author.good("pack", image, "-o", f"{folder}/medium/", "--no-packages")
    return folder / "medium"


@pytest.fixture(scope="module")
def whole_bytes(medium: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """What one unpack that nobody interrupts makes the mirror send."""
    folder = tmp_path_factory.mktemp("whole")
    with mirror(medium) as one:
        host = trusting_host(folder / "home")
        host.good("unpack", one.url, "-o", folder / "d.raw", "--from", "store:", "--no-store")
        (folder / "d.raw").unlink()
        return one.sent_bytes


def arguments(one: Mirror, disk: Path) -> list[str | Path]:
    return ["unpack", one.url, "-o", disk, "--from", "store:", "--no-store", "--quiet"]


def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    """Send a signal to a process that we started; what it had printed."""
    os.kill(process.pid, number)
    return process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_an_unpack_that_was_killed_goes_on_where_it_was(
    run_vmpack: Vmpack, medium: Path, whole_bytes: int, room: Path, moment: int
) -> None:
    """Moments are counted in bytes that the mirror has sent, so that a slow host changes nothing;
    the last ones come after the last byte, while the disk is finished.
    """
    chance = random.Random(f"unpack {moment}")
    disk = room / "rebuilt.raw"
    with mirror(medium, bytes_per_second=BYTES_PER_SECOND) as one:
        process = run_vmpack.start(*arguments(one, disk))
        if moment < MOMENTS - 3:
            one.wait_until_sent(chance.randrange(whole_bytes))
        else:
            one.wait_until_sent(whole_bytes)
            time.sleep(chance.uniform(0, 0.4))
        end(process, signal.SIGKILL)
        finished = disk.exists()
        before = one.sent_bytes
        if finished:
            assert moment >= MOMENTS - 3, "the disk had its name before it was complete"
        else:
            report = run_vmpack.json(*arguments(one, disk))
            assert (
                sum(s["content_bytes"] for s in report["supplied"]) + report["resumed_bytes"]
                == report["content_bytes"]
            )
        assert one.sent_bytes <= whole_bytes + UNDER_WAY, f"killed after {before} bytes"
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]
    assert not disk.with_name("rebuilt.raw.partial").exists()


@pytest.mark.slow
def test_an_unpack_that_is_killed_again_and_again_still_ends(
    run_vmpack: Vmpack, medium: Path, whole_bytes: int, room: Path
) -> None:
    chance = random.Random(77)
    disk = room / "rebuilt.raw"
    kills = 5
    with mirror(medium, bytes_per_second=BYTES_PER_SECOND) as one:
        for _ in range(kills):
            process = run_vmpack.start(*arguments(one, disk))
            one.wait_until_sent(one.sent_bytes + chance.randrange(2 * MIB, whole_bytes // 7))
            end(process, signal.SIGKILL)
            assert not disk.exists()
        run_vmpack.good(*arguments(one, disk))
        assert one.sent_bytes <= whole_bytes + kills * UNDER_WAY
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(6))
def test_an_unpack_to_another_container_that_was_killed_is_right_the_second_time(
    run_vmpack: Vmpack, medium: Path, room: Path, moment: int
) -> None:
    """Half of the moments lie in the rebuilding of the disk, half in its conversion; qemu-img,
    which is not killed, may still be at work when the same command is given again.
    """
    chance = random.Random(f"qcow2 {moment}")
    disk = room / "rebuilt.qcow2"
    command: list[str | Path] = ["unpack", medium, "-o", disk, "--format", "qcow2", "-q"]
    command += ["--from", "store:", "--no-store"]
    process = run_vmpack.start(*command)
    if moment < 3:
        wait_for_bytes(process, disk.with_name("rebuilt.qcow2.partial"), chance.randrange(90 * MIB))
    else:
        wait_for_bytes(
            process, disk.with_name("rebuilt.qcow2.qcow2.partial"), chance.randrange(50 * MIB)
        )
    end(process, signal.SIGKILL)
    assert not disk.exists(), "the disk had its name before it was complete"
    report = run_vmpack.json(*command)
    assert report["resumed_bytes"] > 0
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]
    tool("qemu-img", "check", disk)
    assert names(room) == {"rebuilt.qcow2", "home"}


def test_a_conversion_that_outlives_its_killed_vmpack_does_not_disturb_the_next_one(
    run_vmpack: Vmpack, medium: Path, room: Path
) -> None:
    """On a slow medium qemu-img works on for minutes; here it is held in the middle."""
    disk = room / "rebuilt.qcow2"
    command: list[str | Path] = ["unpack", medium, "-o", disk, "--format", "qcow2", "-q"]
    command += ["--from", "store:", "--no-store"]
    process = run_vmpack.start(*command)
    wait_for_bytes(process, disk.with_name("rebuilt.qcow2.qcow2.partial"), 0)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (converter,) = map(int, children)
    os.kill(converter, signal.SIGSTOP)
    try:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        run_vmpack.good(*command)
    finally:
        os.kill(converter, signal.SIGCONT)
        process.communicate()
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]
    assert names(room) == {"rebuilt.qcow2", "home"}


def wait_for_bytes(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Return when a running process has so many bytes of a file on the disk."""
    while not path.exists() or path.stat().st_blocks * 512 <= count:
        assert process.poll() is None, f"{path} never held {count} bytes"
        time.sleep(0.0005)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("ending", ["", "/"], ids=["file", "folder"])
def test_a_copy_that_was_killed_is_right_the_second_time(
    run_vmpack: Vmpack, medium: Path, room: Path, moment: int, ending: str
) -> None:
    """Moments are counted in bytes that were read; the last comes after the last byte."""
    chance = random.Random(f"copy {moment}")
    whole = sum(path.stat().st_size for path in (medium / "blobs/sha256").iterdir())
    output = room / "copied"
    with mirror(medium) as one:
        command: list[str | Path] = ["copy", one.url, f"{output}{ending}", "-q"]
        process = run_vmpack.start(*command)
        if moment < 3:
            one.wait_until_sent(chance.randrange(whole))
        else:
            one.wait_until_sent(whole)
            time.sleep(chance.uniform(0, 0.2))
        end(process, signal.SIGKILL)
        if output.exists():
            assert moment >= 3, "the copy had its name before it was complete"
        else:
            run_vmpack.good(*command)
    run_vmpack.good("copy", medium, f"{room}/undisturbed{ending}")
    tool("diff", "-r", output, room / "undisturbed")
    assert names(room) == {"copied", "undisturbed", "home"}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "/"], ids=["file", "folder"])
def test_a_pack_that_is_killed_leaves_nothing_under_the_final_name(
    author: Vmpack, medium: Path, room: Path, ending: str
) -> None:
    image, output = medium.with_name("medium.raw"), room / "again"
    command: list[str | Path] = ["pack", image, "-o", f"{output}{ending}", "--no-packages"]
    command += ["--name", "medium", "-q"]
    started = time.monotonic()
    author.good(*command)
    usual_s = time.monotonic() - started
    output.rename(room / "undisturbed")
    chance = random.Random(f"pack {ending}")
    early = 0
    for _ in range(MOMENTS // 2):
        process = author.start(*command)
        time.sleep(chance.uniform(0.2, 1) * usual_s)
        end(process, signal.SIGKILL)
        early += not output.exists()
        if output.exists():
            tool("diff", "-r", output, room / "undisturbed")
            remove(output)
    assert early >= MOMENTS // 4, "most kills came too late"
    author.good(*command)
    tool("diff", "-r", output, room / "undisturbed")
    assert names(room) == {"again", "undisturbed", "author"}


def remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink()


def test_an_interrupted_unpack_says_so_in_one_line(
    run_vmpack: Vmpack, medium: Path, whole_bytes: int, room: Path
) -> None:
    disk = room / "rebuilt.raw"
    with mirror(medium, bytes_per_second=BYTES_PER_SECOND) as one:
        for share in (0.1, 0.6):
            process = run_vmpack.start(*arguments(one, disk))
            one.wait_until_sent(int(whole_bytes * share))
            printed, said = end(process, signal.SIGINT)
            done = subprocess.CompletedProcess([], process.returncode, printed, said)
            refused(done, INTERRUPTED, output=disk)
            assert said == "vmpack: interrupted\n"
        run_vmpack.good(*arguments(one, disk))
        assert one.sent_bytes <= whole_bytes + 2 * UNDER_WAY
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]


def test_an_interrupted_pack_says_so_in_one_line_and_leaves_nothing(
    author: Vmpack, medium: Path, room: Path
) -> None:
    output = room / "new.vmpack"
    process = author.start(
        "pack", medium.with_name("medium.raw"), "-o", output, "--no-packages", "-q"
    )
    deadline = time.monotonic() + 60
    while not list(room.glob("new.vmpack.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    printed, said = end(process, signal.SIGINT)
    done = subprocess.CompletedProcess([], process.returncode, printed, said)
    refused(done, INTERRUPTED, output=output)
    assert said == "vmpack: interrupted\n"
    assert [path.name for path in room.iterdir() if path.name.startswith("new")] == []


def test_two_unpacks_to_one_name_do_not_disturb_each_other(
    run_vmpack: Vmpack, medium: Path, whole_bytes: int, room: Path
) -> None:
    disk = room / "rebuilt.raw"
    with mirror(medium, bytes_per_second=BYTES_PER_SECOND / 4) as one:
        first = run_vmpack.start(*arguments(one, disk))
        one.wait_until_sent(whole_bytes // 4)
        refused(run_vmpack(*arguments(one, disk)), 6, str(disk), output=disk)
        _, said = first.communicate(timeout=120)
        assert first.returncode == 0, said
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]
