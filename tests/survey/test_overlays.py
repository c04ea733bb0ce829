"""Overlays that stand on a disk are found by what their headers say, whoever made them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from packer.survey import overlays
from packer.survey.overlays import overlays_on

SIZE = "4M"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vms" / "demo.raw"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(4 << 20)
    (path.parent / "notes.txt").write_text("# demo.raw is our demo\n")
    (path.parent / "another.raw").write_bytes(bytes(4096))
    return path


def create(kind: str, overlay: Path, backing: str, *, of: str = "raw") -> Path:
    overlay.parent.mkdir(exist_ok=True)
    command = ["qemu-img", "create", "-q", "-f", kind, "-b", backing, "-F", of]
    subprocess.run([*command, str(overlay), SIZE], check=True, cwd=overlay.parent)
    return overlay


def found(disk: Path, *folders: Path) -> list[Path]:
    result = overlays_on(disk, folders)
    assert result.unseen == ()
    return list(result.found)


def test_a_disk_without_overlays_has_none(disk: Path) -> None:
    create("qcow2", disk.with_name("other.qcow2"), "another.raw")
    assert found(disk) == []


@pytest.mark.parametrize("kind", ["qcow2", "qed", "qcow"])
@pytest.mark.parametrize("how", ["relative", "absolute", "roundabout", "file:", "json"])
def test_an_overlay_of_qemu_is_found_however_it_names_the_disk(
    disk: Path, kind: str, how: str
) -> None:
    names = {
        "relative": "demo.raw",
        "absolute": str(disk),
        "roundabout": "../vms/./demo.raw",
        "file:": f"file:{disk}",
        "json": "json:"
        + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(disk)}}),
    }
    overlay = create(kind, disk.with_name(f"overlay.{kind}"), names[how])
    assert found(disk) == [overlay]


def test_flattened_json_is_read_too(disk: Path) -> None:
    overlay = create("qcow2", disk.with_name("o.qcow2"), f'json:{{"file.filename": "{disk}"}}')
    assert found(disk) == [overlay]


def test_json_that_names_several_files_is_read_to_its_end(disk: Path) -> None:
    one = {"driver": "raw", "file": {"driver": "file", "filename": str(disk)}}
    other = {"driver": "raw", "file": {"driver": "file", "filename": "another.raw"}}
    named = json.dumps({"driver": "quorum", "vote-threshold": 1, "children": [other, one]})
    create("qcow2", disk.with_name("plain.qcow2"), "another.raw")
    overlay = disk.with_name("overlay.qcow2")
    head = b"QFI\xfb\0\0\0\3" + struct.pack(">QI", 512, len(named) + 5)
    overlay.write_bytes(head.ljust(512, b"\0") + f"json:{named}".encode())
    assert found(disk) == [overlay]


def test_a_qcow2_whose_data_lies_in_the_disk_stands_on_it(disk: Path) -> None:
    outer = disk.with_name("outer.qcow2")
    options = f"data_file={disk},data_file_raw=on"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o"]
    subprocess.run([*create, options, str(outer), str(SIZE)], check=True)
    assert found(disk) == [outer]
    other = ["data_file=another.raw", "other.qcow2", str(SIZE)]
    subprocess.run([*create, *other], check=True, cwd=disk.parent)
    assert found(disk) == [outer]


def test_an_overlay_on_an_overlay_stands_on_that_one(disk: Path) -> None:
    lower = create("qcow2", disk.with_name("lower.qcow2"), "demo.raw")
    upper = create("qcow2", disk.with_name("upper.qcow2"), "lower.qcow2", of="qcow2")
    assert found(disk) == [lower]
    assert found(lower) == [upper]


def test_a_further_folder_is_looked_at_when_it_is_named(disk: Path, tmp_path: Path) -> None:
    overlay = create("qcow2", tmp_path / "elsewhere" / "overlay.qcow2", str(disk))
    assert found(disk) == []
    assert found(disk, overlay.parent) == [overlay]


def test_the_folders_of_a_link_and_of_its_target_are_looked_at(disk: Path, tmp_path: Path) -> None:
    link = tmp_path / "links" / "mine.raw"
    link.parent.mkdir()
    link.symlink_to(disk)
    beside_link = create("qcow2", link.with_name("a.qcow2"), "mine.raw")
    beside_disk = create("qcow2", disk.with_name("b.qcow2"), "demo.raw")
    assert found(link) == [beside_link, beside_disk]


def test_a_snapshot_of_vmware_is_found(disk: Path) -> None:
    base = disk.with_name("base.vmdk")
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", base, SIZE], check=True)
    overlay = create("vmdk", disk.with_name("base-000001.vmdk"), "base.vmdk", of="vmdk")
    assert found(base) == [overlay]
    assert found(disk) == []


def test_a_descriptor_with_a_path_of_another_host_is_found_by_the_name_beside_it(
    disk: Path,
) -> None:
    base = disk.with_name("base.vmdk")
    base.write_bytes(b"KDMV")
    text = '# Disk DescriptorFile\nversion=1\nparentFileNameHint="C:\\VMs\\demo\\base.vmdk"\n'
    delta = disk.with_name("base-000002.vmdk")
    delta.write_text(text)
    assert found(base) == [delta]


def test_a_path_that_leads_to_another_disk_of_the_same_name_is_none_of_ours(
    disk: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "demo.raw"
    other.parent.mkdir()
    other.write_bytes(bytes(4096))
    create("qcow2", disk.with_name("overlay.qcow2"), str(other))
    assert found(disk) == []


def vdi(kind: int, own: bytes, parent: bytes) -> bytes:
    """The header of a VDI, 512 bytes: qemu, block/vdi.c, VdiHeader."""
    head = bytearray(512)
    head[0x40:0x44] = b"\x7f\x10\xda\xbe"
    head[0x4C:0x50] = struct.pack("<I", kind)
    head[0x188:0x198] = own
    head[0x1A8:0x1B8] = parent
    return bytes(head)


def test_a_snapshot_of_virtualbox_is_found_by_its_identifier_in_the_folder_it_uses(
    disk: Path,
) -> None:
    base = disk.with_name("base.vdi")
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", base, SIZE], check=True)
    own = base.read_bytes()[0x188:0x198]
    assert any(own)
    folder = disk.with_name("Snapshots")
    folder.mkdir()
    (folder / "ours.vdi").write_bytes(vdi(4, b"1" * 16, own))
    (folder / "other.vdi").write_bytes(vdi(4, b"2" * 16, b"3" * 16))
    (folder / "plain.vdi").write_bytes(vdi(1, b"4" * 16, bytes(16)))
    assert found(base) == [folder / "ours.vdi"]
    assert found(disk) == []


def test_a_differencing_vhd_is_found(disk: Path) -> None:
    """[MS-VHD] "Virtual Hard Disk Image Format Specification": footer, dynamic disk header."""
    base = disk.with_name("base.vhd")
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", base, SIZE], check=True)
    footer = bytearray(512)
    footer[:8] = b"conectix"
    footer[60:64] = struct.pack(">I", 4)
    header = bytearray(1024)
    header[:8] = b"cxsparse"
    header[64:576] = "base.vhd".encode("utf-16-be").ljust(512, b"\0")
    (disk.parent / "child.vhd").write_bytes(footer + header + footer)
    assert found(base) == [disk.parent / "child.vhd"]
    assert found(disk) == []


def test_a_differencing_vhdx_is_found(disk: Path) -> None:
    base = disk.with_name("base.vhdx")
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", base, SIZE], check=True)
    child = bytearray(4 << 20)
    child[:8] = b"vhdxfile"
    locator = "relative_path.\\base.vhdx".encode("utf-16-le")
    child[3 << 20 : (3 << 20) + len(locator)] = locator
    (disk.parent / "child.avhdx").write_bytes(child)
    assert found(base) == [disk.parent / "child.avhdx"]
    assert found(disk) == []


@pytest.mark.parametrize(
    "head",
    [
        b"QFI\xfb",
        b"QFI\xfb" + b"\xff" * 60,
        b"QFI\xfb\0\0\0\3" + struct.pack(">QI", 20, 0xFFFFFFFF) + b"json:" + b"[" * 3000,
        b"QFI\xfb\0\0\0\3" + struct.pack(">QI", 20, 12) + b'json:{"a":',
        b"QFI\xfb\0\0\0\3" + struct.pack(">QI", 20, 9) + b"demo\0.raw",
        b"QFI\xfb\0\0\0\3" + struct.pack(">QI", 1 << 61, 9),
        b"QED\0" + b"\xff" * 60,
        b"QED\0" + b"\xff" * 14,
        b"QFI\xfb\0\0\0\3" + bytes(92) + struct.pack(">III", 104, 0x44415441, 0xFFFFFFFF),
        b"QFI\xfb\0\0\0\3" + bytes(92) + struct.pack(">I", 104) + struct.pack(">II", 1, 0) * 9000,
        b"QFI\xfb\0\0\0\3" + bytes(92) + struct.pack(">I", 0xFFFFFFF8),
        b"KDMV" + b'parentFileNameHint="' + b"x" * 100_000 + b'"',
        b"\0" * 0x40 + b"\x7f\x10\xda\xbe",
        b"conectix" * 64,
        b"vhdxfile",
        b"",
    ],
    ids=range(16),
)
def test_a_header_that_lies_names_nothing(disk: Path, head: bytes) -> None:
    disk.with_name("hostile").write_bytes(head)
    assert found(disk) == []


def test_what_is_no_file_is_passed_over(disk: Path) -> None:
    os.mkfifo(disk.with_name("pipe"))
    disk.with_name("dangling").symlink_to("nowhere")
    disk.with_name("folder").mkdir()
    assert found(disk) == []


def test_the_search_is_bounded_and_says_so(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "MOST_FILES", 2)
    assert overlays_on(disk).unseen == (f"{disk.parent} holds more than 2 files",)


def test_a_folder_that_cannot_be_read_is_told(disk: Path, tmp_path: Path) -> None:
    assert overlays_on(disk, [tmp_path / "missing"]).unseen == (
        f"{tmp_path}/missing: No such file or directory",
    )
