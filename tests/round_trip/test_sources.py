"""Where the bytes come from: another guest's disk, the store, or nowhere but the pack."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.disks import needs_root, tool
from tests.round_trip.mirror import mirror
from tests.round_trip.packs import Packed

pytestmark = pytest.mark.guest
MB = 1_000_000
Pack = Callable[[str], Packed]


def file_digest(image: Path, offset: int, path: str) -> str:
    """The SHA-256 of a file inside an ext4, as debugfs reads it."""
    done = subprocess.run(
        f"/usr/sbin/debugfs -R 'cat {path}' '{image}?offset={offset}' | sha256sum",
        shell=True, capture_output=True, check=True, text=True,
    )  # fmt: skip
    return done.stdout.split()[0]


@pytest.mark.slow
def test_another_guests_disk_has_nearly_everything(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """A qcow2 of the upgraded guest; only what the upgrade replaced travels."""
    pack = pack_guest("debian-bios")
    other = pack_guest("debian-bios-upgraded").guest
    tool("qemu-img", "convert", "-O", "qcow2", other.image, room / "other.qcow2")
    disk = room / "rebuilt.raw"
    with mirror(pack.full) as full:
        report = run_vmpack.json(
            "unpack", pack.thin, "-o", disk, "--no-store",
            "--from", f"disk:{room}/other.qcow2", "--from", full.url,
        )  # fmt: skip
        shared = sum(path.stat().st_size for path in (pack.full / "blobs/sha256").iterdir())
        assert 0 < full.sent_bytes < shared / 5
    assert content_bytes(report, "disk:") > 500 * MB, report
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]


@pytest.mark.slow
def test_two_versions_of_a_file_lie_side_by_side_in_the_store(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    old, new = pack_guest("debian-bios"), pack_guest("debian-bios-upgraded")
    library = "/usr/lib/x86_64-linux-gnu/libssl.so.3"
    versions = [file_digest(p.guest.image, p.guest.root_offset, library) for p in (old, new)]
    assert versions[0] != versions[1]
    for pack in (old, new):
        disk = room / f"{pack.guest.name}.raw"
        with mirror(pack.full) as full:
            report = run_vmpack.json(
                "unpack", pack.thin, "-o", disk, "--from", "store:", "--from", full.url
            )
        assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]
        disk.unlink()
    assert content_bytes(report, "store:") > 500 * MB, "the second guest used what the first left"
    store = run_vmpack.home / "data" / "store" / "sha256"
    for digest in versions:
        kept = store / digest[:2] / digest[2:]
        assert tool("sha256sum", kept).split()[0] == digest
        assert kept.stat().st_mode & 0o222 == 0


@pytest.mark.root
@needs_root
def test_a_full_pack_needs_no_network(run_vmpack: Vmpack, busybox: Packed, room: Path) -> None:
    """As a folder and as one file; in a network namespace without even a loopback."""
    run_vmpack.good("copy", busybox.full, room / "full.vmpack")
    for number, pack in enumerate((busybox.full, room / "full.vmpack")):
        disk = room / f"rebuilt-{number}.raw"
        run_vmpack.good("unpack", pack, "-o", disk, "--offline", before=["unshare", "-n"])
        assert run_vmpack.json("verify", disk, busybox.boot, "--exact")["right"]
    tool("cmp", room / "rebuilt-0.raw", room / "rebuilt-1.raw")


@pytest.mark.slow
@pytest.mark.root
@needs_root
def test_a_full_pack_of_debian_needs_no_network_and_nobodys_files(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    pack = pack_guest("debian-uefi")
    run_vmpack.good("copy", pack.full, room / "full.vmpack")
    disk = room / "rebuilt.raw"
    report = run_vmpack.json("unpack", room / "full.vmpack", "-o", disk, "--from", "store:",
                             "--no-store", before=["unshare", "-n"])  # fmt: skip
    assert content_bytes(report, "pack:") == report["content_bytes"]
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]


def test_copies_as_folder_and_as_file_hold_the_same_blobs(
    run_vmpack: Vmpack, busybox: Packed, room: Path
) -> None:
    run_vmpack.good("copy", busybox.full, room / "one.vmpack")
    run_vmpack.good("copy", room / "one.vmpack", f"{room}/two/")
    run_vmpack.good("copy", f"{room}/two", room / "three.vmpack")
    tool("diff", "-r", busybox.full, room / "two")
    tool("cmp", room / "one.vmpack", room / "three.vmpack")
