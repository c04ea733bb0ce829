"""What a VM leaves behind is removed with it: its folder, and its lease in the store."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from packer.errors import Error
from packer.run.manage.session import stop_vm
from packer.run.qemu.processes import is_alive
from packer.run.vm.folder import remove_folder, remove_unnamed
from packer.run.vm.record import VmMissingError
from packer.run.vm.vm import Vm, all_vms

_LOCK_SECONDS = 10.0


def remove_vm(vm: Vm, *, force: bool = False) -> None:
    """Remove a VM and all it wrote.

    force: pull its plug if it runs. Raises InUseError if it runs otherwise, or under libvirt, or
    another vmpack works on it; VmMissingError when it is no more.
    """
    stopped = force and vm.running() is not None
    try:
        if stopped:
            stop_vm(vm, grace_seconds=0.0)
        with vm.idle(seconds=_LOCK_SECONDS if force else 0.0) as now:
            remove_folder(now.folder)
    except VmMissingError:
        if not stopped:
            raise  # an ephemeral one has gone with its QEMU


def remove_left_behind(state: Path | None) -> None:
    """Remove what killed processes have left: VMs half made or half removed, and ephemeral ones.

    An ephemeral VM that never ran is about to be started for as long as its maker lives.
    """
    remove_unnamed(state)
    for vm in all_vms(state, damaged=[]):
        if not vm.record.ephemeral:
            continue
        with suppress(Error), vm.idle() as now:  # one that is in use stays
            if not _is_to_start(now):
                remove_folder(now.folder)


def _is_to_start(vm: Vm) -> bool:
    maker = vm.record.maker
    return not vm.has_run() and maker is not None and is_alive(maker)
