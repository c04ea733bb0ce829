"""What a VM leaves behind is removed with it: its folder, and its lease in the store."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from packer.errors import InUseError
from packer.run.manage.session import stop_vm
from packer.run.vm.vm import (
    GONE_PREFIX,
    Vm,
    VmMissingError,
    all_vms,
    forget,
    vms_folder,
)
from packer.survey.in_use import refuse_if_in_use

_LOCK_SECONDS = 10.0


def remove_vm(vm: Vm, *, force: bool = False) -> None:
    """Remove a VM and all it wrote.

    force: pull its plug if it runs. Raises InUseError if it runs otherwise.
    """
    if force and vm.running() is not None:
        stop_vm(vm, grace_seconds=0.0)
    with vm.held(seconds=_LOCK_SECONDS if force else 0.0) as now:
        if now is None or now.running() is not None:
            raise InUseError(
                f"the VM {vm.name} runs", hint=f"vmpack stop {vm.name}, or --force pulls its plug"
            )
        _refuse_if_in_use(now)
        forget(now)


def remove_left_behind(state: Path | None) -> None:
    """Remove ephemeral VMs whose supervisor was killed together with their QEMU.

    One that never ran is about to be started. What a killed `rm` has left is removed, too.
    """
    for path in vms_folder(state).glob(f"{GONE_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    for vm in all_vms(state, skip_damaged=True):
        if vm.record.ephemeral:
            with suppress(VmMissingError, InUseError), vm.held() as now:
                if now is not None and now.has_run() and now.running() is None:
                    _refuse_if_in_use(now)
                    forget(now)


def _refuse_if_in_use(vm: Vm) -> None:
    """Raise InUseError if a QEMU of libvirt's runs it, which has no supervisor."""
    if vm.overlay.exists():
        refuse_if_in_use([vm.overlay])
