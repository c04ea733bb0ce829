"""kill -9 and Ctrl-C at any moment: nothing half done has the final name, nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


def kill_while_it_sends(
    process: subprocess.Popen[str],
    one: Mirror,
    whole_bytes: int,
    chance: random.Random,
    *,
    late_s: float | None,
) -> None:
    """Kill a process at a random byte that a mirror sends it, or up to `late_s` after the last."""
    if late_s is None:
        one.send_until(chance.randrange(whole_bytes - MIB))
    else:
        one.wait_until_sent(whole_bytes)
        time.sleep(chance.uniform(0, late_s))
    end(process, signal.SIGKILL)
    one.go_on()


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
        kill_while_it_sends(
            process, one, whole_bytes, chance, late_s=0.4 if moment >= MOMENTS - 3 else None
        )
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


FETCHED_AHEAD = 48 * MIB
"""What of a blob can have been sent and not be appended yet: four connections, each with spans of
8 MiB, and what came before its turn."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("form", ["copy.vmpack", "copy/"])
def test_a_copy_over_the_network_is_taken_up_where_it_stopped(
    run_vmpack: Vmpack,
    medium: Path,
    room: Path,
    form: str,
    number: signal.Signals,
) -> None:
    chance = random.Random(f"copy {form} {number}")
    weight = sum(path.stat().st_size for path in medium.rglob("*") if path.is_file())
    place = room / "out"
    place.mkdir()
    with mirror(medium, bytes_per_second=BYTES_PER_SECOND) as one:
        words = ("copy", one.url, f"{place}/{form}", "--quiet")
        process = run_vmpack.start(*words)
        one.send_until(chance.randrange(50 * MIB, weight - MIB))
        printed, said = end(process, number)
        one.go_on()
        if number == signal.SIGINT:
            done = subprocess.CompletedProcess([], process.returncode, printed, said)
            refused(done, INTERRUPTED, output=place / form)
            assert said == "vmpack: interrupted\n"
        assert not (place / form).exists()
        (left,) = place.iterdir()
        kept = sum(path.stat().st_size for path in left.rglob("*") if path.is_file())
        assert kept >= one.sent_bytes - FETCHED_AHEAD
        before = one.sent_bytes
        run_vmpack.good(*words)
        assert one.sent_bytes - before <= weight - kept + MIB
    assert [path.name for path in place.iterdir()] == [form.rstrip("/")]
    run_vmpack.good("copy", place / form, f"{room}/again/")
    tool("diff", "-r", medium, room / "again")


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
            one.send_until(one.sent_bytes + chance.randrange(2 * MIB, whole_bytes // 7))
            end(process, signal.SIGKILL)
            one.go_on()
            assert not disk.exists()
        run_vmpack.good(*arguments(one, disk))
        assert one.sent_bytes <= whole_bytes + kills * UNDER_WAY
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]


CONVERTER = """#!/bin/sh
[ "$1" = convert ] || exec {real} "$@"
shift
echo $$ > {folder}/pid.new
mv {folder}/pid.new {folder}/pid
kill -STOP $$
exec {real} convert -r 2M "$@"
"""
"""qemu-img on a slow medium: it is held before its first byte, then takes a minute for a disk."""


class Converter:
    """The converter that a vmpack with `environment` starts, which may outlive it."""

    def __init__(self, folder: Path) -> None:
        real = shutil.which("qemu-img")
        assert real is not None
        program = folder / "qemu-img"
        program.write_text(CONVERTER.format(real=real, folder=folder))
        program.chmod(0o755)
        self.environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
        self._pid = folder / "pid"
        self._fd: int | None = None

    def wait_until_started(self, parent: subprocess.Popen[str]) -> None:
        """Return when it is held before its first byte."""
        wait_until(self._pid.exists, parent)
        self._fd = os.pidfd_open(int(self._pid.read_text()))
        wait_until(self.held, parent)

    def held(self) -> bool:
        status = Path(f"/proc/{self._pid.read_text().strip()}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    def hold(self) -> None:
        self.send(signal.SIGSTOP)
        wait_until(self.held)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        assert self._fd is not None
        signal.pidfd_send_signal(self._fd, number)

    def ended(self, wait_s: float = 0) -> bool:
        assert self._fd is not None
        return bool(select.select([self._fd], [], [], wait_s)[0])

    def close(self) -> None:
        """End it, if it was started and has not ended."""
        if self._fd is not None:
            if not self.ended():
                self.send(signal.SIGKILL)
            os.close(self._fd)


@pytest.fixture
def converter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    one = Converter(tmp_path_factory.mktemp("converter"))
    yield one
    one.close()


def to_qcow2(medium: Path, disk: Path) -> list[str | Path]:
    command: list[str | Path] = ["unpack", medium, "-o", disk, "--format", "qcow2", "-q"]
    return [*command, "--from", "store:", "--no-store"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(6))
def test_an_unpack_to_another_container_that_was_killed_is_right_the_second_time(
    run_vmpack: Vmpack, medium: Path, room: Path, converter: Converter, moment: int
) -> None:
    """Half of the moments lie in the rebuilding of the disk, half in its conversion; qemu-img,
    which is not killed, is still at work when the same command is given again.
    """
    chance = random.Random(f"qcow2 {moment}")
    disk = room / "rebuilt.qcow2"
    command = to_qcow2(medium, disk)
    process = run_vmpack.start(*command, environment=converter.environment)
    if moment < 3:
        wait_for_bytes(process, disk.with_name("rebuilt.qcow2.partial"), chance.randrange(90 * MIB))
    else:
        converter.wait_until_started(process)
        converter.go_on()
        wait_for_bytes(
            process, disk.with_name("rebuilt.qcow2.qcow2.partial"), chance.randrange(8 * MIB)
        )
    end(process, signal.SIGKILL)
    assert not disk.exists(), "the disk had its name before it was complete"
    report = run_vmpack.json(*command)
    assert report["resumed_bytes"] > 0
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]
    tool("qemu-img", "check", disk)
    assert names(room) == {"rebuilt.qcow2", "home"}


@pytest.mark.parametrize("written_bytes", [None, MIB], ids=["at-its-start", "in-the-middle"])
def test_a_conversion_that_outlives_its_killed_vmpack_does_not_disturb_the_next_one(
    run_vmpack: Vmpack, medium: Path, room: Path, converter: Converter, written_bytes: int | None
) -> None:
    """On a slow medium qemu-img works on for minutes; here it is held meanwhile."""
    disk = room / "rebuilt.qcow2"
    command = to_qcow2(medium, disk)
    process = run_vmpack.start(*command, environment=converter.environment)
    converter.wait_until_started(process)
    if written_bytes is not None:
        converter.go_on()
        wait_for_bytes(process, disk.with_name("rebuilt.qcow2.qcow2.partial"), written_bytes)
        converter.hold()
    end(process, signal.SIGKILL)
    assert not disk.exists()
    run_vmpack.good(*command)
    assert converter.held(), "the first conversion was over before the second"
    converter.go_on()
    if written_bytes is None:  # the disk that it was to read has gone
        assert converter.ended(wait_s=60)
    assert run_vmpack.json("verify", disk, medium, "--exact")["right"]
    assert names(room) == {"rebuilt.qcow2", "home"}


def wait_until(
    true: Callable[[], bool], parent: subprocess.Popen[str] | None = None, limit_s: float = 60
) -> None:
    """Return when something is so, which must be before a process ends."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert parent is None or parent.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline, f"not so within {limit_s} s"
        time.sleep(0.002)


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
        kill_while_it_sends(process, one, whole, chance, late_s=0.2 if moment >= 3 else None)
        if output.exists():
            assert moment >= 3, "the copy had its name before it was complete"
        else:
            run_vmpack.good(*command)
    run_vmpack.good("copy", medium, f"{room}/undisturbed{ending}")
    tool("diff", "-r", output, room / "undisturbed")
    assert names(room) == {"copied", "undisturbed", "home"}


SIGNALLED = """
import os, sys
from packer.artifact.layout import staging
from packer.cli.main import main
number, left = int(os.environ["SIGNAL"]), int(os.environ["SIGNAL_AFTER_BYTES"])
write = staging.StagedBlob.write
def counted(blob, data):
    global left
    write(blob, data)
    before, left = left, left - memoryview(data).nbytes
    if left < 0 <= before:
        os.kill(os.getpid(), number)
staging.StagedBlob.write = counted
sys.exit(main())
"""
"""The command that sends itself a signal, once, when it has written so many bytes of a pack."""


def signalled(
    author: Vmpack, command: list[str | Path], number: signal.Signals, after_bytes: int
) -> subprocess.CompletedProcess[str]:
    environment = {"SIGNAL": str(int(number)), "SIGNAL_AFTER_BYTES": str(after_bytes)}
    program = Vmpack(author.home, (sys.executable, "-c", SIGNALLED))
    return program(*command, environment=environment)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "/"], ids=["file", "folder"])
def test_a_pack_that_is_killed_leaves_nothing_under_the_final_name(
    author: Vmpack, medium: Path, room: Path, ending: str
) -> None:
    """Moments are counted in bytes of blobs; the last ones come after the last bundle, while the
    pack is finished.
    """
    image, output = medium.with_name("medium.raw"), room / "again"
    command: list[str | Path] = ["pack", image, "-o", f"{output}{ending}", "--no-packages"]
    command += ["--name", "medium", "-q"]
    author.good(*command)
    output.rename(room / "undisturbed")
    whole = sum(path.stat().st_size for path in (medium / "blobs/sha256").iterdir())
    chance = random.Random(f"pack {ending}")
    for _ in range(MOMENTS // 2):
        done = signalled(author, command, signal.SIGKILL, chance.randrange(whole - MIB))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not output.exists(), "the pack had its name before it was complete"
        assert list(room.glob("again.*.partial")), "nothing was under way"
    for _ in range(MOMENTS // 4):
        left_behind = set(room.glob("again.*.partial"))
        process = author.start(*command)
        wait_for_blobs(process, room, left_behind, whole - MIB)
        time.sleep(chance.uniform(0, 0.1))
        end(process, signal.SIGKILL)
        if output.exists():
            tool("diff", "-r", output, room / "undisturbed")
            remove(output)
    author.good(*command)
    tool("diff", "-r", output, room / "undisturbed")
    assert names(room) == {"again", "undisturbed", "author"}


def wait_for_blobs(
    process: subprocess.Popen[str], room: Path, left_behind: set[Path], count: int
) -> None:
    """Return when a running process has so many bytes under a temporary name, or has ended."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # something gets another name meanwhile
            for folder in set(room.glob("again.*.partial")) - left_behind:
                if sum(path.stat().st_size for path in folder.rglob("*")) >= count:
                    return
        time.sleep(0.002)


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
            one.send_until(int(whole_bytes * share))
            printed, said = end(process, signal.SIGINT)
            one.go_on()
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
    command: list[str | Path] = ["pack", medium.with_name("medium.raw"), "-o", output, "-q"]
    done = signalled(author, [*command, "--no-packages"], signal.SIGINT, 30 * MIB)
    refused(done, INTERRUPTED, output=output)
    assert done.stderr == "vmpack: interrupted\n"
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
