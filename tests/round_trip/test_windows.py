"""Windows-shaped disks: pack, carry, unpack; what is lost is what ntfsprogs call unseen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures.boot import boot
from fixtures.web import nginx
from tests.host import needs_root
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.disks import copy_sparse, not_within, tool, write_noise
from tests.round_trip.layouts import config_digest, config_of
from tests.round_trip.packs import Guest, Packed
from tests.round_trip.test_round_trip import lost_ranges, prove
from tests.round_trip.test_unused import esp_files, total
from tests.round_trip.windows import (
    NAMES,
    dropped_files,
    files_on_disk,
    pages_of,
    planted,
    seen_through_ntfs_3g,
    take_out,
    unseen_of,
    volumes_of,
)

pytestmark = [pytest.mark.guest, pytest.mark.slow]
MB = 1_000_000
Pack = Callable[[str], Packed]


@pytest.mark.parametrize(
    ("name", "extent", "place"),
    [
        ("windows-xp", "thin", "mirror"),
        ("windows-xp", "boot", "pack"),
        ("windows-7", "thin", "pack"),
        ("windows-7", "boot", "mirror"),
        ("windows-10-uefi", "thin", "disk"),
        ("windows-10-uefi", "boot", "mirror"),
    ],
)
def test_a_copy_and_one_place_that_has_the_rest_give_the_disk_back(
    run_vmpack: Vmpack, pack_guest: Pack, name: str, extent: str, place: str, room: Path
) -> None:
    pack = pack_guest(name)
    disk = room / "rebuilt.raw"
    with ExitStack() as served:
        if place == "mirror":
            source = served.enter_context(nginx(pack.full, room / "nginx")) + "/"
        elif place == "disk":
            source = f"disk:{in_qcow2(pack.guest, room)}"
        else:
            source = f"pack:{pack.full}"
        report = run_vmpack.json(
            "unpack", pack.thin if extent == "thin" else pack.boot, "--output", disk,
            "--from", source, "--no-store",
        )  # fmt: skip
    totals = config_of(pack.full)["totals"]
    lacking = totals["shared"]["bytes"] + (totals["private"]["bytes"] if extent == "boot" else 0)
    assert content_bytes(report, source) >= lacking > 30 * MB
    prove(run_vmpack, disk, pack)
    if pack.guest.firmware == "uefi":
        starts(disk, pack.guest)


def in_qcow2(guest: Guest, room: Path) -> Path:
    tool("qemu-img", "convert", "-O", "qcow2", guest.image, room / "disk.qcow2")
    return room / "disk.qcow2"


def starts(disk: Path, guest: Guest) -> None:
    """The firmware starts GRUB in the place of Windows' boot manager, which finds the digests of
    what Windows reads first to be right.
    """
    result = boot(disk, firmware="uefi", timeout_s=120, cpus=1)
    assert result.digests_ok, result.console[-3000:]
    assert result.files > 80
    assert result.disk_nonce == guest.facts["root_uuid"]


def test_a_container_does_not_change_the_identity(
    author: Vmpack, pack_guest: Pack, room: Path
) -> None:
    pack = pack_guest("windows-10-uefi")
    image = in_qcow2(pack.guest, room)
    author.good("pack", image, "-o", f"{room}/pack/", "--name", pack.guest.name, "--level", "1")
    assert config_digest(room / "pack") == config_digest(pack.full)


@pytest.fixture(scope="module")
def oracle_room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oracle")


def pack_without_snapshots(author: Vmpack, image: Path, name: str, target: Path) -> Path:
    """While shadow copies may be there, free clusters are not free; one guest has a left-over."""
    author.good("pack", image, "-o", f"{target}/", "--name", name, "--level", "1", "--thin",
                "--drop-snapshots")  # fmt: skip
    return target


@pytest.mark.parametrize("name", NAMES)
def test_only_what_ntfsprogs_and_mtools_call_unseen_is_lost(
    author: Vmpack, build_guest: Callable[[str], Guest], oracle_room: Path, name: str, room: Path
) -> None:
    """And all of that, but for clusters behind the end of compressed files and the like."""
    guest = build_guest(name)
    pack = pack_without_snapshots(author, guest.image, name, room / "pack")
    lost = lost_ranges(author, guest.image, pack)
    volume = take_out(guest, guest.image, "root", room / "root.ntfs")
    unseen = unseen_of(guest, oracle_room)
    left_over = planted(guest, "shadow copy")
    assert bool(left_over) == (name == "windows-7")
    let_go = files_on_disk(guest, dropped_files(guest) + left_over, volume)
    assert not_within(lost, [*unseen, *let_go]) == []
    assert not_within(unseen, [(start, end) for start, end in lost]) == []
    assert total([(start, end) for start, end in lost]) > 150 * MB


@pytest.mark.parametrize("name", NAMES)
def test_noise_where_nobody_sees_it_changes_nothing(
    author: Vmpack, build_guest: Callable[[str], Guest], oracle_room: Path, name: str, room: Path
) -> None:
    """In every free cluster, behind the valid data of every file, in page files. The noisy disk has
    the same identity, so that what the other tests rebuild is what is rebuilt from it, too.
    """
    guest = build_guest(name)
    volume = take_out(guest, guest.image, "root", room / "root.ntfs")
    noise = [*unseen_of(guest, oracle_room), *pages_of(guest, volume)]
    noisy = copy_sparse(guest.image, room / "noisy.raw")
    assert write_noise(noisy, noise, seed=7) > 150 * MB
    found = pack_without_snapshots(author, noisy, name, room / "noisy")
    expected = pack_without_snapshots(author, guest.image, name, room / "pack")
    assert config_digest(found) == config_digest(expected)


@needs_root
@pytest.mark.parametrize("name", NAMES)
def test_noise_over_everything_that_a_pack_calls_unused_changes_no_file(
    author: Vmpack, build_guest: Callable[[str], Guest], name: str, room: Path
) -> None:
    """Every byte of every such range, page files and left-over shadow copies as well."""
    guest = build_guest(name)
    pack = pack_without_snapshots(author, guest.image, name, room / "pack")
    noisy = copy_sparse(guest.image, room / "noisy.raw")
    lost = [(start, end) for start, end in lost_ranges(author, noisy, pack)]
    assert write_noise(noisy, lost, seed=8) == total(lost) > 150 * MB
    for role in volumes_of(guest):
        before = take_out(guest, guest.image, role, room / "before.ntfs")
        after = take_out(guest, noisy, role, room / "after.ntfs")
        assert "processed successfully" in tool("ntfsfix", "--no-action", after)
        expected = seen_through_ntfs_3g(before, room / "mounted")
        found = seen_through_ntfs_3g(after, room / "mounted")
        changed = {f"/{path}" for path in expected if found.pop(path) != expected[path]}
        assert found == {}
        let_go = [*dropped_files(guest), *planted(guest, "shadow copy")]
        assert changed == (set(let_go) if role == "root" else set())
    if guest.firmware == "uefi":
        start, _ = guest.partition("esp")
        same = esp_files(noisy, start, room / "esp-after")
        assert same == esp_files(guest.image, start, room / "esp-before")
        starts(noisy, guest)


def test_what_lies_in_free_clusters_is_not_in_the_pack(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """Text of a deleted file."""
    pack = pack_guest("windows-10-uefi")
    secret = b"VMPACK-DELETED-SECRET\r\nVMPACK-DELETED"
    disk = room / "rebuilt.raw"
    run_vmpack.good("unpack", pack.full, "-o", disk, "--no-store")
    assert secret in pack.guest.image.read_bytes()
    assert secret not in disk.read_bytes()
