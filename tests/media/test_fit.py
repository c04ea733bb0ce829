"""Media that are too small, and families of guests on one: with real guests and real hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.guests import build
from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.index import frame_counts
from packer.artifact.layout.open import open_layout
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.sources.base import Bytes, Wanted
from packer.sources.inventory import Inventory
from packer.sources.pack import PackSource
from tests.round_trip.command import Vmpack
from tests.round_trip.mirror import mirror
from tests.round_trip.packs import SHARED_LEVEL, Packed, author_key

pytestmark = [pytest.mark.guest, pytest.mark.slow]
MIB = 1 << 20
Pack = Callable[[str], Packed]
Rows = NDArray[np.int64]


def frames_of(pack: OpenedPack, rows: Rows) -> Rows:
    """The frames of a pack's bundles that hold these contents."""
    index = pack.index
    entry = np.searchsorted(index.content, rows)
    count = frame_counts(pack.map.contents.size[rows])
    first = index.first_frame[entry]
    each = [np.arange(low, low + n) for low, n in zip(first, count, strict=True)]
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *each]))


def to_fetch(full: OpenedPack, lacking: Rows, carried: Rows) -> int:
    """The bytes of a full pack's frames that a host fetches which lacks some contents."""
    return int(full.index.stored_bytes[frames_of(full, np.setdiff1d(lacking, carried))].sum())


def held_by(place: Path) -> Rows:
    """Which contents a copy carries."""
    with OpenedPack(open_layout(place)) as copy:
        return np.sort(copy.index.content)


@pytest.mark.parametrize(("size", "form"), [("64M", "iso"), ("100M", "vmpack"), ("full", "iso")])
def test_a_medium_is_filled_and_the_rest_is_fetched(
    size: str, form: str, run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    pack = pack_guest("debian-bios")
    weight = sum(path.stat().st_size for path in pack.full.rglob("*") if path.is_file())
    capacity = weight if size == "full" else int(size[:-1]) * MIB
    medium = room / f"fit.{form}"
    run_vmpack.good("copy", pack.full, medium, "--fit", str(capacity))
    assert 0.95 * capacity <= medium.stat().st_size <= capacity
    disk = room / "disk.raw"
    with mirror(pack.full) as full:
        nowhere_else = ("--from", full.url, "--no-store")
        report = run_vmpack.json("unpack", medium, "-o", disk, *nowhere_else)
        assert full.sent_bytes < weight - 0.9 * (medium.stat().st_size - 50 * MIB)
    assert report["supplied"][0]["content_bytes"] > 0
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]


def test_an_inventory_of_a_real_host_saves_it_from_fetching(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """This host, and a medium that takes what it lacks, against one filled from the front."""
    pack = pack_guest("debian-bios")
    run_vmpack.good("inventory", "/", "-o", room / "host.inv")
    medium = room / "fit.iso"
    run_vmpack.good("copy", pack.full, medium, "--fit", "64M", "--against", room / "host.inv")
    with OpenedPack(open_layout(pack.full)) as full:
        contents, index = full.map.contents, full.index
        shared = np.flatnonzero(contents.classes == Class.SHARED)
        lacking = shared[~Inventory.load(room / "host.inv").contains(contents.digest[shared])]
        assert 0 < len(lacking) < len(shared)
        taken = np.intersect1d(held_by(medium), shared)
        room_bytes = int(index.stored_bytes[frames_of(full, taken)].sum())
        in_order = index.stored_bytes * (index.bundle > 1)  # after the boot and private bundle
        ends = index.first_frame + frame_counts(contents.size[index.content])
        plain = index.content[np.cumsum(in_order)[ends - 1] <= room_bytes]
        plain_bytes = to_fetch(full, lacking, plain)
        aimed_bytes = to_fetch(full, lacking, taken)
    print("aimed, plain", aimed_bytes, plain_bytes)
    assert aimed_bytes <= 0.8 * plain_bytes, (aimed_bytes, plain_bytes)
    disk = room / "disk.raw"
    with mirror(pack.full) as mirrored:
        here = [
            f"--from=dir:{root}" for root in ("/usr", "/etc", "/lib", "/var") if Path(root).is_dir()
        ]
        run_vmpack.good("unpack", medium, "-o", disk, *here, "--from", mirrored.url, "--no-store")
        assert mirrored.sent_bytes <= 1.25 * aimed_bytes + MIB
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]


def difference(sister: OpenedPack, largest: OpenedPack) -> int:
    """What of a pack another one lacks, compressed block by block at the pack's levels."""
    contents = sister.map.contents
    known = {bytes(one) for one in largest.map.contents.digest}
    rows = np.array([r for r, d in enumerate(contents.digest) if bytes(d) not in known])
    source = PackSource("pack:", sister.layout, contents, sister.index)
    source.find(Wanted(contents, rows, sister.hints), deep=False)
    total = 0
    for piece in source.fetch(rows):
        assert isinstance(piece, Bytes)
        level = SHARED_LEVEL if contents.classes[piece.row] == Class.SHARED else 12
        total += len(compress(piece.data, level))
        assert len(piece.data) <= BLOCK_BYTES
    return total


def test_three_guests_of_a_family_weigh_the_largest_and_their_differences(
    author: Vmpack, pack_guest: Pack, room: Path
) -> None:
    largest = pack_guest("debian-bios").full
    sisters = []
    for name in ("debian-bios-upgraded", "debian-uefi"):
        sisters.append(room / f"{name}.vmpack")
        author.good(
            "pack", build(name), "--base", largest, "--name", name, "-o", sisters[-1],
            "--key", author_key().with_suffix(""), "--level", str(SHARED_LEVEL), "--no-packages",
        )  # fmt: skip
    author.good("copy", largest, room / "one.iso")
    author.good("copy", largest, *sisters, room / "three.iso")
    one, three = ((room / name).stat().st_size for name in ("one.iso", "three.iso"))
    with OpenedPack(open_layout(largest)) as first:
        differences = 0
        for place in sisters:
            with OpenedPack(open_layout(place)) as sister:
                tables = (*sister.manifest.maps(), sister.manifest.hints())
                differences += difference(sister, first) + sum(t.size for t in tables if t)
    print("family", three - one, differences)
    assert three - one <= 1.1 * differences, (three - one, differences)
    for name in ("debian-bios", "debian-bios-upgraded", "debian-uefi"):
        disk = room / "disk.raw"
        author.good(
            "unpack", f"{room}/three.iso#{name}", "-o", disk, "--no-store", "--from", "store:"
        )
        author.good("verify", disk, f"{room}/three.iso#{name}")
        disk.unlink()
