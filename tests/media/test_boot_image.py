"""`vmpack boot-image`: a disk with the boot set alone, as QEMU and its tools see it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from fixtures.boot import boot
from formats.ranges import Ranges, complement, intersect, total, union
from packer.artifact.contents import Class
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.media.boot_image import lay_out
from packer.sources.open import open_pack
from packer.unpack.part import boot_only
from tests.artifact.make import contents_of, map_of
from tests.formats.container.qemu import qemu_img
from tests.hostile.refusal import TRUST, USAGE, refused
from tests.media.devices import noisy
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import needs_root, tool
from tests.round_trip.packs import Packed
from tests.round_trip.small import pack_small
from tests.run.served import Served, served
from tests.survey.disks import MIB, loop_device

Pack = Callable[[str], Packed]
NOWHERE = "nbd://127.0.0.1:9/demo"
QEMU_HOST = "10.0.2.2"
"""What a guest of QEMU's user network calls this host."""


@pytest.fixture
def host(run_vmpack: Vmpack, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Vmpack:
    """A host that trusts the author, with a runtime folder of its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    return run_vmpack


@pytest.fixture
def small(author: Vmpack, tmp_path: Path) -> Path:
    """The pack of a disk of 16 MiB with an ext4."""
    return pack_small(author, tmp_path / "packs")


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def boot_ranges(disk_map: Map) -> Ranges:
    """Where the boot set lies."""
    holds = disk_map.kind == Kind.CONTENT
    holds[holds] = disk_map.contents.classes[disk_map.content[holds]] == Class.BOOT
    return union(np.stack([disk_map.start, disk_map.end], axis=1)[holds])


@contextmanager
def whole_disk(vmpack: Vmpack, pack: Packed) -> Iterator[Served]:
    """A server of a pack's disk over TCP."""
    options = ("--tcp", "127.0.0.1:0", "--name", "demo", "--offline")
    with served(vmpack, pack.full, *options) as one:
        yield one


# -- which part of a disk --------------------------------------------------------------------------


def test_the_boot_part_of_a_map_has_the_boot_set_at_the_same_addresses() -> None:
    data = [b"loader" * 100, b"private" * 100, b"kernel" * 900, b"shared" * 100]
    classes = [Class.BOOT, Class.PRIVATE, Class.BOOT, Class.SHARED]
    contents = contents_of(data, classes)
    rows = [
        (Kind.CONTENT, 600, 0, 0),
        (Kind.ZERO, 424, -1, 0),
        (Kind.CONTENT, 700, 1, 0),
        (Kind.CONTENT, 4096, 2, 0),
        (Kind.CONTENT, 600, 3, 0),
        (Kind.CONTENT, 1304, 2, 4096),
        (Kind.DROPPED, 300, -1, 0),
    ]

    class Opened(OpenedPack):
        def __init__(self) -> None:
            self.__dict__["map"] = map_of(contents, rows)

    part = boot_only(Opened()).map
    assert [contents.name(row) for row in (0, 2)] == [part.contents.name(row) for row in (0, 1)]
    assert part.kind.tolist() == [
        *(Kind.CONTENT, Kind.ZERO, Kind.UNUSED, Kind.CONTENT),
        *(Kind.UNUSED, Kind.CONTENT, Kind.DROPPED),
    ]
    assert part.content.tolist() == [0, -1, -1, 1, -1, 1, -1]
    assert part.offset.tolist() == [0, 0, 0, 0, 0, 4096, 0]
    assert part.end.tolist() == map_of(contents, rows).end.tolist()


def test_a_cluster_with_a_byte_of_another_content_is_left_to_the_server() -> None:
    data = [b"b" * 8192, b"p" * 100, b"k" * 100]
    contents = contents_of(data, [Class.BOOT, Class.PRIVATE, Class.BOOT])
    full = map_of(
        contents,
        [
            (Kind.CONTENT, 8192, 0, 0),  # clusters 0 and 1 whole
            (Kind.CONTENT, 100, 1, 0),  # cluster 2 is mixed
            (Kind.CONTENT, 100, 2, 0),
            (Kind.ZERO, 3896, -1, 0),
            (Kind.UNUSED, 4096, -1, 0),  # cluster 3 has nothing
            (Kind.DROPPED, 100, -1, 0),  # cluster 4 is known: the rest of it reads as zeros
            (Kind.CONTENT, 100, 2, 0),
            (Kind.UNUSED, 824, -1, 0),  # and the disk ends within it
        ],
    )

    class Opened(OpenedPack):
        def __init__(self) -> None:
            self.__dict__["map"] = full

    image = lay_out(full, boot_only(Opened()).map, NOWHERE)
    assert image.clusters.tolist() == [0, 1, 4]
    assert (image.backing, image.backing_format) == (NOWHERE, "raw")


# -- as QEMU's tools see it ------------------------------------------------------------------------


@pytest.mark.guest
def test_qemu_sees_the_served_disk_and_takes_the_boot_set_from_the_image(
    host: Vmpack, busybox: Packed, tmp_path: Path
) -> None:
    image = tmp_path / "boot.qcow2"
    with whole_disk(host, busybox) as one:
        said = host.json("boot-image", busybox.boot, "-o", image, "--backing", one.uri)
        assert json.loads(qemu_img("check", "--output=json", image))["check-errors"] == 0
        tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", one.uri, image)
        seen = json.loads(qemu_img("map", "--output=json", image))
        facts = json.loads(qemu_img("info", "--output=json", image))
    with open_pack(str(busybox.full)) as pack:
        disk_map = pack.map
    own = union(
        np.array([(row["start"], row["start"] + row["length"]) for row in seen if not row["depth"]])
    )
    boot_set = boot_ranges(disk_map)
    assert facts["full-backing-filename"] == one.uri
    assert facts["backing-filename-format"] == "raw"
    assert facts["virtual-size"] == said["disk_bytes"] == disk_map.size
    assert total(own) == said["own_bytes"]
    # All of it but what shares a cluster of 4 KiB with something else.
    assert total(intersect(own, boot_set)) >= 0.99 * total(boot_set)
    assert total(own) <= 1.1 * total(boot_set)
    assert image.stat().st_size <= 1.1 * total(boot_set)


@pytest.mark.guest
def test_a_raw_image_is_the_boot_set_and_holes(
    host: Vmpack, busybox: Packed, tmp_path: Path
) -> None:
    whole, image = tmp_path / "whole.raw", tmp_path / "boot.raw"
    host.good("unpack", busybox.full, "-o", whole, "--from", "store:", "--no-store", "-q")
    said = host.json("boot-image", busybox.boot, "-o", image)
    with open_pack(str(busybox.full)) as pack:
        boot_set, size = boot_ranges(pack.map), pack.map.size
    expected = np.frombuffer(whole.read_bytes(), dtype=np.uint8).copy()
    for start, end in complement(boot_set, 0, size).tolist():
        expected[start:end] = 0
    assert image.read_bytes() == expected.tobytes()
    assert image.stat().st_blocks * 512 < 1.1 * total(boot_set)
    assert (said["backing"], said["own_bytes"]) == ("", 0)


@pytest.mark.guest
def test_a_guest_starts_from_a_write_protected_image_and_the_server(
    host: Vmpack, busybox: Packed, tmp_path: Path
) -> None:
    image = tmp_path / "boot.qcow2"
    with whole_disk(host, busybox) as one:
        host.good("boot-image", busybox.boot, "-o", image, "--backing", one.uri)
        image.chmod(0o444)
        before = digest_of(image)
        result = boot(image, nonce="from-boot-image", snapshot=True)
        with one.control() as control:
            touched = control.touched()
    assert (result.nonce, result.digests_ok) == ("from-boot-image", True)
    assert result.disk_nonce == busybox.guest.facts["nonce"]
    assert digest_of(image) == before
    with open_pack(str(busybox.full)) as pack:
        kernel = boot_ranges(pack.map)
    # The kernel, 8 MB of the boot set, came from the image.
    assert total(intersect(union(touched), kernel)) < 0.2 * total(kernel)


@pytest.mark.guest
def test_loader_kernel_and_initramfs_start_from_a_raw_image_alone(
    host: Vmpack, pack_guest: Pack, tmp_path: Path
) -> None:
    pack, image = pack_guest("busybox-nbd"), tmp_path / "boot.raw"
    host.good("boot-image", pack.boot, "-o", image)
    with whole_disk(host, pack) as one:
        root = f"{QEMU_HOST}:{urlsplit(one.uri).port}/demo"
        result = boot(
            image,
            nonce="root-over-nbd",
            extra_arguments=[
                *("-nic", "user,model=virtio-net-pci"),
                *("-fw_cfg", f"name=opt/vmpack/nbdroot,string={root}"),
            ],
        )
    assert f"at {root}" in result.console, result.console[-2000:]
    assert (result.nonce, result.digests_ok) == ("root-over-nbd", True)
    assert result.disk_nonce == pack.guest.facts["nonce"]


# -- devices ---------------------------------------------------------------------------------------


@needs_root
def test_a_device_gets_the_boot_set_and_zeros(host: Vmpack, small: Path, tmp_path: Path) -> None:
    image = tmp_path / "boot.raw"
    host.good("boot-image", small, "-o", image)
    size = image.stat().st_size
    device_image = noisy(tmp_path / "device.img", size + MIB)
    after = device_image.read_bytes()[size:]
    with loop_device(device_image) as device:
        refused(host("boot-image", small, "-o", device), USAGE, "nobody to ask")
        refused(
            host(
                "boot-image",
                small,
                "-o",
                device,
                "--format",
                "qcow2",
                "--backing",
                NOWHERE,
                "--yes",
            ),
            USAGE,
            "no qcow2 image",
        )
        done = host("boot-image", small, "-o", device, "--yes")
    assert done.returncode == 0, done.stderr
    assert "are as they were" in done.stderr
    assert device_image.read_bytes() == image.read_bytes() + after


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "boot.qcow2"), "needs --backing"),
        (("-o", "boot.raw", "--backing", NOWHERE), "only a qcow2 image"),
        (("-o", "boot.qcow2", "--backing", "/etc/shadow"), "expected a URI"),
        (("-o", "boot.qcow2", "--backing", "nbd://host/a b"), "expected a URI"),
        (("-o", "boot.qcow2", "--backing", "nbd://host/" + "a" * 1024), "at most 1023 bytes"),
        (("-o", "no/such/folder/boot.raw"), "there is no folder"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    host: Vmpack, small: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    refused(host("boot-image", small, *options, folder=folder), USAGE, said)
    assert list(folder.iterdir()) == []


def test_an_existing_file_is_replaced_only_if_asked(
    host: Vmpack, small: Path, tmp_path: Path
) -> None:
    image = tmp_path / "boot.qcow2"
    image.write_bytes(b"precious" * 100_000)
    command = ("boot-image", small, "-o", image, "--backing", NOWHERE)
    refused(host(*command), USAGE, "exists already")
    assert image.read_bytes() == b"precious" * 100_000
    host.good(*command, "--force")
    assert image.read_bytes()[:4] == b"QFI\xfb"


def test_what_an_interrupted_run_left_does_not_get_into_the_image(
    host: Vmpack, small: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.qcow2", tmp_path / "second.qcow2"
    host.good("boot-image", small, "-o", first, "--backing", NOWHERE)
    (tmp_path / "second.qcow2.partial").write_bytes(b"\xff" * (3 * first.stat().st_size))
    host.good("boot-image", small, "-o", second, "--backing", NOWHERE)
    assert second.read_bytes() == first.read_bytes()


def test_a_pack_of_a_stranger_is_refused(stranger: Vmpack, small: Path, tmp_path: Path) -> None:
    refused(stranger("boot-image", small, "-o", tmp_path / "boot.raw"), TRUST, "")
    assert not (tmp_path / "boot.raw").exists()
