"""Sticks with FAT32 and exFAT, as Windows formats them: written by us through Linux, checked and
read by other people's tools.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile.refusal import USAGE, refused
from tests.hostile.test_interruption import signalled
from tests.peers.mounting import mounted
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.layouts import manifest_of
from tests.round_trip.packs import author
from tests.round_trip.small import pack_small

MIB = 1 << 20
WINDOWS = "System Volume Information/IndexerVolumeGuid"


@dataclass(frozen=True)
class Stick:
    """A kind of file system: how Linux calls it, how it is made and checked."""

    kind: str
    make: Sequence[str]
    check: Sequence[str]


STICKS = (
    Stick("vfat", ("mkfs.fat", "-F", "32", "-n", "STICK"), ("fsck.fat", "-n")),
    Stick("exfat", ("mkfs.exfat", "-L", "STICK"), ("fsck.exfat", "-n")),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack, a folder, of a disk of 16 MiB."""
    return pack_small(author(), tmp_path_factory.mktemp("sticks"))


def blobs(folder: Path) -> dict[str, str]:
    """{name: SHA-256} of what lies in blobs/sha256."""
    return {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest()
        for one in (folder / "blobs" / "sha256").iterdir()
    }


def named(folder: Path) -> set[str]:
    """The blobs that a layout must have: manifest, config and layers."""
    manifest = manifest_of(folder)
    layers = [manifest["config"], *manifest["layers"]]
    return {layer["digest"][7:] for layer in layers}


def check_whole(folder: Path) -> None:
    found = blobs(folder)
    assert found == {name: name for name in found}
    assert named(folder) < found.keys()
    assert len(found) == len(named(folder)) + 1, "nothing lies there but manifest and its blobs"


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("stick", STICKS, ids=lambda stick: stick.kind)
def test_a_pack_is_copied_to_a_stick(
    run_vmpack: Vmpack, small: Path, room: Path, stick: Stick
) -> None:
    """With what Windows leaves there; refused the second time; killed while it is replaced."""
    image = room / "stick.img"
    with image.open("wb") as file:
        file.truncate(80 * MIB)
    tool(*stick.make, image)
    with mounted(image, stick.kind, room / "stick", writable=True) as medium:
        (medium / WINDOWS).parent.mkdir()
        (medium / WINDOWS).write_bytes(b"x")
        run_vmpack.good("copy", small, "--boot", medium)
        check_whole(medium)
        refused(run_vmpack("copy", small, medium), USAGE, "holds a layout", "--force")
        command: list[str | Path] = ["copy", small, f"{medium}/", "--force", "-q"]
        done = signalled(run_vmpack, command, signal.SIGKILL, 2 * MIB)
        assert done.returncode == -signal.SIGKILL
        identity = run_vmpack.json("inspect", small)["identity"]
        assert run_vmpack.json("inspect", medium)["identity"] == identity, "still the old copy"
        run_vmpack.good(*command)
        check_whole(medium)
        assert (medium / WINDOWS).read_bytes() == b"x"
        disk = room / "disk.raw"
        run_vmpack.good("unpack", medium, "-o", disk, "--from", "store:", "--no-store")
        assert run_vmpack.json("verify", disk, medium, "--exact")["right"]
        written = blobs(medium)
    tool(*stick.check, image)
    assert written == blobs(small) | {name: name for name in written.keys() - blobs(small).keys()}
    if stick.kind == "vfat":
        (room / "out").mkdir()
        tool("mcopy", "-s", "-n", "-i", image, "::/*", room / "out")
        assert blobs(room / "out") == written
        assert run_vmpack.json("inspect", room / "out")["identity"] == identity


def test_a_folder_goes_through_fat_and_back(run_vmpack: Vmpack, small: Path, room: Path) -> None:
    """Copied to the stick by somebody else's tool, which knows nothing of us."""
    run_vmpack.good("copy", small, f"{room}/folder/")
    image = room / "stick.img"
    with image.open("wb") as file:
        file.truncate(80 * MIB)
    tool("mkfs.fat", "-F", "32", image)
    tool("mcopy", "-s", "-i", image, *sorted((room / "folder").iterdir()), "::/")
    (room / "back").mkdir()
    tool("mcopy", "-s", "-n", "-i", image, "::/*", room / "back")
    tool("diff", "-r", room / "folder", room / "back")
    tool("fsck.fat", "-n", image)
    disk = room / "disk.raw"
    run_vmpack.good("unpack", room / "back", "-o", disk, "--from", "store:", "--no-store")
    assert run_vmpack.json("verify", disk, room / "back", "--exact")["right"]


@pytest.mark.slow
@pytest.mark.root
def test_a_full_stick_is_left_as_it_was(run_vmpack: Vmpack, small: Path, room: Path) -> None:
    image = room / "stick.img"
    with image.open("wb") as file:
        file.truncate(2 * MIB)
    tool("mkfs.fat", image)
    with mounted(image, "vfat", room / "stick", writable=True) as medium:
        done = run_vmpack("copy", small, f"{medium}/")
        refused(done, 1, "are needed there", "the medium is full")
        assert list(medium.iterdir()) == []
    tool("fsck.fat", "-n", image)
