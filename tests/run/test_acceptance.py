"""Real guests, run straight from packs: sources that fail in turn, servers far away, many at once.

What else is asked of running VMs is measured by `benchmarks.running`.
"""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lazy_boot import lacking_bytes
from fixtures.boot import guest_arguments
from fixtures.registry import registry
from packer.run.manage.session import RunningVm
from packer.run.server.control import Control
from packer.run.server.control_protocol import ServerStatus
from packer.run.server.ensure import address_of
from packer.run.vm.vm import Vm
from packer.sources.open import open_pack
from tests.round_trip.command import Vmpack
from tests.round_trip.mirror import Mirror, mirror
from tests.round_trip.packs import Packed
from tests.round_trip.test_web_mirror import counted
from tests.run.served import same
from tests.run.vms import (
    BOOT_S,
    MEMORY,
    VmHost,
    boot_to,
    reports,
    server_of,
    tree_of,
    vm_host,
)
from tests.transport.servers import Answer

__all__ = ["vm_host"]

pytestmark = [pytest.mark.guest, pytest.mark.slow]
VMS = 6
EACH_MORE_BYTES = 20_000_000
MOST_RATIO = 1.3
"""Bytes fetched to the size of the frames that hold what was read."""

NOTHING_TWICE = 1.05
RUN = ("--memory", MEMORY, "--cpus", "1", "--net", "none", "--from", "store:")


@pytest.fixture
def nonce() -> str:
    return secrets.token_hex(8)


def status_of(vm: Vm) -> ServerStatus:
    with Control(address_of(vm.server_spec()).control) as control:
        return control.status()


def is_bundle(data: bytes) -> bool:
    return len(data) > 100_000


def zeros_in_bundles(_: Answer, data: bytes) -> bytes:
    return bytes(len(data)) if is_bundle(data) else data


def test_a_guest_boots_while_one_source_after_the_other_fails(
    vm_host: VmHost, busybox: Packed, nonce: str, tmp_path: Path
) -> None:
    """Files are removed, a mirror lies, one stalls: the last one has what the guest reads."""
    tree = tree_of(busybox, tmp_path / "tree")
    asked, goes_on = threading.Event(), threading.Event()

    def stall(_: Answer, data: bytes) -> bytes:
        if is_bundle(data):
            asked.set()
            goes_on.wait(BOOT_S)
        return data

    with ExitStack() as stack:
        lying: Mirror = stack.enter_context(mirror(busybox.full, spoil=zeros_in_bundles))
        stalling: Mirror = stack.enter_context(mirror(busybox.full, spoil=stall))
        good: Mirror = stack.enter_context(mirror(busybox.full))
        stack.callback(goes_on.set)
        vm = vm_host.vm(busybox.boot, f"dir:{tree}", lying.url, stalling.url, good.url)
        running = stack.enter_context(boot_to(vm, nonce, stay=True))
        assert running.wait_for("Linux version", BOOT_S)
        shutil.rmtree(tree)
        assert reports(running, nonce), running.console[-500:]

        assert asked.is_set()
        given = {one.source: one for one in status_of(vm).sources}
        assert given[lying.url].complaints
        assert given[good.url].content_bytes > 0
        unpacked = tmp_path / "unpacked.raw"
        vm_host.vmpack.good("unpack", busybox.full, "-o", unpacked, "--no-store", "-q")
        assert same(unpacked, address_of(vm.server_spec()).uri)
        assert running.stop(0.0) is not None


def pack_bytes(packed: Packed) -> int:
    return sum(path.stat().st_size for path in (packed.full / "blobs" / "sha256").iterdir())


@pytest.mark.parametrize(("name", "most"), [("busybox", NOTHING_TWICE), ("debian-bios", 0.7)])
def test_a_guest_boots_from_a_web_server_with_an_empty_store(
    vm_host: VmHost,
    pack_guest: Callable[[str], Packed],
    nonce: str,
    room: Path,
    name: str,
    most: float,
) -> None:
    """Only what it reads is fetched; the busybox guest reads all of its files."""
    packed = pack_guest(name)
    guest = ("--background", "--", *guest_arguments(nonce, stay=True))
    with counted(packed, room / "web") as (url, count):
        vm_host.vmpack.good("run", url, *RUN, *guest)
        (vm,) = vm_host.vms()
        with RunningVm(vm) as running:
            assert reports(running, nonce), running.console[-500:]
            with Control(address_of(vm.server_spec()).control) as control:
                touched = control.touched()
            assert running.stop(0.0) is not None
        asked = count()
    nobody = np.empty(0, dtype=np.int64)
    with open_pack(str(packed.full)) as pack:
        needed = lacking_bytes(pack, touched, nobody, nobody)
    print(f"{asked} for {needed:,} bytes of a pack of {pack_bytes(packed):,}")
    assert 0 < asked.bundle_bytes <= MOST_RATIO * needed
    assert asked.bundle_bytes + asked.document_bytes < most * pack_bytes(packed)


def test_a_guest_boots_from_a_registry_with_an_empty_store(
    vm_host: VmHost, author: Vmpack, busybox: Packed, nonce: str, room: Path
) -> None:
    with registry(room / "registry") as running:
        place = f"oci+http://{running.host}/demo/busybox:1"
        author.good("push", busybox.full, place, "--quiet")
        pushed = len(running.log.read_text())
        out = vm_host.vmpack.good("run", place, *RUN, "--", *guest_arguments(nonce))
        said = running.log.read_text()[pushed:]
    assert f"nonce={nonce} digests=ok" in out
    sent = sum(int(size) for size in re.findall(r"http\.response\.written=(\d+)", said))
    print(f"{sent:,} bytes sent of a pack of {pack_bytes(busybox):,}")
    assert 0 < sent < NOTHING_TWICE * pack_bytes(busybox)


def test_many_vms_of_a_pack_share_a_server_and_a_store(
    vm_host: VmHost, busybox: Packed, room: Path
) -> None:
    tree = tree_of(busybox, room / "tree")
    vms = [vm_host.vm(busybox.boot, f"dir:{tree}").changed(memory_mib=128) for _ in range(VMS)]
    with ExitStack() as stack:
        started = [stack.enter_context(boot_to(vm, vm.name, stay=True)) for vm in vms]
        assert all(reports(one, one.vm.name) for one in started)
        assert len({server_of(vm) for vm in vms}) == 1
        with open_pack(str(busybox.boot)) as pack:
            used = int(pack.map.contents.size.sum())
        taken = disk_bytes(vm_host.vmpack.home / "data" / "store", *(vm.folder for vm in vms))
        print(f"{taken:,} bytes taken; {used:,} are used of the disk")
        assert taken <= used + VMS * EACH_MORE_BYTES
        for one in started:
            ended = one.stop(0.0)
            assert ended is not None
            assert ended.how == "stopped"
    assert all(vm.running() is None for vm in vms)


def disk_bytes(*places: Path) -> int:
    """What `du` says."""
    done = subprocess.run(
        ["du", "-s", "-c", "-B1", *places], check=True, capture_output=True, text=True
    )
    return int(done.stdout.splitlines()[-1].split()[0])
