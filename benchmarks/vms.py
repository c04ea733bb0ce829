"""VMs of one pack on this host, for measurements: started by the command, watched from outside."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.bench import Bench
from fixtures.boot import guest_arguments
from packer.run.server.control import Control, ServerGoneError
from packer.run.server.ensure import address_of
from packer.run.vm.vm import Vm, all_vms, the_vm
from packer.sources.directory import package_owned_roots

POLL_SECONDS = 0.02
BOOT_SECONDS = 900.0


def new_nonce() -> str:
    """Return what tells one boot from all others."""
    return secrets.token_hex(8)


def sources_of_this_host() -> list[str]:
    """Return the trees that packages own here, which are used if nobody says otherwise."""
    return [f"dir:{root}" for root, _ in package_owned_roots()]


@dataclass(frozen=True, slots=True)
class VmHost:
    """A host that trusts the bench's key and has used nothing yet. home: its VMPACK_HOME."""

    bench: Bench
    home: Path

    @property
    def store(self) -> Path:
        """Return the folder of its store."""
        return self.home / "data" / "store"

    def run(self, pack: Path | str, name: str, *more: str) -> list[str]:
        """Return the command that starts a VM. more: options, then "--" and QEMU's."""
        options = ("--name", name, "--accel", "tcg", "--net", "none")
        return self.bench.vmpack("run", pack, *options, *more)

    def start(self, command: Sequence[str]) -> None:
        """Start a VM in the background. Raises CalledProcessError with what was said."""
        subprocess.run(command, check=True, capture_output=True, text=True)

    def vm(self, name: str) -> Vm:
        """Return the VM of a name."""
        return the_vm(name)

    def vms(self) -> list[Vm]:
        """Return all of them."""
        return list(all_vms())

    def stop(self, name: str) -> None:
        """Pull a VM's plug."""
        command = self.bench.vmpack("stop", name, "--now")
        subprocess.run(command, check=True, capture_output=True)

    def end_server(self, vm: Vm) -> None:
        """End the server of a VM's disk, so that the next one begins with nothing in memory."""
        with suppress(ServerGoneError), self.control(vm) as control:
            control.stop()

    def control(self, vm: Vm) -> Control:
        """Return a connection to the server of a VM's disk."""
        return Control(address_of(vm.server_spec()).control)

    def end(self) -> None:
        """End what still runs."""
        vms = self.vms()
        for vm in vms:
            if vm.running() is not None:
                self.stop(vm.name)
        for vm in vms:
            self.end_server(vm)


@contextmanager
def vm_host(bench: Bench, name: str) -> Iterator[VmHost]:
    """A host with folders of its own below the bench's; what runs there is ended at the end.

    The folders stay: an ext4 that has just lost many files takes longer to make new ones.
    """
    home = bench.work / name
    shutil.copytree(bench.work / "home" / "config", home / "config")
    before = {key: os.environ.get(key) for key in ("VMPACK_HOME", "XDG_RUNTIME_DIR")}
    with tempfile.TemporaryDirectory(prefix="vm-") as runtime:  # short: sockets lie below it
        os.environ.update({"VMPACK_HOME": str(home), "XDG_RUNTIME_DIR": runtime})
        host = VmHost(bench, home)
        try:
            yield host
        finally:
            host.end()
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


def staying(nonce: str) -> list[str]:
    """Return QEMU's arguments for a guest that reports this nonce and goes on running."""
    return guest_arguments(nonce, stay=True)


def wait_for_nonce(console: Path, nonce: str, process: subprocess.Popen[bytes] | None) -> float:
    """Return the clock at which a console's log had the nonce. Raises RuntimeError without it.

    process: whose end is the end of waiting.
    """
    sought = f"nonce={nonce} digests=ok".encode()
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        ended = process is not None and process.poll() is not None
        if console.exists() and sought in console.read_bytes():
            return time.monotonic()
        if ended:
            break
        time.sleep(POLL_SECONDS)
    said = console.read_bytes()[-500:] if console.exists() else b""
    raise RuntimeError(f"{console}: no nonce={nonce}; the last of it: {said!r}")


def qemu_of(vm: Vm) -> int:
    """Return the process of a VM's QEMU. Raises RuntimeError when it does not run."""
    running = vm.running()
    if running is None:
        raise RuntimeError(f"{vm.name} does not run")
    return running.process.pid


def with_local_disk(vm: Vm, image: Path, work: Path) -> list[str]:
    """Return the command of a running VM's QEMU, with a local raw disk in place of the served one.

    All else is the same but what belongs to one start: sockets, console, and the nonce, which is
    left out.
    """
    words = Path(f"/proc/{qemu_of(vm)}/cmdline").read_bytes().decode().split("\0")[:-1]
    line: list[str] = []
    given = iter(words)
    for word in given:
        if word == "-blockdev":
            if json.loads(next(given))["node-name"] == "overlay":
                disk = f"if=none,id=overlay,file={image},format=raw,snapshot=on"
                line += ["-drive", disk]
        elif word == "-chardev":
            name = "serial" if "id=serial" in next(given) else "monitor"
            sink = f"file,id=serial,path={work}/console" if name == "serial" else f"null,id={name}"
            line += ["-chardev", sink]
        elif word == "-fw_cfg":
            next(given)
        else:
            line.append(word)
    return line


@contextmanager
def ended_on_error(command: Sequence[str], out: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that ends by itself, unless something goes wrong meanwhile."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
