"""adopt: an existing disk becomes a VM: overlay, map and private contents in its folder, and what
others may have, too, in this host's store.

The original is not written to. It goes when the VM's disk was read back and compared with it, byte
for byte, and everything is durable; whatever happens before leaves it as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from packer.artifact.contents import Contents
from packer.artifact.keys import PrivateKey
from packer.artifact.opened import OpenedPack
from packer.density.original import Original
from packer.density.prove import prove
from packer.density.stock import durable, forget_file, forget_pages, lacking, put_contents
from packer.errors import Error, InUseError
from packer.pack.pack import PackOptions, pack
from packer.progress import Progress, Silent
from packer.run.qemu import programs
from packer.run.vm.create import DiskOrigin, create_vm
from packer.run.vm.folder import being_made, remove_unnamed
from packer.run.vm.vm import OWN_PACK, Vm, check_name, find_vm, vms_folder
from packer.sources.base import Wanted
from packer.sources.open import open_pack
from packer.sources.partial import SECTOR_BYTES
from packer.sources.store import Store
from packer.survey.disk import Disk, open_disk
from packer.survey.in_use import kept_from_qemu


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """How a disk is adopted.

    name: of the VM; pack_name: of its pack. store: where shared contents go. state: folder for the
    VM, instead of vmpack's own. backing: what a qcow2 overlay lies on. folders: where else overlays
    on the disk are looked for. remove: is asked, once all is proven, whether the original goes;
    None: it is kept, and may be such that it could not go. known: digests that were counted as
    unique before; grows.
    """

    name: str
    pack_name: str
    store: Store
    state: Path | None = None
    backing: Path | None = None
    folders: Sequence[Path] = ()
    remove: Callable[[AdoptReport], bool] | None = None
    known: set[bytes] = field(default_factory=set)
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """What became of a disk.

    before_bytes: what its file takes or took. own_bytes: what the folder of its VM takes;
    stored_bytes: what the objects take that the store has now because of it. unique_bytes: of its
    contents those that no disk had that was adopted before with the same `known`. removed: whether
    the original is gone.
    """

    path: Path
    vm: Vm
    before_bytes: int
    own_bytes: int
    stored_bytes: int
    unique_bytes: int
    removed: bool

    @property
    def after_bytes(self) -> int:
        """Return what the disk takes now, the original aside."""
        return self.own_bytes + self.stored_bytes


def adopt(
    disk: Path,
    options: AdoptOptions,
    keys: Sequence[PrivateKey],
    progress: Progress | None = None,
) -> AdoptReport:
    """Make a VM of a disk image.

    One that was made before of the same disk is proven again. Raises UsageError for what is no
    image, InUseError when somebody uses it, when something would be lost with it, when the guest
    sleeps or the name is taken, InputError when it cannot be read, MismatchError if it does not
    come back as it was, StoreError and Error when something cannot be written.
    """
    progress = progress or Silent()
    original = Original.of(disk, options.folders)
    before = original.taken_bytes()
    original.demand_unused()
    with kept_from_qemu(original.real):
        with open_disk(original.real, backing=options.backing) as opened:
            if options.remove is not None:
                original.demand_expendable(opened)
        vm = find_vm(check_name(options.name), options.state)
        if vm is None:
            vm, stored = _new_vm(original, options, keys, progress)
        else:
            stored = _known_vm(vm, original, options, progress)
        report = AdoptReport(
            disk, vm, before, _taken_bytes(vm.folder), stored, _unique(vm, options), removed=False
        )
        if options.remove is not None and options.remove(report):
            original.remove()
            report = replace(report, removed=True)
    return report


def _new_vm(
    original: Original, options: AdoptOptions, keys: Sequence[PrivateKey], progress: Progress
) -> tuple[Vm, int]:
    """Return the VM, durable, and how many bytes the store takes more."""
    programs.find(programs.EMULATOR)  # rather now than after all the work
    remove_unnamed(options.state)
    added: list[bytes] = []
    try:
        with being_made(options.state) as folder:
            return _make(original, folder, options, keys, added, progress)
    except BaseException:
        with suppress(Error):
            options.store.take_back(added)
        raise


def _make(
    original: Original,
    folder: Path,
    options: AdoptOptions,
    keys: Sequence[PrivateKey],
    added: list[bytes],
    progress: Progress,
) -> tuple[Vm, int]:
    store, own = options.store, folder / OWN_PACK
    wanted = PackOptions(options.pack_name, thin=True, backing=options.backing, jobs=options.jobs)
    pack(original.real, own, wanted, keys, progress)
    forget_file(own)
    original.note_in(folder)
    with (
        open_pack(str(own)) as made,
        store.leases.using(made.map.contents.digest),
        open_disk(original.real, backing=options.backing) as disk,
    ):
        stored = _stock_and_prove(made, disk, original, store, added, progress)
        place = vms_folder(options.state) / options.name / OWN_PACK
        served = DiskOrigin(str(place), store, (store.uri,))
        with durable(folder.parent), durable(store.folder):
            vm = create_vm(made, served, name=options.name, state=options.state, folder=folder)
    return vm, stored


def _known_vm(vm: Vm, original: Original, options: AdoptOptions, progress: Progress) -> int:
    """Prove a VM again that was made of the same disk, which is still there.

    Returns how many bytes the store takes more. Raises InUseError for another VM.
    """
    own = vm.folder / OWN_PACK
    if not original.is_noted_in(vm.folder) or vm.base or vm.record.pack != str(own):
        raise InUseError(f"there is a VM {vm.name} already", hint="--name calls it otherwise")
    lock = vm.lock()
    if lock is None:
        raise InUseError(f"the VM {vm.name} runs", hint=f"vmpack stop {vm.name}")
    store = Store(Path(vm.record.store))
    try:
        with (
            open_pack(str(own)) as made,
            open_disk(original.real, backing=options.backing) as disk,
        ):
            with durable(vm.folder.parent), durable(store.folder):
                store.leases.lease(vm.lease, made.map.contents.digest)
            return _stock_and_prove(made, disk, original, store, [], progress)
    finally:
        os.close(lock)


def _stock_and_prove(
    made: OpenedPack,
    disk: Disk,
    original: Original,
    store: Store,
    added: list[bytes],
    progress: Progress,
) -> int:
    """Put into the store what the pack leaves out, and compare what both make with the disk.

    The caller has leased it. Returns how many bytes the store takes more.
    """
    contents = made.map.contents
    left_out = np.setdiff1d(np.arange(len(contents), dtype=np.int64), made.index.content)
    with durable(store.folder):
        wanted = lacking(store, Wanted(contents, left_out, lambda: made.hints), progress)
        put_contents(store, disk, made.map, wanted, added, progress)
    stored = forget_pages(store, contents, wanted.rows)
    try:
        prove(made, store, disk.source, str(original.path), progress)
    finally:  # who has changed it has made it differ, too
        disk.check_unchanged()
    original.demand_unchanged()
    return stored


def _taken_bytes(folder: Path) -> int:
    """Return how many bytes the files of a folder take, and the folder itself."""
    return sum(one.lstat().st_blocks for one in (folder, *folder.rglob("*"))) * SECTOR_BYTES


def _unique(vm: Vm, options: AdoptOptions) -> int:
    """Return how many bytes of its contents no disk had that was adopted before."""
    with open_pack(str(vm.folder / OWN_PACK)) as made:
        return count_new(made.map.contents, options.known)


def count_new(contents: Contents, known: set[bytes]) -> int:
    """Return how many bytes have contents whose digests are not known; they are from then on."""
    total = 0
    for digest, size in zip(contents.digest, contents.size.tolist(), strict=True):
        name = digest.tobytes()
        total += 0 if name in known else size
        known.add(name)
    return total
