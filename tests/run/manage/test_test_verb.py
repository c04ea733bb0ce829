"""`vmpack test`: the boot test of a pack, which leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.boot import guest_arguments
from packer.errors import MismatchError, UsageError
from tests.round_trip.packs import Packed
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
        "test", busybox.thin, "--marker", "nonce=up", "--timeout", str(BOOT_S), "--log", log,
        "--json", *PLAIN, "--", *guest_arguments("up"),
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


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * 2000])
def test_a_marker_is_one_line(vm_host: VmHost, busybox: Packed, text: str) -> None:
    done = vm_host.vmpack("test", busybox.full, "--marker", text)
    assert done.returncode == UsageError.exit_code
    assert "--marker" in done.stderr
