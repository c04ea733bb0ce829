from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from formats.ranges import total
from packer.errors import InputError, InUseError, UsageError
from packer.survey import qemu_nbd
from packer.survey.disk import Disk, open_disk
from packer.survey.qemu_nbd import QemuNbd, demand_complete
from tests.host import needs_root, run
from tests.survey import disks
from tests.survey.disks import MIB

SIZE = 24 * MIB
Mapped = Callable[[str], None]
DATA = [(0, 3 * MIB), (5 * MIB, 6 * MIB), (SIZE - MIB, SIZE)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A sparse image in which no two places look alike."""
    path = disks.empty(tmp_path / "guest.raw", SIZE)
    chance = random.Random(1)
    for start, end in DATA:
        disks.write_at(path, start, chance.randbytes(end - start))
    return path


def converted(raw: Path, container: str, options: str = "", *, compress: bool = False) -> Path:
    if container == "raw":
        return raw
    target = raw.with_name(f"guest.{container}{'-' + options.replace(',', '-') if options else ''}")
    arguments: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", container]
    if compress:
        arguments.append("-c")
    if options:
        arguments += ["-o", options]
    run(*arguments, raw, target)
    return target


def read_all(disk: Disk, chunk: int = 1_000_003) -> bytes:
    return b"".join(
        disk.source.pread(start, min(chunk, disk.size - start))
        for start in range(0, disk.size, chunk)
    )


def assert_equal_to(raw: Path, disk: Disk) -> None:
    expected = raw.read_bytes()
    found = read_all(disk)
    assert hashlib.sha256(found).digest() == hashlib.sha256(expected).digest()
    ranges = disk.source.data_ranges(0, disk.size)
    kept = bytearray(disk.size)
    for start, end in ranges.tolist():
        kept[start:end] = expected[start:end]
    assert bytes(kept) == expected, "what data_ranges leaves out is not zero"
    if disk.container != "vhdx":  # of which qemu tells no holes
        assert total(ranges) < disk.size, "no hole is seen"


@pytest.mark.parametrize(
    ("container", "options", "name"),
    [
        ("raw", "", "raw"),
        ("qcow2", "", "qcow2"),
        ("qcow2", "cluster_size=512", "qcow2"),
        ("qcow2", "compat=0.10", "qcow2"),
        ("vmdk", "", "vmdk"),
        ("vmdk", "subformat=streamOptimized", "vmdk"),
        ("vmdk", "subformat=monolithicFlat", "vmdk"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "vmdk"),
        ("vdi", "", "vdi"),
        ("vhdx", "", "vhdx"),
        ("vpc", "force_size=on", "vhd"),
        ("vpc", "force_size=on,subformat=fixed", "vhd"),
        ("parallels", "", "parallels"),
    ],
)
def test_a_disk_reads_the_same_in_every_container(
    raw: Path, container: str, options: str, name: str
) -> None:
    path = converted(raw, container, options)
    with open_disk(path) as disk:
        assert disk.container == name
        assert disk.size == SIZE
        assert_equal_to(raw, disk)
        disk.check_unchanged()


@pytest.mark.parametrize("options", ["", "compression_type=zstd"])
def test_a_compressed_qcow2_reads_the_same(raw: Path, options: str) -> None:
    with open_disk(converted(raw, "qcow2", options, compress=True)) as disk:
        assert_equal_to(raw, disk)


def test_the_parent_never_parses_a_qcow2(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from formats.container import qcow2

    def parse(*arguments: object) -> None:
        raise AssertionError("parsed in the parent")

    monkeypatch.setattr(qcow2.Qcow2, "__init__", parse)
    with open_disk(converted(raw, "qcow2")) as disk:
        assert_equal_to(raw, disk)


def test_several_threads_may_read(raw: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    expected = raw.read_bytes()
    chance = random.Random(3)
    wanted = [(chance.randrange(SIZE - 70_000), chance.randrange(70_000)) for _ in range(300)]
    for container in ("qcow2", "vmdk"):
        with (
            open_disk(converted(raw, container)) as disk,
            ThreadPoolExecutor(4) as pool,
        ):
            found = list(pool.map(lambda one: disk.source.pread(*one), wanted))
        assert found == [expected[offset : offset + length] for offset, length in wanted]


def test_a_raw_image_of_an_odd_size_ends_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(b"x" * 1000)
    with open_disk(path) as disk:
        assert disk.size == 1024
        assert disk.source.pread(990, 34) == b"x" * 10 + bytes(24)


def test_an_overlay_is_refused_until_its_backing_file_is_named(raw: Path) -> None:
    overlay = raw.with_name("overlay.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "guest.raw", "-F", "raw", overlay)
    run("qemu-io", "-c", "write -P 7 4M 64k", overlay)
    with pytest.raises(InputError, match=r"records 'guest\.raw' as the backing file") as caught:
        open_disk(overlay)
    assert "--backing FILE" in caught.value.hint

    run("qemu-img", "convert", "-O", "raw", overlay, raw.with_name("expected"))
    with open_disk(overlay, backing=raw) as disk:
        assert_equal_to(raw.with_name("expected"), disk)
        disk.check_unchanged()
        disks.write_at(raw, 0, b"changed")
        with pytest.raises(InUseError, match=r"guest.raw was changed"):
            disk.check_unchanged()


def test_the_recorded_backing_file_is_not_opened(raw: Path) -> None:
    overlay = raw.with_name("overlay.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay)
    named = raw.with_name("named.raw")
    disks.empty(named, SIZE)
    with open_disk(overlay, backing=named) as disk:
        assert not any(read_all(disk))


def test_a_backing_file_of_qcow2_is_read_through_its_own_child(raw: Path) -> None:
    base = converted(raw, "qcow2")
    overlay = raw.with_name("overlay.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay, "30M")
    with open_disk(overlay, backing=base) as disk:
        assert disk.size == 30 * MIB
        assert read_all(disk) == raw.read_bytes() + bytes(6 * MIB)


def test_a_backing_file_that_does_not_belong_is_refused(raw: Path) -> None:
    with pytest.raises(UsageError, match="records no backing file"):
        open_disk(converted(raw, "qcow2"), backing=raw)
    with pytest.raises(UsageError, match="has no backing file"):
        open_disk(raw, backing=raw)


def test_the_container_can_be_named(raw: Path) -> None:
    path = converted(raw, "qcow2")
    with open_disk(path, container="raw") as disk:
        assert read_all(disk) == path.read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nothing", "No such file"),
        (lambda folder: folder, "neither a file nor a block device"),
        (lambda folder: fifo(folder / "pipe"), "neither a file nor a block device"),
    ],
)
def test_what_is_no_image_is_one_clear_error(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=message):
        open_disk(make(tmp_path))


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("container", ["qed", "qcow"])
def test_a_container_without_a_reader_says_how_to_convert(raw: Path, container: str) -> None:
    with pytest.raises(InputError, match=f"is a {container} image") as caught:
        open_disk(converted(raw, container))
    assert "qemu-img convert" in caught.value.hint


def test_a_damaged_qcow2_is_one_clear_error(raw: Path) -> None:
    path = converted(raw, "qcow2")
    disks.write_at(path, 40, b"\xff" * 8)  # the L1 table's offset
    with pytest.raises(InputError, match="cannot be read as qcow2: qcow2 header at byte 40"):
        open_disk(path)


def test_every_byte_of_a_qcow2_header_may_be_wrong(raw: Path) -> None:
    """Nothing but InputError may come out, and mostly it is refused or reads the same."""
    path = converted(raw, "qcow2")
    original = path.read_bytes()[:112]
    for offset in range(4, 112, 5):
        disks.write_at(path, offset, bytes([original[offset] ^ 0x41]))
        try:
            with open_disk(path) as disk:
                disk.source.data_ranges(0, disk.size)
        except InputError:
            pass
        disks.write_at(path, offset, original[offset : offset + 1])


def vmdk_with(folder: Path, *extents: str, parent: str = "ffffffff") -> Path:
    path = folder / "guest.vmdk"
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\n"
        f'parentCID={parent}\ncreateType="monolithicFlat"\n' + "\n".join(extents) + "\n"
        'ddb.adapterType = "ide"\n'
    )
    return path


@pytest.mark.parametrize(
    "extent",
    [
        'RW 8 FLAT "/etc/shadow" 0',
        'RW 8 FLAT "../secret" 0',
        'RW 8FLAT"../secret" 0',
        'RW\n8\nVMFS\n"nbd:unix:/x" 0',
        'RW 8 SPARSE "folder\\secret"',
        'RW 8 flat "json:{}" 0',
        'RW 8 VMFS "/etc/shadow',  # no closing quote: qemu does not miss it
    ],
)
def test_a_vmdk_cannot_name_files_elsewhere(tmp_path: Path, extent: str) -> None:
    with pytest.raises(InputError, match=r"names .* as a part of itself"):
        open_disk(vmdk_with(tmp_path, extent))


def test_a_vmdk_cannot_hide_its_descriptor_behind_an_offset_that_wraps(tmp_path: Path) -> None:
    """qemu shifts the descriptor's sector in 64 bits, whatever falls out at the top."""
    cid = "CID=fffffffe\nparentCID=ffffffff\n"
    image = bytearray(MIB)
    struct.pack_into("<4sIIQQQQ", image, 0, b"KDMV", 1, 0, 0, 128, (1 << 55) + 128, 20)
    image[512 : 512 + len(cid)] = cid.encode()
    secret = tmp_path / "secret"
    text = f'{cid}createType="monolithicFlat"\nRW 8 FLAT "{secret}" 0\n'
    image[128 * 512 : 128 * 512 + len(text)] = text.encode()
    path = tmp_path / "guest.vmdk"
    path.write_bytes(image)
    with pytest.raises(InputError, match=r"names '.*/secret' as a part of itself"):
        open_disk(path)


def test_the_name_of_a_vmdk_extent_is_checked_as_qemu_opens_it(tmp_path: Path) -> None:
    """A byte that is no UTF-8 must not become the name of another, harmless file."""
    (tmp_path / "part?").write_bytes(bytes(4096))
    (tmp_path / os.fsdecode(b"part\xff")).symlink_to("/etc/passwd")
    path = vmdk_with(tmp_path, 'RW 8 FLAT "part" 0')
    path.write_bytes(path.read_bytes().replace(b'part"', b'part\xff"'))
    with pytest.raises(InputError, match=r"names 'part\\\\xff' as a part of itself"):
        open_disk(path)


def test_a_vmdk_that_was_named_as_one_is_searched_whatever_its_magic(tmp_path: Path) -> None:
    path = vmdk_with(tmp_path, 'RW 8 FLAT "/etc/passwd" 0')
    path.write_bytes(path.read_bytes().replace(b"# Disk DescriptorFile", b"# a comment"))
    with pytest.raises(InputError, match="names '/etc/passwd' as a part of itself"):
        open_disk(path, container="vmdk")


def test_a_vmdk_cannot_lead_through_links_or_further_descriptors(tmp_path: Path) -> None:
    (tmp_path / "part").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="no regular file"):
        open_disk(vmdk_with(tmp_path, 'RW 8 FLAT "part" 0'))
    (tmp_path / "part").unlink()
    (tmp_path / "part").write_bytes(b"KDMV" + bytes(508))
    with pytest.raises(InputError, match="names further files"):
        open_disk(vmdk_with(tmp_path, 'RW 8 SPARSE "part"'))


def test_a_vmdk_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a snapshot on top of another one"):
        open_disk(vmdk_with(tmp_path, parent="00000001"))


def test_a_real_vmdk_snapshot_is_refused(raw: Path) -> None:
    base = converted(raw, "vmdk")
    overlay = raw.with_name("overlay.vmdk")
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", overlay)
    with pytest.raises(InputError, match="a snapshot on top of another one"):
        open_disk(overlay)


def test_without_qemu_nbd_the_package_is_named(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted(raw, "vdi")
    monkeypatch.setenv("PATH", str(raw.parent))
    with pytest.raises(InputError, match="read through qemu-nbd") as caught:
        open_disk(path)
    assert "qemu-utils" in caught.value.hint


def test_an_image_that_qemu_nbd_refuses_is_one_clear_error(raw: Path) -> None:
    path = converted(raw, "vdi")
    disks.write_at(path, 0x44, b"\xff\xff")  # version
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"qemu-nbd cannot serve .*unsupported VDI image"):
        open_disk(path)
    assert time.monotonic() - begin < 5


def test_what_qemu_img_complains_of_is_passed_on(tmp_path: Path) -> None:
    path = disks.empty(tmp_path / "guest.vdi", MIB)
    with pytest.raises(InputError, match=r"guest\.vdi is damaged or cut short: .*bad signature"):
        demand_complete(path, "vdi", [path])


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapped:
    """Have demand_complete ask a qemu-img that finds nothing and whose map is a Python script."""
    path = disks.empty(tmp_path / "guest.vdi", MIB)
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent))

    def ask(script: str) -> None:
        program.write_text(f"#!{sys.executable}\nimport sys\nif sys.argv[1] == 'map':\n {script}\n")
        program.chmod(0o700)
        demand_complete(path, "vdi", [path])

    return ask


PIECE = '{"start": 0, "length": 512, "data": true, "offset": 0}'


def test_a_map_of_endless_pieces_is_not_collected(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_nbd, "_CHECK_SECONDS", 2)
    with pytest.raises(InputError, match=r"guest.vdi: qemu-img map took longer than 2") as caught:
        mapped(f"print('[')\n while True: print('{PIECE},')")
    assert "qemu-img convert -O qcow2" in caught.value.hint


def test_a_map_of_many_pieces_is_no_more_than_its_reach(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_nbd, "_ANSWER_BYTES", 100)
    pieces = f"print('[' + '{PIECE},\\n' * 300_000 + '{PIECE[:-2]}"
    mapped(pieces + "0}]')")
    with pytest.raises(InputError, match=f"expected at least {3 * MIB + 512} bytes, found {MIB}"):
        mapped(pieces + f"{3 * MIB}}}]')")


@pytest.mark.parametrize(
    "script", ["print('[{]')", "print('x' * 3000)", "print('[{\"length\": 1e99}]')"]
)
def test_a_map_that_cannot_be_is_a_clear_error(mapped: Mapped, script: str) -> None:
    with pytest.raises(InputError, match=r"guest.vdi: its map of qemu-img cannot be read: "):
        mapped(script)


def test_a_map_that_qemu_refuses_is_a_clear_error(mapped: Mapped) -> None:
    with pytest.raises(InputError, match=r"guest.vdi is damaged .*: its map cannot be read"):
        mapped("sys.exit(1)")


def test_the_server_and_its_folder_are_gone_after_closing(raw: Path) -> None:
    server = QemuNbd(converted(raw, "vdi"), "vdi")
    folder = Path(server.uri.rpartition("=")[2]).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert Path(f"/proc/{server.pid}").exists()
    server.close()
    assert not Path(f"/proc/{server.pid}").exists()
    assert not folder.exists()


def test_a_server_that_dies_is_a_clear_error(raw: Path) -> None:
    server = QemuNbd(converted(raw, "vdi"), "vdi")
    os.kill(server.pid, 9)
    with pytest.raises(InputError, match=r"the server (is gone|closed the connection)"):
        server.source.pread(0, 512)
    server.close()


def test_the_server_ends_when_its_owner_is_killed(raw: Path, tmp_path: Path) -> None:
    path = converted(raw, "vdi")
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from packer.survey.qemu_nbd import QemuNbd\n"
        "server = QemuNbd(Path(sys.argv[2]), 'vdi'); print(server.pid, server.uri, flush=True)\n"
        "time.sleep(100)\n"
    )
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid, uri = owner.stdout.readline().split()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    shutil.rmtree(Path(uri.rpartition("=")[2]).parent, ignore_errors=True)


@needs_root
def test_a_block_device_is_a_raw_disk(raw: Path) -> None:
    with disks.loop_device(raw) as device, open_disk(device) as disk:
        assert disk.container == "raw"
        assert read_all(disk) == raw.read_bytes()
        disk.check_unchanged()
        with device.open("r+b") as file:
            file.write(b"changed")
            file.flush()
            os.fsync(file.fileno())
        with pytest.raises(InUseError, match="was changed"):
            disk.check_unchanged()


def test_an_nbd_uri_is_a_disk(raw: Path) -> None:
    with QemuNbd_of(raw) as uri, open_disk(uri) as disk:
        assert disk.container == "nbd"
        assert read_all(disk) == raw.read_bytes()
        assert np.array_equal(disk.source.data_ranges(0, SIZE), np.array(DATA))
        disk.check_unchanged()


class QemuNbd_of:  # noqa: N801
    """A raw image behind somebody's NBD server."""

    def __init__(self, raw: Path) -> None:
        self.socket = raw.with_name("socket")
        self.process = subprocess.Popen(
            ["qemu-nbd", "-r", "-t", "-e", "0", "-f", "raw", "-k", str(self.socket), str(raw)]
        )

    def __enter__(self) -> str:
        while not self.socket.exists():
            time.sleep(0.02)
        return f"nbd+unix:///?socket={self.socket}"

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def test_qemu_img_info_agrees_on_the_size(raw: Path) -> None:
    path = converted(raw, "vhdx")
    told = json.loads(run("qemu-img", "info", "--output=json", path))["virtual-size"]
    with open_disk(path) as disk:
        assert disk.size == told
