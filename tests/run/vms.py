"""VMs for tests: on a host of their own, ended with the test."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.boot import guest_arguments
from packer.run.manage.session import RunningVm, start_vm
from packer.run.qemu.processes import identify
from packer.run.server.control import Control, ServerGoneError
from packer.run.server.ensure import address_of
from packer.run.supervisor.link import SOCKET
from packer.run.vm.create import DiskOrigin, Wishes, create_vm
from packer.run.vm.vm import Vm, all_vms
from packer.sources.open import open_pack
from packer.sources.store import Store
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import Packed

MEMORY = "256"
BOOT_S = 120.0
START_S = 60.0
END_S = 30.0
SETTINGS = 'accelerator = "tcg"\n'
"""What is tried elsewhere need not be tried before each boot."""


class VmHost:
    """A host that has VMs: with folders of its own for all that vmpack keeps."""

    def __init__(self, vmpack: Vmpack, runtime: Path) -> None:
        self.vmpack = vmpack
        self.runtime = runtime
        self.states = [vmpack.home / "state"]

    def vm(self, pack: Path, *sources: str, state: Path | None = None) -> Vm:
        """A new VM of a pack."""
        store = Store(self.vmpack.home / "data" / "store")
        with open_pack(str(pack)) as opened:
            served = DiskOrigin(str(pack), store, sources or ("store:",))
            wishes = Wishes(memory_mib=int(MEMORY), cpus=1, accelerator="tcg")
            return create_vm(opened, served, wishes, state=state, another=True)

    def vms(self) -> list[Vm]:
        return [vm for state in self.states for vm in all_vms(state, damaged=[])]

    def end(self) -> None:
        """End what still runs: found by the VMs' own records and sockets."""
        vms = self.vms()
        for vm in vms:
            supervisor = supervisor_of(vm)
            running = vm.running()
            if supervisor is not None:
                kill(supervisor)
            if running is not None:
                kill(running.process.pid)
        for vm in vms:
            end_server(vm)


@pytest.fixture
def vm_host(
    run_vmpack: Vmpack, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VmHost]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    monkeypatch.setenv("VMPACK_HOME", str(run_vmpack.home))
    (run_vmpack.home / "config" / "config.toml").write_text(SETTINGS)
    host = VmHost(run_vmpack, short_folder)
    yield host
    host.end()


def boot_to(vm: Vm, nonce: str, *, stay: bool = False, job: Path | None = None) -> RunningVm:
    """A start of a fixture guest that reports this nonce."""
    return start_vm(vm, tuple(guest_arguments(nonce, stay=stay, job_file=job)))


def reports(running: RunningVm, nonce: str) -> bool:
    """The guest has come to its end, and its files are right."""
    return running.wait_for(f"nonce={nonce} digests=ok", BOOT_S) is not None


def job_file(folder: Path, script: str) -> Path:
    path = folder / "job"
    path.write_text(script)
    return path


def peer_of(path: Path) -> int | None:
    """The process that listens at a Unix socket (SO_PEERCRED of unix(7))."""
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(str(path))
        except OSError:
            return None
        found = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", found)[0])


def supervisor_of(vm: Vm) -> int | None:
    return peer_of(vm.runtime() / SOCKET)


def server_of(vm: Vm) -> int:
    with Control(address_of(vm.server_spec()).control) as control:
        return control.hello().pid


def end_server(vm: Vm) -> None:
    try:
        with Control(address_of(vm.server_spec()).control) as control:
            control.stop()
    except ServerGoneError:
        pass


def kill(pid: int) -> None:
    """Kill a process of a VM and return when it is gone."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + END_S
    while identify(pid) is not None:
        assert time.monotonic() < deadline, pid
        time.sleep(0.02)


def tree_of(packed: Packed, folder: Path) -> Path:
    """The files of a guest, as a host of the same release would have them."""
    folder.mkdir()
    image = f"{packed.guest.image}?offset={packed.guest.root_offset}"
    command = ["debugfs", "-R", f"rdump / {folder}", image]
    subprocess.run(command, check=True, capture_output=True)
    return folder
