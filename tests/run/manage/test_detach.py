"""A VM that is detached needs nothing but its folder; whatever is killed meanwhile, it works."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packer.errors import InUseError, MismatchError, UsageError
from packer.run.manage.detach import detach
from packer.run.manage.libvirt import domain_xml
from packer.run.manage.session import RunningVm, start_vm, stop_vm
from packer.run.manage.unit import lasting_socket, manager_of
from packer.run.server.control import ServerGoneError
from packer.run.supervisor import swap
from packer.run.supervisor.emulator import Emulator
from packer.run.vm.command_line import OWN_BASE_NODE, overlay_node, own_base_node
from packer.run.vm.own_base import note_base
from packer.run.vm.record import BASE_FILE
from packer.run.vm.vm import Vm, the_vm
from packer.sources.open import open_pack
from packer.sources.store import Store
from packer.unpack.unpack import unpack
from tests.host import run
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import Packed
from tests.run.serving import wait_until
from tests.run.vms import (
    BOOT_S,
    END_S,
    START_S,
    VmHost,
    boot_to,
    end_server,
    job_file,
    kill,
    reports,
    server_of,
    supervisor_of,
    vm_host,
)

__all__ = ["vm_host"]

pytestmark = pytest.mark.guest
KILLS = 6
KILL_STEP_S = 0.1
"""How much later each of them comes than the one before."""

Command = tuple[str, dict[str, Any]]


@pytest.fixture
def nonce() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def copied(busybox: Packed, tmp_path: Path) -> Path:
    """A copy of the pack that may be taken away."""
    place = tmp_path / "copied"
    shutil.copytree(busybox.full, place)
    return place


@pytest.fixture
def started(vm_host: VmHost, copied: Path) -> Iterator[tuple[Vm, RunningVm]]:
    """A VM whose guest has begun to boot; where it has come to does not matter."""
    vm = vm_host.vm(copied)
    with start_vm(vm) as running:
        assert running.wait_until_started(START_S)
        yield vm, running


def now(vm: Vm) -> Vm:
    return vm.read_again()


def leased(vm: Vm) -> bool:
    return vm.lease in Store(Path(vm.record.store)).leases.leased()


def named_below(vm: Vm) -> tuple[str, str]:
    """What a plain QEMU finds below the overlay: name and format."""
    told = json.loads(run("qemu-img", "info", "-U", "--output=json", vm.overlay))
    return told["backing-filename"], told["backing-filename-format"]


def monitor(vm: Vm, *commands: Command) -> None:
    """Tell QEMU something without a supervisor, which must be dead."""

    async def tell() -> None:
        running = vm.running()
        assert running is not None
        emulator = await Emulator.adopt(running, lambda _: None, lambda _: None)
        assert emulator is not None
        for verb, arguments in commands:
            await emulator.ask(verb, **arguments)
        await emulator.close()

    asyncio.run(tell())


def is_served(vm: Vm) -> bool:
    """Whether QEMU reads from the server still; its supervisor must be dead."""

    async def look() -> bool:
        running = vm.running()
        assert running is not None
        emulator = await Emulator.adopt(running, lambda _: None, lambda _: None)
        assert emulator is not None
        try:
            return await swap.is_served(emulator)
        finally:
            await emulator.close()

    return asyncio.run(look())


def server_lives(vm: Vm) -> bool:
    try:
        return server_of(vm) > 0
    except ServerGoneError:
        return False


def kill_supervisor(vm: Vm) -> None:
    supervisor = supervisor_of(vm)
    assert supervisor is not None
    kill(supervisor)


def materialise(vm: Vm) -> Path:
    """The base of a VM as `detach` leaves it when it is killed before it writes that down."""
    base = vm.folder / BASE_FILE
    with open_pack(vm.record.pack) as pack:
        unpack(pack, base, [], store=None)
    return base


def shell(running: RunningVm, command: str, answer: str) -> None:
    running.type(command.encode() + b"\n")
    assert running.wait_for(answer, END_S), running.console[-500:]


def test_a_running_vm_is_detached_and_needs_nothing_but_its_folder(
    vm_host: VmHost, copied: Path, nonce: str, tmp_path: Path
) -> None:
    """Also: it is started again, and with a plain QEMU tool its disk is the same."""
    vm = vm_host.vm(copied)
    with boot_to(vm, nonce, stay=True) as running:
        assert reports(running, nonce)
        running.type(b"\n")
        assert running.wait_for("/ # ", END_S)
        shell(running, "echo before > /root/before; sync; echo is-$((40+1))", "is-41")
        server = server_of(vm)
        told = vm_host.vmpack.json("detach", vm.name)["vms"][0]
        assert told["running"]
        assert not told["was_detached"]
        assert sum(one["content_bytes"] for one in told["supplied"]) > 0
        assert running.wait_until_said("it is detached", END_S)
        assert not leased(vm)

        kill(server)
        shutil.rmtree(copied)
        # What it has not read so far, and nothing in its memory.
        shell(
            running,
            "echo 3 > /proc/sys/vm/drop_caches; find / -xdev -type f -exec cat {} + > /dev/null"
            " && echo read-$((40+2))",
            "read-42",
        )
        shell(running, "echo after > /root/after; sync; echo is-$((40+3))", "is-43")
        listed = json.loads(vm_host.vmpack.good("ps", "--json"))["vms"][0]
        assert (listed["state"], listed["detached"]) == ("running", True)
        assert (listed["shared_bytes"], listed["sharers"]) == (0, 0)
        assert "running, detached" in vm_host.vmpack.good("ps")

        kill_supervisor(vm)  # the next one has no server to keep
        assert running.wait_until_said("there is another one", END_S)
        shell(running, "echo still-$((40+4))", "still-44")
        assert running.stop(0.0) is not None
        assert not any("there is no server" in line for line in running.said)

    assert named_below(vm) == (BASE_FILE, "raw")
    job = job_file(tmp_path, "cat /root/before /root/after")
    with boot_to(now(vm), "again", job=job) as running:
        assert running.wait_for("before\r?\nafter", BOOT_S), running.console[-500:]
        assert reports(running, "again")
        assert running.wait_end(BOOT_S) is not None
    assert vm_host.vmpack.good("detach", vm.name) == f"{vm.name} is detached already\n"
    run("qemu-img", "check", "-q", vm.overlay)
    vm_host.vmpack.good("rm", vm.name)
    assert not vm.folder.exists()


def test_a_stopped_vm_is_detached(
    vm_host: VmHost, copied: Path, author: Vmpack, tmp_path: Path
) -> None:
    """Also: its disk is that of the pack, and what others are told of it is right."""
    vm = vm_host.vm(copied)
    expected = tmp_path / "expected.raw"
    with open_pack(str(copied)) as pack:
        unpack(pack, expected, [], store=None)
    out = vm_host.vmpack.good("detach", vm.name)
    assert out.startswith(f"{vm.name} is detached: ")
    shutil.rmtree(copied)
    assert named_below(vm) == (BASE_FILE, "raw")
    assert not leased(vm)
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", vm.overlay, expected)

    detached = now(vm)
    manager = manager_of(detached, system=False)
    xml = domain_xml(detached, manager, lasting_socket(detached, manager), reconnects=True)
    assert f'file="{detached.base}"' in xml
    assert 'protocol="nbd"' not in xml
    assert vm_host.vmpack("define", vm.name, "--systemd").returncode == 2

    image, newer = tmp_path / "newer.raw", tmp_path / "newer.vmpack"
    image.write_bytes(bytes(1 << 20) + os.urandom(1 << 16) + bytes(960 << 10))
    author.good("pack", image, "-o", newer, "--name", "busybox", "--pack-version", "2", "-q")
    stays = vm_host.vmpack.json("upgrade", vm.name, newer)["vms"][0]
    assert not stays["moved"]
    assert "it was detached" in stays["why"]
    assert not leased(vm)
    assert now(vm) == detached


def test_a_detached_vm_is_committed_but_not_in_place(
    vm_host: VmHost, copied: Path, tmp_path: Path
) -> None:
    vm = vm_host.vm(copied)
    detach(vm)
    refused = vm_host.vmpack("commit", vm.name, "--in-place", "--unsigned", "-q")
    assert refused.returncode == 2
    assert "was detached" in refused.stderr
    end_server(vm)
    output = tmp_path / "next.vmpack"
    options = ("--unsigned", "--no-packages", "--quiet")
    vm_host.vmpack.good("commit", vm.name, "-o", output, *options)
    assert not server_lives(vm)
    disk, base = tmp_path / "next.raw", vm.folder / BASE_FILE
    with open_pack(str(output)) as pack:
        assert pack.config.ref_name == "busybox:2"
        unpack(pack, disk, [], store=None)
    run("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", disk, base)


def test_run_detaches_what_it_starts(vm_host: VmHost, copied: Path) -> None:
    options = ("--memory", "256", "--cpus", "1", "--offline", "--from", "store:")
    out = vm_host.vmpack.good("run", copied, *options, "--background", "--detach")
    assert out == "busybox\n"
    vm = the_vm("busybox")
    assert not leased(vm)
    shutil.rmtree(copied)
    assert stop_vm(vm, 0.0).how == "stopped"
    assert vm.base == vm.folder / BASE_FILE
    assert named_below(vm) == (BASE_FILE, "raw")


def test_a_detaching_of_run_goes_on_beside_the_console(vm_host: VmHost, copied: Path) -> None:
    options = ("--memory", "256", "--cpus", "1", "--offline", "--from", "store:")
    client = vm_host.vmpack.start("run", copied, *options, "--detach")
    try:
        wait_until(lambda: bool(vm_host.vms()) and vm_host.vms()[0].base is not None, START_S)
        vm = vm_host.vms()[0]
        assert stop_vm(vm, 0.0).how == "stopped"
        _, said = client.communicate(timeout=END_S)
    finally:
        client.kill()
        client.communicate()
    assert client.returncode == 0
    assert "busybox is detached from its pack" in said
    assert named_below(vm) == (BASE_FILE, "raw")
    assert not leased(vm)


# -- interrupted -----------------------------------------------------------------------------------


def test_a_detaching_that_is_killed_anywhere_leaves_a_vm_that_works(
    vm_host: VmHost, copied: Path, nonce: str
) -> None:
    vm = vm_host.vm(copied)
    partial = vm.folder / f"{BASE_FILE}.partial"
    with boot_to(vm, nonce, stay=True) as running:
        assert reports(running, nonce)
        running.type(b"\n")
        assert running.wait_for("/ # ", END_S)
        for number in range(KILLS):
            client = vm_host.vmpack.start("detach", vm.name, "-q")
            wait_until(lambda: partial.exists() or now(vm).base is not None, START_S)
            time.sleep(KILL_STEP_S * number)
            client.kill()
            client.communicate()
            command = "echo 3 > /proc/sys/vm/drop_caches; cat /bin/* /etc/* > /dev/null 2>&1"
            shell(running, f"{command}; echo round-$(({number}+100))", f"round-{100 + number}")
        assert vm_host.vmpack("detach", vm.name, "-q").returncode == 0
        end_server(vm)
        shutil.rmtree(copied)
        shell(running, f"{command}; echo last-$((40+1))", "last-41")
        assert running.stop(0.0) is not None
    assert named_below(vm) == (BASE_FILE, "raw")
    assert not partial.exists()


def test_a_supervisor_that_is_killed_meanwhile_is_replaced(
    started: tuple[Vm, RunningVm], vm_host: VmHost
) -> None:
    """It is killed as soon as it has written down that the VM has a base of its own."""
    vm, running = started
    supervisor = supervisor_of(vm)
    assert supervisor is not None
    client = vm_host.vmpack.start("detach", vm.name)
    deadline = time.monotonic() + START_S
    while now(vm).base is None:
        assert time.monotonic() < deadline
    os.kill(supervisor, signal.SIGKILL)
    said = client.communicate(timeout=END_S)[1]
    assert client.returncode == 0, said
    assert running.wait_until_said("there is another one", END_S)
    assert not leased(vm)
    kill_supervisor(vm)
    assert not is_served(vm)


def test_a_base_that_was_begun_is_taken_up(vm_host: VmHost, copied: Path) -> None:
    vm = vm_host.vm(copied)
    partial = materialise(vm).rename(vm.folder / f"{BASE_FILE}.partial")
    with partial.open("r+b") as file:
        file.truncate(partial.stat().st_size // 2)
    report = detach(vm)
    assert report.resumed_bytes > 0
    assert sum(one.proven_bytes for one in report.supplied) > 0
    assert not partial.exists()


def test_a_base_that_nobody_has_written_down_is_not_believed(vm_host: VmHost, copied: Path) -> None:
    """It was finished; but nobody knows what became of it since."""
    vm = vm_host.vm(copied)
    base = materialise(vm)
    good = base.read_bytes()
    with open_pack(str(copied)) as pack:
        offset = int(pack.map.start[pack.map.content >= 0][0])
    with base.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([good[offset] ^ 1]))
    report = detach(vm)
    assert report.resumed_bytes > 0
    assert base.read_bytes() == good


def test_a_base_of_another_version_is_not_taken(vm_host: VmHost, copied: Path) -> None:
    """The VM was moved to another version while its base was made."""
    vm = vm_host.vm(copied)
    materialise(vm)
    vm.changed(config="sha256:" + "0" * 64)
    with pytest.raises(MismatchError, match="another base meanwhile"):
        note_base(vm, vm.record.config)
    assert now(vm).base is None


@pytest.mark.parametrize("step", ["noted", "added", "reopened"])
def test_the_next_supervisor_finishes_what_the_last_one_began(
    started: tuple[Vm, RunningVm], copied: Path, step: str
) -> None:
    vm, running = started
    base = materialise(vm)
    kill_supervisor(vm)
    note_base(vm, vm.record.config)
    added: Command = ("blockdev-add", own_base_node(base))
    reopened: Command = ("blockdev-reopen", {"options": [overlay_node(OWN_BASE_NODE)]})
    done: dict[str, tuple[Command, ...]] = {
        "noted": (),
        "added": (added,),
        "reopened": (added, reopened),
    }
    monitor(vm, *done[step])
    assert is_served(vm)
    assert leased(vm)
    assert running.wait_until_said("there is another one", START_S)
    wait_until(lambda: not leased(vm))
    if step == "reopened":  # once is enough: the guest boots on
        end_server(vm)
        shutil.rmtree(copied)
        assert running.wait_for("digests=ok", BOOT_S), running.console[-500:]
    kill_supervisor(vm)
    assert not is_served(vm)
    assert stop_vm(now(vm), 0.0).how == "stopped"
    assert named_below(vm) == (BASE_FILE, "raw")


def test_ps_does_what_is_left_when_all_was_killed(
    started: tuple[Vm, RunningVm], vm_host: VmHost
) -> None:
    """As when the host loses its power while the VM turns to its own base."""
    vm, running = started
    running.close()
    materialise(vm)
    kill_supervisor(vm)
    note_base(vm, vm.record.config)
    qemu = vm.running()
    assert qemu is not None
    kill(qemu.process.pid)
    assert named_below(vm)[0].startswith("nbd+unix:")
    assert leased(vm)
    listed = json.loads(vm_host.vmpack.good("ps", "--json"))["vms"][0]
    assert (listed["state"], listed["detached"]) == ("stopped", True)
    assert named_below(vm) == (BASE_FILE, "raw")
    assert not leased(vm)


# -- refused ---------------------------------------------------------------------------------------


def test_two_do_not_detach_one_vm(vm_host: VmHost, copied: Path) -> None:
    vm = vm_host.vm(copied)
    fd = os.open(vm.folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(InUseError, match="another vmpack"):
        detach(vm)
    os.close(fd)


def test_an_ephemeral_vm_is_not_detached(vm_host: VmHost, copied: Path) -> None:
    vm = vm_host.vm(copied).changed(ephemeral=True)
    with pytest.raises(UsageError, match="ephemeral"):
        detach(vm)
    done = vm_host.vmpack("run", copied, "--ephemeral", "--detach")
    assert done.returncode == 2


def test_what_nobody_has_leaves_the_vm_as_it_was(vm_host: VmHost, busybox: Packed) -> None:
    vm = vm_host.vm(busybox.boot)
    done = vm_host.vmpack("detach", vm.name)
    assert done.returncode == 5
    assert "nobody has" in done.stderr
    assert now(vm).base is None
    assert leased(vm)
