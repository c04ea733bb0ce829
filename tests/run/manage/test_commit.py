"""What a VM has written becomes the next version of its pack, elsewhere or where the pack lies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class, digest_keys
from packer.artifact.copy import Extent, copy_packs
from packer.artifact.keys import generate
from packer.artifact.layout.open import create_layout
from packer.artifact.opened import OpenedPack, packs_of
from packer.errors import InUseError, TrustError, UsageError
from packer.pack.pack import PackOptions
from packer.run.manage.commit import commit, commit_in_place
from packer.run.manage.libvirt import link_overlay
from packer.run.qemu.processes import identify
from packer.run.vm.record import Running
from packer.run.vm.vm import Vm, the_vm
from packer.sources.open import open_pack
from tests.round_trip.packs import Packed
from tests.round_trip.small import pack_small
from tests.run.vms import BOOT_S, VmHost, boot_to, job_file, vm_host

__all__ = ["vm_host"]

NEXT = PackOptions("busybox", version=2)
WRITE = """\
echo 'written by the guest' > /root/note
dd if=/dev/urandom of=/root/blob bs=1024 count=700 2> /dev/null
rm /srv/vmpack/sparse
sync
"""
READ = "cat /root/note && test ! -e /srv/vmpack/sparse && wc -c < /root/blob"


def boot_with(vm: Vm, script: str, folder: Path, nonce: str) -> bytes:
    """What the guest says while it does a job; it shuts down by itself."""
    with boot_to(vm, nonce, job=job_file(folder, script)) as running:
        running.wait_for(f"nonce={nonce} ", BOOT_S)
        ended = running.wait_end(BOOT_S)
        assert ended is not None
        assert ended.how == "guest"
        return running.console


def contents_of(pack: OpenedPack, one: Class | None = None) -> set[bytes]:
    contents = pack.map.contents
    rows = np.ones(len(contents), dtype=bool) if one is None else contents.classes == one
    return {bytes(key) for key in digest_keys(contents.digest[rows])}


@pytest.mark.guest
@pytest.mark.timeout(600)
def test_a_vm_is_committed_elsewhere_and_in_place(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    stick = shutil.copytree(busybox.full, tmp_path / "stick")
    (stick / "holiday.jpg").write_bytes(b"somebody else's")
    vm = vm_host.vm(stick)
    said = boot_with(vm, WRITE, tmp_path, "first")
    assert b"VMPACK-JOB status=0" in said
    key = generate(tmp_path / "key")

    with open_pack(str(stick)) as base:
        elsewhere = tmp_path / "next.vmpack"
        report = commit(vm, base, elsewhere, [key], NEXT)
        before = contents_of(base)
    assert report.config.ref_name == "busybox:2"
    assert report.signers == (key.public.fingerprint,)
    assert not report.config.warnings  # it was shut down
    with open_pack(str(elsewhere)) as found:
        new = contents_of(found) - before
        size = {bytes(key): int(found.map.contents.size[row]) for row, key in
                enumerate(digest_keys(found.map.contents.digest))}  # fmt: skip
        assert sum(size[one] for one in new) < 700 * 1024 + 3_000_000
        paths = set(found.hints.path)
        assert {"/root/note", "/root/blob"} <= paths
        assert "/srv/vmpack/sparse" not in paths
    new_bytes = sum(report.bundles.values()) - report.carried_bytes
    assert new_bytes < 700 * 1024 + 1_000_000
    assert the_vm(vm.name, None).record == vm.record  # it goes on as it was

    with open_pack(str(stick)) as base:
        replaced, vm = commit_in_place(vm, base, [key], NEXT)
    assert replaced.identity == report.identity
    assert (stick / "holiday.jpg").read_bytes() == b"somebody else's"
    assert vm.record.ref_name == "busybox:2"
    assert vm.overlay.stat().st_size < 1 << 20
    with open_pack(str(stick)) as found:
        assert found.config_digest == vm.record.config == replaced.identity
        named = {blob.digest.removeprefix("sha256:") for blob in found.manifest.blobs()}
        held = {path.name for path in (stick / "blobs" / "sha256").iterdir()}
        assert named < held
        assert len(held - named) == 1  # the manifest itself
    said = boot_with(vm, READ, tmp_path, "second")
    assert b"written by the guest" in said
    assert b"716800" in said
    assert b"VMPACK-JOB status=0" in said


@pytest.fixture
def small(vm_host: VmHost, tmp_path: Path, author: Callable[..., str]) -> Path:
    """A pack without a guest in it: nothing here boots."""
    return pack_small(author, tmp_path / "small")  # type: ignore[arg-type]


def try_commit(vm: Vm, pack: Path, output: Path) -> None:
    with open_pack(str(pack)) as base:
        commit(vm, base, output, [], PackOptions("small", version=2))


def try_in_place(vm: Vm, state: Path | None = None) -> None:
    with open_pack(vm.record.pack) as base:
        commit_in_place(vm, base, [], PackOptions("small", version=2), state=state)


def test_nothing_written_gives_the_same_contents(
    vm_host: VmHost, small: Path, tmp_path: Path
) -> None:
    vm = vm_host.vm(small)
    with open_pack(str(small)) as base:
        report = commit(vm, base, tmp_path / "next.vmpack", [], PackOptions("small", version=2))
        with open_pack(str(tmp_path / "next.vmpack")) as found:
            assert found.config.disks == base.config.disks
            assert found.config.hints == base.config.hints
            assert found.manifest.bundles() == base.manifest.bundles()
    assert report.carried_bytes == sum(report.bundles.values())


def test_a_running_vm_is_not_committed(vm_host: VmHost, small: Path, tmp_path: Path) -> None:
    vm = vm_host.vm(small)
    own = identify(os.getpid())
    assert own is not None
    vm.note_running(
        Running(process=own, runtime="/r", accelerator="tcg", console_start=0, started=0.0)
    )
    with pytest.raises(InUseError, match="runs"):
        try_commit(vm, small, tmp_path / "next.vmpack")
    vm.note_running(None)
    assert not (tmp_path / "next.vmpack").exists()


def test_another_pack_than_its_own_is_no_base(
    vm_host: VmHost, busybox: Packed, small: Path, tmp_path: Path
) -> None:
    vm = vm_host.vm(small)
    with pytest.raises(TrustError, match="expected small:1"):
        try_commit(vm, busybox.boot, tmp_path / "next.vmpack")


def test_a_vm_that_was_upgraded_meanwhile_is_not_committed_on_its_old_base(
    vm_host: VmHost, small: Path, tmp_path: Path
) -> None:
    vm = vm_host.vm(small)
    vm.changed(config="sha256:" + "0" * 64, ref_name="small:2")
    with pytest.raises(TrustError, match="expected small:2"):
        try_commit(vm, small, tmp_path / "next.vmpack")


def test_a_pack_that_other_vms_stand_on_is_not_replaced(vm_host: VmHost, small: Path) -> None:
    vm, other = vm_host.vm(small), vm_host.vm(small)
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    with pytest.raises(InUseError, match=other.name):
        try_in_place(vm)
    assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before


def test_what_cannot_be_replaced_is_not(vm_host: VmHost, small: Path, tmp_path: Path) -> None:
    iso = tmp_path / "small.iso"
    with open_pack(str(small)) as pack, create_layout(iso) as writer:
        copy_packs([pack], writer, Extent.FULL)
    with pytest.raises(UsageError, match="ISO image"):
        try_in_place(vm_host.vm(iso))


def test_a_pack_among_others_is_not_replaced(
    vm_host: VmHost, busybox: Packed, small: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both.vmpack"
    with (
        open_pack(str(small)) as one,
        open_pack(str(busybox.boot)) as other,
        create_layout(both) as writer,
    ):
        copy_packs([one, other], writer, Extent.BOOT)
    with open_pack(f"{both}#small") as one:
        assert len(packs_of(one.layout)) == 2
        location = Path(f"{both}#small")
    with pytest.raises(UsageError, match="other packs"):
        try_in_place(vm_host.vm(location))


def test_a_file_is_replaced_in_place(vm_host: VmHost, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.vmpack"
    with open_pack(str(small)) as pack, create_layout(file) as writer:
        copy_packs([pack], writer, Extent.FULL)
    vm = vm_host.vm(file)
    of_the_old_base = link_overlay(vm)
    try_in_place(vm)
    assert not os.path.lexists(of_the_old_base)  # a domain would put the new overlay over it
    with open_pack(str(file)) as found:
        assert found.config.ref_name == "small:2"
        assert the_vm(vm.name).record.config == found.config_digest
