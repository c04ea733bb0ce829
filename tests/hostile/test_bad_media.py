"""ISO images made to do harm: one clear error each, soon, and nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.filesystem.iso9660 import SECTOR_BYTES
from tests.formats.filesystem.iso_images import PRIMARY, Image
from tests.hostile.refusal import INPUT, MISSING, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.layouts import layer
from tests.round_trip.packs import author, trusting_host
from tests.round_trip.small import pack_small

LIMIT_S = 20
"""Starting the command takes most of it, on a busy host."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack, a folder, of a disk of 16 MiB."""
    return pack_small(author(), tmp_path_factory.mktemp("bad-media"))


@pytest.fixture(scope="module")
def image_bytes(small: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("images")
    trusting_host(folder / "home").good("copy", small, folder / "small.iso")
    return (folder / "small.iso").read_bytes()


def blob(small: Path, part: str) -> str:
    """The file name of a part's blob."""
    return str(layer(small, part)["digest"]).removeprefix("sha256:")


def folder_is_a_loop(image: Image, _: Path) -> None:
    image.redirect("sha256", PRIMARY + 156)


def folder_is_itself(image: Image, _: Path) -> None:
    image.redirect("blobs", image.record("blobs"))
    start = image.both(image.record("blobs") + 2) * SECTOR_BYTES
    image.put_both(image.record("sha256") + 2, start // SECTOR_BYTES)
    image.put_both(image.record("sha256") + 10, SECTOR_BYTES)


def folder_is_a_file(image: Image, _: Path) -> None:
    image.data[image.record("sha256") + 25] = 0


def folder_is_huge(image: Image, _: Path) -> None:
    image.put_both(image.record("sha256") + 10, 0xFFFFF800)


def index_beyond_the_end(image: Image, _: Path) -> None:
    image.put_both(image.record("index.json") + 2, len(image.data) // SECTOR_BYTES)


def index_of_4_gib(image: Image, _: Path) -> None:
    image.put_both(image.record("index.json") + 10, 0xFFFFFFFF)


def byte_orders_that_differ(image: Image, _: Path) -> None:
    image.data[image.record("index.json") + 6] ^= 0x40


def a_name_twice(image: Image, _: Path) -> None:
    image.rename("index.html", "index.json")


def names_that_are_paths(image: Image, small: Path) -> None:
    name = blob(small, "map")
    image.rename(name, "../" * 21 + "x")


def an_end_that_is_missing(image: Image, _: Path) -> None:
    del image.data[len(image.data) // 2 :]


def no_terminator(image: Image, _: Path) -> None:
    image.data[image.data.index(b"\xffCD001")] = 0


def blocks_of_one_byte(image: Image, _: Path) -> None:
    image.put(PRIMARY + 128, b"\x01\x00\x00\x01")


def map_over_the_config(image: Image, small: Path) -> None:
    """Two files that share bytes: what is not what its name says is found by its digest."""
    image.redirect(blob(small, "map"), image.record("index.json"))


Damage = Callable[[Image, Path], None]
WHEN_OPENED: tuple[Damage, ...] = (
    folder_is_a_loop, folder_is_itself, folder_is_a_file, folder_is_huge, index_beyond_the_end,
    index_of_4_gib, byte_orders_that_differ, a_name_twice, names_that_are_paths,
    an_end_that_is_missing, no_terminator, blocks_of_one_byte, map_over_the_config,
)  # fmt: skip


@pytest.mark.parametrize("damage", WHEN_OPENED, ids=lambda damage: damage.__name__)
def test_an_image_that_lies_is_refused_soon(
    run_vmpack: Vmpack, image_bytes: bytes, small: Path, room: Path, damage: Damage
) -> None:
    image = Image(image_bytes)
    damage(image, small)
    bad = room / "bad.iso"
    bad.write_bytes(image.data)
    commands: list[list[str | Path]] = [
        ["unpack", bad, "-o", room / "disk.raw", "--from", "store:", "--no-store"],
        ["copy", bad, room / "copy.vmpack"],
        ["verify", small / "index.json", bad],
    ]
    for command in commands:
        began = time.monotonic()
        refused(run_vmpack(*command), INPUT, str(bad))
        assert time.monotonic() - began < LIMIT_S
    assert {path.name for path in room.iterdir()} == {"bad.iso", "home"}


def test_bundles_that_share_bytes_are_found_by_their_digests(
    run_vmpack: Vmpack, image_bytes: bytes, small: Path, room: Path
) -> None:
    image = Image(image_bytes)
    image.redirect(blob(small, "private"), image.record(blob(small, "boot")))
    bad = room / "bad.iso"
    bad.write_bytes(image.data)
    done = run_vmpack("unpack", bad, "-o", room / "disk.raw", "--from", "store:", "--no-store")
    refused(done, MISSING, "nobody has", output=room / "disk.raw")
    refused(run_vmpack("copy", bad, room / "copy.iso"), INPUT, "expected bytes with that SHA-256",
            output=room / "copy.iso")  # fmt: skip


def test_a_source_that_lies_is_named(
    run_vmpack: Vmpack, image_bytes: bytes, small: Path, room: Path
) -> None:
    image = Image(image_bytes)
    folder_is_a_loop(image, small)
    bad = room / "bad.iso"
    bad.write_bytes(image.data)
    done = run_vmpack("unpack", small, "-o", room / "disk.raw", "--from", f"pack:{bad}")
    refused(done, INPUT, str(bad), "does not hold blob", output=room / "disk.raw")
