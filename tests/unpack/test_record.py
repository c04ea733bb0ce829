"""What this host remembers of the disks that it wrote: never believed without a proof."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import msgspec
import pytest

from packer.artifact.contents import Class
from packer.artifact.layout.open import open_layout
from packer.artifact.map import encode_map
from packer.artifact.opened import OpenedPack
from packer.unpack import record
from packer.unpack.record import TICK_NS, DiskRecords, Record
from tests.artifact.real_packs import write_pack
from tests.host import as_nobody, in_processes, let_others_enter, needs_root
from tests.unpack.simulated import numbered

MIB = 1 << 20


def pack_of(folder: Path, seed: int = 1, *, version: int = 1) -> OpenedPack:
    data = [numbered(5000, seed), numbered(MIB, seed + 100)]
    place = folder / f"pack-{seed}-{version}"
    return write_pack(place, data, [Class.BOOT, Class.SHARED], version=version)


def disk_in(folder: Path, name: str = "demo.raw") -> Path:
    """A disk as a commit leaves it: written, and renamed a while later."""
    folder.mkdir(exist_ok=True)
    partial = folder / f"{name}.partial"
    partial.write_bytes(b"disk" * 1024)
    time.sleep(2 * TICK_NS / 1e9)
    return partial.rename(folder / name)


@pytest.fixture
def pack(tmp_path: Path) -> OpenedPack:
    return pack_of(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return disk_in(tmp_path / "vms")


@pytest.fixture
def records(tmp_path: Path) -> DiskRecords:
    return DiskRecords(tmp_path / "home" / "disks")


def files(records: DiskRecords) -> dict[str, set[str]]:
    return {
        name: {path.name for path in (records._folder / name).iterdir()}
        for name in ("records", "packs")
    }


def test_a_disk_and_what_it_is_are_remembered(
    records: DiskRecords, disk: Path, pack: OpenedPack
) -> None:
    assert records.find(disk) is None
    assert records.remember(disk, "raw", pack) == ""
    found = records.find(disk)
    assert found is not None
    assert (found.label, found.container, found.identity) == ("demo:1", "raw", pack.config_digest)
    assert found.is_unchanged(disk)
    kept = records.map_of(found)
    assert kept is not None
    assert encode_map(kept) == encode_map(pack.map)


def test_the_bare_copy_is_a_pack_without_contents_that_others_may_not_read(
    records: DiskRecords, disk: Path, pack: OpenedPack
) -> None:
    records.remember(disk, "raw", pack)
    (path,) = (records._folder / "packs").iterdir()
    with OpenedPack(open_layout(path)) as bare:
        assert bare.config_bytes == pack.config_bytes
        assert bare.manifest.hints() is None
        assert bare.manifest.bundles() == {}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("how", ["write", "grow", "touch", "replace", "mode"])
def test_whatever_touches_a_disk_shows(
    records: DiskRecords, disk: Path, pack: OpenedPack, how: str
) -> None:
    records.remember(disk, "raw", pack)
    if how == "write":
        with disk.open("r+b") as file:
            file.write(b"x")
        os.utime(disk, ns=(0, records.find(disk).stamp[3]))  # type: ignore[union-attr]
    elif how == "grow":
        os.truncate(disk, 8192)
    elif how == "touch":
        os.utime(disk)
    elif how == "replace":
        disk_in(disk.parent, "other").replace(disk)
    else:
        disk.chmod(0o600)
    found = records.find(disk)
    assert found is not None
    assert not found.is_unchanged(disk)


def test_a_disk_that_was_written_in_the_tick_of_its_rename_is_not_believed(
    records: DiskRecords, tmp_path: Path, pack: OpenedPack
) -> None:
    """A guest could have written once more in that tick without leaving another time."""
    (tmp_path / "fresh.partial").write_bytes(b"disk")
    disk = (tmp_path / "fresh.partial").rename(tmp_path / "fresh.raw")
    records.remember(disk, "raw", pack)
    found = records.find(disk)
    assert found is not None
    assert not found.is_unchanged(disk)


def test_a_link_and_its_target_are_one_disk(
    records: DiskRecords, disk: Path, pack: OpenedPack, tmp_path: Path
) -> None:
    link = tmp_path / "link.raw"
    link.symlink_to(disk)
    records.remember(link, "raw", pack)
    assert records.find(disk) == records.find(link) != None  # noqa: E711 - it is there


def test_a_disk_that_was_moved_is_found_and_has_to_be_proven(
    records: DiskRecords, disk: Path, pack: OpenedPack
) -> None:
    records.remember(disk, "raw", pack)
    moved = disk.rename(disk.with_name("moved.raw"))
    found = records.find(moved)
    assert found is not None
    assert not found.is_unchanged(moved)  # its ctime is another one


def test_names_that_are_no_text_are_remembered_too(
    records: DiskRecords, tmp_path: Path, pack: OpenedPack
) -> None:
    disk = disk_in(tmp_path / "vms", os.fsdecode(b"gast \xff%41.raw"))
    assert records.remember(disk, "qcow2", pack) == ""
    found = records.find(disk)
    assert found is not None
    assert found.container == "qcow2"
    records.remember(disk_in(tmp_path / "vms"), "raw", pack)  # which collects
    assert records.find(disk) is not None


def test_packs_are_kept_once_and_as_long_as_a_disk_is_one(
    records: DiskRecords, tmp_path: Path
) -> None:
    one, two = pack_of(tmp_path, 1), pack_of(tmp_path, 2)
    disks = [disk_in(tmp_path / "vms", f"{number}.raw") for number in range(3)]
    for disk in disks:
        records.remember(disk, "raw", one)
    assert len(files(records)["packs"]) == 1
    records.remember(disks[0], "raw", two)
    assert len(files(records)["packs"]) == 2
    for disk in disks[1:]:
        records.remember(disk, "raw", two)
    assert files(records)["packs"] == {f"{two.config_digest.removeprefix('sha256:')}.vmpack"}
    assert len(files(records)["records"]) == 3


def test_a_deleted_disk_is_forgotten_and_one_on_an_absent_medium_is_not(
    records: DiskRecords, tmp_path: Path, pack: OpenedPack
) -> None:
    deleted = disk_in(tmp_path / "vms", "deleted.raw")
    absent = disk_in(tmp_path / "stick", "absent.raw")
    for disk in (deleted, absent):
        records.remember(disk, "raw", pack)
    deleted.unlink()
    absent.parent.rename(tmp_path / "unplugged")
    records.remember(disk_in(tmp_path / "vms"), "raw", pack)
    assert records.find(deleted) is None
    assert records.find(absent) is not None
    assert len(files(records)["records"]) == 2


def test_a_disk_on_a_medium_whose_folder_is_empty_now_is_not_forgotten(
    records: DiskRecords, tmp_path: Path, pack: OpenedPack
) -> None:
    """The folder that a medium is mounted on stays when it is unplugged."""
    disk = disk_in(tmp_path / "stick")
    records.remember(disk, "raw", pack)
    (path,) = (records._folder / "records").iterdir()
    found = msgspec.json.decode(path.read_bytes(), type=Record)
    elsewhere = msgspec.structs.replace(found, stamp=(found.stamp[0] + 1, *found.stamp[1:]))
    path.write_bytes(msgspec.json.encode(elsewhere))
    disk.unlink()
    records.remember(disk_in(tmp_path / "vms"), "raw", pack)
    assert len(files(records)["records"]) == 2


@needs_root
def test_a_disk_in_a_folder_that_may_not_be_entered_any_more_is_not_forgotten(
    records: DiskRecords, tmp_path: Path, pack: OpenedPack
) -> None:
    let_others_enter(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)

    def try_it() -> None:
        mine = DiskRecords(work / "disks")
        closed = disk_in(work / "closed")
        assert mine.remember(closed, "raw", pack) == ""
        closed.parent.chmod(0)
        assert mine.remember(disk_in(work / "vms"), "raw", pack) == ""
        assert len(files(mine)["records"]) == 2

    as_nobody(try_it)


def test_what_killed_runs_have_left_is_removed(
    records: DiskRecords, disk: Path, pack: OpenedPack
) -> None:
    records.remember(disk, "raw", pack)
    kept = files(records)
    (records._folder / "packs" / "0123.vmpack.0123456789ab.partial" / "blobs").mkdir(parents=True)
    (records._folder / "records" / "0123.json.0123456789ab.partial").write_bytes(b"{")
    records.remember(disk, "raw", pack)
    assert files(records) == kept


@pytest.mark.parametrize("odd", ["link", "folder"])
def test_what_does_not_belong_among_the_records_keeps_nothing_from_being_remembered(
    records: DiskRecords, disk: Path, pack: OpenedPack, odd: str
) -> None:
    records.remember(disk, "raw", pack)
    path = records._folder / "records" / "odd.json"
    if odd == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    assert records.remember(disk, "raw", pack) == ""
    assert records.find(disk) is not None


def test_there_are_no_more_records_than_a_bound(
    records: DiskRecords, tmp_path: Path, pack: OpenedPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MOST_RECORDS", 2)
    disks = [disk_in(tmp_path / "vms", f"{number}.raw") for number in range(4)]
    for disk in disks:
        records.remember(disk, "raw", pack)
        time.sleep(0.02)
    assert [records.find(disk) is not None for disk in disks] == [False, False, True, True]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"\0" * 5000,
        b"[" * 100_000,
        b'{"schema": 2}',
        b'{"schema": 1, "path": "/x", "container": "raw", "stamp": [1, 2, 3, 4], "identity": "", '
        b'"name": "demo", "version": 1}',
        b'{"schema": 1, "path": "/%00", "container": "raw", "stamp": [1, 2, 3, 4, 5], "identity": '
        b'"sha256:' + b"0" * 64 + b'", "name": "demo", "version": 1}',
        b'{"schema": 1, "path": "/x", "container": "odd", "stamp": [1, 2, 3, 4, 5], "identity": '
        b'"sha256:' + b"0" * 64 + b'", "name": "demo", "version": 1}',
    ],
    ids=range(8),
)
def test_a_damaged_record_is_no_record_and_is_replaced(
    records: DiskRecords, disk: Path, pack: OpenedPack, damage: bytes
) -> None:
    records.remember(disk, "raw", pack)
    (path,) = (records._folder / "records").iterdir()
    path.write_bytes(damage)
    assert records.find(disk) is None
    assert records.remember(disk, "raw", pack) == ""
    assert records.find(disk) is not None


@pytest.mark.parametrize("damage", ["empty", "noise", "config", "end"])
def test_a_damaged_bare_copy_is_no_map_and_is_replaced(
    records: DiskRecords, disk: Path, pack: OpenedPack, damage: str
) -> None:
    records.remember(disk, "raw", pack)
    found = records.find(disk)
    assert found is not None
    (path,) = (records._folder / "packs").iterdir()
    whole = path.read_bytes()
    config = pack.config_bytes
    spoilt = {
        "empty": b"",
        "noise": numbered(5000, 3),
        "config": whole.replace(config, config.replace(b"demo", b"dome")),
        "end": whole[: len(whole) // 2],
    }
    path.write_bytes(spoilt[damage])
    assert records.map_of(found) is None
    assert records.remember(disk, "raw", pack) == ""
    assert records.map_of(found) is not None


def test_a_bare_copy_of_another_pack_is_not_taken(
    records: DiskRecords, disk: Path, pack: OpenedPack, tmp_path: Path
) -> None:
    records.remember(disk, "raw", pack)
    other = pack_of(tmp_path, 9)
    records.remember(disk_in(tmp_path / "vms", "other.raw"), "raw", other)
    mine, theirs = records.find(disk), records.find(tmp_path / "vms" / "other.raw")
    assert mine is not None
    assert theirs is not None
    records._pack_of(theirs.identity).replace(records._pack_of(mine.identity))
    assert records.map_of(mine) is None


def test_what_cannot_be_remembered_is_a_note(disk: Path, pack: OpenedPack, tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"no folder")
    note = DiskRecords(tmp_path / "home" / "disks").remember(disk, "raw", pack)
    assert note.startswith(f"{disk} is not remembered, so that an update needs --was: ")


def remember_often(folder: Path, number: int) -> None:
    pack = pack_of(folder / f"work-{number}", number)
    records = DiskRecords(folder / "disks")
    for turn in range(5):
        disk = disk_in(folder / "vms", f"{number}-{turn}.raw")
        assert records.remember(disk, "raw", pack) == ""
        found = records.find(disk)
        assert found is not None
        assert records.map_of(found) is not None


def test_several_processes_remember_at_once(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"work-{number}").mkdir()
    in_processes(remember_often, [(tmp_path, number) for number in range(4)])
    assert len(list((tmp_path / "disks" / "records").iterdir())) == 20
    assert len(list((tmp_path / "disks" / "packs").iterdir())) == 4


def test_a_record_is_json_that_a_person_can_read(
    records: DiskRecords, disk: Path, pack: OpenedPack
) -> None:
    records.remember(disk, "raw", pack)
    (path,) = (records._folder / "records").iterdir()
    assert msgspec.json.decode(path.read_bytes(), type=Record).path == str(disk)
