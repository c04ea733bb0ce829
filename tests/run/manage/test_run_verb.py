"""`vmpack run`, `ps`, `stop` and `rm`, as a user has them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.boot import guest_arguments
from packer.cli.main import build_parser
from packer.run.qemu.processes import Process, boot_id, identify, is_alive
from packer.run.vm.record import Running
from packer.run.vm.vm import Vm, the_vm
from packer.sources.store import Store
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import Packed
from tests.run.vms import BOOT_S, END_S, MEMORY, VmHost, job_file, vm_host

__all__ = ["vm_host"]

pytestmark = pytest.mark.guest
OPTIONS = ("--memory", MEMORY, "--cpus", "1", "--offline", "--from", "store:")


def listed(host: VmHost, *options: str | Path) -> dict[str, dict[str, Any]]:
    found = json.loads(host.vmpack.good("ps", "--json", *options))
    return {one["name"]: one for one in found["vms"]}


def leases_of_vms(host: VmHost) -> list[str]:
    """Their names; a server, which lives on for a while, has one of its own."""
    leases = Store(host.vmpack.home / "data" / "store").leases.leased()
    return [name for name in leases if not name.startswith("@")]


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_mode)
        for path in folder.rglob("*")
    }


@pytest.fixture
def started(vm_host: VmHost, busybox: Packed) -> Vm:
    """A VM that runs in the background; where its guest has come to does not matter."""
    out = vm_host.vmpack.good("run", busybox.full, *OPTIONS, "--background")
    assert out == "busybox\n"
    return the_vm("busybox", vm_host.vmpack.home / "state")


def test_a_vm_keeps_what_it_wrote_and_others_do_not_have_it(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    """Also: the pack's folder is not written to, and an ephemeral VM leaves nothing."""
    before = snapshot(busybox.full)
    write = job_file(tmp_path, "echo KEPT > /root/kept")
    arguments = guest_arguments("first", job_file=write)
    out = vm_host.vmpack.good("run", busybox.full, *OPTIONS, "--", *arguments)
    assert "nonce=first digests=ok" in out
    assert listed(vm_host)["busybox"]["state"] == "stopped"

    look = job_file(tmp_path, "cat /root/kept || echo NOTHING-KEPT")
    out = vm_host.vmpack.good("run", "busybox", "--", *guest_arguments("second", job_file=look))
    assert "\nKEPT" in out
    assert "nonce=second digests=ok" in out

    one_time = (*OPTIONS, "--ephemeral", "--", *guest_arguments("third", job_file=look))
    out = vm_host.vmpack.good("run", busybox.full, *one_time)
    assert "NOTHING-KEPT" in out
    assert "nonce=third digests=ok" in out
    assert os.listdir(vm_host.vmpack.home / "state" / "vms") == ["busybox"]  # noqa: PTH208
    assert leases_of_vms(vm_host) == [the_vm("busybox", vm_host.vmpack.home / "state").lease]
    assert snapshot(busybox.full) == before


def test_a_pack_that_was_used_is_remembered(started: Vm, vm_host: VmHost) -> None:
    assert started.record.ref_name == "busybox:1"
    assert "busybox" in (vm_host.vmpack.home / "state" / "used.json").read_text()


def test_two_state_folders_are_two_hosts(vm_host: VmHost, busybox: Packed, tmp_path: Path) -> None:
    """The same name in both, at the same time; one of them lies on a stick, say."""
    states = [tmp_path / "stick", tmp_path / "other"]
    vm_host.states += states
    for state in states:
        vm_host.vmpack.good("run", busybox.full, *OPTIONS, "--background", "--state", state)
    found = [listed(vm_host, "--state", state)["busybox"] for state in states]
    assert [one["state"] for one in found] == ["running", "running"]
    for key in ("pid", "uuid", "mac", "folder"):
        assert found[0][key] != found[1][key]
    assert all(one["mac"].startswith("52:54:00:") for one in found)
    assert listed(vm_host) == {}
    vm_host.vmpack.good("stop", "busybox", "--now", "--state", states[0])
    assert listed(vm_host, "--state", states[0])["busybox"]["state"] == "stopped"
    assert listed(vm_host, "--state", states[1])["busybox"]["state"] == "running"


def test_a_second_run_attaches_to_the_one_that_runs(started: Vm, vm_host: VmHost) -> None:
    running = started.running()
    assert running is not None
    client = vm_host.vmpack.start("run", "busybox", "--", "-device", "no-such-device")
    assert client.stdout is not None
    seen = _read_until(client.stdout.fileno(), b"Linux version")
    client.kill()  # whoever attends may go: the VM does not
    _, said = client.communicate(timeout=END_S)
    assert b"Linux version" in seen
    assert "runs already" in said
    again = started.running()
    assert again is not None
    assert again.process == running.process
    assert list(listed(vm_host)) == ["busybox"]


def test_new_makes_another_vm(started: Vm, vm_host: VmHost) -> None:
    pack = started.record.pack
    out = vm_host.vmpack.good("run", pack, *OPTIONS, "--new", "--background")
    assert out == "busybox-2\n"
    found = listed(vm_host)
    assert found["busybox"]["pid"] != found["busybox-2"]["pid"]
    assert found["busybox"]["uuid"] != found["busybox-2"]["uuid"]
    assert found["busybox"]["sharers"] == 2
    table = vm_host.vmpack.good("ps").splitlines()
    assert [line.split()[0] for line in table] == ["VM", "busybox", "busybox-2"]


def test_ps_tells_what_a_vm_holds(started: Vm, vm_host: VmHost) -> None:
    found = listed(vm_host)["busybox"]
    running = started.running()
    assert running is not None
    assert found["pid"] == running.process.pid
    assert found["accelerator"] == "tcg"  # as the settings say
    assert found["machine"].startswith("pc-i440fx-")
    assert found["memory_bytes"] > 10 << 20
    assert found["own_bytes"] >= started.overlay.stat().st_blocks * 512


def test_ps_lists_the_others_when_one_vm_is_damaged(vm_host: VmHost, busybox: Packed) -> None:
    whole, bad = vm_host.vm(busybox.full), vm_host.vm(busybox.full)
    (bad.folder / "vm.json").write_text("{")
    done = vm_host.vmpack("ps")
    assert done.returncode == 3
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[:3]] == ["VM", whole.name, bad.name]
    assert rows[2][1] == "damaged"
    assert f"{bad.name} is damaged: {bad.folder / 'vm.json'}" in done.stdout
    found = json.loads(vm_host.vmpack("ps", "--json").stdout)
    assert [one["name"] for one in found["vms"]] == [whole.name]
    assert [one["folder"] for one in found["damaged"]] == [str(bad.folder)]


def test_ps_lists_the_others_when_one_store_cannot_be_read(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    vm_host.vm(busybox.full)
    lost = vm_host.vm(busybox.full).changed(store=str(other))
    Store(other).leases.lease("one", np.zeros((1, 32), dtype=np.uint8))
    (other / "leases" / "two").write_bytes(b"half a digest")
    done = vm_host.vmpack("ps")
    assert done.returncode == 1
    assert f"{lost.name}: {other}/leases/two: expected digests" in done.stdout
    found = json.loads(vm_host.vmpack("ps", "--json").stdout)["vms"]
    assert [one["shared_bytes"] is None for one in found] == [False, True]


def test_a_running_vm_is_removed_by_force_only(started: Vm, vm_host: VmHost) -> None:
    running = started.running()
    assert running is not None
    refused = vm_host.vmpack("rm", "busybox")
    assert refused.returncode == 6
    assert refused.stderr.startswith("vmpack: the VM busybox runs\n")
    vm_host.vmpack.good("rm", "busybox", "--force")
    assert not is_alive(running.process)
    assert listed(vm_host) == {}
    assert not started.folder.exists()
    assert leases_of_vms(vm_host) == []


def test_an_ephemeral_vm_that_runs_is_removed_by_force(vm_host: VmHost, busybox: Packed) -> None:
    """It goes with its QEMU, before anybody could remove it."""
    name = vm_host.vmpack.good("run", busybox.full, *OPTIONS, "--ephemeral", "--background").strip()
    assert vm_host.vmpack.good("rm", name, name, "--force") == ""
    assert listed(vm_host) == {}


def test_stop_says_what_came_of_it(started: Vm, vm_host: VmHost) -> None:
    assert vm_host.vmpack.good("stop", "busybox", "--grace", "0.2") == "busybox was stopped\n"
    assert vm_host.vmpack.good("stop", "busybox") == "busybox was not running\n"
    assert vm_host.vmpack("stop", "another").returncode == 2


def test_an_interrupt_shuts_a_vm_down(vm_host: VmHost, busybox: Packed) -> None:
    client = vm_host.vmpack.start("run", busybox.full, *OPTIONS, "--ephemeral")
    assert client.stdout is not None
    _read_until(client.stdout.fileno(), b"Linux version")
    vm = vm_host.vms()[0]
    client.send_signal(signal.SIGINT)
    assert client.stderr is not None
    _read_until(client.stderr.fileno(), b"is shut down")
    vm_host.vmpack.good("stop", vm.name, "--now")  # this guest does not hear its power button
    client.communicate(timeout=END_S)
    assert client.returncode == 130
    assert vm_host.vms() == []


@contextmanager
def on_a_terminal(
    vmpack: Vmpack, *arguments: str | Path
) -> Iterator[tuple[subprocess.Popen[bytes], int, list[Any]]]:
    """The command on a terminal: its process, our end of it, and the attributes it began with."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [*vmpack.program, *map(str, arguments)],
        env=vmpack.environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    try:
        yield process, ours, before
        assert termios.tcgetattr(theirs) == before
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(END_S)
        os.close(ours)
        os.close(theirs)


def _read_until(fd: int, word: bytes, seconds: float = BOOT_S) -> bytes:
    seen, deadline = b"", time.monotonic() + seconds
    while word not in seen:
        left = deadline - time.monotonic()
        assert left > 0, seen[-1000:]
        if select.select([fd], [], [], left)[0]:
            data = os.read(fd, 1 << 16)
            assert data, seen[-1000:]
            seen += data
    return seen


def test_a_person_leaves_the_console_and_the_vm_goes_on(started: Vm, vm_host: VmHost) -> None:
    """What is typed before reaches the guest; the terminal is as it was."""
    with on_a_terminal(vm_host.vmpack, "run", "busybox") as (process, terminal, before):
        _read_until(terminal, b"Linux version")
        assert termios.tcgetattr(terminal) != before  # raw: Ctrl-C is the guest's
        os.write(terminal, b"\x03")
        _read_until(terminal, b"[")
        assert process.poll() is None
        os.write(terminal, b"\x1d")
        _read_until(terminal, b"goes on: vmpack run busybox attaches")
        assert process.wait(END_S) == 0
    assert listed(vm_host)["busybox"]["state"] == "running"


def test_a_terminal_is_restored_when_the_command_is_told_to_end(
    started: Vm, vm_host: VmHost
) -> None:
    with on_a_terminal(vm_host.vmpack, "run", "busybox") as (process, terminal, _):
        _read_until(terminal, b"Linux version")
        process.terminate()
        _read_until(terminal, b"is shut down")
        process.terminate()  # it is told already
        vm_host.vmpack.good("stop", "busybox", "--now")
        assert process.wait(END_S) == 0


def test_a_qemu_that_is_killed_is_an_error(started: Vm, vm_host: VmHost) -> None:
    client = vm_host.vmpack.start("run", "busybox")
    assert client.stdout is not None
    _read_until(client.stdout.fileno(), b"Linux version")
    running = started.running()
    assert running is not None
    os.kill(running.process.pid, signal.SIGKILL)
    _, said = client.communicate(timeout=END_S)
    assert client.returncode == 1
    assert "vmpack: busybox: QEMU has ended unexpectedly, killed by signal 9" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing-there",), 2, "neither a VM of this host nor a pack"),
        (("{pack}", "--name", "../up"), 2, "not a name of a VM"),
        (("{pack}", "--memory", "1"), 2, "at least 128"),
        (("{pack}", "--cpus", "0"), 2, "expected 1 to"),
        (("{pack}", "--accel", "magic"), 2, "invalid choice"),
        (("{pack}", "--from", "floppy:", "--state", "{tmp}/a"), 2, "floppy:"),
        (("{pack}", "--state", "{file}"), 1, "file/vms: Not a directory"),
        (("{pack}", "--state", "{tmp}/b", "--", "-no-such"), 1, "QEMU does not start"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    vm_host: VmHost,
    busybox: Packed,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    (tmp_path / "file").write_text("")
    vm_host.states += [tmp_path / "a", tmp_path / "b"]
    values = {"pack": busybox.full, "tmp": tmp_path, "file": tmp_path / "file"}
    done = vm_host.vmpack("run", *(one.format(**values) for one in arguments))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert all(vm.running() is None for vm in vm_host.vms())


def test_what_follows_two_hyphens_is_for_qemu_wherever_options_stand() -> None:
    for words in (["demo", "--cpus", "1"], ["--cpus", "1", "demo"]):
        options = build_parser().parse_args(["run", *words, "--", "-m", "64", "--", "--cpus"])
        assert (options.vm, options.cpus) == ("demo", 1)
        assert options.passed == ["-m", "64", "--", "--cpus"]
    assert build_parser().parse_args(["inspect", "--", "-odd.raw"]).what == "-odd.raw"


def test_a_pack_of_a_stranger_is_not_run(
    stranger: Vmpack, busybox: Packed, short_folder: Path
) -> None:
    environment = {"XDG_RUNTIME_DIR": str(short_folder)}
    done = stranger("run", busybox.full, environment=environment)
    assert done.returncode == 4
    assert not (stranger.home / "state" / "vms").exists()


def test_a_vm_of_another_pack_is_not_taken_for_this_one(
    vm_host: VmHost, busybox: Packed, author: Vmpack, tmp_path: Path
) -> None:
    image = tmp_path / "busybox.raw"
    image.write_bytes(bytes(1 << 20) + os.urandom(1 << 16) + bytes(960 << 10))
    other = tmp_path / "other.vmpack"
    author.good("pack", image, "-o", other, "--name", "busybox", "--pack-version", "2", "-q")
    vm_host.vm(busybox.full)
    done = vm_host.vmpack("run", other)
    assert done.returncode == 6
    assert "is of busybox:1" in done.stderr
    assert "--new" in done.stderr


def test_what_an_ephemeral_vm_left_when_all_was_killed_is_removed(
    vm_host: VmHost, busybox: Packed
) -> None:
    vm = vm_host.vm(busybox.full).changed(ephemeral=True, maker=identify(os.getpid()))
    assert list(listed(vm_host)) == [vm.name]  # it is about to be started
    killed = Process(os.getpid(), 0, boot_id())
    vm.note_running(
        Running(process=killed, runtime="", accelerator="tcg", console_start=0, started=0.0)
    )
    (vm.folder.parent / ".gone-0123").mkdir()
    assert listed(vm_host) == {}
    assert os.listdir(vm.folder.parent) == []  # noqa: PTH208
    assert not vm.folder.exists()
    assert leases_of_vms(vm_host) == []
