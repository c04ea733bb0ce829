"""The guests that other tests rely on: they boot, they prove it, and their check can fail."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures.boot import Firmware, boot, parse_marker
from fixtures.guests import DEFAULT_GUESTS, build

CHECKOUT = Path(__file__).resolve().parents[2]
BLOCK_BYTES = 4096
DELETED_LINE = b"VMPACK-DELETED-SECRET"
pytestmark = pytest.mark.guest


def sidecar(image: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(image.with_suffix(".json").read_text())
    return facts


def firmware_of(image: Path) -> Firmware:
    return "uefi" if sidecar(image)["firmware"] == "uefi" else "bios"


def e2fs(image: Path, *command: str) -> str:
    """Run one of e2fsprogs on the root file system of an image."""
    filesystem = f"{image}?offset={sidecar(image)['root_offset_bytes']}"
    # /usr/sbin is not in an ordinary user's PATH on Debian.
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    return subprocess.run(
        [*command, filesystem],
        env=environment,
        capture_output=True,
        check=True,
        text=True,
        errors="replace",
    ).stdout


def debugfs(image: Path, request: str) -> str:
    return e2fs(image, "debugfs", "-R", request)


@pytest.fixture(scope="module")
def busybox() -> Path:
    return build("busybox")


@pytest.fixture
def busybox_copy(busybox: Path, tmp_path: Path) -> Path:
    copy = tmp_path / busybox.name
    shutil.copyfile(busybox, copy)
    shutil.copyfile(busybox.with_suffix(".json"), copy.with_suffix(".json"))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT_GUESTS)
def test_a_guest_boots_to_this_boots_nonce_with_good_digests(name: str) -> None:
    image = build(name)
    before = image.stat().st_mtime_ns
    nonce = secrets.token_hex(8)
    result = boot(image, firmware=firmware_of(image), nonce=nonce)
    assert (result.nonce, result.digests_ok) == (nonce, True), result.console[-3000:]
    assert result.disk_nonce == sidecar(image)["nonce"]
    assert result.files > 500
    assert result.powered_off
    assert image.stat().st_mtime_ns == before, "a snapshot boot wrote to the image"


def test_one_wrong_byte_makes_the_check_fail(busybox_copy: Path) -> None:
    blocks = debugfs(busybox_copy, "blocks /srv/vmpack/own-data").split()
    start = sidecar(busybox_copy)["root_offset_bytes"] + int(blocks[100]) * BLOCK_BYTES
    with busybox_copy.open("r+b") as disk:
        disk.seek(start)
        byte = disk.read(1)[0]
        disk.seek(start)
        disk.write(bytes([byte ^ 1]))
    result = boot(busybox_copy)
    assert not result.digests_ok
    # The file and its hard link.
    assert result.failed == 2
    assert "digests=FAILED 2" in result.console


def test_a_missing_file_makes_the_check_fail(busybox_copy: Path) -> None:
    result = boot(busybox_copy, job="rm /srv/vmpack/one-byte")
    assert result.job_status == 0
    assert result.failed == 1
    assert not result.digests_ok


def test_a_disk_without_a_system_ends_in_bounded_time(tmp_path: Path) -> None:
    disk = tmp_path / "empty.raw"
    disk.write_bytes(bytes(1024 * 1024))
    result = boot(disk, timeout_s=4)
    assert (result.nonce, result.digests_ok, result.powered_off) == (None, False, False)
    assert result.seconds < 10


@pytest.mark.parametrize("name", DEFAULT_GUESTS)
def test_file_systems_are_clean_and_were_journaled(name: str) -> None:
    image = build(name)
    e2fs(image, "e2fsck", "-f", "-n")
    header = e2fs(image, "dumpe2fs", "-h")
    assert "needs_recovery" not in header
    assert re.search(r"Filesystem state: +clean\n", header)
    sequence = re.search(r"Journal sequence: +0x([0-9a-f]+)", header)
    # A journal that was never used is still at its first transaction.
    assert sequence is not None
    assert int(sequence[1], 16) > 1


def test_the_dirt_is_there(busybox: Path) -> None:
    raw = busybox.read_bytes()
    assert DELETED_LINE in raw, "free blocks hold no deleted data"
    assert "deleted-secret" not in debugfs(busybox, "ls /srv/vmpack")
    assert re.search(r"Uninit", debugfs(busybox, "dump_extents /srv/vmpack/unwritten"))
    fragments = debugfs(busybox, "dump_extents /srv/vmpack/fragmented-a").splitlines()
    assert len(fragments) > 4
    assert "Links: 2" in debugfs(busybox, "stat /srv/vmpack/own-data")
    assert "Fast link dest" in debugfs(busybox, "stat /srv/vmpack/fast-symlink")
    assert "Fast link dest" not in debugfs(busybox, "stat /srv/vmpack/slow-symlink")
    # A hole first, then one block, another hole, then data of some blocks, then the last hole.
    assert re.search(
        r"EXTENTS:\n\(3\):\d+, \(5120-\d+\)", debugfs(busybox, "stat /srv/vmpack/sparse")
    )


def test_the_upgraded_guest_differs_in_packages_and_little_else() -> None:
    old, new = build("debian-bios"), build("debian-bios-upgraded")
    assert sidecar(new)["packages_changed"]
    assert sidecar(new)["nonce"] != sidecar(old)["nonce"]
    assert sidecar(new)["root_uuid"] == sidecar(old)["root_uuid"]
    different = 0
    with old.open("rb") as left, new.open("rb") as right:
        while chunk := left.read(1024 * 1024):
            different += chunk != right.read(1024 * 1024)
    assert 0 < different < 200, f"{different} MiB differ"


def test_parallel_workers_build_once(tmp_path: Path) -> None:
    environment = {**os.environ, "VMPACK_GUESTS": str(tmp_path)}
    command = [sys.executable, "-m", "fixtures.guests", "busybox"]
    workers = [
        subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for worker in workers:
        worker.communicate(timeout=300)
        assert worker.returncode == 0
    image = tmp_path / "busybox.raw"
    first = image.stat()
    subprocess.run(command, cwd=CHECKOUT, env=environment, check=True)
    assert image.stat().st_mtime_ns == first.st_mtime_ns, "a finished guest was built again"
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert left == {"busybox.raw", "busybox.json"}


def test_the_last_marker_of_a_console_counts() -> None:
    console = (
        "login: VMPACK-FIXTURE nonce=a digests=ok files=3 disk=d\r\n"
        "VMPACK-FIXTURE nonce=b digests=FAILED 2 files=3 disk=d\r\n"
    )
    marker = parse_marker(console)
    assert marker is not None
    assert (marker.nonce, marker.digests_ok, marker.failed, marker.files) == ("b", False, 2, 3)
    assert parse_marker("VMPACK-FIXTURE nonce=") is None
