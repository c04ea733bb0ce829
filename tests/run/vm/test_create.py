"""A VM is made whole, with its lease, or not at all; and is told where it lies now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packer.errors import InUseError
from packer.run.qemu.processes import identify
from packer.run.vm.create import DiskOrigin, Wishes, create_vm, known_vm
from packer.run.vm.lease import renew_lease
from packer.run.vm.vm import VMS
from packer.sources.open import open_pack
from packer.sources.store import Store
from tests.round_trip.packs import Packed
from tests.run.vms import VmHost, vm_host

__all__ = ["vm_host"]

pytestmark = pytest.mark.guest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_was_wished_for_is_there_from_the_first_moment_on(
    vm_host: VmHost, busybox: Packed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is its lease: whoever sees the name sees all of it."""
    seen: list[tuple[bool, bytes]] = []
    rename = Path.rename

    def named(self: Path, target: Path) -> Path:
        if target.parent.name == VMS:
            record = (self / "vm.json").read_bytes()
            seen.append((any((store.folder / "leases").iterdir()), record))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", named)
    with open_pack(str(busybox.full)) as pack:
        vm = create_vm(pack, DiskOrigin(str(busybox.full), store), Wishes(memory_mib=300))
    [(leased, record)] = seen
    assert leased
    assert b'"memory_mib": 300' in record
    assert store.leases.has(vm.lease)


def test_a_vm_that_is_not_made_leaves_neither_folder_nor_lease(
    vm_host: VmHost, busybox: Packed, store: Store
) -> None:
    with open_pack(str(busybox.full)) as pack:
        served = DiskOrigin(str(busybox.full), store)
        vm = create_vm(pack, served)
        with pytest.raises(InUseError, match="already"):
            create_vm(pack, served)
    assert list(vm.folder.parent.iterdir()) == [vm.folder]
    assert list(store.leases.leased()) == [vm.lease]


def test_who_makes_an_ephemeral_vm_is_noted(vm_host: VmHost, busybox: Packed, store: Store) -> None:
    with open_pack(str(busybox.full)) as pack:
        vm = create_vm(pack, DiskOrigin(str(busybox.full), store), ephemeral=True)
    assert vm.record.maker == identify(os.getpid())


def test_a_vm_that_is_given_another_store_leaves_nothing_in_the_old_one(
    vm_host: VmHost, busybox: Packed, store: Store, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(store.folder)
    with open_pack(str(busybox.full)) as pack:
        vm = create_vm(pack, DiskOrigin(str(busybox.full), store))
        for other, stays in ((Store(link), True), (Store(tmp_path / "other"), False)):
            vm_now = known_vm(pack, DiskOrigin(str(busybox.full), other))
            assert vm_now is not None
            assert vm_now.record.store == str(other.folder)
            assert other.leases.has(vm.lease)
            assert store.leases.has(vm.lease) == stays


def test_a_lease_that_was_lost_is_written_again(
    vm_host: VmHost, busybox: Packed, store: Store
) -> None:
    with open_pack(str(busybox.full)) as pack:
        vm = create_vm(pack, DiskOrigin(str(busybox.full), store))
        store.leases.release(vm.lease)
        renew_lease(vm)
        leased = store.leases.leased()[vm.lease]
        assert leased.tobytes() == pack.map.contents.digest.tobytes()
