"""The same disk in any container is the same pack; the disk comes back in any container."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.layouts import config_digest
from tests.round_trip.packs import Packed

pytestmark = pytest.mark.guest

CONTAINERS = {
    "qcow2-zlib": ("qcow2", "-c", "-o", "compression_type=zlib"),
    "qcow2-zstd": ("qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2-small-clusters": ("qcow2", "-o", "cluster_size=4096"),
    "qcow2-version-2": ("qcow2", "-o", "compat=0.10"),
    "vmdk": ("vmdk",),
    "vmdk-stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("vdi",),
    "vhdx": ("vhdx",),
}


@pytest.fixture(scope="module")
def identity(busybox: Packed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the config of the raw disk's pack."""
    from tests.round_trip.packs import author_key

    folder = tmp_path_factory.mktemp("raw")
    Vmpack(author_key().parents[1]).good(
        "pack", busybox.guest.image, "-o", f"{folder}/raw/", "--no-packages", "--name", "demo"
    )
    return config_digest(folder / "raw")


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_does_not_change_the_identity(
    author: Vmpack, busybox: Packed, identity: str, container: str, room: Path
) -> None:
    kind, *options = CONTAINERS[container]
    image = room / f"disk.{kind}"
    tool("qemu-img", "convert", "-O", kind, *options, busybox.guest.image, image)
    author.good("pack", image, "-o", f"{room}/pack/", "--no-packages", "--name", "demo")
    assert config_digest(room / "pack") == identity


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_a_disk_comes_back_in_another_container(
    run_vmpack: Vmpack, busybox: Packed, kind: str, room: Path
) -> None:
    disk, raw = room / f"disk.{kind}", room / "disk.raw"
    run_vmpack.good("unpack", busybox.full, "-o", disk, "--from", "store:", "--format", kind)
    run_vmpack.good("unpack", busybox.full, "-o", raw, "--from", "store:")
    if kind != "vhdx":
        tool("qemu-img", "check", "-f", kind, disk)
    tool("qemu-img", "check" if kind != "vdi" else "info", disk)
    tool("qemu-img", "compare", "-f", kind, "-F", "raw", disk, raw)
    assert run_vmpack.json("verify", disk, busybox.boot, "--exact")["right"]
    assert sorted(path.name for path in room.glob("disk*")) == sorted([disk.name, raw.name])
