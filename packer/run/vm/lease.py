"""What a VM relies on in its store, so that `store gc` does not take it."""

from __future__ import annotations

from pathlib import Path

from packer.run.vm.vm import Vm
from packer.sources.open import open_pack
from packer.sources.store import Store


def renew_lease(vm: Vm) -> None:
    """Lease the contents of a VM's pack again if its store does not know of it. Raises Error.

    It may have been carried here, or the store was made anew.
    """
    leases = Store(Path(vm.record.store)).leases
    if vm.base is not None or leases.has(vm.lease):
        return
    with open_pack(vm.record.pack) as pack:
        if pack.config_digest == vm.record.config:
            leases.lease(vm.lease, pack.map.contents.digest)


def release_lease(vm: Vm) -> None:
    """Let the store collect what only this VM needed. Raises Error."""
    Store(Path(vm.record.store)).leases.release(vm.lease)
