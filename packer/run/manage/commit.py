"""What a VM has written becomes the next version of its pack."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from packer.artifact import manifest as manifests
from packer.artifact.config import PROFILED, Boots
from packer.artifact.keys import PrivateKey
from packer.artifact.layout.base import Layout
from packer.artifact.layout.iso import is_iso
from packer.artifact.opened import OpenedPack
from packer.errors import Error, InUseError, TrustError, UsageError
from packer.pack.earlier import keeps_free, recalled
from packer.pack.pack import PackOptions, PackReport, pack
from packer.progress import Progress
from packer.run.manage.libvirt import forget_domain
from packer.run.server.control import Control
from packer.run.server.ensure import address_of, ensure_server
from packer.run.server.spec import nbd_uri
from packer.run.vm import command_line
from packer.run.vm.vm import Vm, all_vms
from packer.sources.open import open_pack, split_location
from packer.sources.store import Store


def commit(
    vm: Vm,
    base: OpenedPack,
    output: str | Path,
    keys: Sequence[PrivateKey],
    options: PackOptions,
    progress: Progress | None = None,
) -> PackReport:
    """Pack the disk of a VM, its base and what it wrote, as the next version of the base.

    base: the VM's pack, whose use was decided. options: as for any pack; what follows from the
    base is filled in. The VM goes on as it was. Raises InUseError while it runs, TrustError for
    another pack than its own, and what packing raises.
    """
    with vm.idle() as now:
        _demand_own(now, base)
        with _below(now) as below:
            return pack(now.overlay, output, _on_base(options, base, below), keys, progress)


def commit_in_place(
    vm: Vm,
    base: OpenedPack,
    keys: Sequence[PrivateKey],
    options: PackOptions,
    progress: Progress | None = None,
    *,
    state: Path | None = None,
) -> tuple[PackReport, Vm]:
    """Replace the VM's pack where it lies by its next version; the VM begins anew on that.

    state: where VMs are looked for that stand on the same pack. Returns also the VM as it is now.
    Raises UsageError for a pack that cannot be replaced: behind an address, on an ISO image, with
    others in one layout, or with other VMs on it; and what `commit` raises.
    """
    with vm.idle() as now:
        _demand_own(now, base)
        place = _replaceable(now, base)
        _demand_alone(now, state)
        with _below(now) as below:
            wanted = replace(_on_base(options, base, below), replace=True)
            report = pack(now.overlay, place, wanted, keys, progress)
        return report, _begin_anew(now, report)


def _demand_own(vm: Vm, base: OpenedPack) -> None:
    if base.config_digest != vm.record.config:
        raise TrustError(
            f"{vm.record.pack}: expected {vm.record.ref_name}, {vm.record.config}, on which the VM "
            f"{vm.name} stands, found {base.config.ref_name}, {base.config_digest}",
            hint="what a VM has written means nothing without its own base",
        )


@contextmanager
def _below(vm: Vm) -> Iterator[str | Path]:
    """Give what lies below the overlay of a VM: its own base, or an NBD address, served so long."""
    if vm.base is not None:
        yield vm.base
        return
    address = ensure_server(vm.server_spec())
    with Control(address.control):  # so that it stays
        yield address.uri


def _on_base(options: PackOptions, base: OpenedPack, below: str | Path) -> PackOptions:
    """Return the options of the next version: what is the base's stays."""
    boots = base.config.boots
    if isinstance(boots, Boots):
        boots = msgspec.structs.replace(boots, level=PROFILED)
    return replace(
        options,
        base=base,
        on_base=True,
        backing=below,
        boots=boots if isinstance(boots, Boots) else None,
        sources=list(dict.fromkeys((*base.config.sources, *options.sources))),
        keep_free=options.keep_free or keeps_free(base.map),
        resolve=recalled(base.hints.packages, options.resolve),
    )


def _replaceable(vm: Vm, base: OpenedPack) -> str:
    """Return the VM's pack as the name of an output that replaces it. Raises UsageError."""
    location = split_location(vm.record.pack)[0]
    instead = "write the next version elsewhere: --output"
    if vm.base is not None:
        raise UsageError(f"the VM {vm.name} was detached from its pack", hint=instead)
    if base.layout.remote:
        raise UsageError(f"{location}: a pack behind an address is not replaced", hint=instead)
    path = Path(location)
    if path.parent == vm.folder:  # what others have is in the store alone, and would not be new
        raise UsageError(f"{path}: the pack of an adopted disk is not replaced", hint=instead)
    if path.is_file() and is_iso(path):
        raise UsageError(f"{path}: an ISO image is not changed in place", hint=instead)
    if _packs_in(base.layout) > 1:
        raise UsageError(f"{path} holds other packs, too", hint=instead)
    if not os.access(path if path.is_dir() else path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written", hint=instead)
    return f"{path}/" if path.is_dir() else str(path)


def _packs_in(layout: Layout) -> int:
    named = manifests.decode_index(layout.index(), f"{layout.location}: index.json")
    return len({blob.digest for _, blob in named})


def _demand_alone(vm: Vm, state: Path | None) -> None:
    """Raise InUseError when other VMs would lose the base that they stand on."""
    base = vm.record.pack, vm.record.config
    on_it = (one for one in all_vms(state) if (one.record.pack, one.record.config) == base)
    others = [one.name for one in on_it if one.folder != vm.folder]
    if others:
        raise InUseError(
            f"{vm.record.pack}: other VMs stand on it: {', '.join(others)}",
            hint="write the next version elsewhere: --output",
        )


def _begin_anew(vm: Vm, report: PackReport) -> Vm:
    """Put an empty overlay on the new base.

    The record before the overlay: what the guest has written, read on top of the new base, is that
    same disk, so nothing is lost in between. Domains of libvirt's, which have the old base, do not
    find the overlay any more.
    """
    old = address_of(vm.server_spec())
    with open_pack(vm.record.pack) as new:
        size, digests = new.map.size, new.map.contents.digest
    forget_domain(vm)
    Store(Path(vm.record.store)).leases.lease(vm.lease, digests)
    changed = vm.changed(config=report.identity, ref_name=report.config.ref_name, disk_bytes=size)
    empty = vm.folder / f".overlay.{os.getpid()}"
    try:
        command_line.make_overlay(empty, size, nbd_uri(address_of(changed.server_spec()).nbd))
        empty.replace(changed.overlay)
    finally:
        empty.unlink(missing_ok=True)
    with suppress(Error), Control(old.control) as control:  # what it serves is no longer there
        control.stop()
    return changed
