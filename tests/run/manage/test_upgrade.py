"""VMs that never wrote go on with a newer version; what the others need stays."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from packer.errors import InputError, InUseError, TrustError, UsageError
from packer.run.manage.libvirt import domain_xml
from packer.run.manage.unit import lasting_socket, manager_of
from packer.run.server.ensure import ensure_server
from packer.run.vm.vm import Vm, the_vm
from packer.sources.open import open_pack
from packer.sources.store import Store
from tests.host import run
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import copy_sparse
from tests.round_trip.packs import Guest, Packed, author_key, packed, trusting_host
from tests.round_trip.small import make_disk, write_files
from tests.run.served import same
from tests.run.vms import BOOT_S, VmHost, boot_to, end_server, job_file, tree_of, vm_host

__all__ = ["vm_host"]

BLOCK = 4096
SMALL_MIB, LARGE_MIB = 16, 20
COPIES = ("full", "thin.vmpack", "boot.vmpack")
CHANGED = "usr/lib/vmpack-fixture/make-dirt"
WORDS = "the second version\n"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a small disk, all of which its pack holds."""

    image: Path
    pack: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """demo:1 and demo:2, the second one larger."""
    folder, found = tmp_path_factory.mktemp("versions"), []
    for number, size_mib in ((1, SMALL_MIB), (2, LARGE_MIB)):
        tree = write_files(folder / f"tree-{number}", seed=number, big=1, small=2)
        image = make_disk(folder / f"{number}.raw", tree, size_mib=size_mib)
        pack = folder / f"{number}.vmpack"
        options = ("--name", "demo", "--pack-version", str(number), "--quiet")
        packer().good("pack", image, "-o", pack, *options)
        found.append(Version(image, pack))
    return found


@pytest.fixture
def versions(made: list[Version], tmp_path: Path) -> list[Version]:
    """Copies of them, which a test may replace."""
    copies = [Version(one.image, tmp_path / one.pack.name) for one in made]
    for one, copy in zip(made, copies, strict=True):
        shutil.copyfile(one.pack, copy.pack)
    return copies


@pytest.fixture(scope="module")
def next_busybox(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """The next version of the guest: with a file more, and another where only trees have it."""
    folder, old = tmp_path_factory.mktemp("busybox"), packed("busybox")
    image, made = folder / "next.raw", Packed(old.guest, *(folder / one for one in COPIES))
    copy_sparse(old.guest.image, image)
    (folder / "words").write_text(WORDS)
    where = f"{image}?offset={old.guest.root_offset}"
    for command in (
        f"rm {CHANGED}",
        f"write {folder}/words {CHANGED}",
        f"write {folder}/words etc/motd",
    ):
        run("debugfs", "-w", "-R", command, where)
    options = ("--name", "busybox", "--pack-version", "2", "--quiet", "--base", old.full)
    packer().good("pack", image, "-o", f"{made.full}/", *options)
    packer().good("copy", made.full, "--boot", made.boot, "--quiet")
    return Packed(Guest("busybox", image, old.guest.facts), made.full, made.thin, made.boot)


def packer() -> Vmpack:
    """The command of the packs' author."""
    return Vmpack(author_key().parents[1])


@pytest.fixture
def store(vm_host: VmHost) -> Store:
    return Store(vm_host.vmpack.home / "data" / "store")


def write(vm: Vm, offset: int, what: str = "write -P 7") -> None:
    """Write a block to a VM's disk, as its guest would."""
    run("qemu-io", "-c", f"{what} {offset} {BLOCK}", alone(vm))


def alone(vm: Vm) -> str:
    """An overlay without what lies below, for programs of QEMU."""
    file = {"driver": "file", "filename": str(vm.overlay)}
    return f"json:{json.dumps({'driver': 'qcow2', 'file': file, 'backing': None})}"


@contextmanager
def served(vm: Vm) -> Iterator[str]:
    """The address of what lies below a VM's overlay."""
    try:
        yield ensure_server(vm.server_spec()).uri
    finally:
        end_server(vm)


def digests_of(pack: Path) -> set[bytes]:
    with open_pack(str(pack)) as opened:
        return {bytes(one) for one in opened.map.contents.digest}


def unpacked(one: Packed, home: Path) -> Path:
    """What a pack says, on a host of its own: where a disk is unused it reads as zeros."""
    disk = home / "disk.raw"
    trusting_host(home).good("unpack", one.full, "-o", disk, "--offline", "--quiet")
    return disk


def held(store: Store) -> set[bytes]:
    """Contents of which the store has all or some blocks."""
    parts = {bytes.fromhex(path.name.partition(".")[0]) for path in partial_files(store)}
    return parts | {bytes(one.digest) for one in store.list()}


def partial_files(store: Store) -> list[Path]:
    return list((store.folder / "partial").glob("*"))


def size_of(vm: Vm) -> int:
    return int(
        json.loads(run("qemu-img", "info", "-U", "--output=json", vm.overlay))["virtual-size"]
    )


def test_who_never_wrote_moves_and_who_wrote_stays(
    vm_host: VmHost, versions: list[Version]
) -> None:
    old, new = versions
    first, second, third = (vm_host.vm(old.pack) for _ in range(3))
    write(second, 1 << 20)
    write(second, 3 << 20)
    write(third, 0, "write -z")  # zeros where there were other bytes are a write, too
    names = (first.name, second.name, third.name)
    said = vm_host.vmpack.good("upgrade", *names, new.pack)
    assert said.splitlines() == [
        f"{names[0]}    demo:1 -> demo:2",
        f"{names[1]}  demo:1            stays: it wrote (8.2 kB)",
        f"{names[2]}  demo:1            stays: it wrote (4.1 kB)",
    ]
    moved, stayed = the_vm(names[0]), the_vm(names[1])
    assert stayed.record == second.record
    assert moved.record.uuid == first.record.uuid
    assert moved.record.mac == first.record.mac
    assert (moved.record.ref_name, moved.record.pack) == ("demo:2", str(new.pack))
    assert moved.record.disk_bytes == size_of(moved) == new.image.stat().st_size
    assert size_of(stayed) == old.image.stat().st_size
    with served(moved) as uri:
        assert same(new.image, uri)
    with served(stayed) as uri:
        assert same(old.image, uri)
    again = vm_host.vmpack.json("upgrade", *names, new.pack)
    assert [(one["moved"], one["after"], one["written_bytes"]) for one in again["vms"]] == [
        (False, "demo:2", 0),
        (False, "demo:1", 2 * BLOCK),
        (False, "demo:1", BLOCK),
    ]


@pytest.mark.guest
def test_the_store_keeps_what_any_vm_needs_and_no_more(
    vm_host: VmHost, busybox: Packed, next_busybox: Packed, store: Store, tmp_path: Path
) -> None:
    """Nobody else has it by then: the trees, which were the only source, are empty."""
    trees = [tree_of(busybox, tmp_path / "old"), tree_of(next_busybox, tmp_path / "new")]
    sources = ("store:", *(f"dir:{tree}" for tree in trees))
    disks = [unpacked(one, tmp_path / one.full.parent.name) for one in (busybox, next_busybox)]
    old, new = digests_of(busybox.boot), digests_of(next_busybox.boot)
    first, second = (vm_host.vm(busybox.boot, *sources) for _ in range(2))
    with served(first) as uri:
        assert same(disks[0], uri)
    write(second, 1 << 20)
    vm_host.vmpack.good("upgrade", first.name, second.name, next_busybox.boot)
    moved = the_vm(first.name)
    with served(moved) as uri:
        assert same(disks[1], uri)
    for tree in trees:
        shutil.rmtree(tree)
        tree.mkdir()
    before = held(store)
    assert before & (old - new)
    assert before & (new - old)
    vm_host.vmpack.good("store", "gc", "--all")
    assert held(store) == before
    for vm, disk in ((second, disks[0]), (moved, disks[1])):
        with served(vm) as uri:
            assert same(disk, uri)

    vm_host.vmpack.good("rm", second.name)
    vm_host.vmpack.good("store", "gc", "--all")
    assert held(store) == before & new
    with served(moved) as uri:
        assert same(disks[1], uri)
    vm_host.vmpack.good("rm", moved.name)
    vm_host.vmpack.good("store", "gc", "--all")
    assert held(store) == set()


def test_nothing_is_changed_when_one_of_them_is_in_use(
    vm_host: VmHost, versions: list[Version]
) -> None:
    old, new = versions
    first, second = vm_host.vm(old.pack), vm_host.vm(old.pack)
    lock = second.lock()  # as a supervisor holds it
    assert lock is not None
    refused = vm_host.vmpack("upgrade", first.name, second.name, new.pack)
    assert refused.returncode == InUseError.exit_code
    assert f"changes the VM {second.name}" in refused.stderr
    assert the_vm(first.name).record == first.record


def test_a_vm_that_libvirt_runs_is_in_use(vm_host: VmHost, versions: list[Version]) -> None:
    """It has no supervisor; QEMU's lock on the overlay tells."""
    old, new = versions
    vm = vm_host.vm(old.pack)
    with (
        served(vm),
        subprocess.Popen(
            ["qemu-io", vm.overlay], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as emulator,
    ):
        assert emulator.stdin is not None
        assert emulator.stdout is not None
        emulator.stdin.write(b"length\n")
        emulator.stdin.flush()
        emulator.stdout.readline()
        refused = [
            vm_host.vmpack("upgrade", vm.name, new.pack),
            vm_host.vmpack("rm", "--force", vm.name),
        ]
        emulator.communicate(b"quit\n")
    assert [one.returncode for one in refused] == [InUseError.exit_code] * 2
    assert all("in use" in one.stderr for one in refused)
    assert the_vm(vm.name).record == vm.record


def test_back_only_if_that_is_wanted(vm_host: VmHost, versions: list[Version]) -> None:
    old, new = versions
    vm = vm_host.vm(new.pack)
    refused = vm_host.vmpack("upgrade", vm.name, old.pack)
    assert refused.returncode == TrustError.exit_code
    assert "--allow-older" in refused.stderr
    assert the_vm(vm.name).record == vm.record
    vm_host.vmpack.good("upgrade", vm.name, old.pack, "--allow-older")
    back = the_vm(vm.name)
    assert back.record.ref_name == "demo:1"
    assert size_of(back) == old.image.stat().st_size


def test_another_pack_is_no_version_of_it(
    vm_host: VmHost, versions: list[Version], busybox: Packed
) -> None:
    vm = vm_host.vm(versions[0].pack)
    refused = vm_host.vmpack("upgrade", vm.name, busybox.boot)
    assert refused.returncode == UsageError.exit_code
    assert "busybox:1" in refused.stderr
    assert the_vm(vm.name).record == vm.record


def test_a_stranger_is_not_believed(
    vm_host: VmHost, versions: list[Version], stranger: Vmpack, tmp_path: Path
) -> None:
    vm = vm_host.vm(versions[0].pack)
    theirs = tmp_path / "theirs.vmpack"
    stranger.good("key", "generate")
    options = ("--name", "demo", "--pack-version", "3", "--quiet")
    stranger.good("pack", versions[1].image, "-o", theirs, *options)
    refused = vm_host.vmpack("upgrade", vm.name, theirs)
    assert refused.returncode == TrustError.exit_code
    assert the_vm(vm.name).record == vm.record


def test_what_an_overlay_stands_on_stays(vm_host: VmHost, versions: list[Version]) -> None:
    """As `virsh snapshot-create` leaves it, in the same folder."""
    old, new = versions
    vm = vm_host.vm(old.pack)
    snapshot = vm.folder / "snapshot.qcow2"
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", vm.overlay, "-F", "qcow2", snapshot,
        str(vm.record.disk_bytes))  # fmt: skip
    said = vm_host.vmpack.json("upgrade", vm.name, new.pack)["vms"]
    assert [one["why"] for one in said] == ["snapshot.qcow2 stands on its overlay"]
    assert the_vm(vm.name).record == vm.record
    snapshot.unlink()
    run("qemu-img", "snapshot", "-c", "before", alone(vm))
    said = vm_host.vmpack.json("upgrade", vm.name, new.pack)["vms"]
    assert [one["why"] for one in said] == ["it has snapshots"]


def test_whose_pack_was_replaced_by_the_new_one_is_told(
    vm_host: VmHost, versions: list[Version]
) -> None:
    old, new = versions
    vm = vm_host.vm(old.pack)
    write(vm, 0)
    shutil.copyfile(new.pack, old.pack)
    said = vm_host.vmpack.good("upgrade", vm.name, old.pack)
    assert f"demo:1 is no longer at {old.pack}: put it back" in said


def test_an_interrupted_upgrade_is_finished_by_the_next(
    vm_host: VmHost, versions: list[Version], store: Store
) -> None:
    """Between its two steps the overlay is the larger one of both, never the smaller one."""
    old, new = versions
    grown, shrunk = vm_host.vm(old.pack), vm_host.vm(new.pack)
    run("qemu-img", "resize", "-q", alone(grown), str(LARGE_MIB << 20))
    shrunk = shrunk.changed(
        pack=str(old.pack),
        config=grown.record.config,
        ref_name="demo:1",
        disk_bytes=old.image.stat().st_size,
    )
    vm_host.vmpack.good("upgrade", shrunk.name, old.pack)
    assert size_of(shrunk) == old.image.stat().st_size
    vm_host.vmpack.good("upgrade", grown.name, new.pack)
    assert size_of(grown) == the_vm(grown.name).record.disk_bytes == new.image.stat().st_size
    leases = store.leases.leased()
    assert {bytes(one) for one in leases[shrunk.lease]} == digests_of(old.pack)
    assert {bytes(one) for one in leases[grown.lease]} == digests_of(new.pack)


def test_a_damaged_overlay_is_an_error_and_changes_nothing(
    vm_host: VmHost, versions: list[Version]
) -> None:
    old, new = versions
    first, second = vm_host.vm(old.pack), vm_host.vm(old.pack)
    second.overlay.write_bytes(second.overlay.read_bytes()[:1000])
    refused = vm_host.vmpack("upgrade", first.name, second.name, new.pack)
    assert refused.returncode == InputError.exit_code
    assert "overlay.qcow2" in refused.stderr
    assert the_vm(first.name).record == first.record


def test_a_domain_of_the_old_version_finds_no_disk(
    vm_host: VmHost, versions: list[Version]
) -> None:
    """libvirt would go on with the old disk below what is now an overlay over the new one."""
    old, new = versions
    vm = vm_host.vm(old.pack)
    manager = manager_of(vm, system=False)
    before = source_in(domain_xml(vm, manager, lasting_socket(vm, manager), reconnects=False))
    assert before.resolve(strict=True) == vm.overlay.resolve()
    vm_host.vmpack.good("upgrade", vm.name, new.pack)
    assert not before.exists()
    moved = the_vm(vm.name)
    after = source_in(domain_xml(moved, manager, lasting_socket(moved, manager), reconnects=False))
    assert after.resolve(strict=True) == vm.overlay.resolve()
    assert lasting_socket(moved, manager) != lasting_socket(vm, manager)


def source_in(domain: str) -> Path:
    return Path(domain.partition('<source file="')[2].partition('"')[0])


@pytest.mark.guest
def test_the_guest_of_a_newer_version_starts(
    vm_host: VmHost, busybox: Packed, next_busybox: Packed, tmp_path: Path
) -> None:
    vm = vm_host.vm(busybox.full)
    vm_host.vmpack.good("upgrade", vm.name, next_busybox.full)
    nonce = secrets.token_hex(8)
    job = job_file(tmp_path, "cat /etc/motd")
    with boot_to(the_vm(vm.name), nonce, job=job) as running:
        # One of its files is not what it was when the guest was built.
        assert running.wait_for(f"nonce={nonce} digests=FAILED 1 ", BOOT_S)
        assert WORDS.strip().encode() in running.console
        assert running.wait_end(BOOT_S)
    said = vm_host.vmpack.json("upgrade", vm.name, next_busybox.full)["vms"]
    assert said[0]["written_bytes"] > 0
    assert said[0]["after"] == "busybox:2"
