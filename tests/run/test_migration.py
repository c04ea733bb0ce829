"""A VM that was stopped on one host goes on at another, with that host's own files as sources."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.boot import guest_arguments
from packer.run.vm.vm import Vm, the_vm
from packer.sources.store import Store
from tests.round_trip.packs import Packed, trusting_host
from tests.run.vms import VmHost, boot_to, job_file, reports, tree_of, vm_host

__all__ = ["vm_host"]

pytestmark = pytest.mark.guest
WRITE = "head -c 3000000 /dev/urandom > /root/kept; sha256sum /root/kept; sync"
LOOK = "sha256sum /root/kept"
OF_A_VM = ("vm.json", "overlay.qcow2")
"""What is carried of a folder; variables.fd, too, where the firmware is UEFI."""


@pytest.fixture
def other_host(
    vm_host: VmHost, tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VmHost]:
    """Host B; what is called there does not know the folders of host A."""
    host = VmHost(trusting_host(tmp_path / "host-b"), short_folder)
    yield host
    monkeypatch.setenv("VMPACK_HOME", str(host.vmpack.home))
    host.end()


def carry(vm: Vm, pack: Path, folder: Path) -> int:
    """Carry a VM and a pack to a folder; return the bytes that travel. Holes do not."""
    what = ["-C", str(vm.folder), *OF_A_VM, "-C", str(pack.parent), pack.name]
    packing = ["tar", "--sparse", "--create", *what]
    stream = subprocess.run(packing, check=True, capture_output=True).stdout
    place = folder / "vms" / vm.folder.name
    place.mkdir(parents=True)
    subprocess.run(["tar", "--extract", "-C", place], input=stream, check=True)
    (place / pack.name).rename(folder / pack.name)
    return len(stream)


def digest_of(console: str) -> str:
    """What the guest found its file to be."""
    found = re.search(r"([0-9a-f]{64})  /root/kept", console)
    assert found, console[-500:]
    return found[1]


def write_on_host_a(host: VmHost, vm: Vm, tmp_path: Path) -> str:
    with boot_to(vm, "here", job=job_file(tmp_path, WRITE)) as running:
        assert reports(running, "here"), running.console[-500:]
        assert running.wait_end(60.0) is not None
        return digest_of(running.console.decode("utf-8", "replace"))


def test_a_vm_goes_on_at_another_host_with_the_files_of_that(
    vm_host: VmHost, other_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    """Nothing of host A is there any more: neither its state, its store, its pack nor its trees."""
    host_a = tmp_path / "a"
    host_a.mkdir()
    tree_a = tree_of(busybox, host_a / "tree")
    pack_a = host_a / "thin.vmpack"
    pack_a.write_bytes(busybox.thin.read_bytes())
    made = vm_host.vm(pack_a, f"dir:{tree_a}", state=host_a)
    vm_host.states.append(host_a)
    written = write_on_host_a(vm_host, made, tmp_path)

    host_b = tmp_path / "b"
    carried = carry(made, busybox.boot, host_b)
    overlay, boot = made.overlay.stat().st_size, busybox.boot.stat().st_size
    print(f"carried {carried:,}; boot copy {boot:,}, overlay {overlay:,}")
    assert carried <= boot + overlay

    vm_host.end()
    host_a.rename(tmp_path / "gone")
    vm_host.vmpack.home.rename(tmp_path / "home-gone")

    tree_b = tree_of(busybox, tmp_path / "tree-b")
    other_host.states.append(host_b)
    out = other_host.vmpack.good(
        *("run", host_b / busybox.boot.name, "--name", made.name, "--state", host_b),
        *("--from", f"dir:{tree_b}", "--accel", "tcg", "--"),
        *guest_arguments("there", job_file=job_file(tmp_path, LOOK)),
    )
    assert "nonce=there digests=ok" in out
    assert digest_of(out) == written

    vm = the_vm(made.name, host_b)
    assert (vm.record.uuid, vm.record.mac) == (made.record.uuid, made.record.mac)
    for text in (vm.record.pack, vm.record.store, *vm.record.sources):
        assert str(host_a) not in text
        assert str(vm_host.vmpack.home) not in text
    store = Store(Path(vm.record.store))
    assert store.folder == other_host.vmpack.home / "data" / "store"
    assert vm.lease in store.leases.leased()
    # And once more, by its name alone.
    arguments = guest_arguments("again", job_file=job_file(tmp_path, LOOK))
    out = other_host.vmpack.good("run", made.name, "--state", host_b, "--", *arguments)
    assert "nonce=again digests=ok" in out
    assert digest_of(out) == written


def test_a_detached_vm_goes_on_elsewhere_with_nothing_but_its_folder(
    vm_host: VmHost, other_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    made = vm_host.vm(busybox.full)
    vm_host.vmpack.good("detach", made.name)
    host_b = tmp_path / "b"
    place = host_b / "vms" / made.name
    place.parent.mkdir(parents=True)
    vm_host.vmpack.home.rename(tmp_path / "home-gone")
    folder = tmp_path / "home-gone" / made.folder.relative_to(vm_host.vmpack.home)
    subprocess.run(["cp", "-a", folder, place], check=True)
    other_host.states.append(host_b)
    arguments = guest_arguments("there", job_file=job_file(tmp_path, "echo ALONE"))
    out = other_host.vmpack.good("run", made.name, "--state", host_b, "--", *arguments)
    assert "ALONE" in out
    assert "nonce=there digests=ok" in out


def test_a_vm_without_sources_of_its_own_takes_those_of_the_host(
    vm_host: VmHost, other_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    """What it had on host A is not asked for; `--from` was not given on host B."""
    made = vm_host.vm(busybox.full, "dir:/nowhere-on-b")
    host_b = tmp_path / "b"
    carry(made, busybox.boot, host_b)
    tree = tree_of(busybox, tmp_path / "tree-b")
    settings = f'accelerator = "tcg"\nsources = ["dir:{tree}"]\n'
    (other_host.vmpack.home / "config" / "config.toml").write_text(settings)
    other_host.states.append(host_b)
    other_host.vmpack.good(
        *("run", host_b / busybox.boot.name, "--name", made.name, "--state", host_b),
        "--background",
    )
    assert the_vm(made.name, host_b).record.sources == (f"dir:{tree}",)
