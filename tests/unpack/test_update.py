"""A disk of one version becomes another one, or stays what it was."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.errors import (
    Error,
    InUseError,
    MismatchError,
    MissingError,
    TrustError,
    UsageError,
)
from packer.sources.base import Piece
from packer.unpack.record import DiskRecords
from packer.unpack.unpack import unpack
from packer.unpack.update import UpdateReport, identify, old_disk, update
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, write_pack
from tests.host import (
    as_nobody,
    let_others_enter,
    needs_root,
    run,
    shared_bytes,
    sharing_file_system,
)
from tests.survey.test_overlays import create
from tests.unpack.simulated import Simulated, numbered

MIB = 1 << 20
BOOT = numbered(4096, 20)
KEPT = numbered(40_960, 21)
ONE = [BOOT, KEPT, numbered(3 * MIB, 22), numbered(8192, 23)]
TWO = [BOOT, KEPT, numbered(3 * MIB, 24), numbered(8192, 25), b"new" * 500]
CLASSES = [Class.BOOT, Class.PRIVATE, Class.SHARED, Class.PRIVATE, Class.PRIVATE]


def laid_out(data: list[bytes], *, size: int = 8 * MIB) -> Map:
    """A disk with the contents one after the other, the second in two pieces that are swapped."""
    rows = []
    for number, one in enumerate(data):
        cuts = [(len(one) // 2, len(one) - len(one) // 2), (0, len(one) // 2)]
        for offset, length in cuts if number == 1 else [(0, len(one))]:
            rows.append((Kind.CONTENT, length, number, offset))
            rows.append((Kind.UNUSED, -length % 4096 + 4096, -1, 0))
    used = sum(length for _, length, _, _ in rows)
    return map_of(contents_of(data), [*rows, (Kind.ZERO, size - used, -1, 0)])


@dataclass
class Scene:
    """A host with its records, and packs to choose from."""

    folder: Path
    records: DiskRecords = field(init=False)
    made: dict[Path, OpenedPack] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.records = DiskRecords(self.folder / "home" / "disks")
        self.vms = self.folder / "vms"
        self.vms.mkdir()

    def pack(
        self,
        data: list[bytes],
        version: int,
        *,
        name: str = "demo",
        size: int = 8 * MIB,
        carried: tuple[Class, ...] = tuple(Class),
    ) -> OpenedPack:
        place = self.folder / "packs" / f"{name}-{version}-{len(self.made)}"
        place.parent.mkdir(exist_ok=True)
        self.made[place] = write_pack(
            place, data, CLASSES[: len(data)], disk_map=laid_out(data, size=size), name=name,
            version=version, carried=carried,
        )  # fmt: skip
        return self.made[place]

    def disk(self, pack: OpenedPack, name: str = "demo.raw", container: str = "raw") -> Path:
        path = self.vms / name
        unpack(pack, path, [], container=container)
        assert self.records.remember(path, container, pack) == ""
        return path

    def update(
        self,
        disk: Path,
        pack: OpenedPack,
        *sources: Simulated,
        was: OpenedPack | None = None,
        force: bool = False,
        allow_older: bool = False,
        container: str | None = None,
        overlays: tuple[Path, ...] = (),
    ) -> UpdateReport:
        with old_disk(disk, overlays=overlays, force=force, records=self.records) as old:
            held = identify(old, pack, was=was, force=force, allow_older=allow_older, jobs=2)
            return update(old, held, pack, sources, container=container, jobs=2)

    def names(self) -> set[str]:
        return {path.name for path in self.vms.iterdir()}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def one(scene: Scene) -> OpenedPack:
    return scene.pack(ONE, 1)


@pytest.fixture
def two(scene: Scene) -> OpenedPack:
    return scene.pack(TWO, 2)


@pytest.fixture
def disk(scene: Scene, one: OpenedPack) -> Path:
    return scene.disk(one)


def image(data: list[bytes], *, size: int = 8 * MIB) -> bytes:
    return disk_of(laid_out(data, size=size), data)


def came_from(report: UpdateReport, uri: str) -> int:
    assert report.unpacked is not None
    return sum(s.proven_bytes for s in report.unpacked.supplied if s.uri.startswith(uri))


def test_only_what_changed_is_taken_from_the_pack(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    report = scene.update(disk, two)
    assert disk.read_bytes() == image(TWO)
    assert (report.before, report.after) == ("demo:1", "demo:2")
    assert came_from(report, f"disk:{disk}") == len(ONE[0]) + len(ONE[1])
    assert came_from(report, "pack:") == sum(map(len, TWO[2:]))
    assert scene.names() == {"demo.raw"}


def test_a_thin_copy_is_enough_when_the_disk_has_the_rest(
    scene: Scene, disk: Path, tmp_path: Path
) -> None:
    data = [*ONE[:3], numbered(8192, 25)]
    thin = scene.pack(data, 2, carried=(Class.BOOT, Class.PRIVATE))
    scene.update(disk, thin)
    assert disk.read_bytes() == image(data)


def test_hints_are_not_read_when_nobody_needs_them(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    scene.update(disk, two)
    assert "hints" not in vars(two)


def test_any_version_leads_to_any_other(
    scene: Scene, disk: Path, one: OpenedPack, two: OpenedPack
) -> None:
    five = scene.pack([*TWO[:2], *ONE[2:], numbered(700, 5)], 5)
    for pack, data in ((five, [*TWO[:2], *ONE[2:], numbered(700, 5)]), (one, ONE), (two, TWO)):
        scene.update(disk, pack, allow_older=True)
        assert disk.read_bytes() == image(data)


def test_an_older_version_is_refused_unless_it_is_wanted(
    scene: Scene, one: OpenedPack, two: OpenedPack
) -> None:
    disk = scene.disk(two)
    with pytest.raises(TrustError, match=r"is demo:2, and .* is the older demo:1") as caught:
        scene.update(disk, one)
    assert "--allow-older" in caught.value.hint
    assert disk.read_bytes() == image(TWO)


def test_another_pack_of_the_same_version_is_refused(
    scene: Scene, disk: Path, one: OpenedPack
) -> None:
    other = scene.pack(TWO, 1)
    with pytest.raises(TrustError, match=r"is demo:1, and .* is another demo:1"):
        scene.update(disk, other)


def test_a_disk_of_that_version_is_left_alone(scene: Scene, disk: Path, one: OpenedPack) -> None:
    before = disk.stat()
    report = scene.update(disk, one)
    assert report.unpacked is None
    assert (report.before, report.after) == ("demo:1", "demo:1")
    assert disk.stat() == before


def test_a_disk_of_another_name_is_refused_unless_forced(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    other = scene.pack(TWO, 2, name="other")
    with pytest.raises(UsageError, match=r"is demo:1, and .* is other:2"):
        scene.update(disk, other)
    report = scene.update(disk, other, force=True)
    assert (report.before, report.after) == ("demo:1", "other:2")
    assert disk.read_bytes() == image(TWO)


# -- a disk that is not what it should be ----------------------------------------------------------


def write_to(disk: Path) -> None:
    """Two bytes change, as a guest that was started would change them: in a content that lies in
    two pieces, both of which fail its digest, and in zeros.
    """
    with disk.open("r+b") as file:
        for offset in (4096 * 3, 8 * MIB - 4096):
            file.seek(offset)
            file.write(b"x")


def spoil(disk: Path) -> bytes:
    write_to(disk)
    return disk.read_bytes()


def test_a_disk_that_a_guest_has_written_to_is_refused_and_stays(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    spoilt = spoil(disk)
    with pytest.raises(MismatchError, match=r"3 ranges .* are not what demo:1 says") as caught:
        scene.update(disk, two)
    assert "--force" in caught.value.hint
    assert disk.read_bytes() == spoilt
    assert scene.names() == {"demo.raw"}


def test_force_throws_away_what_was_written_and_uses_what_is_right(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    spoil(disk)
    report = scene.update(disk, two, force=True)
    assert disk.read_bytes() == image(TWO)
    assert came_from(report, "disk:") == len(ONE[0])


def test_force_makes_a_disk_what_its_own_version_says(
    scene: Scene, disk: Path, one: OpenedPack
) -> None:
    spoil(disk)
    scene.update(disk, one, force=True)
    assert disk.read_bytes() == image(ONE)


def test_a_disk_of_another_size_is_no_disk_of_its_version(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    os.truncate(disk, 9 * MIB)
    with pytest.raises(MismatchError, match="its size is not that of demo:1"):
        scene.update(disk, two)


def test_what_the_map_calls_unused_may_have_changed(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    with disk.open("r+b") as file:
        file.seek(4096)
        file.write(b"deleted data")
    scene.update(disk, two)
    assert disk.read_bytes() == image(TWO)


def test_a_disk_that_nobody_knows_is_refused(
    scene: Scene, one: OpenedPack, two: OpenedPack
) -> None:
    stranger = scene.vms / "stranger.raw"
    stranger.write_bytes(image(ONE))
    with pytest.raises(UsageError, match="does not know what it should be") as caught:
        scene.update(stranger, two)
    assert "--was" in caught.value.hint
    assert stranger.read_bytes() == image(ONE)


def test_the_user_may_say_what_a_disk_was_and_it_is_checked(
    scene: Scene, one: OpenedPack, two: OpenedPack
) -> None:
    stranger = scene.vms / "stranger.raw"
    stranger.write_bytes(image(ONE))
    report = scene.update(stranger, two, was=one)
    assert report.before == "demo:1"
    assert stranger.read_bytes() == image(TWO)
    spoilt = spoil(stranger)
    with pytest.raises(MismatchError):
        scene.update(stranger, scene.pack(ONE, 3), was=one)
    assert stranger.read_bytes() == spoilt


def test_force_takes_a_disk_that_nobody_knows_for_what_it_may_have(
    scene: Scene, one: OpenedPack, two: OpenedPack
) -> None:
    stranger = scene.vms / "stranger.raw"
    stranger.write_bytes(bytes(3 * MIB))
    report = scene.update(stranger, two, force=True)
    assert (report.before, report.after) == ("", "demo:2")
    assert stranger.read_bytes() == image(TWO)


def test_a_lost_bare_copy_costs_hashing_against_nothing(
    scene: Scene, disk: Path, one: OpenedPack, two: OpenedPack
) -> None:
    for path in (scene.folder / "home" / "disks" / "packs").iterdir():
        path.unlink()
    os.utime(disk)
    with pytest.raises(UsageError, match="does not know"):
        scene.update(disk, two)
    scene.update(disk, two, was=one)
    assert disk.read_bytes() == image(TWO)


def test_a_run_that_ended_before_its_record_was_written_is_over(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    """The record says v1, the disk is v2."""
    unpack(two, disk, [], replace=True)
    report = scene.update(disk, two)
    assert report.unpacked is None
    found = scene.records.find(disk)
    assert found is not None
    assert found.label == "demo:2"


def test_what_a_record_says_of_another_file_does_not_count_against_the_users_word(
    scene: Scene, one: OpenedPack, two: OpenedPack
) -> None:
    """A disk of another name, or of a later version, lay there before."""
    for number, other in enumerate((scene.pack(TWO, 9, name="other"), scene.pack(ONE[:3], 7))):
        disk = scene.disk(other, f"{number}.raw")
        disk.rename(disk.with_suffix(".away"))  # so that no file gets its inode
        disk.write_bytes(image(ONE))
        report = scene.update(disk, two, was=one)
        assert report.before == "demo:1"
        assert disk.read_bytes() == image(TWO)


def test_a_disk_that_was_moved_to_where_another_one_lay_is_known_by_its_file(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    other = scene.disk(scene.pack(TWO, 9, name="other"), "other.raw")
    disk.replace(other)
    report = scene.update(other, two)
    assert report.before == "demo:1"
    assert other.read_bytes() == image(TWO)


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o440])
def test_the_mode_is_kept(scene: Scene, disk: Path, two: OpenedPack, mode: int) -> None:
    disk.chmod(mode)
    scene.update(disk, two)
    assert stat.S_IMODE(disk.stat().st_mode) == mode
    assert disk.read_bytes() == image(TWO)


@needs_root
@pytest.mark.parametrize("container", ["raw", "qcow2"])
def test_the_owner_is_kept(scene: Scene, two: OpenedPack, container: str) -> None:
    disk = scene.disk(scene.pack(ONE, 1), f"demo.{container}", container)
    os.chown(disk, 1234, 4321)
    disk.chmod(0o640)
    scene.update(disk, two)
    found = disk.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640)


@needs_root
def test_a_disk_that_its_owner_may_not_write_to_is_gone_on_with(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    """Root may open anything; the second run of another owner has to open what the first made."""
    let_others_enter(scene.folder)
    os.chown(scene.vms, 65534, 65534)
    os.chown(disk, 65534, 65534)
    disk.chmod(0o440)

    def interrupted() -> None:
        raise KeyboardInterrupt

    def try_it() -> None:
        scene.records = DiskRecords(scene.vms / "records")
        with pytest.raises(KeyboardInterrupt):
            scene.update(disk, two, Watching(interrupted), force=True)
        report = scene.update(disk, two, force=True)
        assert report.unpacked is not None

    as_nobody(try_it)
    assert disk.read_bytes() == image(TWO)
    assert stat.S_IMODE(disk.stat().st_mode) == 0o440


@pytest.mark.parametrize("container", ["raw", "qcow2"])
def test_lists_of_access_and_attributes_are_kept(
    scene: Scene, two: OpenedPack, container: str
) -> None:
    """The mode of a file with such a list shows for its group what other users may do."""
    disk = scene.disk(scene.pack(ONE, 1), f"demo.{container}", container)
    disk.chmod(0o600)
    run("setfacl", "-m", "u:1234:rw", disk)
    os.setxattr(disk, "user.note", b"mine")
    before = run("getfacl", "-cpn", disk)
    assert "user:1234:rw-" in before
    assert "group::---" in before
    scene.update(disk, two)
    assert run("getfacl", "-cpn", disk) == before
    assert os.getxattr(disk, "user.note") == b"mine"


def test_the_list_of_access_that_a_folder_gives_new_files_is_not_given_to_a_disk(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    disk.chmod(0o640)
    before = run("getfacl", "-cpn", disk)
    run("setfacl", "-d", "-m", "u:1234:rw", scene.vms)
    scene.update(disk, two)
    assert run("getfacl", "-cpn", disk) == before


class Watching(Simulated):
    """A source that does something when it is fetched from."""

    def __init__(self, act: Callable[[], None], held: dict[int, bytes] | None = None) -> None:
        super().__init__("watching:", held if held is not None else dict(enumerate(TWO)))
        self.act = act

    def fetch(self, rows: np.ndarray) -> Iterator[Piece]:
        self.act()
        return super().fetch(rows)


def test_a_private_disk_is_private_while_it_is_written(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    disk.chmod(0o600)
    seen: list[int] = []
    partial = disk.with_name("demo.raw.partial")
    scene.update(disk, two, Watching(lambda: seen.append(partial.stat().st_mode)))
    assert {stat.S_IMODE(mode) for mode in seen} == {0o600}


def test_a_link_stays_a_link(scene: Scene, disk: Path, two: OpenedPack, tmp_path: Path) -> None:
    link = tmp_path / "link.raw"
    link.symlink_to(disk)
    report = scene.update(link, two)
    assert report.disk == link
    assert link.is_symlink()
    assert disk.read_bytes() == image(TWO)
    assert not (tmp_path / "link.raw.partial").exists()


@pytest.mark.parametrize("container", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_a_container_stays_what_it_is(scene: Scene, two: OpenedPack, container: str) -> None:
    disk = scene.disk(scene.pack(ONE, 1), f"demo.{container}", container)
    report = scene.update(disk, two)
    assert came_from(report, "disk:") == len(ONE[0]) + len(ONE[1])
    information = run("qemu-img", "info", "-f", container, disk)
    assert f"file format: {container}" in information
    run("qemu-img", "convert", "-f", container, "-O", "raw", disk, scene.folder / "out.raw")
    assert (scene.folder / "out.raw").read_bytes() == image(TWO)
    assert scene.names() == {disk.name}


def test_another_container_can_be_had(scene: Scene, disk: Path, two: OpenedPack) -> None:
    scene.update(disk, two, container="qcow2")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, scene.folder / "out.raw")
    assert (scene.folder / "out.raw").read_bytes() == image(TWO)
    scene.update(disk, two, container="raw")  # the same version, nothing but the container
    assert disk.read_bytes() == image(TWO)
    assert scene.update(disk, two).unpacked is None


def test_a_raw_disk_whose_guest_wrote_a_container_header_is_raw(scene: Scene) -> None:
    header = b"QFI\xfb\0\0\0\3" + BOOT[8:]
    disk = scene.disk(scene.pack([header, *ONE[1:]], 1))
    scene.update(disk, scene.pack([header, *TWO[1:]], 2))
    assert disk.read_bytes() == image([header, *TWO[1:]])


@pytest.mark.parametrize("size", [6 * MIB, 16 * MIB])
def test_the_next_version_may_have_another_size(scene: Scene, disk: Path, size: int) -> None:
    scene.update(disk, scene.pack(TWO, 2, size=size))
    assert disk.read_bytes() == image(TWO, size=size)


def test_a_disk_in_several_files_is_refused(scene: Scene, two: OpenedPack) -> None:
    disk = scene.vms / "demo.vmdk"
    command = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat"]
    subprocess.run([*command, disk, "8M"], check=True)
    with pytest.raises(UsageError, match="consists of 2 files"):
        scene.update(disk, two, force=True)


def test_a_container_that_cannot_be_written_is_refused(scene: Scene, two: OpenedPack) -> None:
    disk = scene.vms / "demo.vhd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", disk, "8M"], check=True)
    with pytest.raises(UsageError, match="is a vhd image"):
        scene.update(disk, two, force=True)


@pytest.mark.parametrize("what", ["missing", "folder", "loop"])
def test_what_is_no_disk_image_is_refused(scene: Scene, two: OpenedPack, what: str) -> None:
    path = scene.vms / what
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path)
    with pytest.raises(UsageError, match="expected a disk image"):
        scene.update(path, two, force=True)


# -- somebody else ---------------------------------------------------------------------------------


def test_a_disk_that_an_overlay_stands_on_is_refused(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    overlay = create("qcow2", scene.vms / "overlay.qcow2", "demo.raw")
    with pytest.raises(InUseError, match=f"is the backing file of {overlay}"):
        scene.update(disk, two, force=True)
    assert disk.read_bytes() == image(ONE)
    overlay.unlink()
    scene.update(disk, two)


def test_overlays_elsewhere_are_found_in_folders_that_are_named(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    overlay = create("qcow2", scene.folder / "elsewhere" / "overlay.qcow2", str(disk))
    with pytest.raises(InUseError, match=f"is the backing file of {overlay}"):
        scene.update(disk, two, overlays=(overlay.parent,))
    with pytest.raises(UsageError, match="expected a folder with overlays"):
        scene.update(disk, two, overlays=(scene.folder / "typo",))


def test_an_overlay_that_is_made_meanwhile_is_found_before_the_rename(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    overlay = scene.vms / "overlay.qcow2"

    def make_it() -> None:
        if not overlay.exists():
            create("qcow2", overlay, "demo.raw")

    with pytest.raises(InUseError, match=f"is the backing file of {overlay}"):
        scene.update(disk, two, Watching(make_it))
    assert disk.read_bytes() == image(ONE)


def test_what_an_interrupted_run_has_left_is_no_overlay_whatever_its_guest_wrote(
    scene: Scene, disk: Path
) -> None:
    header = b"QFI\xfb\0\0\0\3" + struct.pack(">QI", 20, 8) + b"demo.raw" + BOOT[28:]
    pack = scene.pack([header, *TWO[1:]], 2, carried=(Class.BOOT, Class.PRIVATE))
    with pytest.raises(MissingError):
        scene.update(disk, pack)
    scene.update(disk, pack, Simulated("later:", {2: TWO[2]}))
    assert disk.read_bytes() == image([header, *TWO[1:]])


@needs_root
def test_a_file_that_may_be_an_overlay_and_cannot_be_read_needs_force(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    let_others_enter(scene.folder)
    overlay = create("qcow2", scene.vms / "overlay.qcow2", "demo.raw")
    overlay.chmod(0o600)
    for path in (scene.vms, disk):
        os.chown(path, 65534, 65534)

    def try_it() -> None:
        scene.records = DiskRecords(scene.vms / "records")
        with pytest.raises(InUseError, match=f"cannot tell .*{overlay}: Permission") as caught:
            scene.update(disk, two)
        assert "--force" in caught.value.hint
        with old_disk(disk, force=True, records=scene.records) as old:
            assert len(old.notes) == 1

    as_nobody(try_it)
    assert disk.read_bytes() == image(ONE)


def test_a_disk_that_is_written_to_meanwhile_is_not_replaced(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    with pytest.raises(InUseError, match="was changed while it was read"):
        scene.update(disk, two, Watching(lambda: write_to(disk)))
    assert disk.read_bytes() != image(TWO)
    assert disk.read_bytes()[:4096] == ONE[0]
    with pytest.raises(MismatchError):
        scene.update(disk, two)


@pytest.mark.parametrize("container", ["raw", "qcow2", "vdi"])
def test_a_disk_that_is_opened_meanwhile_is_not_replaced(
    scene: Scene, two: OpenedPack, container: str
) -> None:
    disk = scene.disk(scene.pack(ONE, 1), f"demo.{container}", container)
    before = disk.read_bytes()
    with ExitStack() as stack:
        started: list[subprocess.Popen[bytes]] = []

        def open_it() -> None:
            if not started:
                command = ["qemu-nbd", "-r", "-t", "-f", container, "-k"]
                process = subprocess.Popen([*command, str(scene.folder / "socket"), str(disk)])
                started.append(process)
                stack.callback(process.wait)
                stack.callback(process.terminate)
                served = f"nbd+unix:///?socket={scene.folder}/socket"
                while run("qemu-img", "info", served, check=False) == "":
                    assert process.poll() is None

        with pytest.raises(InUseError, match=r"is in use: process .* reads it"):
            scene.update(disk, two, Watching(open_it))
    assert disk.read_bytes() == before
    report = scene.update(disk, two)
    assert report.unpacked is not None
    assert report.unpacked.resumed_bytes == sum(map(len, TWO))
    assert scene.names() == {disk.name}


# -- what the medium does --------------------------------------------------------------------------


def test_when_nobody_has_a_content_the_disk_stays(scene: Scene, disk: Path) -> None:
    thin = scene.pack(TWO, 2, carried=(Class.BOOT, Class.PRIVATE))
    with pytest.raises(MissingError, match="nobody has 1 contents"):
        scene.update(disk, thin)
    assert disk.read_bytes() == image(ONE)
    report = scene.update(disk, thin, Simulated("later:", {2: TWO[2]}))
    assert disk.read_bytes() == image(TWO)
    assert report.unpacked is not None
    assert report.unpacked.resumed_bytes > 0


@needs_root
def test_too_little_space_is_told_before_anything_is_written(
    scene: Scene, one: OpenedPack, two: OpenedPack
) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=5M", "none", scene.vms)
    try:
        disk = scene.disk(one)
        with pytest.raises(Error, match=r"needs 3.2 MB beside the old one, .* has 2.0 MB left"):
            scene.update(disk, two)
        assert disk.read_bytes() == image(ONE)
        assert scene.names() == {"demo.raw"}
    finally:
        run("umount", scene.vms)


@needs_root
def test_a_medium_that_fills_up_meanwhile_leaves_the_old_disk(
    scene: Scene, one: OpenedPack, two: OpenedPack
) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=8M", "none", scene.vms)
    try:
        disk = scene.disk(one)
        blob = scene.vms / "blob"

        def fill_up() -> None:
            space = os.statvfs(scene.vms)
            blob.write_bytes(b"x" * (space.f_bavail * space.f_frsize - 100_000))

        with pytest.raises(Error, match="No space left on device"):
            scene.update(disk, two, Watching(fill_up))
        assert disk.read_bytes() == image(ONE)
        blob.unlink()
        scene.update(disk, two)
        assert disk.read_bytes() == image(TWO)
        assert scene.names() == {"demo.raw"}
    finally:
        run("umount", scene.vms)


@needs_root
def test_where_blocks_are_shared_what_stays_needs_no_space(scene: Scene, tmp_path: Path) -> None:
    data = [*ONE, numbered(60 * MIB, 30)]
    first = scene.pack(data, 1, size=80 * MIB)
    second = scene.pack([*TWO[:4], data[4]], 2, size=80 * MIB)
    with sharing_file_system(tmp_path) as scene.vms:
        disk = scene.disk(first)
        os.link(disk, disk.with_name("before.raw"))
        space = os.statvfs(scene.vms)
        blob = scene.vms / "blob"
        run("fallocate", "-l", str(space.f_bavail * space.f_frsize - 16 * MIB), blob)
        scene.update(disk, second)
        assert disk.read_bytes() == image([*TWO[:4], data[4]], size=80 * MIB)
        assert shared_bytes(disk) >= 60 * MIB


@needs_root
def test_a_folder_that_may_not_be_written_to_leaves_the_old_disk(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    let_others_enter(scene.folder)

    def try_it() -> None:
        with pytest.raises(Error, match="cannot write: Permission denied"):
            scene.update(disk, two, force=True)  # its records are those of another user

    as_nobody(try_it)
    assert disk.read_bytes() == image(ONE)


@needs_root
def test_a_disk_of_another_owner_is_not_made_ones_own(
    scene: Scene, disk: Path, two: OpenedPack
) -> None:
    let_others_enter(scene.folder)
    scene.vms.chmod(0o777)

    def try_it() -> None:
        with pytest.raises(Error, match="belongs to user 0 and group 0") as caught:
            scene.update(disk, two, force=True)
        assert "as root" in caught.value.hint

    as_nobody(try_it)
    assert disk.read_bytes() == image(ONE)
    assert scene.names() == {"demo.raw"}
