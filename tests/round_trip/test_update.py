"""update between two builds of a guest: what travels is what changed, and the result boots."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rebuild import solid_bytes
from fixtures.guests.disk import SECTOR_BYTES, Partition
from fixtures.guests.filesystem import PAYLOAD, RootFilesystem, work_inside
from fixtures.guests.workshop import guests_folder
from packer.artifact.contents import Class, digest_keys
from packer.pack.pack import LEVELS
from packer.sources.open import open_pack
from tests.host import needs_root, run, shared_bytes, sharing_file_system
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.disks import check_ext4, copy_sparse, differences
from tests.round_trip.packs import SHARED_LEVEL, Guest, Packed, author_key
from tests.round_trip.test_round_trip import boots
from tests.transport.servers import nginx

pytestmark = pytest.mark.guest
MOST_RATIO = 1.25
MB = 1_000_000
Pack = Callable[[str], Packed]


def pack_next(image: Path, base: Packed, place: Path, *options: str) -> Path:
    """Pack the next version of a guest, by its author, as a folder."""
    place.parent.mkdir(exist_ok=True)
    author = Vmpack(author_key().parents[1])
    author.good("pack", image, "-o", f"{place}/", "--name", base.guest.name, "--pack-version", "2",
                "--level", str(SHARED_LEVEL), "--quiet", *options)  # fmt: skip
    return place


def upgraded(guest: Guest, image: Path) -> Path:
    """A copy of a Debian guest in which dpkg installed a newer version of one package, the largest
    of those held back, and somebody edited a file.
    """
    facts = guest.facts["partitions"]["root"]
    start, size = facts["offset_bytes"] // SECTOR_BYTES, facts["size_bytes"] // SECTOR_BYTES
    packages = (guests_folder() / "debian-tree.upgrades").glob("*.deb")
    payload = image.with_suffix(".packages")
    payload.mkdir()
    shutil.copy(max(packages, key=lambda path: path.stat().st_size), payload)
    copy_sparse(guest.image, image)
    script = (
        f"DEBIAN_FRONTEND=noninteractive dpkg --install {PAYLOAD}/*.deb\n"
        "echo 'Welcome to the second build.' >> /etc/motd\n"
        "sync"
    )
    root = RootFilesystem(image, Partition("root", start, size), guest.firmware, as_root=True)
    work_inside(root, script, payload)
    return image


def changed_bytes(old: Path, new: Path) -> int:
    """How many bytes the contents take that only the new pack has: by class in frames of 1 MiB,
    at the level of the pack.
    """
    levels = {**LEVELS, Class.SHARED: SHARED_LEVEL}
    with open_pack(str(old)) as one, open_pack(str(new)) as two:
        contents = two.map.contents
        there = np.isin(digest_keys(contents.digest), digest_keys(one.map.contents.digest))
        return sum(
            solid_bytes(two, np.flatnonzero(~there & (contents.classes == kind)), level)
            for kind, level in levels.items()
        )


@pytest.mark.slow
@pytest.mark.root
@needs_root
@pytest.mark.parametrize("delta", [False, True], ids=["", "delta"])
def test_what_is_fetched_is_what_changed(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path, delta: bool
) -> None:
    """All that nginx sends counts, headers too: the map is what travels besides."""
    old = pack_guest("debian-bios")
    image = upgraded(old.guest, room / "next.raw")
    options = ("--delta",) if delta else ()
    new = pack_next(image, old, room / "srv" / "v2", "--base", str(old.full), *options)
    solid = changed_bytes(old.full, new)
    disk = room / "vms" / "demo.raw"
    disk.parent.mkdir()
    run_vmpack.good("unpack", old.full, "-o", disk, "--from", "store:", "--no-store")
    with nginx(new.parent, room / "nginx", log="$bytes_sent $uri") as url:
        report = run_vmpack.json("update", disk, f"{url}/v2/", "--from", "store:")
    sent = [line.split() for line in (room / "nginx" / "access.log").read_text().splitlines()]
    total = sum(int(size) for size, _ in sent)
    print(f"changed {solid}, sent {total} in {len(sent)} requests, {total / solid:.3f}")
    print("\n".join(f"{size:>9} {path}" for size, path in sent))
    assert (report["before"], report["after"]) == ("debian-bios:1", "debian-bios:2")
    assert content_bytes(report, "disk:") > 650 * MB
    assert solid > 1 * MB
    assert total <= (0.7 if delta else MOST_RATIO) * solid
    proof = run_vmpack.json("verify", disk, new, "--exact")
    assert proof["right"]
    assert differences(image, disk, proof["unused"] + proof["dropped"]) == []
    check_ext4(disk, old.guest.root_offset)


@pytest.mark.slow
def test_four_packages_later_and_back(run_vmpack: Vmpack, pack_guest: Pack, room: Path) -> None:
    """Two packs that know nothing of each other: any version leads to any other."""
    old, other = pack_guest("debian-bios"), pack_guest("debian-bios-upgraded")
    new = pack_next(other.guest.image, old, room / "v2")
    disk = room / "vms" / "demo.raw"
    disk.parent.mkdir()
    run_vmpack.good("unpack", old.full, "-o", disk, "--no-store", "--from", "store:")
    for pack, guest, older in ((new, other.guest, False), (old.full, old.guest, True)):
        options = ["--allow-older"] if older else []
        report = run_vmpack.json("update", disk, pack, "--no-store", "--from", "store:", *options)
        assert content_bytes(report, "disk:") > 650 * MB
        proof = run_vmpack.json("verify", disk, pack, *options)
        assert differences(guest.image, disk, proof["unused"] + proof["dropped"]) == []
    boots(disk, old.guest)


def edited(guest: Guest, image: Path) -> Path:
    """A copy of a guest with another file, written by debugfs."""
    copy_sparse(guest.image, image)
    note = image.with_suffix(".note")
    note.write_text("the second build\n")
    run("debugfs", "-w", "-R", f"write {note} /etc/build", f"{image}?offset={guest.root_offset}")
    return image


def test_an_updated_guest_boots(run_vmpack: Vmpack, busybox: Packed, room: Path) -> None:
    image = edited(busybox.guest, room / "next.raw")
    new = pack_next(image, busybox, room / "v2", "--base", str(busybox.full))
    disk = room / "vms" / "demo.raw"
    disk.parent.mkdir()
    run_vmpack.good("unpack", busybox.full, "-o", disk)
    out = run_vmpack.good("update", disk, new)
    assert f"{disk}  busybox:1 -> busybox:2" in out
    proof = run_vmpack.json("verify", disk, new, "--exact")
    assert differences(image, disk, proof["unused"] + proof["dropped"]) == []
    where = f"{disk}?offset={busybox.guest.root_offset}"
    assert run("debugfs", "-R", "cat /etc/build", where) == "the second build\n"
    check_ext4(disk, busybox.guest.root_offset)
    boots(disk, busybox.guest)


@pytest.mark.root
@needs_root
def test_blocks_of_the_old_disk_are_shared_where_the_file_system_can(
    run_vmpack: Vmpack, busybox: Packed, room: Path
) -> None:
    """What lies in one piece on the old disk; a second name of it keeps its blocks in use."""
    new = pack_next(edited(busybox.guest, room / "next.raw"), busybox, room / "v2")
    with sharing_file_system(room) as folder:
        disk = folder / "demo.raw"
        run_vmpack.good("unpack", busybox.full, "-o", disk, "--no-store", "--from", "store:")
        (folder / "before.raw").hardlink_to(disk)
        report = run_vmpack.json("update", disk, new, "--no-store", "--from", "store:")
        assert shared_bytes(disk) > 0.7 * content_bytes(report, "disk:")
        assert run_vmpack.json("verify", disk, new, "--exact")["right"]
