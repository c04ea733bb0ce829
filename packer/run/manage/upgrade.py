"""upgrade: VMs that never wrote get a newer version of their pack below them.

What a guest wrote was written over its old disk, block by block; over another one it would be
nonsense. So a VM that wrote keeps the version it has, for which its lease keeps what the store has
of it. An empty overlay fits any disk.

At every moment a VM's overlay is at least as large as the disk that its record names. So a run
that is killed leaves the old version or the new one, with zeros behind its end at worst; the same
command then finishes the rest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats.container.qcow2 import read_header, read_mapping
from formats.errors import FormatError
from formats.source import FileSource
from packer.artifact.opened import OpenedPack
from packer.durable import sync_directory
from packer.errors import Error, InputError, TrustError, UsageError
from packer.run.manage.libvirt import forget_domain
from packer.run.server.ensure import address_of
from packer.run.server.spec import ServerSpec, nbd_uri, server_spec
from packer.run.vm import command_line
from packer.run.vm.vm import Vm
from packer.sources.store import Store
from packer.survey.in_use import kept_from_qemu
from packer.survey.overlays import overlays_on


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What became of a VM. before, after: "demo:1", "demo:2".

    written_bytes: of its disk, at the granularity of its overlay. moved: it has this version now,
    and had another. why: it was kept on its version, in words.
    """

    vm: Vm
    before: str
    after: str
    written_bytes: int
    moved: bool
    why: str = ""


def upgrade_vms(
    vms: Sequence[Vm], pack: OpenedPack, location: str, *, allow_older: bool = False
) -> list[Upgraded]:
    """Put another version of their pack below VMs that never wrote; the others keep theirs.

    location: of the pack, whose use was decided. Before anything is changed, raises InUseError if
    one of them runs, UsageError if one is of another pack, TrustError if one has a newer version
    or another pack of that version, unless older ones are allowed.
    """
    with ExitStack() as held:
        kept = [_keep_from_starting(vm, held) for vm in vms]
        for vm in kept:
            _check_successor(vm, pack, location, allow_older=allow_older)
        found = [(vm, _held(vm.overlay)) for vm in kept]
        return [_upgrade(vm, holds, pack, location) for vm, holds in found]


@dataclass(frozen=True, slots=True)
class _Holds:
    """What an overlay holds: bytes of the disk, those that read as zeros among them."""

    size: int
    written_bytes: int
    snapshots: int

    @property
    def nothing(self) -> bool:
        return not self.written_bytes and not self.snapshots


def _held(overlay: Path) -> _Holds:
    """Return what an overlay holds. Raises InputError when it is none."""
    try:
        source = FileSource(overlay)
        try:
            header = read_header(source)
            mapping = read_mapping(source, header)
        finally:
            source.close()
    except (FormatError, OSError) as error:
        raise InputError(f"{overlay}: {error}") from error
    lengths = (mapping.runs[:, 2], mapping.compressed[:, 3], np.diff(mapping.zeros))
    written = sum(int(one.sum()) for one in lengths)
    return _Holds(header.size, written, header.nb_snapshots)


def _keep_from_starting(vm: Vm, held: ExitStack) -> Vm:
    """Keep a VM from being started meanwhile, and return it as it is written down now.

    Raises InUseError if it runs, under libvirt too.
    """
    now = held.enter_context(vm.idle())
    try:
        held.enter_context(kept_from_qemu(vm.overlay))
    except OSError as error:
        raise Error(f"{vm.overlay}: {error.strerror}") from error
    return now


def _check_successor(vm: Vm, pack: OpenedPack, location: str, *, allow_older: bool) -> None:
    name, _, version = vm.record.ref_name.rpartition(":")
    config = pack.config
    if name != config.name:
        raise UsageError(
            f"the VM {vm.name} is of {vm.record.ref_name}, and {location} is {config.ref_name}",
            hint="a VM goes on with another version of the same name only",
        )
    if vm.record.config == pack.config_digest or int(version) < config.version or allow_older:
        return
    another = "another" if int(version) == config.version else "the older"
    raise TrustError(
        f"the VM {vm.name} is of {vm.record.ref_name}, and {location} is {another} "
        f"{config.ref_name}",
        hint="an old version may have known holes; to go back all the same: --allow-older",
    )


def _upgrade(vm: Vm, holds: _Holds, pack: OpenedPack, location: str) -> Upgraded:
    record, spec = vm.record, _spec_of(vm, pack, location)
    before, moved, why = record.ref_name, vm, ""
    if record.config != spec.config:
        why = _why_kept(vm, holds, pack, spec)
    if not why and holds.nothing and record.base == "":
        moved = _move(vm, holds, pack, spec)
    other = moved.record.config != record.config
    return Upgraded(moved, before, moved.record.ref_name, holds.written_bytes, other, why)


def _spec_of(vm: Vm, pack: OpenedPack, location: str) -> ServerSpec:
    record = vm.record
    return server_spec(
        location,
        pack.config_digest,
        Path(record.store),
        record.sources,
        offline=record.offline,
        complete=record.complete,
    )


def _why_kept(vm: Vm, holds: _Holds, pack: OpenedPack, spec: ServerSpec) -> str:
    if vm.base is not None:
        return "it was detached, and reads a base of its own"
    gone = ""
    if vm.record.pack == spec.pack:
        gone = f", but {vm.record.ref_name} is no longer at {spec.pack}: put it back"
    if holds.written_bytes:
        return f"it wrote{gone}"
    if holds.snapshots:
        return f"it has snapshots{gone}"
    if (pack.config.guest.firmware == "uefi") != (vm.record.hardware.firmware == "uefi"):
        return f"its machine has other firmware than {pack.config.ref_name} needs{gone}"
    standing = overlays_on(vm.overlay)
    if standing.found:
        return f"{standing.found[0].name} stands on its overlay{gone}"
    return f"an overlay may stand on its own: {standing.unseen[0]}" if standing.unseen else ""


def _move(vm: Vm, holds: _Holds, pack: OpenedPack, spec: ServerSpec) -> Vm:
    """Put a version below a VM, or finish that. Old and new are leased until it is done."""
    leases, digests = Store(Path(spec.store)).leases, pack.map.contents.digest
    before = leases.leased().get(vm.lease, digests[:0])
    leases.lease(vm.lease, np.concatenate([before, digests]))
    forget_domain(vm)
    grows = pack.map.size > holds.size
    if grows:
        _renew_overlay(vm, pack.map.size, spec)
    moved = vm.changed(
        pack=spec.pack,
        config=spec.config,
        ref_name=pack.config.ref_name,
        disk_bytes=pack.map.size,
    )
    if not grows:
        _renew_overlay(vm, pack.map.size, spec)
    leases.lease(vm.lease, digests)
    return moved


def _renew_overlay(vm: Vm, disk_bytes: int, spec: ServerSpec) -> None:
    """Give a VM another empty overlay."""
    fresh = vm.overlay.with_name(f".{vm.overlay.name}.{os.getpid()}")
    try:
        command_line.make_overlay(fresh, disk_bytes, nbd_uri(address_of(spec).nbd))
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.replace(vm.overlay)
        sync_directory(vm.folder)
    except OSError as error:
        raise Error(f"{vm.overlay}: cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
