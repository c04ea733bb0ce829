"""How the VMs of this host are, and what each holds: alone, together with others, too much."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.errors import Error
from packer.run.manage.session import ask
from packer.run.vm.vm import Vm
from packer.sources.store import Store

_KIB = 1 << 10
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system has (stat(2))
_MEMORY_FIELDS = ("Pss", "Private_Clean", "Private_Dirty")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process (proc_pid_smaps_rollup): its part of all, and what it shares with nobody.

    merged: pages that the kernel has found to be the same as others (KSM).
    """

    proportional: int = 0
    private: int = 0
    merged: int = 0


@dataclass(frozen=True, slots=True)
class VmReport:
    """A VM. state: "running", "paused", "starting", "stopping", "stopped", or "unattended": its
    QEMU runs without a supervisor. why: it waits, in words.

    detached: it reads a base of its own, and shares nothing.

    own_bytes: what its folder takes. shared_bytes: contents of its pack in the store, which all
    `sharers` VMs of that pack use; -1 when the store cannot be read, and trouble says why.
    spare_bytes: memory that its guest does not need, -1 unknown.
    """

    vm: Vm
    state: str
    why: str
    detached: bool
    pid: int
    accelerator: str
    memory: Memory
    own_bytes: int
    shared_bytes: int
    sharers: int
    spare_bytes: int
    trouble: Error | None = None


@dataclass(frozen=True, slots=True)
class _Shared:
    """What VMs of one pack have in one store, how many they are, and why nobody can tell."""

    size_bytes: int = 0
    sharers: int = 0
    trouble: Error | None = None


def look_at_vms(vms: Iterable[Vm]) -> list[VmReport]:
    """Return how VMs are, in their order."""
    vms = list(vms)
    sharers: dict[tuple[str, str], list[Vm]] = {}
    for vm in vms:
        if vm.base is None:
            sharers.setdefault(_base(vm), []).append(vm)
    shared = {base: _shared(those) for base, those in sharers.items()}
    return [_look_at(vm, shared[_base(vm)] if vm.base is None else _Shared()) for vm in vms]


def _base(vm: Vm) -> tuple[str, str]:
    return vm.record.store, vm.record.config


def _shared(vms: Sequence[Vm]) -> _Shared:
    try:
        return _Shared(_shared_bytes(vms), len(vms))
    except Error as error:  # its store is another user's, say: the other VMs are not concerned
        return _Shared(-1, len(vms), error)


def _look_at(vm: Vm, shared: _Shared) -> VmReport:
    now, running = ask(vm), vm.running()
    unattended = "stopped" if running is None else "unattended"
    pid = running.process.pid if running is not None else 0
    memory = memory_of(pid) if pid else Memory()
    # A guest also counts pages that it has never touched: those take nothing from the host.
    spare_bytes = min(now.spare_bytes, memory.proportional) if now is not None else -1
    return VmReport(
        vm=vm,
        state=unattended if now is None else now.state,
        why=now.why if now is not None else "",
        detached=vm.base is not None,
        pid=pid,
        accelerator=running.accelerator if running is not None else "",
        memory=memory,
        own_bytes=_own_bytes(vm),
        shared_bytes=shared.size_bytes,
        sharers=shared.sharers,
        spare_bytes=spare_bytes,
        trouble=shared.trouble,
    )


def memory_of(pid: int) -> Memory:
    """Return how much memory a process has; nothing when it has ended or is not ours."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return Memory()
    found = dict.fromkeys(_MEMORY_FIELDS, 0)
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * _KIB
    private = found["Private_Clean"] + found["Private_Dirty"]
    return Memory(found["Pss"], private, _merged(pid))


def _merged(pid: int) -> int:
    """Return the bytes of a process that are merged with others; 0 on kernels that do not tell."""
    try:
        pages = Path(f"/proc/{pid}/ksm_merging_pages").read_text("ascii")
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _shared_bytes(vms: Sequence[Vm]) -> int:
    """Return what VMs of one pack have in their store, by the lease of the first that has one."""
    store = Store(Path(vms[0].record.store))
    leased = store.leases.leased()
    digests = next((leased[vm.lease] for vm in vms if vm.lease in leased), ())
    return sum(_taken(store.path_of(bytes(digest))) for digest in digests)


def _own_bytes(vm: Vm) -> int:
    try:
        return sum(_taken(path) for path in vm.folder.iterdir())
    except OSError:  # it was removed meanwhile
        return 0


def _taken(path: Path) -> int:
    """Return how much room a file takes; 0 for one that is not there."""
    try:
        return path.lstat().st_blocks * _BLOCK_BYTES
    except OSError:
        return 0
