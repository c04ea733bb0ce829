"""What a VM leaves behind is removed with it: its folder, and its lease in the store."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from packer.errors import InUseError
from packer.run.session import stop_vm
from packer.run.vm import Vm, all_vms, remove_folder
from packer.sources.store import Store
from packer.survey.in_use import refuse_if_in_use

_LOCK_SECONDS = 10.0


def remove_vm(vm: Vm, *, force: bool = False) -> None:
    """Remove a VM and all it wrote.

    force: pull its plug if it runs. Raises InUseError if it runs otherwise.
    """
    if force and vm.running() is not None:
        stop_vm(vm, grace_seconds=0.0)
    lock = vm.lock(seconds=_LOCK_SECONDS if force else 0.0)
    if lock is None or vm.running() is not None:
        if lock is not None:
            os.close(lock)
        raise InUseError(
            f"the VM {vm.name} runs", hint=f"vmpack stop {vm.name}, or --force pulls its plug"
        )
    try:
        if vm.overlay.exists():
            refuse_if_in_use([vm.overlay])  # a QEMU of libvirt's has no supervisor
        forget(vm)
    finally:
        os.close(lock)


def forget(vm: Vm) -> None:
    """Remove a VM that does not run; what only it kept in the store may be collected then.

    The caller holds its lock.
    """
    Store(Path(vm.record.store)).leases.release(vm.lease)
    remove_folder(vm.folder)


def remove_left_behind(state: Path | None) -> None:
    """Remove ephemeral VMs whose supervisor was killed together with their QEMU."""
    for vm in all_vms(state):
        if not vm.record.ephemeral or vm.running() is not None:
            continue
        with suppress(FileNotFoundError):
            lock = vm.lock()
            if lock is not None:
                forget(vm)
                os.close(lock)
