"""The next version of a pack from an overlay on its disk: the same pack as of the whole disk."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from formats.ranges import Ranges, intersect, total, union
from packer.artifact.config import PROFILED, Boots
from packer.artifact.contents import Class, digest_keys
from packer.artifact.hints import encode_hints
from packer.artifact.map import Kind, encode_map
from packer.artifact.opened import OpenedPack
from packer.pack.against import inventory_holds
from packer.pack.pack import PackOptions, PackReport, pack
from packer.sources.against import holds
from packer.sources.base import Wanted
from packer.sources.inventory import take_inventory
from packer.sources.open import open_pack
from packer.sources.pack import PackSource
from packer.survey.disk import open_disk
from packer.transport.nbd import NbdSource
from tests.round_trip.disks import copy_sparse, tool
from tests.round_trip.packs import Packed
from tests.round_trip.small import ROOT_OFFSET, make_disk, write_files

UNIT = 64 << 10


@contextmanager
def served(image: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """(NBD address of a raw disk, the log of what is read of it)."""
    socket, log = folder / "served.sock", folder / "served.log"
    for path in (socket, log):
        path.unlink(missing_ok=True)
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly", "--filter=log"]
    command += ["--unix", str(socket), "file", str(image), f"logfile={log}"]
    with subprocess.Popen(command) as server:
        try:
            uri = f"nbd+unix:///?socket={socket}"
            for _ in range(500):
                if socket.exists():
                    break
                assert server.poll() is None
                time.sleep(0.02)
            yield uri, log
        finally:
            server.terminate()


def read_ranges(log: Path) -> Ranges:
    """What was read through a server, by its log."""
    found = []
    for line in log.read_text().splitlines():
        words = line.split()
        if "Read" in words and "..." in line:
            facts = dict(word.split("=", 1) for word in words if "=" in word)
            start = int(facts["offset"], 16)
            found.append((start, start + int(facts["count"], 16)))
    return union(np.array(found, dtype=np.int64).reshape(-1, 2))


def in_file_system(image: Path, *requests: str) -> None:
    for request in requests:
        tool("debugfs", "-w", "-R", request, f"{image}?offset={ROOT_OFFSET}")


def overlay_to(changed: Path, base: Path, overlay: Path) -> Path:
    """The overlay on `base` that makes it `changed`: holds the clusters that differ."""
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", changed, overlay)
    tool("qemu-img", "rebase", "-q", "-b", base, "-F", "raw", overlay)
    return overlay


class Disks:
    """A small disk, packed; and the same disk after something was written to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = make_disk(
            folder / "base.raw", write_files(folder / "files", seed=7, big=3), size_mib=24
        )
        self.pack = folder / "base.vmpack"
        self.report = pack(self.base, self.pack, PackOptions("small"), [])
        new = folder / "new"
        new.write_bytes(b"new " * 40_000)
        self.changed = copy_sparse(self.base, folder / "changed.raw")
        in_file_system(self.changed, "rm /srv/folder-1/001", f"write {new} /srv/new")
        self.overlay = overlay_to(self.changed, self.base, folder / "overlay.qcow2")

    def pack_overlay(self, name: str, **options: object) -> tuple[PackReport, Path, Ranges]:
        """Pack the overlay as the next version: (report, where it is, what it read below)."""
        output = self.folder / name
        with (
            served(self.base, self.folder) as (uri, log),
            open_pack(str(options.pop("base_pack", self.pack))) as base,
        ):
            wanted = {"version": 2, "base": base, "on_base": True, "backing": uri, **options}
            report = pack(self.overlay, output, PackOptions("small", **wanted), [])  # type: ignore[arg-type]
        return report, output, read_ranges(log)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Disks:
    return Disks(tmp_path_factory.mktemp("on-base"))


def same_map(left: OpenedPack, right: OpenedPack) -> bool:
    return encode_map(left.map) == encode_map(right.map)


def files_of(pack: OpenedPack) -> Ranges:
    """Where files lie: contents with a path."""
    disk = pack.map
    named = np.zeros(len(disk.contents) + 1, dtype=bool)
    named[pack.hints.content] = True
    rows = (disk.kind == Kind.CONTENT) & named[disk.content]
    return union(np.stack([disk.start[rows], disk.end[rows]], axis=1))


def test_an_overlay_gives_the_map_of_the_whole_disk_and_unchanged_files_are_not_read(
    disks: Disks,
) -> None:
    report, output, read = disks.pack_overlay("next.vmpack")
    whole = disks.folder / "whole.vmpack"
    pack(disks.changed, whole, PackOptions("small", version=2), [])
    with open_pack(str(output)) as found, open_pack(str(whole)) as expected:
        assert same_map(found, expected)
        assert encode_hints(found.hints) == encode_hints(expected.hints)
        assert found.config.ref_name == "small:2"
    with open_pack(str(disks.pack)) as base:
        files = files_of(base)
    assert total(files) > 3_000_000
    # A cluster of the overlay may hold a part of an unchanged file, too: that is compared.
    assert total(intersect(read, files)) < 300_000
    assert report.carried_bytes > 0.9 * sum(disks.report.bundles.values())


def test_without_a_base_that_it_stands_on_everything_is_read(disks: Disks) -> None:
    """What the test above would find if nothing were known."""
    _, output, read = disks.pack_overlay("all-read.vmpack", on_base=False)
    with open_pack(str(disks.pack)) as base:
        assert total(intersect(read, files_of(base))) > 0.9 * total(files_of(base))
    with open_pack(str(output)) as found, open_pack(str(disks.folder / "whole.vmpack")) as whole:
        assert same_map(found, whole)


def test_the_rebuilt_disk_holds_what_was_written(disks: Disks) -> None:
    report, output, _ = disks.pack_overlay("rebuilt.vmpack")
    assert report.config.version == 2
    with open_disk(disks.changed) as disk, open_pack(str(output)) as found:
        source, contents = disk.source, found.map.contents
        held = found.map.ranges_of_kind(Kind.CONTENT)
        assert all(source.pread(int(low), int(high - low)) for low, high in held)
        row = next(row for row, path in enumerate(found.hints.path) if path.endswith("/srv/new"))
        assert contents.size[found.hints.content[row]] == 160_000
        assert not any(path.endswith("/srv/folder-1/001") for path in found.hints.path)


def test_a_thin_base_gives_a_thin_next_version(disks: Disks) -> None:
    """A host has the three big files: the base is packed against it and leaves them out."""
    inventory = disks.folder / "host.inv"
    take_inventory([(disks.folder / "files" / "srv" / "big", ())]).save(inventory)
    thin = disks.folder / "thin.vmpack"
    judge = inventory_holds(inventory)
    pack(disks.base, thin, PackOptions("small", thin=True, against=[judge]), [])
    _, output, read = disks.pack_overlay("next-thin.vmpack", base_pack=thin)
    with open_pack(str(thin)) as base, open_pack(str(output)) as found:
        shared = base.map.contents.classes == Class.SHARED
        assert int(shared.sum()) == 3
        still = found.map.contents.classes == Class.SHARED
        assert set(digest_keys(found.map.contents.digest[still]).tolist()) == set(
            digest_keys(base.map.contents.digest[shared]).tolist()
        )
        assert not any(title.startswith("shared") for title in found.manifest.bundles())
        assert total(intersect(read, files_of(base))) < 300_000


class Profiled(NamedTuple):
    """The next version of a pack, whose boot class is what two boots touched."""

    pack: Path
    touched: Ranges
    boots: Boots


@pytest.fixture(scope="module")
def profiled(disks: Disks) -> Profiled:
    output = disks.folder / "profiled.vmpack"
    with open_pack(str(disks.pack)) as base, served(disks.base, disks.folder) as (uri, _):
        files = files_of(base)
        start = int(files[np.argmax(files[:, 1] - files[:, 0]), 0]) // UNIT * UNIT
        touched = np.array([[0, UNIT], [start + 2 * UNIT, start + 5 * UNIT]])
        boots = Boots(PROFILED, marker="login:", boots=1, touched_bytes=total(touched))
        options = PackOptions(
            "small", version=2, base=base, on_base=True, touched=touched, boots=boots
        )
        pack(uri, output, options, [])
    return Profiled(output, touched, boots)


def test_the_boot_class_follows_what_was_touched(disks: Disks, profiled: Profiled) -> None:
    with (
        open_pack(str(disks.pack)) as base,
        open_pack(str(profiled.pack)) as found,
        served(disks.base, disks.folder) as (uri, _),
        NbdSource(uri) as source,
    ):
        after = found.map
        assert found.config.boots == profiled.boots
        boot = after.contents.classes == Class.BOOT
        assert int(after.contents.size[boot].sum()) <= 1.2 * total(profiled.touched)
        assert not (base.map.contents.classes == Class.SHARED).any()
        titles = found.manifest.bundles()
        in_boot = [one.digest for title, one in titles.items() if title.startswith("boot")]
        held = found.index.only(in_boot, after.contents).content
        # What is no longer boot does not stay in what every copy carries.
        assert held.tolist() == np.flatnonzero(boot).tolist()
        check_every_content(found, source)


def check_every_content(pack: OpenedPack, disk: NbdSource) -> None:
    """Each content in the bundles is what the disk has in its ranges."""
    contents = pack.map.contents
    every = np.arange(len(contents), dtype=np.int64)
    source = PackSource("pack:", pack.layout, contents, pack.index)
    assert holds(source, Wanted(contents, every, pack.hints)).tolist() == every.tolist()
    whole = np.flatnonzero(
        (pack.map.kind == Kind.CONTENT)
        & (pack.map.offset == 0)
        & (pack.map.end - pack.map.start == np.append(contents.size, 0)[pack.map.content])
    )
    assert len(whole) > 20
    for row in whole.tolist():
        start, end = int(pack.map.start[row]), int(pack.map.end[row])
        data = disk.pread(start, end - start)
        assert hashlib.sha256(data).digest() == bytes(contents.digest[pack.map.content[row]])


def test_a_profile_lives_on_in_the_next_version(disks: Disks, profiled: Profiled) -> None:
    """On a profiled base, what nobody wrote to is cut as it was and keeps its class."""
    _, output, read = disks.pack_overlay("after-profile.vmpack", base_pack=profiled.pack)
    with open_pack(str(profiled.pack)) as base, open_pack(str(output)) as found:
        before, after = base.map.contents, found.map.contents
        boot = digest_keys(before.digest[before.classes == Class.BOOT])
        still = digest_keys(after.digest[after.classes == Class.BOOT])
        # The partition table, and the middle of a file.
        assert np.intersect1d(boot, still).tolist() == sorted(boot.tolist())
        assert len(boot) == 2
        files = files_of(base)
    assert total(intersect(read, files)) < 300_000


@pytest.mark.guest
def test_what_is_boot_no_more_is_shared_if_its_package_ships_it(
    pack_guest: Callable[[str], Packed], tmp_path: Path
) -> None:
    """Of the kernel's package, by the digests in dpkg's records; nobody else has the initramfs."""
    debian = pack_guest("debian-bios")
    touched = np.array([[0, 1 << 20]], dtype=np.int64)
    output = tmp_path / "next.vmpack"
    with open_pack(str(debian.thin)) as base, served(debian.guest.image, tmp_path) as (uri, _):
        options = PackOptions("debian", version=2, base=base, on_base=True, touched=touched)
        pack(uri, output, options, [])
        with open_pack(str(output)) as found:
            before, after = classes_by_name(base), classes_by_name(found)
    kernel = [path for path in before if path.startswith(("/boot/vmlinuz-", "/boot/config-"))]
    made_there = [path for path in before if path.startswith("/boot/initrd.img-")]
    assert {before[path] for path in (*kernel, *made_there, "/boot/grub/grub.cfg")} == {Class.BOOT}
    assert {after[path] for path in kernel} == {Class.SHARED}
    assert {after[path] for path in (*made_there, "/boot/grub/grub.cfg")} == {Class.PRIVATE}
    boot = [path for path, one in after.items() if one == Class.BOOT]
    assert boot == []
    others = [path for path, one in before.items() if one != Class.BOOT]
    assert len(others) > 10_000
    assert [path for path in others if after[path] != before[path]] == []


def classes_by_name(pack: OpenedPack) -> dict[str, Class]:
    classes = pack.map.contents.classes[pack.hints.content].tolist()
    return {path: Class(one) for path, one in zip(pack.hints.path, classes, strict=True)}
