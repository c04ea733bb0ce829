from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packer.errors import InUseError
from packer.survey import block_devices, in_use
from packer.survey.disk import open_disk
from packer.survey.in_use import (
    findings,
    kept_from_qemu,
    refuse_if_in_use,
    refuse_if_replaced_under_somebody,
)
from tests.host import needs_root, run
from tests.survey import disks
from tests.survey.disks import MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return disks.empty(tmp_path / "guest.raw", 16 * MIB)


@contextmanager
def qemu(*arguments: str, ready: Path) -> Iterator[int]:
    """A paused guest without firmware work: the disk is attached, nothing runs."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none", "-nodefaults"]
    process = subprocess.Popen([*command, "-qmp", f"unix:{ready},server=on,wait=off", *arguments])
    try:
        _wait_for(lambda: _answers(ready), process)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _answers(monitor: Path) -> bool:
    """Whether QEMU obeys its monitor: it greets before, but obeys when all disks are open."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        try:
            client.connect(str(monitor))
            client.sendall(b'{"execute": "qmp_capabilities"}\n')
            said = b""
            while b'"return"' not in said:
                data = client.recv(4096)
                if not data:
                    return False
                said += data
        except (FileNotFoundError, ConnectionError):
            return False
    return True


def _wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


@contextmanager
def holding(code: str, path: Path) -> Iterator[int]:
    """Another process that does something with the file and keeps it open; its name is "python"."""
    name = "open('/proc/self/comm', 'w').write('python')"
    script = (
        f"{name}\nimport sys, os, fcntl, mmap\npath = sys.argv[1]\n{code}\nprint('x', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script + "sys.stdin.read()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"x\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_an_idle_image_is_not_in_use(image: Path) -> None:
    assert findings(image) == []
    refuse_if_in_use([image])


@pytest.mark.parametrize("locking", ["", ",file.locking=off"])
def test_a_running_qemu_is_seen_and_named(image: Path, tmp_path: Path, locking: str) -> None:
    drive = f"file={image},format=raw,if=virtio{locking}"
    with qemu("-drive", drive, ready=tmp_path / "qmp") as pid:
        with pytest.raises(InUseError, match=f"process {pid} .qemu-system") as caught:
            open_disk(image)
        assert caught.value.exit_code == 6
        assert "shut the guest down" in caught.value.hint
        with open_disk(image, allow_in_use=True) as disk:
            assert disk.size == 16 * MIB
    with open_disk(image):
        pass


def test_a_qemu_that_only_reads_is_no_obstacle(image: Path, tmp_path: Path) -> None:
    drive = f"file={image},format=raw,if=virtio,readonly=on"
    with qemu("-drive", drive, ready=tmp_path / "qmp"):
        assert findings(image) == []


def test_the_base_of_a_running_overlay_is_no_obstacle(image: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay)
    drive = f"file={overlay},format=qcow2,if=virtio"
    with qemu("-drive", drive, ready=tmp_path / "qmp"):
        assert findings(image) == []
        assert findings(overlay)


@pytest.mark.parametrize("overlay", [False, True])
def test_a_disk_that_qemu_reads_is_not_replaced(image: Path, tmp_path: Path, overlay: bool) -> None:
    refuse_if_replaced_under_somebody(image)
    drive = f"file={image},format=raw,if=virtio,readonly=on"
    if overlay:
        top = tmp_path / "overlay.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", top)
        drive = f"file={top},format=qcow2,if=virtio"
    with (
        qemu("-drive", drive, ready=tmp_path / "qmp") as pid,
        pytest.raises(InUseError, match=f"process {pid} .qemu-system.* reads it"),
    ):
        refuse_if_replaced_under_somebody(image)
    refuse_if_replaced_under_somebody(image)


def test_qemu_is_kept_from_writing_and_not_from_reading(image: Path) -> None:
    with kept_from_qemu(image):
        with pytest.raises(AssertionError, match=r"Failed to get .write. lock"):
            run("qemu-io", "-f", "raw", "-c", "write 0 4k", image)
        run("qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", image)
        refuse_if_replaced_under_somebody(image)  # our own lock is no obstacle
    run("qemu-io", "-f", "raw", "-c", "write 0 4k", image)


def test_a_qcow2_that_qemu_nbd_writes_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "guest.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
    socket = tmp_path / "socket"
    process = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", str(socket), str(image)])
    try:
        _wait_for(socket.exists, process)
        with pytest.raises(InUseError, match=f"process {process.pid} .qemu-nbd. has locked it"):
            open_disk(image)
    finally:
        process.terminate()
        process.wait()


def test_a_vmdk_in_use_can_be_read_when_that_is_wanted(tmp_path: Path) -> None:
    image = tmp_path / "guest.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", image, "16M")
    with qemu("-drive", f"file={image},format=vmdk,if=virtio", ready=tmp_path / "qmp"):
        with pytest.raises(InUseError):
            open_disk(image)
        with open_disk(image, allow_in_use=True) as disk:
            assert disk.source.pread(0, 512) == bytes(512)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("f = open(path, 'r+b')", "has it open to write"),
        ("f = open(path, 'r+b'); m = mmap.mmap(f.fileno(), 4096)", "has it open to write"),
        ("f = open(path, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)", "has locked it"),  # libvirt
        ("f = open(path, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX)", "has locked it"),
    ],
)
def test_any_program_that_writes_or_locks_is_named(image: Path, code: str, message: str) -> None:
    with holding(code, image) as pid:
        (found,) = findings(image)
    assert found.startswith(f"process {pid} (python")
    assert message in found


@pytest.mark.parametrize(
    "code",
    [
        "f = open(path, 'rb')",
        "f = open(path, 'rb'); fcntl.lockf(f, fcntl.LOCK_SH, 1, 0)",  # libvirt: shared disk
        "f = open(path, 'rb'); fcntl.flock(f, fcntl.LOCK_SH)",
    ],
)
def test_a_program_that_reads_is_no_obstacle(image: Path, code: str) -> None:
    with holding(code, image):
        assert findings(image) == []


def test_a_writer_that_cannot_be_seen_is_still_noticed(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's process, or one in another container: the lease knows, /proc does not."""
    monkeypatch.setattr(in_use, "_openers", lambda status: iter(()))
    with holding("f = open(path, 'r+b')", image):
        assert findings(image) == ["something that cannot be seen from here has it open to write"]


def test_looking_leaves_no_lock_or_lease_behind(image: Path) -> None:
    with image.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert findings(image) == []
    begin = time.monotonic()
    with image.open("r+b"):  # a lease that stayed would hold this up
        assert time.monotonic() - begin < 1


def test_a_program_may_have_any_name(image: Path) -> None:
    """The kernel gives names as bytes, and whoever chose them may mean the terminal."""
    rename = "open('/proc/self/comm', 'wb').write(b'\\xff\\x1b[2J'); f = open(path, 'r+b')"
    with (
        holding(rename, image),
        pytest.raises(
            InUseError, match=r"\(\N{REPLACEMENT CHARACTER}{2}\[2J\) has it open to write"
        ),
    ):
        refuse_if_in_use([image])


@pytest.mark.parametrize(
    ("disk", "lock"),
    [
        ("guest.vmdk", "guest.vmdk.lck"),
        ("guest-flat.vmdk", "guest.vmdk.lck"),
        ("guest-s003.vmdk", "guest.vmdk.lck"),
    ],
)
def test_vmware_lock_folders_are_seen(tmp_path: Path, disk: str, lock: str) -> None:
    path = disks.empty(tmp_path / disk, MIB)
    folder = tmp_path / lock
    folder.mkdir()
    assert findings(path) == []
    (folder / "M12345.lck").write_bytes(b"x")
    assert "guest.vmdk.lck" in findings(path)[0]


@needs_root
def test_a_loop_device_and_its_mount_are_seen(image: Path, tmp_path: Path) -> None:
    run("mke2fs", "-q", "-F", image)
    with disks.loop_device(image) as device:
        assert findings(image) == [f"it is behind the loop device {device}"]
        point = tmp_path / "a mount"
        point.mkdir()
        run("mount", device, point)
        try:
            assert findings(image) == [
                f"it is behind the loop device {device}, which is mounted at {point}"
            ]
            assert findings(device) == [f"it is mounted at {point}"]
        finally:
            run("umount", point)
    assert findings(image) == []


@needs_root
def test_a_read_only_loop_device_is_no_obstacle(image: Path) -> None:
    with disks.loop_device(image, "--read-only") as device:
        assert findings(image) == []
        assert findings(device) == []


@needs_root
def test_a_mounted_partition_makes_its_disk_used(tmp_path: Path) -> None:
    image = disks.empty(tmp_path / "guest.raw", disks.DISK_BYTES)
    disks.table(image)
    disks.write_at(image, disks.EXT.start, disks.ext4(tmp_path))
    with disks.loop_device(image, "--partscan") as device:
        partition = Path(f"{device}p1")
        deadline = time.monotonic() + 5
        while not Path(f"/sys/class/block/{partition.name}").exists():
            if time.monotonic() > deadline:
                pytest.skip("this kernel makes no partitions of loop devices")
            time.sleep(0.05)
        node, made = partition, False
        if not partition.exists():  # nobody makes device nodes here
            number = Path(f"/sys/class/block/{partition.name}/dev").read_text().strip()
            major, minor = map(int, number.split(":"))
            node, made = tmp_path / "node", True
            os.mknod(node, 0o60600, os.makedev(major, minor))
        point = tmp_path / "point"
        point.mkdir()
        run("mount", node, point)
        try:
            assert findings(device) == [f"it is mounted at {point}"]
            assert findings(node) == [f"it is mounted at {point}"]
        finally:
            run("umount", point)
            if made:
                node.unlink()


@needs_root
def test_a_device_that_is_built_on_and_mounted_is_seen(image: Path, tmp_path: Path) -> None:
    run("mke2fs", "-q", "-F", image)
    name = f"vmpack-test-{os.getpid()}"
    if shutil.which("dmsetup") is None or not _has_device_mapper():
        pytest.skip("no device mapper here")
    with disks.loop_device(image) as device:
        run("dmsetup", "create", name, "--table", f"0 {16 * MIB // 512} linear {device} 0")
        try:
            assert "the kernel uses it (dm-" in findings(device)[0]
            run("mount", f"/dev/mapper/{name}", tmp_path)
            try:
                assert findings(device) == [f"it is mounted at {tmp_path}"]
            finally:
                run("umount", tmp_path)
        finally:
            run("dmsetup", "remove", name)


def _has_device_mapper() -> bool:
    return subprocess.run(["dmsetup", "info"], check=False, capture_output=True).returncode == 0


def test_partitions_and_all_that_is_built_on_them_belong_to_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/sys/class/block as Linux has it for LVM on LUKS on a partition."""
    for made in ("sda/sda1/holders", "sda/sda2/holders/dm-0", "sda/holders", "sda/queue"):
        (tmp_path / "devices" / made).mkdir(parents=True)
    for made in ("dm-0/holders/dm-1", "dm-1/holders"):
        (tmp_path / "class" / made).mkdir(parents=True)
    for name in ("sda1", "sda2"):
        (tmp_path / "devices/sda" / name / "partition").write_text("1\n")
        (tmp_path / "class" / name).symlink_to(tmp_path / "devices/sda" / name)
    (tmp_path / "class/sda").symlink_to(tmp_path / "devices/sda")
    monkeypatch.setattr(block_devices, "_CLASS", tmp_path / "class")
    everything = {"sda", "sda1", "sda2", "dm-0", "dm-1"}
    assert block_devices.related_devices("sda") == everything
    assert block_devices.related_devices("sda2") == {"sda2", "dm-0", "dm-1"}


@needs_root
def test_a_device_that_somebody_writes_to_is_seen(image: Path) -> None:
    with disks.loop_device(image) as device, holding("f = open(path, 'r+b')", device) as pid:
        (found,) = findings(device)
        assert found.startswith(f"process {pid}")


@needs_root
def test_active_swap_is_seen(image: Path) -> None:
    run("mkswap", "-q", image)
    image.chmod(0o600)
    with disks.loop_device(image) as device:
        done = subprocess.run(["swapon", str(device)], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no swap here: {done.stderr.strip()}")
        try:
            assert findings(device) == [f"this host swaps to {device}"]
        finally:
            run("swapoff", device)


@needs_root
def test_a_device_held_exclusively_is_seen(image: Path) -> None:
    with disks.loop_device(image) as device, holding("f = os.open(path, os.O_EXCL)", device):
        (found,) = findings(device)
        assert found.startswith("the kernel uses it")


def test_a_change_is_noticed_at_the_end(image: Path) -> None:
    with open_disk(image) as disk:
        disk.check_unchanged()
        disks.write_at(image, 5000, b"new")
        with pytest.raises(InUseError, match="was changed while it was read"):
            disk.check_unchanged()
    with open_disk(image) as disk:
        image.unlink()
        with pytest.raises(InUseError, match="is gone"):
            disk.check_unchanged()


@needs_root
def test_who_writes_to_a_partition_uses_the_disk_and_the_other_way_round(tmp_path: Path) -> None:
    """As a guest does that was given one of them; the kernel keeps neither for itself."""
    with disks.loop_device(disks.whole_disk(tmp_path)) as disk:
        run("partx", "--add", disk)
        try:
            first, second = (disk.with_name(f"{disk.name}p{number}") for number in (1, 2))
            with holding("os.open(path, os.O_RDWR)", first) as pid:
                assert findings(disk) == [f"process {pid} (python) has {first} open to write"]
                assert findings(second) == []
            with holding("os.open(path, os.O_RDWR)", disk) as pid:
                assert findings(second) == [f"process {pid} (python) has {disk} open to write"]
            with holding("os.open(path, os.O_RDONLY)", first):
                assert findings(disk) == []
        finally:
            run("partx", "--delete", disk)


@needs_root
def test_a_device_behind_a_loop_device_is_used(image: Path) -> None:
    with disks.loop_device(image) as below:
        with disks.loop_device(below) as above:
            assert findings(below) == [f"it is behind the loop device {above}"]
            assert findings(above) == []
        with disks.loop_device(below, "--read-only"):
            assert findings(below) == []
