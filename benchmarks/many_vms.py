"""Many VMs of one pack at once: what they take of disk and memory beside one of them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.measure import words_of
from benchmarks.vms import (
    VmHost,
    new_nonce,
    qemu_of,
    sources_of_this_host,
    staying,
    vm_host,
    wait_for_nonce,
)
from packer.run.manage.overview import memory_of
from packer.sources.open import open_pack
from packer.text import format_bytes

EACH_MORE_BYTES = 20_000_000
KSM = Path("/sys/kernel/mm/ksm")
KSM_SECONDS = 180.0
KSM_SCANS = 3
KSM_PAGES_TO_SCAN = "20000"


def measure_density(bench: Bench, count: int, *, ksm: bool) -> None:
    """Run one VM, then `count` at once, each to its nonce: bytes of disk and of memory.

    ksm: turn the kernel's merging of pages on for a while, which is the whole host's.
    """
    sources = [word for one in sources_of_this_host() for word in ("--from", one)]
    machine = ("--memory", "384", "--cpus", "1", "--background")
    options = (*machine, *sources, "--from", f"pack:{bench.pack}")
    with vm_host(bench, "home-many") as host:
        _start(host, bench.thin, ["vm-1"], options)
        alone = _memory(host)
        names = [f"vm-{number}" for number in range(2, count + 1)]
        seconds = _start(host, bench.thin, names, options)
        _add_disk(bench, host, count, host.run(bench.thin, "vm-N", *options))
        bench.add(f"{count - 1} more VMs, to the last one's nonce", f"{seconds:.0f} s", "")
        _add_memory(bench, f"memory of {count} VMs", _memory(host), alone, count)
        if ksm:
            with merging():
                _wait_for_scans()
                _add_memory(bench, f"memory of {count} VMs, merged", _memory(host), alone, count)
        elif not KSM.is_dir():
            print("no KSM on this host: the memory of merged guests is not measured")


def measure_many(bench: Bench, pack: Path, count: int) -> None:
    """Start many small VMs of a pack, wait until all have reported, stop them."""
    options = ("--memory", "128", "--cpus", "1", "--background", "--offline", "--from", "store:")
    with vm_host(bench, "home-small") as host:
        names = [f"small-{number}" for number in range(count)]
        seconds = _start(host, pack, names, options)
        own = sum(_disk_bytes(vm.folder) for vm in host.vms())
        memory = format_bytes(_memory(host))
        began = time.monotonic()
        for name in names:
            host.stop(name)
        stopping = time.monotonic() - began
        left = [vm.name for vm in host.vms() if vm.running() is not None]
        if left:
            raise RuntimeError(f"{left} still run")
    bench.add(
        f"{count} small VMs started, all at their nonce",
        f"{seconds:.0f} s; stopped in {stopping:.0f} s; {memory} of memory, "
        f"{format_bytes(own)} of disk",
        words_of(host.run(pack, "small-N", *options)),
    )


def _start(host: VmHost, pack: Path, names: Sequence[str], options: Sequence[str]) -> float:
    """Start VMs at once; return the seconds until all have reported their nonces."""
    nonces, began = {name: new_nonce() for name in names}, time.monotonic()
    for name, nonce in nonces.items():
        host.start(host.run(pack, name, *options, "--", *staying(nonce)))
    for name, nonce in nonces.items():
        wait_for_nonce(host.vm(name).console, nonce, None)
    return time.monotonic() - began


def _add_disk(bench: Bench, host: VmHost, count: int, command: Sequence[str]) -> None:
    with open_pack(str(bench.thin)) as pack:
        used = int(pack.map.contents.size.sum())
    own = [_disk_bytes(vm.folder) for vm in host.vms()]
    store = _disk_bytes(host.store)
    limit = used + count * EACH_MORE_BYTES
    bench.add(
        f"store and folders of {count} VMs",
        f"{format_bytes(store + sum(own))}: store {format_bytes(store)}",
        words_of(command),
        ratio=(store + sum(own)) / limit,
        against=f"a disk's used bytes and {count} × 20 MB ({format_bytes(limit)})",
        aim=1.0,
    )
    bench.add(
        "the largest folder of a VM at its nonce",
        format_bytes(max(own)),
        "",
        ratio=max(own) / EACH_MORE_BYTES,
        against=format_bytes(EACH_MORE_BYTES),
        aim=1.0,
    )


def _add_memory(bench: Bench, what: str, found: int, alone: int, count: int) -> None:
    bench.add(
        f"{what}, with their server",
        format_bytes(found),
        "",
        ratio=found / (count * alone),
        against=f"{count} × one VM with its server ({format_bytes(alone)})",
        aim=1.0,
    )


def _memory(host: VmHost) -> int:
    """Return the proportional set sizes of all QEMUs and of the server, bytes."""
    running = [vm for vm in host.vms() if vm.running() is not None]
    with host.control(running[0]) as control:
        pids = [control.hello().pid, *(qemu_of(vm) for vm in running)]
    return sum(memory_of(pid).proportional for pid in pids)


def _disk_bytes(folder: Path) -> int:
    """Return what `du` says."""
    done = subprocess.run(
        ["du", "-s", "-B1", str(folder)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[0])


@contextmanager
def merging() -> Iterator[None]:
    """Let the kernel merge equal pages of processes that allow it; as it was before afterwards."""
    before = {name: (KSM / name).read_text() for name in ("pages_to_scan", "run")}
    try:
        (KSM / "pages_to_scan").write_text(KSM_PAGES_TO_SCAN)
        (KSM / "run").write_text("1")
        yield
    finally:
        for name, value in before.items():
            (KSM / name).write_text(value)


def _wait_for_scans() -> None:
    """Return when the kernel has looked at all pages a few times, or has had time enough."""
    begin = int((KSM / "full_scans").read_text())
    deadline = time.monotonic() + KSM_SECONDS
    while int((KSM / "full_scans").read_text()) < begin + KSM_SCANS:
        if time.monotonic() > deadline:
            print("the kernel has not looked at all pages: the memory of merged guests is less")
            return
        time.sleep(1)
