"""What stands on which device, whatever lies between."""

from __future__ import annotations

from pathlib import Path

import pytest

from packer.media.block_tree import BlockTree
from tests.host import needs_root, run
from tests.media.host_tree import HostTree
from tests.survey import disks
from tests.survey.disks import MIB


@pytest.fixture
def host(tmp_path: Path) -> HostTree:
    """A host with a system disk sda of three partitions and a stick sdb of two."""
    tree = HostTree(tmp_path / "root")
    tree.disk("sda", "8:0")
    for number in (1, 2, 3):
        tree.partition("sda", f"sda{number}", f"8:{number}")
    tree.disk("sdb", "8:16")
    for number in (1, 2):
        tree.partition("sdb", f"sdb{number}", f"8:{16 + number}")
    return tree


def uses(host: HostTree) -> dict[str, list[str]]:
    """What stands on each device that carries anything."""
    tree = BlockTree(host.root)
    names = sorted(entry.name for entry in (host.root / "sys/class/block").iterdir())
    return {name: found for name in names if (found := tree.uses_of(name))}


def test_a_mounted_partition_is_carried_by_its_disk_and_not_by_its_sisters(host: HostTree) -> None:
    host.mount("/", "8:1")
    host.mount("/proc", "0:21", "proc", "proc")
    host.mount("/media/holiday pictures", "8:17", "vfat", "/dev/sdb1")
    assert uses(host) == {
        "sda": ["/"],
        "sda1": ["/"],
        "sdb": ["/media/holiday pictures"],
        "sdb1": ["/media/holiday pictures"],
    }


def test_a_partition_knows_its_disk(host: HostTree) -> None:
    host.disk("dm-0", "253:0", slaves=["sda2"])
    tree = BlockTree(host.root)
    assert [tree.whole_disk(name) for name in ("sda3", "sda", "dm-0", "gone")] == [
        "sda",
        "sda",
        "dm-0",
        "gone",
    ]


def test_a_system_on_a_volume_on_luks_on_raid_stands_on_every_disk_below(host: HostTree) -> None:
    host.disk("sdc", "8:32")
    host.disk("md0", "9:0", slaves=["sda2", "sdb1"])
    host.disk("dm-0", "253:0", slaves=["md0"])  # LUKS
    host.disk("dm-1", "253:1", slaves=["dm-0"])  # the volume with the system
    host.disk("dm-2", "253:2", slaves=["dm-0"])  # its sister, for a guest
    host.mount("/", "253:1", source="/dev/mapper/system-root")
    below = ["dm-0", "dm-1", "md0", "sda", "sda2", "sdb", "sdb1"]
    assert uses(host) == {name: ["/"] for name in below}


def test_a_loop_device_stands_on_the_disk_below_its_file(host: HostTree) -> None:
    host.mount("/host", "8:1")
    host.disk("loop0", "7:0", backing="/host/ubuntu/disks/root.disk")
    host.mount("/", "7:0")
    assert uses(host) == {"sda": ["/", "/host"], "sda1": ["/", "/host"], "loop0": ["/"]}


def test_a_loop_device_stands_on_the_device_that_it_shows(host: HostTree) -> None:
    """The kernel does not say so: sdb2 has no holder, and can be opened for this process alone."""
    host.disk("loop1", "7:1", backing="/dev/sdb2")
    host.mount("/mnt", "7:1")
    assert uses(host) == {name: ["/mnt"] for name in ("loop1", "sdb", "sdb2")}


def test_a_loop_device_may_be_named_by_a_link(host: HostTree) -> None:
    host.disk("dm-4", "253:4", slaves=["sdb2"])
    host.link("/dev/mapper/vg-guest", "/dev/dm-4")
    host.disk("loop1", "7:1", backing="/dev/mapper/vg-guest")
    host.mount("/mnt", "7:1")
    assert uses(host) == {name: ["/mnt"] for name in ("dm-4", "loop1", "sdb", "sdb2")}


def test_loop_devices_in_a_circle_end(host: HostTree) -> None:
    host.disk("loop1", "7:1", backing="/a/image")
    host.mount("/a", "7:1")
    assert uses(host) == {"loop1": ["/a"]}


def test_a_btrfs_stands_on_all_its_devices(host: HostTree) -> None:
    """Its mount has a number of its own and names one of them."""
    host.btrfs("sda3", "sdb2")
    host.mount("/", "0:33", "btrfs", "/dev/sda3")
    assert uses(host) == {name: ["/"] for name in ("sda", "sda3", "sdb", "sdb2")}


def test_swap_counts_as_a_partition_and_as_a_file(host: HostTree) -> None:
    host.mount("/", "8:1")
    host.mount("/data", "8:17")
    host.swap("/dev/sda2")
    host.swap("/data/swap\\040file")
    assert uses(host) == {
        "sda": ["/", "swap (/dev/sda2)"],
        "sda1": ["/"],
        "sda2": ["swap (/dev/sda2)"],
        "sdb": ["/data", "swap (/data/swap file)"],
        "sdb1": ["/data", "swap (/data/swap file)"],
    }


def test_a_file_lies_on_the_mount_with_the_longest_path(host: HostTree) -> None:
    host.mount("/", "8:1")
    host.mount("/srv", "8:17")
    host.mount("/srv", "8:18")  # covers the one before
    expected = {"/srv/store": "sdb2", "/srv": "sdb2", "/srvx/store": "sda1", "/": "sda1"}
    for path, name in expected.items():
        tree = BlockTree(host.root)
        tree.mark(Path(path), "the store")
        found = [one for one in ("sda1", "sdb1", "sdb2") if "the store" in tree.uses_of(one)]
        assert found == [name]


def test_a_device_stands_on_the_files_of_the_loop_devices_below(host: HostTree) -> None:
    host.mount("/", "8:1")
    host.disk("loop1", "7:1", backing="/srv/guest.img")
    host.disk("dm-0", "253:0", slaves=["loop1", "sda2"])
    host.disk("loop2", "7:2", backing="/dev/dm-0")
    tree = BlockTree(host.root)
    image = Path("/srv/guest.img")
    names = ("loop1", "dm-0", "loop2", "sda")
    assert [tree.files_below(name) for name in names] == [[image], [image], [image], []]


def test_this_host_runs_from_a_device_that_carries_its_root() -> None:
    """The real one, if its root lies on a device (a container's may not)."""
    number = run("findmnt", "-n", "-o", "MAJ:MIN", "/").strip()
    tree = BlockTree()
    name = tree.name_of(number)
    if not name:
        pytest.skip(f"the root of this host is not on a block device ({number})")
    assert "/" in tree.uses_of(name)
    assert "/" in tree.uses_of(tree.whole_disk(name))


@needs_root
def test_real_loop_devices_one_on_the_other_carry_what_is_mounted(tmp_path: Path) -> None:
    image = disks.empty(tmp_path / "image", 32 * MIB)
    point = tmp_path / "point"
    point.mkdir()
    with disks.loop_device(image) as below, disks.loop_device(below, "-o", "1048576") as above:
        run("mke2fs", "-q", "-t", "ext4", above)
        run("mount", above, point)
        try:
            tree = BlockTree()
            assert tree.uses_of(above.name) == [str(point)]
            assert tree.uses_of(below.name) == [str(point)]
            home = run("findmnt", "-n", "-o", "TARGET", "-T", image).strip()
            name = tree.name_of(run("stat", "-c", "%Hd:%Ld", image).strip())
            if name:  # and the disk below the file of the lower one
                assert {home, str(point)} <= set(tree.uses_of(name))
        finally:
            run("umount", point)
    assert BlockTree().uses_of(below.name) == []
