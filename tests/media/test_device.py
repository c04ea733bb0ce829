"""What a disk may be written to, and what is refused before anything is opened to write."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from packer.errors import Error, InUseError, UsageError
from packer.media.block_tree import BlockTree
from packer.media.device import (
    Device,
    block_device,
    look_at,
    refuse_if_needed,
    refuse_if_unfit,
)
from tests.host import as_nobody, needs_root, run
from tests.media.host_tree import HostTree
from tests.survey import disks
from tests.survey.disks import MIB


@pytest.fixture
def host(tmp_path: Path) -> HostTree:
    tree = HostTree(tmp_path / "root")
    tree.disk("sda", "8:0")
    for number in (1, 2):
        tree.partition("sda", f"sda{number}", f"8:{number}")
    tree.disk("sdb", "8:16")
    for number in (1, 2):
        tree.partition("sdb", f"sdb{number}", f"8:{16 + number}")
    tree.mount("/", "8:1")
    return tree


def refuse(host: HostTree, name: str, number: str, *kept: tuple[str, str]) -> None:
    """Ask about a device of the host. Whether a real one of that number is used is never asked:
    its path does not exist.
    """
    device = Device(Path("/nowhere") / name, name, MIB, 512, number=number)
    refuse_if_needed(device, [(Path(path), what) for path, what in kept], BlockTree(host.root))


def test_the_system_disk_is_refused_and_says_what_it_holds(host: HostTree) -> None:
    host.swap("/dev/sda2")
    with pytest.raises(InUseError, match=r"a disk that this host runs from; it holds /, swap \(/dev"
                       r"/sda2\)$") as caught:  # fmt: skip
        refuse(host, "sda", "8:0")
    assert "nothing overrides this" in caught.value.hint
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("name", "number"), [("sda1", "8:1"), ("sda2", "8:2")])
def test_no_partition_of_the_system_disk_is_written_used_or_not(
    host: HostTree, name: str, number: str
) -> None:
    with pytest.raises(InUseError, match=r"is a part of /dev/sda, a disk .* it holds /$"):
        refuse(host, name, number)


@pytest.mark.parametrize("point", ["/boot", "/boot/efi", "/usr", "/var"])
def test_a_second_disk_with_a_part_of_the_system_is_refused(host: HostTree, point: str) -> None:
    host.mount(point, "8:17")
    with pytest.raises(InUseError, match=f"runs from; it holds {point}$"):
        refuse(host, "sdb2", "8:18")


def test_a_disk_with_the_store_or_the_pack_is_refused(host: HostTree) -> None:
    host.mount("/srv", "8:17")
    kept = [("/srv/vmpack/store", "the store"), ("/srv/demo.vmpack", "the pack")]
    with pytest.raises(InUseError, match=r"it holds the pack, the store$"):
        refuse(host, "sdb", "8:16", *kept)


@pytest.mark.parametrize(("name", "number"), [("sdb", "8:16"), ("sdb1", "8:17"), ("sdb2", "8:18")])
def test_a_device_that_bytes_are_to_come_from_is_refused(
    host: HostTree, name: str, number: str
) -> None:
    """Itself, the disk that it is a part of, its sister, and by another name."""
    host.link("/dev/disk/by-id/usb-1", "/dev/sdb1")
    with pytest.raises(InUseError, match=r"it holds disk:/dev/sdb1$"):
        refuse(host, name, number, ("/dev/disk/by-id/usb-1", "disk:/dev/sdb1"))


def test_what_is_mounted_is_refused_with_the_command_that_unmounts_it(host: HostTree) -> None:
    host.mount("/media/my stick", "8:17")
    with pytest.raises(InUseError, match=r"is mounted at /media/my stick$") as caught:
        refuse(host, "sdb", "8:16")
    assert caught.value.hint == "unmount it first: umount '/media/my stick'"


def test_a_name_of_a_mount_point_cannot_steer_the_terminal(host: HostTree) -> None:
    host.mount("/media/\x1b[2J", "8:17")
    with pytest.raises(InUseError) as caught:
        refuse(host, "sdb", "8:16")
    assert "\x1b" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(("name", "number"), [("sdb", "8:16"), ("sdb2", "8:18")])
def test_another_disk_gets_past_that(host: HostTree, name: str, number: str) -> None:
    with pytest.raises(Error, match="cannot be opened: No such file"):
        refuse(host, name, number)


def test_a_volume_beside_the_systems_is_not_the_system(host: HostTree) -> None:
    """What stands on the system disk is another thing than the system disk."""
    host.disk("dm-0", "253:0", slaves=["sda2"])
    host.disk("dm-1", "253:1", slaves=["sda2"])
    host.mount("/home", "253:0")
    with pytest.raises(Error, match="cannot be opened: No such file"):
        refuse(host, "dm-1", "253:1")


def test_without_a_list_of_what_is_used_nothing_is_said_to_be_free(host: HostTree) -> None:
    (host.root / "proc/swaps").unlink()
    with pytest.raises(OSError, match="proc/swaps"):
        BlockTree(host.root)


@needs_root
def test_the_disk_of_this_host_is_refused() -> None:
    """The real one. It is looked at, and never opened."""
    number = run("findmnt", "-n", "-o", "MAJ:MIN", "/").strip()
    name = BlockTree().name_of(number)
    if not name:
        pytest.skip("the root of this host is not on a block device")
    for one in {name, BlockTree().whole_disk(name)}:
        device = look_at(f"/dev/{one}")
        assert device.name == one
        with pytest.raises(InUseError, match=r"runs from; it holds /"):
            refuse_if_needed(device, [])


# -- what it is -----------------------------------------------------------------------------------


def test_a_stick_is_described_as_people_know_it(tmp_path: Path) -> None:
    host = HostTree(tmp_path / "root")
    facts = {"device/vendor": "SanDisk ", "device/model": "Ultra        ", "removable": "1"}
    bus = "pci0/usb2/2-1/2-1:1.0/host6"
    host.disk("sdc", "8:32", bus=bus, size=30 << 30, facts={**facts, "diskseq": "11"})
    host.partition("sdc", "sdc1", "8:33", size=7 << 30)
    path = Path("/dev/sdc")
    stick = block_device(path, "8:32", host.root)
    assert stick == Device(
        path, "sdc", 30 << 30, 512, "SanDisk Ultra", True, True, number="8:32",
        identity=f"{host.root}/sys/devices/{bus}/block/sdc 11",
    )  # fmt: skip
    part = block_device(Path("/dev/sdc1"), "8:33", host.root)
    assert (part.part_of, stick.part_of) == ("sdc", "")
    assert (part.name, part.size, part.model, part.usb) == ("sdc1", 7 << 30, "SanDisk Ultra", True)


def test_other_devices_are_described_by_what_is_known(tmp_path: Path) -> None:
    host = HostTree(tmp_path / "root")
    host.disk("vda", "254:0", facts={"device/vendor": "0x1af4"})
    host.disk("dm-0", "253:0", facts={"dm/name": "vg-guest"})
    host.disk("mmcblk0", "179:0", facts={"device/name": "SD32G"})
    host.disk("loop7", "7:7", backing="/srv/\x1bdisk.img")
    numbers = ["254:0", "253:0", "179:0", "7:7"]
    models = [block_device(Path("/dev/x"), number, host.root).model for number in numbers]
    assert models == [
        "",
        "device-mapper vg-guest",
        "SD32G",
        "loop device on /srv/\N{REPLACEMENT CHARACTER}disk.img",
    ]


def test_another_medium_in_the_same_reader_is_another_device(tmp_path: Path) -> None:
    found = []
    for sequence in ("11", "12"):
        host = HostTree(tmp_path / sequence)
        host.disk("sdc", "8:32", facts={"diskseq": sequence})
        found.append(block_device(Path("/dev/sdc"), "8:32", host.root))
    assert found[0] != found[1]


def test_another_stick_in_the_same_socket_is_another_device_for_an_old_kernel_too(
    tmp_path: Path,
) -> None:
    """Linux 5.15 began to number media; every device that is plugged in gets a new host."""
    found = []
    for bus in ("pci0/usb2/2-1/2-1:1.0/host6", "pci0/usb2/2-1/2-1:1.0/host7"):
        host = HostTree(tmp_path / "root")
        host.disk("sdc", "8:32", bus=bus)
        found.append(block_device(Path("/dev/sdc"), "8:32", host.root))
        host.root.rename(tmp_path / bus.rpartition("/")[2])
    assert found[0] != found[1]


@pytest.mark.parametrize("fact", ["device/serial", "device/wwid", "device/cid", "wwid"])
def test_another_medium_of_another_serial_number_is_another_device(
    tmp_path: Path, fact: str
) -> None:
    found = []
    for serial in ("1", "2"):
        host = HostTree(tmp_path / "root")
        host.disk("sdc", "8:32", facts={fact: serial})
        found.append(block_device(Path("/dev/sdc"), "8:32", host.root))
        host.root.rename(tmp_path / serial)
    assert found[0] != found[1]


def test_an_empty_reader_and_a_write_protected_stick_are_refused(tmp_path: Path) -> None:
    host = HostTree(tmp_path / "root")
    host.disk("sdc", "8:32", size=0)
    host.disk("sdd", "8:48", read_only=True)
    with pytest.raises(UsageError, match="holds no medium"):
        block_device(Path("/dev/sdc"), "8:32", host.root)
    with pytest.raises(UsageError, match="is write-protected") as caught:
        block_device(Path("/dev/sdd"), "8:48", host.root)
    assert "switch" in caught.value.hint
    with pytest.raises(UsageError, match="the kernel does not know this device"):
        block_device(Path("/dev/sde"), "8:64", host.root)


@needs_root
def test_a_real_loop_device_is_known_by_its_link_its_size_and_its_sectors(tmp_path: Path) -> None:
    image = disks.empty(tmp_path / "image", 8 * MIB)
    link = tmp_path / "by-id"
    with disks.loop_device(image, "--sector-size", "4096") as path:
        link.symlink_to(path)
        device = look_at(link)
        assert (device.path, device.name, device.size) == (path, path.name, 8 * MIB)
        assert (device.sector_size, device.is_block_device) == (4096, True)
        assert device.model == f"loop device on {image}"
    with disks.loop_device(image, "--read-only") as path, pytest.raises(UsageError, match="write-"):
        look_at(path)


def test_a_file_and_a_new_file_are_targets(tmp_path: Path) -> None:
    image = disks.empty(tmp_path / "image", 8 * MIB)
    found = look_at(image)
    assert (found.name, found.size, found.is_new, found.is_block_device) == (
        "image",
        8 * MIB,
        False,
        False,
    )
    assert look_at(tmp_path / "new").is_new


@pytest.mark.parametrize("path", ["/dev/sdzz9", "/dev/disk/by-id/usb-none", "/dev/mapper/none"])
def test_a_device_that_is_not_there_does_not_become_a_file(path: str) -> None:
    with pytest.raises(UsageError, match="there is no such device"):
        look_at(path)
    assert not Path(path).exists()


def test_folders_pipes_and_character_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UsageError, match="neither a block device nor a disk image"):
            look_at(path)
    with pytest.raises(UsageError, match="cannot be looked at"):
        look_at(tmp_path / "circle")
    with pytest.raises(UsageError, match="there is no folder"):
        look_at(tmp_path / "none" / "new")


# -- whether a disk fits ---------------------------------------------------------------------------


def test_a_device_must_be_large_enough() -> None:
    device = Device(Path("/dev/sdb"), "sdb", 4_000_000_000, 512, number="8:16")
    refuse_if_unfit(device, 4_000_000_000, 512)
    expected = (
        r"/dev/sdb: too small: the disk has 4,294,967,296 bytes \(4.3 GB\), "
        r"this 4,000,000,000 \(4.0 GB\)"
    )
    with pytest.raises(UsageError, match=expected):
        refuse_if_unfit(device, 4_294_967_296, 512)


@pytest.mark.parametrize(("ours", "theirs"), [(512, 4096), (4096, 512)])
def test_sectors_must_be_those_of_the_disk(tmp_path: Path, ours: int, theirs: int) -> None:
    device = Device(Path("/dev/sdb"), "sdb", MIB, theirs, number="8:16")
    with pytest.raises(UsageError, match=f"expected sectors of {ours} bytes.* found {theirs}"):
        refuse_if_unfit(device, MIB, ours)
    refuse_if_unfit(look_at(disks.empty(tmp_path / "image", MIB)), MIB, ours)


def test_a_file_in_another_container_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    os.truncate(image, 64 * MIB)
    with pytest.raises(UsageError, match="is a qcow2 image") as caught:
        refuse_if_unfit(look_at(image), MIB, 512)
    assert "vmpack unpack --format qcow2" in caught.value.hint


# -- whether it is used ----------------------------------------------------------------------------


def test_the_pack_and_what_is_in_the_store_are_no_targets(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    inside = disks.empty(store / "object", MIB)
    pack = disks.empty(tmp_path / "pack", MIB)
    again = tmp_path / "again"
    again.hardlink_to(pack)
    kept = [(store, "the store"), (pack, "the pack")]
    for path, what in ((inside, "the store"), (pack, "the pack"), (again, "the pack")):
        with pytest.raises(InUseError, match=f"is {what}, or a part of it"):
            refuse_if_needed(look_at(path), kept)
    refuse_if_needed(look_at(disks.empty(tmp_path / "other", MIB)), kept)


def test_a_file_with_several_names_is_refused(tmp_path: Path) -> None:
    """As a backup by hard links keeps it (cp -al, rsnapshot): each of them would be overwritten."""
    image = disks.empty(tmp_path / "image", MIB)
    (tmp_path / "backup").hardlink_to(image)
    with pytest.raises(InUseError, match="has 2 names, and under each the same bytes") as caught:
        refuse_if_needed(look_at(image), [])
    assert "cp --reflink=auto" in caught.value.hint
    (tmp_path / "backup").unlink()
    refuse_if_needed(look_at(image), [])


@needs_root
def test_a_loop_device_on_the_pack_is_refused(tmp_path: Path) -> None:
    """To write to it is to write to the file."""
    pack = disks.empty(tmp_path / "pack", MIB)
    with disks.loop_device(pack) as below, disks.loop_device(below) as above:
        for path in (below, above):
            with pytest.raises(InUseError, match=f"{path}: stands on {pack}, which is the pack"):
                refuse_if_needed(look_at(path), [(pack, "the pack")])
        refuse_if_needed(look_at(above), [(tmp_path / "other", "the pack")])


@pytest.mark.parametrize(("options", "what"), [((), "has locked it"), (("--read-only",), "reads")])
def test_an_image_that_a_guest_writes_or_reads_is_refused(
    tmp_path: Path, options: tuple[str, ...], what: str
) -> None:
    """Who reads it may have it below an overlay, which would be worthless afterwards."""
    image = disks.empty(tmp_path / "image", MIB)
    ready = tmp_path / "pid"  # written when it has opened the image
    command = ["qemu-nbd", "-t", "-f", "raw", "-k", f"{tmp_path}/socket", f"--pid-file={ready}"]
    command += options
    server = subprocess.Popen([*command, str(image)])
    try:
        while not ready.exists():
            assert server.poll() is None
        expected = rf"in use: process {server.pid} \(qemu-nbd\) {what}"
        with pytest.raises(InUseError, match=expected):
            refuse_if_needed(look_at(image), [])
    finally:
        server.kill()
        server.wait()


@needs_root
def test_a_mounted_device_is_refused_and_so_is_what_lies_below(tmp_path: Path) -> None:
    image = disks.empty(tmp_path / "image", 32 * MIB)
    point = tmp_path / "point"
    point.mkdir()
    with disks.loop_device(image) as below, disks.loop_device(below) as above:
        run("mke2fs", "-q", "-t", "ext4", above)
        refuse_if_needed(look_at(above), [])
        run("mount", above, point)
        try:
            for path in (above, below):
                with pytest.raises(InUseError, match=f"is mounted at {point}$") as caught:
                    refuse_if_needed(look_at(path), [])
                assert caught.value.hint == f"unmount it first: umount {point}"
            with pytest.raises(InUseError, match="is behind the loop device"):
                refuse_if_needed(look_at(image), [])
            kept = [(point / "store", "the store")]
            with pytest.raises(InUseError, match="it holds the store"):
                refuse_if_needed(look_at(below), kept)
        finally:
            run("umount", point)


@needs_root
def test_a_device_that_is_mounted_in_another_namespace_is_refused(tmp_path: Path) -> None:
    """As in a container: no list that is seen from here names it, but the kernel knows."""
    image = disks.empty(tmp_path / "image", 32 * MIB)
    with disks.loop_device(image) as path:
        run("mke2fs", "-q", "-t", "ext4", path)
        script = f"mount {path} /mnt && echo ready && read end"
        elsewhere = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert elsewhere.stdout is not None
            assert elsewhere.stdout.readline() == b"ready\n"
            assert BlockTree().uses_of(path.name) == []
            with pytest.raises(InUseError, match="is in use: the kernel uses it"):
                refuse_if_needed(look_at(path), [])
        finally:
            elsewhere.communicate(b"\n")


@needs_root
def test_without_rights_a_device_is_one_clear_error(tmp_path: Path) -> None:
    with disks.loop_device(disks.empty(tmp_path / "image", MIB)) as path:

        def ask() -> None:
            with pytest.raises(Error, match="cannot be opened: Permission denied") as caught:
                refuse_if_needed(look_at(path), [])
            assert "sudo" in caught.value.hint

        as_nobody(ask)
