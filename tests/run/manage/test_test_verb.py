"""`vmpack test`: the boot test of a pack, which leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.boot import guest_arguments
from packer.cli.interrupts import INTERRUPTED
from packer.errors import MismatchError, UsageError
from packer.run.qemu.processes import is_alive
from packer.run.vm.vm import Vm, all_vms
from packer.sources.store import Store
from tests.round_trip.packs import Packed
from tests.run.serving import wait_until
from tests.run.vms import BOOT_S, MEMORY, VmHost, vm_host

__all__ = ["vm_host"]

pytestmark = pytest.mark.guest
PLAIN = ("--accel", "tcg", "--memory", MEMORY, "--cpus", "1", "--net", "none", "--from", "store:")


@pytest.mark.timeout(300)
def test_a_guest_that_says_the_marker_passes(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    log = tmp_path / "console.txt"
    said = vm_host.vmpack.good(
        "test", busybox.thin, "--marker", "nonce=up digests=ok", "--timeout", str(BOOT_S),
        "--log", log, "--json", *PLAIN, "--", *guest_arguments("up"),
    )  # fmt: skip
    report = json.loads(said)
    assert report["reached"]
    assert report["name"] == "busybox:1"
    assert 0 < report["seconds"] < BOOT_S
    assert report["missing"] == []
    supplied = {one["source"]: one["content_bytes"] for one in report["supplied"]}
    assert sum(supplied.values()) > 10_000_000
    assert set(supplied) == {f"pack:{busybox.thin}", f"store:{vm_host.vmpack.home}/data/store"}
    assert b"nonce=up digests=ok" in log.read_bytes()
    assert not vm_host.vms()
    assert not list((vm_host.vmpack.home / "state").glob("vms/*"))


def test_a_guest_that_does_not_fails_with_7_and_its_last_words(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    log = tmp_path / "console.txt"
    done = vm_host.vmpack(
        "test", busybox.full, "--marker", "never said", "--timeout", "6", "--log", log, *PLAIN
    )
    assert done.returncode == MismatchError.exit_code
    assert "expected 'never said', found no more patience after" in done.stderr
    assert "console said" in done.stderr
    assert log.exists()
    assert not vm_host.vms()


def test_a_test_that_is_told_to_end_leaves_no_guest_behind(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    """As by timeout(1), or a CI that has no more patience."""
    client = vm_host.vmpack.start(
        "test",
        busybox.full,
        "--marker",
        "never said",
        *PLAIN,
        environment={"TMPDIR": str(tmp_path)},
    )
    wait_until(lambda: any(vm.running() for vm in tried_in(tmp_path)), BOOT_S)
    [vm] = tried_in(tmp_path)
    running = vm.running()
    assert running is not None
    client.terminate()
    _, said = client.communicate(timeout=BOOT_S)
    assert client.returncode == INTERRUPTED, said
    assert not is_alive(running.process)
    assert not list(tmp_path.glob("vmpack-trial-*"))
    assert not Store(vm_host.vmpack.home / "data" / "store").leases.has(vm.lease)


def tried_in(folder: Path) -> list[Vm]:
    return [vm for place in folder.glob("vmpack-trial-*") for vm in all_vms(place)]


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * 2000])
def test_a_marker_is_one_line(vm_host: VmHost, busybox: Packed, text: str) -> None:
    done = vm_host.vmpack("test", busybox.full, "--marker", text)
    assert done.returncode == UsageError.exit_code
    assert "--marker" in done.stderr
