"""pack, carry, unpack: the disk comes back, and boots."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.boot import boot
from fixtures.web import nginx
from tests.hostile.refusal import MISSING
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.disks import check_ext4, differences, filled
from tests.round_trip.layouts import config_of
from tests.round_trip.mirror import mirror
from tests.round_trip.packs import Guest, Packed
from tests.round_trip.surroundings import needs_mirrors, needs_release_of

pytestmark = pytest.mark.guest
MB = 1_000_000
slow = pytest.mark.slow
DEBIAN = (pytest.param("debian-bios", marks=slow), pytest.param("debian-uefi", marks=slow))
GUESTS = ("busybox", *DEBIAN)
Pack = Callable[[str], Packed]


def lost_ranges(vmpack: Vmpack, disk: Path, pack: Path) -> list[list[int]]:
    """What the pack lists as unused or dropped, after the disk was proven against it."""
    report = vmpack.json("verify", disk, pack)
    assert report["right"]
    assert report["wrong"] == []
    ranges: list[list[int]] = report["unused"] + report["dropped"]
    return ranges


def prove(vmpack: Vmpack, disk: Path, pack: Packed) -> None:
    """The disk is the original but for what the pack lists, and zero there."""
    lost = lost_ranges(vmpack, disk, pack.boot)
    assert differences(pack.guest.image, disk, lost) == []
    assert filled(disk, lost) == []


def boots(disk: Path, guest: Guest) -> None:
    """This boot's nonce comes, from this disk, and the digests that the guest keeps of its files
    hold.
    """
    nonce = secrets.token_hex(8)
    result = boot(disk, firmware=guest.firmware, nonce=nonce)
    assert (result.nonce, result.digests_ok) == (nonce, True), result.console[-3000:]
    assert result.disk_nonce == guest.facts["nonce"]


@pytest.mark.parametrize("name", GUESTS)
def test_a_thin_copy_this_hosts_files_and_a_mirror_give_a_disk_that_boots(
    run_vmpack: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    pack = pack_guest(name)
    if name != "busybox":
        needs_release_of(pack)
    disk = room / "rebuilt.raw"
    with nginx(pack.full, room / "nginx") as url:
        report = run_vmpack.json(
            "unpack", pack.thin, "--output", disk, "--from", "dir:/", "--from", f"{url}/"
        )
    shared = config_of(pack.full)["totals"]["shared"]["bytes"]
    assert sum(one["content_bytes"] for one in report["supplied"]) == report["content_bytes"]
    assert content_bytes(report, "pack:") > 0
    assert content_bytes(report, "http") <= shared, "what the thin copy carries was fetched"
    if name != "busybox":  # whose thin copy is complete: no package database, so nothing is shared
        assert content_bytes(report, "dir:/") > 100 * MB
        assert content_bytes(report, "http") > 0
    prove(run_vmpack, disk, pack)
    check_ext4(disk, pack.guest.root_offset)
    boots(disk, pack.guest)


@pytest.mark.parametrize("name", GUESTS)
def test_a_boot_copy_fetches_the_rest_from_a_mirror(
    run_vmpack: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    """On a host that has nothing, and, for UEFI, on one of the same release."""
    pack = pack_guest(name)
    disk = room / "rebuilt.raw"
    local = ["--from", "dir:/"] if name == "debian-uefi" else []
    if local:
        needs_release_of(pack)
    with mirror(pack.full) as full:
        report = run_vmpack.json(
            "unpack", pack.boot, "--output", disk, *local, "--from", full.url, "--no-store"
        )
        fetched = content_bytes(report, "http")
        bundles = sum(path.stat().st_size for path in (pack.full / "blobs/sha256").iterdir())
        assert 0 < full.sent_bytes < bundles - pack.boot.stat().st_size / 2
    found = content_bytes(report, "dir:/")
    assert (found > 100 * MB) == bool(local)
    assert fetched >= config_of(pack.full)["totals"]["private"]["bytes"]
    assert content_bytes(report, "pack:") + found + fetched == report["content_bytes"]
    prove(run_vmpack, disk, pack)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", ["debian-bios", "debian-uefi"])
def test_what_the_distribution_has_comes_from_its_packages(
    run_vmpack: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    """BIOS from packages alone; UEFI on a host of the same release, from packages only what its
    files lack.
    """
    needs_mirrors(room)
    pack = pack_guest(name)
    stubs = run_vmpack.good("inspect", "--stubs", pack.thin)
    assert "pool/" in stubs, f"packed while the mirrors were away: remove {pack.full.parent}"
    disk = room / "rebuilt.raw"
    local = ["--from", "dir:/"] if name == "debian-uefi" else []
    if local:
        needs_release_of(pack)
    command: list[str | Path] = ["unpack", pack.thin, "--output", disk, "--no-store"]
    first = run_vmpack(*command, *local, "--from", "apt:", "--json")
    # The guest holds back some old versions, which the mirrors may have let go.
    assert first.returncode in (0, MISSING), first.stderr
    if first.returncode == MISSING:
        report = run_vmpack.json(*command, "--from", f"pack:{pack.full}")
        found = report["content_bytes"] - content_bytes(report, f"pack:{pack.full}")
        assert report["resumed_bytes"] == found
        assert found > 0.8 * report["content_bytes"], report
    else:
        report = json.loads(first.stdout)
        assert content_bytes(report, "apt:") > (1 if local else 500) * MB, report
        assert (content_bytes(report, "dir:/") > 100 * MB) == bool(local)
    prove(run_vmpack, disk, pack)


def test_a_pack_in_which_everything_is_kept_gives_back_every_byte(
    author: Vmpack, busybox: Packed, room: Path
) -> None:
    author.good("pack", busybox.guest.image, "-o", room / "all.vmpack", "--keep-free",
                "--no-packages", "--level", "1")  # fmt: skip
    author.good("unpack", room / "all.vmpack", "-o", room / "rebuilt.raw", "--from", "store:")
    assert (room / "rebuilt.raw").read_bytes() == busybox.guest.image.read_bytes()
    assert (room / "rebuilt.raw").stat().st_blocks * 512 < 100 * MB
