"""Whichever process dies, and whatever is missing: the guest goes on, and loses nothing."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from packer.errors import Error, InUseError
from packer.run.manage import session
from packer.run.manage.session import RunningVm, ask, start_vm, stop_vm
from packer.run.qemu.processes import identify, is_alive
from packer.run.qemu.qmp import ANSWER_SECONDS
from packer.run.supervisor.link import SOCKET
from packer.run.supervisor.pauses import LOOK_SECONDS
from packer.run.vm.vm import Vm
from packer.sources.store import Store
from tests.round_trip.packs import Packed
from tests.run.serving import wait_until
from tests.run.vms import (
    BOOT_S,
    END_S,
    START_S,
    VmHost,
    boot_to,
    job_file,
    kill,
    reports,
    server_of,
    supervisor_of,
    tree_of,
    vm_host,
)

__all__ = ["vm_host"]

pytestmark = pytest.mark.guest
WAITS_S = 60.0


@pytest.fixture
def nonce() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def started(vm_host: VmHost, busybox: Packed) -> Iterator[tuple[Vm, RunningVm]]:
    """A VM whose guest has begun to boot; where it has come to does not matter."""
    vm = vm_host.vm(busybox.full)
    with start_vm(vm) as running:
        assert running.wait_until_started(START_S)
        yield vm, running


def pid_of(vm: Vm) -> int:
    running = vm.running()
    assert running is not None
    return running.process.pid


def test_a_server_that_is_killed_during_a_boot_is_started_again(
    vm_host: VmHost, busybox: Packed, nonce: str
) -> None:
    vm = vm_host.vm(busybox.full)
    with boot_to(vm, nonce) as running:
        assert running.wait_for("Linux version", BOOT_S)
        before = server_of(vm)
        kill(before)
        assert running.wait_until_said("started again", WAITS_S)
        assert reports(running, nonce)
        assert server_of(vm) != before
        ended = running.wait_end(BOOT_S)
    assert ended is not None
    assert ended.how == "guest"


def test_a_guest_waits_for_what_is_missing_and_goes_on_by_itself(
    vm_host: VmHost, busybox: Packed, nonce: str, tmp_path: Path
) -> None:
    tree = tree_of(busybox, tmp_path / "tree")
    shutil.move(tree / "etc" / "inittab", tmp_path / "inittab")
    vm = vm_host.vm(busybox.boot, f"dir:{tree}")
    with boot_to(vm, nonce) as running:
        assert running.wait_until_said("the guest is paused", BOOT_S), running.console
        said = running.said[-1]
        assert "/etc/inittab" in said
        assert f"dir:{tree}" in said
        now = ask(vm)
        assert now is not None
        assert now.state == "paused"
        assert "/etc/inittab" in now.why
        with RunningVm(vm) as another:  # who comes later is told, too
            assert another.wait_until_said("/etc/inittab", END_S)
        shutil.move(tmp_path / "inittab", tree / "etc" / "inittab")
        assert reports(running, nonce)
        assert running.said[-1] == "the guest goes on"
        assert running.wait_end(BOOT_S) is not None


def test_a_paused_guest_goes_on_whose_qemu_did_not_answer_for_a_while(
    vm_host: VmHost, busybox: Packed, nonce: str, tmp_path: Path
) -> None:
    """A host that is so busy that its monitor says nothing in time."""
    tree = tree_of(busybox, tmp_path / "tree")
    shutil.move(tree / "etc" / "inittab", tmp_path / "inittab")
    vm = vm_host.vm(busybox.boot, f"dir:{tree}")
    with boot_to(vm, nonce) as running:
        assert running.wait_until_said("the guest is paused", BOOT_S), running.console
        qemu = pid_of(vm)
        os.kill(qemu, signal.SIGSTOP)
        time.sleep(ANSWER_SECONDS + 2 * LOOK_SECONDS)
        os.kill(qemu, signal.SIGCONT)
        shutil.move(tmp_path / "inittab", tree / "etc" / "inittab")
        assert reports(running, nonce)
        assert running.said[-1] == "the guest goes on"


def test_a_paused_guest_can_be_stopped(vm_host: VmHost, busybox: Packed, tmp_path: Path) -> None:
    vm = vm_host.vm(busybox.boot)
    with start_vm(vm) as running:
        assert running.wait_until_said("the guest is paused", BOOT_S)
        ended = running.stop()
    assert ended is not None
    assert ended.how == "stopped"
    assert vm.running() is None


def test_all_that_is_killed_comes_back_with_its_writes(
    vm_host: VmHost, busybox: Packed, nonce: str, tmp_path: Path
) -> None:
    vm = vm_host.vm(busybox.full)
    with boot_to(vm, nonce, stay=True) as running:
        assert reports(running, nonce)
        running.type(b"\n")
        assert running.wait_for("/ # ", END_S), running.console[-500:]
        running.type(b"echo it was kept > /root/kept; sync; echo is-$((40+1))\n")
        assert running.wait_for("is-41", END_S)

        qemu, supervisor = pid_of(vm), supervisor_of(vm)
        assert supervisor is not None
        kill(supervisor)
        assert pid_of(vm) == qemu  # the guest has not noticed
        assert running.wait_until_said("there is another one", WAITS_S)
        assert supervisor_of(vm) not in (None, supervisor)
        running.type(b"echo still-$((40+2))\n")
        assert running.wait_for("still-42", END_S)
        assert pid_of(vm) == qemu

        supervisor = supervisor_of(vm)  # as when the host loses its power
        assert supervisor is not None
        server = server_of(vm)
        for pid in (supervisor, qemu, server):
            kill(pid)
        assert vm.running() is None

    job = job_file(tmp_path, "cat /root/kept")
    with boot_to(vm, "again", job=job) as running:
        assert running.wait_for("it was kept", BOOT_S)
        assert reports(running, "again")


def test_a_qemu_that_is_killed_is_a_vm_that_has_stopped(started: tuple[Vm, RunningVm]) -> None:
    vm, running = started
    kill(pid_of(vm))
    ended = running.wait_end(END_S)
    assert ended is not None
    assert ended.how == "lost"
    assert "signal 9" in ended.text
    wait_until(lambda: supervisor_of(vm) is None)
    assert not (vm.folder / "running.json").exists()
    with start_vm(vm) as again:
        assert again.wait_until_started(START_S)
        assert stop_vm(vm, 0.0).how == "stopped"


def test_a_vm_whose_supervisor_is_dead_can_be_stopped(started: tuple[Vm, RunningVm]) -> None:
    vm, running = started
    running.close()
    process = vm.running()
    supervisor = supervisor_of(vm)
    assert process is not None
    assert supervisor is not None
    kill(supervisor)
    assert stop_vm(vm, 0.0).how == "stopped"
    assert not is_alive(process.process)


def test_a_supervisor_that_is_told_to_end_shuts_the_guest_down_first(
    started: tuple[Vm, RunningVm],
) -> None:
    """SIGTERM, as when a host shuts down; somebody who has no time pulls the plug meanwhile."""
    vm, running = started
    supervisor = supervisor_of(vm)
    assert supervisor is not None
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: (now := ask(vm)) is not None and now.state == "stopping")
    assert vm.running() is not None
    assert stop_vm(vm, 0.0).how == "stopped"
    ended = running.wait_end(END_S)
    assert ended is not None
    assert ended.how == "stopped"
    wait_until(lambda: identify(supervisor) is None)


def test_everybody_hears_how_a_guest_ends_that_ignores_its_power_button(
    started: tuple[Vm, RunningVm],
) -> None:
    vm, running = started
    with RunningVm(vm) as another:
        assert another.wait_until_started(START_S)
        assert running.stop(0.5).how == "stopped"  # type: ignore[union-attr]
        assert any("its plug is pulled" in line for line in running.said)
        ended = another.wait_end(END_S)
        assert ended is not None
        assert ended.how == "stopped"


def test_garbage_at_a_supervisor_disturbs_nobody(started: tuple[Vm, RunningVm]) -> None:
    vm, _ = started
    path = str(vm.runtime() / SOCKET)
    lines = [b"\0" * 100, b"{}\n", b'{"do":"dance"}\n', b"[" * (2 << 20), b'{"do":"input"}\n']
    for line in lines:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)
            try:
                one.sendall(line)
                one.shutdown(socket.SHUT_WR)
                while one.recv(4096):
                    pass
            except OSError:
                pass  # it has hung up already
    now = ask(vm)
    assert now is not None
    assert now.state == "running"


def test_a_vm_that_is_just_starting_can_be_stopped(vm_host: VmHost, busybox: Packed) -> None:
    vm = vm_host.vm(busybox.full)
    with start_vm(vm) as running:
        ended = running.stop(0.0)
    assert ended is not None
    assert ended.how == "stopped"
    assert vm.running() is None


def test_a_supervisor_minds_what_was_written_down_while_it_waited_for_the_lock(
    vm_host: VmHost, busybox: Packed
) -> None:
    """As upgrade does, which puts another base below the overlay."""
    vm = vm_host.vm(busybox.full)
    with ThreadPoolExecutor(1) as threads:
        with vm.held():
            starting = threads.submit(start_vm, vm)
            wait_until((vm.folder / "supervisor.log").exists)
            time.sleep(1.5)
            vm.changed(memory_mib=200)
        with starting.result() as running:
            assert running.wait_until_started(START_S)
            line = Path(f"/proc/{pid_of(vm)}/cmdline").read_bytes().split(b"\0")
    assert line[line.index(b"-m") + 1] == b"200"


def test_who_starts_a_vm_that_another_vmpack_works_on_is_told(
    vm_host: VmHost, busybox: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_TRIES", 1)
    vm = vm_host.vm(busybox.full)
    with vm.idle(), pytest.raises(InUseError, match="another vmpack changes the VM busybox"):
        start_vm(vm)


def test_what_a_vm_needs_is_leased_again_when_it_starts(vm_host: VmHost, busybox: Packed) -> None:
    vm = vm_host.vm(busybox.full)
    leases = Store(Path(vm.record.store)).leases
    leases.release(vm.lease)
    with start_vm(vm) as running:
        assert running.wait_until_started(START_S)
        assert leases.has(vm.lease)
        running.stop(0.0)


def test_what_keeps_qemu_from_starting_is_said(vm_host: VmHost, busybox: Packed) -> None:
    vm = vm_host.vm(busybox.full)
    with (
        start_vm(vm, ("-device", "no-such-device")) as running,
        pytest.raises(Error, match="no-such-device"),
    ):
        running.wait_until_started(START_S)
    assert vm.running() is None
    assert not (vm.folder / "running.json").exists()


def test_what_keeps_the_server_from_starting_is_said(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    pack = tmp_path / "moved.vmpack"
    shutil.copyfile(busybox.thin, pack)
    vm = vm_host.vm(pack)
    pack.unlink()
    with start_vm(vm) as running, pytest.raises(Error, match=r"moved\.vmpack"):
        running.wait_until_started(START_S)
    assert vm.running() is None


@pytest.mark.root
def test_a_guest_waits_for_room_on_the_host(
    vm_host: VmHost, busybox: Packed, nonce: str, tmp_path: Path
) -> None:
    state = tmp_path / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", state], check=True)
    try:
        vm_host.states.append(state)
        vm = vm_host.vm(busybox.full, state=state)
        script = "head -c 8000000 /dev/urandom > /root/much; sync; cksum < /root/much"
        with boot_to(vm, nonce, job=job_file(tmp_path, script)) as running:
            assert running.wait_until_said("there is no room", BOOT_S), running.console[-500:]
            subprocess.run(["mount", "-o", "remount,size=64m", state], check=True)
            assert running.wait_until_said("goes on", WAITS_S)
            assert reports(running, nonce)
            assert running.wait_end(BOOT_S) is not None
        wait_until(lambda: supervisor_of(vm) is None)
    finally:
        vm_host.end()
        subprocess.run(["umount", "--lazy", state], check=True)
