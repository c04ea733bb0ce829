"""A disk becomes a VM that has the same bytes, or stays what it was."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures.boot import guest_arguments
from fixtures.guests import build
from packer.artifact.map import Kind
from packer.density.adopt import AdoptOptions, AdoptReport, adopt
from packer.density.forecast import forecast
from packer.errors import Error, InUseError, UsageError
from packer.run.disk.export import UnavailableError
from packer.run.vm.vm import OWN_PACK, the_vm
from packer.sources.open import open_pack
from packer.sources.store import Store
from packer.sources.store_files import StoreError
from tests.density.adopting import (
    SHIPPED,
    At,
    comes_back,
    disk,
    names_in_state,
    nothing_happens_to,
    objects,
    options,
    original,
)
from tests.density.places import MIB, digest, sharing, used_bytes
from tests.host import needs_root, run
from tests.round_trip.disks import copy_sparse, differences
from tests.round_trip.packs import guest
from tests.run.vms import MEMORY, VmHost, boot_to, reports, vm_host
from tests.survey.test_in_use import holding, qemu

__all__ = ["disk", "options", "original", "vm_host"]


def test_a_disk_becomes_a_vm_and_goes(disk: Path, original: Path, options: AdoptOptions) -> None:
    report = adopt(disk, options, [])
    assert report.removed
    assert not disk.exists()
    assert objects(options) == SHIPPED
    assert comes_back(report, original, options)
    vm = the_vm("mail", options.state)
    assert (vm.record.sources, vm.record.store) == (
        (f"store:{options.store.folder}",),
        str(options.store.folder),
    )
    assert vm.record.pack == str(vm.folder / OWN_PACK)
    assert vm.overlay.stat().st_blocks * 512 < MIB
    assert names_in_state(options) == ["mail"]
    assert report.after_bytes < 1.1 * report.unique_bytes


def test_what_it_takes_is_said_as_the_file_system_says_it(
    disk: Path, options: AdoptOptions
) -> None:
    os.sync()  # until then the file system may count blocks that it only means to take
    taken = disk.stat().st_blocks * 512
    could = forecast(disk, replace(options, known=set()))
    assert names_in_state(options) == []
    assert objects(options) == 0
    report = adopt(disk, options, [])
    in_store = sum(one.stat().st_blocks for one in options.store.folder.rglob("sha256/*/*")) * 512
    assert (could.before_bytes, report.before_bytes) == (taken, taken)
    assert report.stored_bytes == in_store
    own = int(run("du", "-s", "-B1", report.vm.folder).split()[0])
    assert report.own_bytes == own
    assert could.unique_bytes == report.unique_bytes
    assert could.after_bytes == pytest.approx(report.after_bytes, rel=0.1, abs=MIB)


def test_a_second_disk_shares_with_the_first(
    disk: Path, original: Path, options: AdoptOptions
) -> None:
    other = copy_sparse(original, disk.with_name("web.raw"))
    first = adopt(disk, options, [])
    second = adopt(other, replace(options, name="web", pack_name="web"), [])
    assert first.stored_bytes > 3 * MIB
    assert (second.stored_bytes, second.unique_bytes) == (0, 0)
    assert comes_back(second, original, options)


def test_a_qcow2_becomes_a_vm(disk: Path, original: Path, options: AdoptOptions) -> None:
    image = disk.with_suffix(".qcow2")
    run("qemu-img", "convert", "-c", "-O", "qcow2", disk, image)
    report = adopt(image, options, [])
    assert not image.exists()
    assert comes_back(report, original, options)


def test_the_store_never_collects_what_it_needs(
    disk: Path, original: Path, options: AdoptOptions
) -> None:
    report = adopt(disk, options, [])
    assert options.store.collect(everything=True).digests == ()
    assert comes_back(report, original, options)


@pytest.mark.root
@needs_root
def test_blocks_are_shared_with_a_raw_original_where_they_can(
    original: Path, tmp_path: Path, options: AdoptOptions
) -> None:
    with sharing(tmp_path, 400) as point:
        disk = copy_sparse(original, point / "mail.raw")
        run("sync", "-f", point)
        before = used_bytes(point)
        kept = replace(options, store=Store(point / "store"), remove=None)
        assert adopt(disk, kept, []).stored_bytes > 3 * MIB
        assert used_bytes(point) - before < MIB


def test_an_original_that_is_to_stay_stays(disk: Path, options: AdoptOptions) -> None:
    before = digest(disk)
    assert not adopt(disk, replace(options, remove=None), []).removed
    assert digest(disk) == before


def test_once_more_proves_it_and_removes_it(
    disk: Path, original: Path, options: AdoptOptions
) -> None:
    """So does who was killed, or said no, after the VM was made."""
    first = adopt(disk, replace(options, remove=lambda _: False), [])
    assert not first.removed
    lost = next(iter(options.store.list()))
    options.store.path_of(lost.digest).unlink()
    second = adopt(disk, options, [])
    assert second.removed
    assert first.vm.record == second.vm.record
    assert comes_back(second, original, options)


def test_another_disk_does_not_get_a_name_that_is_taken(
    disk: Path, original: Path, options: AdoptOptions
) -> None:
    adopt(disk, options, [])
    other = copy_sparse(original, disk)
    with pytest.raises(InUseError, match="there is a VM mail already"):
        adopt(other, options, [])
    assert other.exists()


@pytest.mark.root
@needs_root
def test_a_store_that_is_full_leaves_nothing(
    disk: Path, options: AdoptOptions, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small)
    try:
        full = replace(options, store=Store(small / "store"))
        with nothing_happens_to(disk, full), pytest.raises(StoreError, match="No space left"):
            adopt(disk, full, [])
    finally:
        run("umount", small)


@pytest.mark.root
@needs_root
def test_a_state_folder_that_is_full_leaves_nothing(
    disk: Path, options: AdoptOptions, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small)
    try:
        full = replace(options, state=small)
        with nothing_happens_to(disk, full), pytest.raises(Error):
            adopt(disk, full, [])
    finally:
        run("umount", small)


def test_an_object_that_goes_bad_before_the_proof_stops_it(
    disk: Path, options: AdoptOptions
) -> None:
    def damage() -> None:
        path = options.store.path_of(max(one.digest for one in options.store.list()))
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"another")

    with nothing_happens_to(disk, options), pytest.raises(UnavailableError):
        adopt(disk, options, [], At("verifying", damage))


def test_a_bad_object_that_was_in_the_store_before_is_replaced(
    disk: Path, original: Path, options: AdoptOptions
) -> None:
    other = copy_sparse(original, disk.with_name("web.raw"))
    adopt(disk, options, [])
    path = options.store.path_of(max(one.digest for one in options.store.list()))
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    report = adopt(other, replace(options, name="web", pack_name="web"), [])
    assert comes_back(report, original, options)


def test_a_disk_that_is_written_to_meanwhile_stays(disk: Path, options: AdoptOptions) -> None:
    def write() -> None:
        with disk.open("r+b") as file:
            file.write(b"x")

    with pytest.raises(InUseError, match="was changed while"):
        adopt(disk, options, [], At("verifying", write))
    assert disk.exists()
    assert names_in_state(options) == []
    assert objects(options) == 0


def test_a_disk_that_is_written_to_after_the_proof_stays(disk: Path, options: AdoptOptions) -> None:
    def write(_: AdoptReport) -> bool:
        with disk.open("r+b") as file:
            file.write(b"x")
        return True

    with pytest.raises(InUseError, match="was changed meanwhile"):
        adopt(disk, replace(options, remove=write), [])
    assert disk.exists()


def test_a_disk_in_use_is_refused(disk: Path, options: AdoptOptions, tmp_path: Path) -> None:
    drive = f"driver=raw,node-name=d,file.driver=file,file.filename={disk}"
    with (
        nothing_happens_to(disk, options),
        qemu("-blockdev", drive, "-device", "ide-hd,drive=d", ready=tmp_path / "qmp"),
        pytest.raises(InUseError, match="has locked it to write"),
    ):
        adopt(disk, options, [])
    with (
        nothing_happens_to(disk, options),
        holding("kept = open(path, 'r+b')", disk),
        pytest.raises(InUseError, match="open to write"),
    ):
        adopt(disk, options, [])


def test_no_qemu_can_begin_to_write_to_it_meanwhile(disk: Path, options: AdoptOptions) -> None:
    tried: list[str] = []

    def write() -> None:
        with pytest.raises(Exception, match="lock"):
            run("qemu-io", "-f", "raw", "-c", "write 0 512", disk)
        tried.append("write")

    adopt(disk, options, [], At("verifying", write))
    assert tried == ["write"]


def test_a_disk_on_which_an_overlay_stands_is_kept(disk: Path, options: AdoptOptions) -> None:
    overlay = disk.with_name("overlay.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay)
    with nothing_happens_to(disk, options), pytest.raises(InUseError, match=r"overlay\.qcow2"):
        adopt(disk, options, [])
    adopt(disk, replace(options, remove=None), [])
    assert disk.exists()


def test_an_overlay_that_appears_meanwhile_keeps_it(disk: Path, options: AdoptOptions) -> None:
    def create(_: AdoptReport) -> bool:
        overlay = disk.with_name("overlay.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay)
        return True

    with pytest.raises(InUseError, match=r"overlay\.qcow2"):
        adopt(disk, replace(options, remove=create), [])
    assert disk.exists()


def test_an_overlay_goes_and_its_backing_file_stays(
    disk: Path, original: Path, options: AdoptOptions
) -> None:
    overlay = disk.with_name("overlay.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay)
    report = adopt(overlay, replace(options, backing=disk), [])
    assert comes_back(report, original, options)
    assert not overlay.exists()
    assert disk.exists()


def test_a_qcow2_with_snapshots_is_kept(disk: Path, options: AdoptOptions) -> None:
    image = disk.with_suffix(".qcow2")
    run("qemu-img", "convert", "-O", "qcow2", disk, image)
    run("qemu-img", "snapshot", "-c", "before", image)
    with nothing_happens_to(image, options), pytest.raises(InUseError, match="1 snapshots"):
        adopt(image, options, [])


def test_what_is_no_image_is_refused(tmp_path: Path, options: AdoptOptions) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="expected a disk image"):
            adopt(path, options, [])


def test_nobody_to_ask_is_said_before_any_work(disk: Path, vm_host: VmHost) -> None:
    refused = vm_host.vmpack("adopt", disk, "--unsigned")
    assert refused.returncode == 2
    assert "there is nobody to ask" in refused.stderr
    assert disk.exists()


@pytest.mark.guest
def test_an_adopted_guest_boots_and_keeps_what_it_writes(vm_host: VmHost, tmp_path: Path) -> None:
    """Through the command, signed with the host's own key."""
    home = vm_host.vmpack.home
    vm_host.vmpack.good("key", "generate")
    disk = copy_sparse(build("busybox"), tmp_path / "Web_1.raw")
    could = vm_host.vmpack.json("adopt", disk, "--dry-run")
    report = vm_host.vmpack.json("adopt", disk, "--yes")
    assert could["unique_bytes"] == report["unique_bytes"]
    assert report["disks"][0]["vm"] == "Web_1"
    assert not disk.exists()
    vm = the_vm("Web_1", home / "state").changed(memory_mib=int(MEMORY), cpus=1)
    with boot_to(vm, "first") as running:
        assert reports(running, "first")
        running.stop()
    with open_pack(vm.record.pack) as own:
        assert own.envelope is not None
    refused = vm_host.vmpack("commit", "Web_1", "--in-place")
    assert refused.returncode == 2
    assert "adopted" in refused.stderr
    vm_host.vmpack.good("unpack", vm.record.pack, "-o", tmp_path / "again.raw", "--from", "store:")
    with open_pack(vm.record.pack) as own:
        unseen = [own.map.ranges_of_kind(kind) for kind in (Kind.UNUSED, Kind.DROPPED)]
    again = tmp_path / "again.raw"
    assert differences(build("busybox"), again, np.concatenate(unseen).tolist()) == []
    vm_host.vmpack.good("rm", "Web_1")
    assert not vm.folder.exists()
    assert [one for one in Store(home / "data/store").leases.leased() if one[0] != "@"] == []


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.root
@needs_root
def test_guests_built_apart_take_what_is_unique_to_them(vm_host: VmHost, tmp_path: Path) -> None:
    """On ext4, which shares no blocks."""
    guests = [guest(name) for name in ("debian-bios", "debian-uefi", "busybox")]
    with sharing(tmp_path, 4000, ("mkfs.ext4", "-q")) as point:
        disks = [copy_sparse(one.image, point / one.image.name) for one in guests]
        vm_host.states.append(point)
        options = ("--state", point, "--store", point / "store", "--unsigned")
        before = used_bytes(point)
        report = vm_host.vmpack.json("adopt", *disks, "--yes", *options)
        assert [one for one in disks if one.exists()] == []
        words = run("du", "-s", "-c", "-B1", point / "store", point / "vms").split()
        total = int(words[-2])
        print(
            f"before {before}, total {total}, unique {report['unique_bytes']}, "
            f"{total / report['unique_bytes']:.3f}"
        )
        assert total <= 1.1 * report["unique_bytes"]
        assert report["after_bytes"] == pytest.approx(total, rel=0.01)
        assert used_bytes(point) <= 1.1 * report["unique_bytes"]
        for one in guests:
            memory = MEMORY if one.firmware == "bios" else "512"
            wishes = ("--memory", memory, "--cpus", "2", "--accel", "tcg", "--state", point)
            arguments = guest_arguments(one.name)
            said = vm_host.vmpack.good("run", one.name, *wishes, "--", *arguments)
            assert f"nonce={one.name} digests=ok" in said
        vm_host.end()
