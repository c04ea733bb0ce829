"""A new VM of a pack, or a known one that is told where its pack lies now."""

from __future__ import annotations

import datetime
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from packer.artifact.opened import OpenedPack
from packer.errors import Error, InUseError
from packer.run.qemu import programs
from packer.run.qemu.accelerator import Accelerator
from packer.run.qemu.firmware import find_uefi
from packer.run.qemu.hardware import USUAL_CPUS, choose_hardware, usual_memory_mib
from packer.run.qemu.processes import identify
from packer.run.server.ensure import address_of
from packer.run.server.spec import ServerSpec, absolute_source, nbd_uri, server_spec
from packer.run.vm import command_line
from packer.run.vm.folder import being_made, publish
from packer.run.vm.record import MAX_VM_NAME, Record, write_record
from packer.run.vm.vm import Vm, check_name, find_vm, new_mac
from packer.sources.store import Store


@dataclass(frozen=True, slots=True)
class DiskOrigin:
    """Where the disk of a VM comes from. location: of the pack; sources: URIs, none: the defaults.

    complete: whether what nobody reads is fetched in the background.
    """

    location: str
    store: Store
    sources: Sequence[str] = ()
    offline: bool = False
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user wants a VM to have; None: what is usual here."""

    memory_mib: int | None = None
    cpus: int | None = None
    accelerator: Accelerator | Literal[""] | None = None
    network: Literal["user", "none"] | None = None

    def facts(self) -> dict[str, object]:
        """Return what was wished for, as fields of the record."""
        names = ("memory_mib", "cpus", "accelerator", "network")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def create_vm(
    pack: OpenedPack,
    served: DiskOrigin,
    wishes: Wishes | None = None,
    *,
    name: str | None = None,
    state: Path | None = None,
    another: bool = False,
    ephemeral: bool = False,
    folder: Path | None = None,
) -> Vm:
    """Return a new VM of a pack whose use was decided.

    name: the pack's if none is given. state: folder for its private area, instead of vmpack's own.
    another: whether NAME-2 will do where the name is taken. ephemeral: it is removed when it ends.
    folder: of `being_made`, with what else is its own. Its contents are leased in the store from
    before it has its name, for as long as it exists. Raises Error, InUseError when the name is
    taken.
    """
    name = check_name(name or pack.config.name[:MAX_VM_NAME])
    program = programs.find(programs.EMULATOR)
    hardware = choose_hardware(pack.config.guest, program, pack.layout.location)
    spec = _spec(pack, served)
    record = Record(
        name=name,
        pack=spec.pack,
        config=spec.config,
        ref_name=pack.config.ref_name,
        disk_bytes=pack.map.size,
        sources=spec.sources,
        offline=spec.offline,
        store=spec.store,
        complete=spec.complete,
        uuid=str(uuid.uuid4()),
        mac=new_mac(),
        hardware=hardware,
        memory_mib=usual_memory_mib(_host_memory_bytes()),
        cpus=min(USUAL_CPUS, os.cpu_count() or 1),
        ephemeral=ephemeral,
        maker=identify(os.getpid()) if ephemeral else None,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    record = msgspec.structs.replace(record, **(wishes or Wishes()).facts())
    with nullcontext(folder) if folder is not None else being_made(state) as place:
        made = Vm(place, record)
        _furnish(made, spec)
        # Noted first, then leased, then named: see packer.run.vm.folder.
        write_record(place, record)
        leases = served.store.leases
        leases.lease(made.lease, pack.map.contents.digest)
        try:
            return publish(place, record, number=another)
        except BaseException:
            if place.exists():  # it has no name yet
                leases.release(made.lease)
            raise


def _furnish(vm: Vm, spec: ServerSpec) -> None:
    """Put into a VM's folder what its guest writes to."""
    disk = nbd_uri(address_of(spec).nbd)
    command_line.make_overlay(vm.overlay, vm.record.disk_bytes, disk)
    if vm.record.hardware.firmware == "uefi":
        try:
            shutil.copyfile(find_uefi().variables, vm.variables)
        except OSError as error:
            raise Error(f"{vm.variables}: cannot be written: {error}") from error


def known_vm(
    pack: OpenedPack,
    served: DiskOrigin,
    *,
    name: str | None = None,
    state: Path | None = None,
    usual: Sequence[str] = (),
) -> Vm | None:
    """Return the VM of that name, if there is one, told where its pack and its sources are now.

    It may have been carried here from another host, which its store tells: what it had for sources
    there means nothing then. usual: the sources of such a VM, when `served` names none. Raises
    InUseError when it is of another pack.
    """
    vm = find_vm(check_name(name or pack.config.name[:MAX_VM_NAME]), state)
    if vm is None:
        return None
    spec = _spec(pack, served)
    if vm.record.config != spec.config:
        raise InUseError(
            f"the VM {vm.name} is of {vm.record.ref_name}, {vm.record.config[:19]}…, "
            f"expected {pack.config.ref_name}, {spec.config[:19]}…",
            hint="--new makes another VM, --name calls it",
        )
    with vm.held() as now:
        if now is None or now.running() is not None or now.record.config != spec.config:
            return vm
        if now.base is None:
            served.store.leases.lease(now.lease, pack.map.contents.digest)
        sources: dict[str, object] = {}
        if served.sources:
            sources = {"sources": spec.sources}
        elif now.record.store != spec.store:
            sources = {"sources": tuple(absolute_source(one) for one in usual)}
        former = Path(now.record.store)
        vm = now.changed(pack=spec.pack, store=spec.store, **sources)
        if former.resolve() != served.store.folder.resolve():
            with suppress(Error):  # it may be of another host
                Store(former).leases.release(vm.lease)
        return vm


def _spec(pack: OpenedPack, served: DiskOrigin) -> ServerSpec:
    return server_spec(
        served.location,
        pack.config_digest,
        served.store.folder,
        tuple(served.sources),
        offline=served.offline,
        complete=served.complete,
    )


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
