from __future__ import annotations

import random
import resource
import struct
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from fixtures.guests import build
from formats.ranges import intersect, overlap_of_sorted, total, union
from formats.source import Memory
from packer.errors import InputError
from packer.survey import child, worker
from packer.survey.disk import open_disk
from packer.survey.limits import Limits
from packer.survey.model import Survey
from packer.survey.recognise import MAGICS, Magic, recognise
from packer.survey.survey import survey
from tests.host import run
from tests.survey import disks
from tests.survey.disks import DISK_BYTES, EXT, FAT, FILES, MIB, RAW, SWAP, Part
from tests.survey.test_disk import QemuNbd_of

MD = b"\xfc\x4e\x2b\xa9"


def surveyed(path: Path, limits: Limits | None = None) -> Survey:
    with open_disk(path) as disk:
        found = survey(disk, limits=limits)
        disk.check_unchanged()
    assert_sound(found)
    return found


def assert_sound(found: Survey) -> None:
    """What every survey promises, whatever the disk."""
    rows = len(found.inode)
    assert len(found.volume) == len(found.file_size) == rows
    assert all(0 <= volume < len(found.volumes) for volume in found.volume)
    assert (np.diff(found.stream) >= 0).all()
    assert (np.diff(found.name_stream) >= 0).all()
    assert len(found.name) == len(found.name_stream)
    assert overlap_of_sorted(found.free) < 0
    extents = np.stack([found.disk_offset, found.disk_offset + found.length], axis=1)
    volumes = found.volume[found.stream]
    starts = np.array([one.start for one in found.volumes], dtype=np.int64)
    ends = np.array([one.end for one in found.volumes], dtype=np.int64)
    if len(extents):
        assert (extents[:, 0] >= starts[volumes]).all()
        assert (extents[:, 1] <= ends[volumes]).all()
    dropped = union(*(ranges for _, ranges in found.dropped), np.empty((0, 2), np.int64))
    assert total(union(extents, found.free, dropped)) == (
        int(found.length.sum()) + total(found.free) + total(dropped)
    ), "a byte has two owners"


def contents(path: Path, found: Survey) -> dict[str, bytes]:
    """Read every named file of the survey through its extents."""
    files = {}
    with open_disk(path) as disk:
        for stream, name in zip(found.name_stream.tolist(), found.name, strict=True):
            data = bytearray(int(found.file_size[stream]))
            rows = found.extents_of(stream)
            for at, where, length in zip(
                found.file_offset[rows].tolist(),
                found.disk_offset[rows].tolist(),
                found.length[rows].tolist(),
                strict=True,
            ):
                taken = min(length, len(data) - at)
                data[at : at + taken] = disk.source.pread(where, taken)
            files[name] = bytes(data)
    return files


def test_a_disk_with_a_table_is_surveyed(tmp_path: Path) -> None:
    path = disks.whole_disk(tmp_path)
    found = surveyed(path)
    assert (found.size, found.sector_size, found.container, found.table) == (
        DISK_BYTES,
        512,
        "raw",
        "gpt",
    )
    assert [(one.number, one.kind) for one in found.volumes] == [
        (1, "ext4"),
        (2, "vfat"),
        (3, "swap"),
        (4, "raw"),
    ]
    assert [(one.start, one.end) for one in found.volumes] == [
        (part.start, part.start + part.size) for part in (EXT, FAT, SWAP, RAW)
    ]
    ext4, fat, swap, _ = found.volumes
    assert (ext4.state, ext4.label, ext4.block_size) == ("clean", "root", 4096)
    assert (fat.label, swap.label) == ("ESP", "sw")
    assert found.dropped[0][0] == 2
    assert found.dropped[0][1].tolist() == [[SWAP.start + 4096, SWAP.start + SWAP.size]]
    assert (0, "/link", "folder/file-1") in found.symlinks
    files = contents(path, found)
    assert {name: data for name, data in files.items() if name in FILES} == FILES
    assert total(intersect(found.free, np.array([[EXT.start, EXT.start + EXT.size]]))) > 20 * MIB


def test_nothing_outside_partitions_is_free(tmp_path: Path) -> None:
    found = surveyed(disks.whole_disk(tmp_path))
    inside = np.array([[one.start, one.end] for one in found.volumes])
    assert total(intersect(found.free, inside)) == total(found.free)


@pytest.mark.parametrize("container", ["qcow2", "vmdk"])
def test_a_container_changes_nothing_but_its_name(tmp_path: Path, container: str) -> None:
    raw = disks.whole_disk(tmp_path)
    path = tmp_path / f"guest.{container}"
    run("qemu-img", "convert", "-f", "raw", "-O", container, raw, path)
    expected, found = surveyed(raw), surveyed(path)
    assert found.container == container
    assert found.volumes == expected.volumes
    assert found.name == expected.name
    assert found.symlinks == expected.symlinks
    for column in ("free", "volume", "inode", "stream", "disk_offset", "length", "name_stream"):
        assert np.array_equal(getattr(found, column), getattr(expected, column)), column


def test_an_overlay_on_a_backing_file_is_surveyed(tmp_path: Path) -> None:
    raw = disks.whole_disk(tmp_path)
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay)
    with open_disk(overlay, backing=raw) as disk:
        found = survey(disk)
    assert found.name == surveyed(raw).name


def test_a_file_system_without_a_table_is_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "whole.raw"
    path.write_bytes(disks.ext4(tmp_path))
    found = surveyed(path)
    assert found.table == "none"
    (volume,) = found.volumes
    assert (volume.number, volume.start, volume.end, volume.kind) == (0, 0, EXT.size, "ext4")
    assert set(FILES) <= set(found.name)


@pytest.mark.parametrize("size", [0, 512, 1000, 4096, MIB])
def test_a_disk_of_zeros_is_surveyed(tmp_path: Path, size: int) -> None:
    found = surveyed(disks.empty(tmp_path / "zeros.raw", size))
    assert found.table == "none"
    assert [one.kind for one in found.volumes] == (["raw"] if size else [])


def test_noise_is_raw_and_said_to_travel(tmp_path: Path) -> None:
    path = tmp_path / "noise.raw"
    path.write_bytes(bytes([3]) * (3 * MIB))
    found = surveyed(path)
    assert found.warnings == (
        "the disk: no known file system; it cannot be stubbed: up to 3.1 MB travel",
    )


def made_by(*command: str) -> object:
    def make(folder: Path) -> bytes:
        return disks.make_volume(folder, "made.img", RAW.size, *command)

    return make


def formatted_larger(size: int, *command: str) -> object:
    """Some file systems are larger than a partition; their first megabytes do to recognise them."""

    def make(folder: Path) -> bytes:
        path = disks.empty(folder / "made.img", size)
        run(*command, path)
        with path.open("rb") as file:
            return file.read(RAW.size)

    return make


def squashfs(folder: Path) -> bytes:
    run("mksquashfs", "/usr/share/doc/bash", folder / "made.img", "-no-progress")
    return (folder / "made.img").read_bytes()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            made_by(
                "cryptsetup",
                "luksFormat",
                "-q",
                "--type=luks1",
                "--iter-time=1",
                "--key-file=/etc/hostname",
            ),
            "LUKS1: encrypted",
        ),
        (
            made_by(
                "cryptsetup",
                "luksFormat",
                "-q",
                "--type=luks2",
                "--pbkdf=pbkdf2",
                "--iter-time=1",
                "--key-file=/etc/hostname",
            ),
            "LUKS2: encrypted",
        ),
        (formatted_larger(320 * MIB, "mkfs.xfs", "-q", "-f"), "XFS"),
        (formatted_larger(128 * MIB, "mkfs.btrfs", "-q", "-f"), "btrfs"),
        (squashfs, "squashfs"),
    ],
)
def test_what_other_tools_make_is_recognised(tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    try:
        raw = make(tmp_path)
    except (FileNotFoundError, AssertionError) as error:
        pytest.skip(f"the tool is missing or refuses: {error}")
    found = surveyed(disks.whole_disk(tmp_path, raw))
    assert found.volumes[3].kind == "raw"
    assert found.volumes[3].note.startswith(words)
    (warning,) = found.warnings
    assert warning.startswith(f"partition 4: {words}")
    assert "it cannot be stubbed: up to" in warning


@pytest.mark.parametrize("magic", MAGICS, ids=lambda one: f"{one.name}@{one.offset}")
def test_every_magic_is_recognised(magic: Magic) -> None:
    guess = recognise(Memory(bytes(magic.offset) + magic.magic + bytes(4096)), "")
    assert guess is not None
    assert guess.name == magic.name
    assert ("encrypted" in guess.note) == magic.encrypted


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, 65536, 131072, MIB])
def test_zeros_of_any_size_are_not_recognised(size: int) -> None:
    assert recognise(Memory(bytes(size)), "") is None


def test_the_number_of_inodes_of_an_ext_is_no_magic() -> None:
    for count in (b"H+", b"HX"):  # s_inodes_count, the first field of its superblock
        assert recognise(Memory(bytes(1024) + count + bytes(1 << 16)), "") is None


def test_raid_and_zfs_are_recognised() -> None:
    size = 3 * MIB + 5 * 512
    for offset, sign, name in (
        ((size // 512 - 16 & ~7) * 512, MD, "Linux RAID member"),
        ((size & ~0xFFFF) - 0x10000, MD, "Linux RAID member"),
        ((128 + 5) * 1024, (0x00BAB10C).to_bytes(8, "little"), "ZFS"),
    ):
        data = bytearray(size)
        data[offset : offset + len(sign)] = sign
        guess = recognise(Memory(bytes(data)), "")
        assert guess is not None
        assert guess.name == name


@pytest.mark.parametrize(
    ("offset", "sign", "name"),
    [
        (0, b"LUKS\xba\xbe\0\1", "LUKS"),
        ((EXT.size // 512 - 16 & ~7) * 512, MD, "Linux RAID member"),
        (4086, b"SWAPSPACE2", "swap"),
    ],
)
def test_a_file_system_with_another_sign_is_not_trusted(
    tmp_path: Path, offset: int, sign: bytes, name: str
) -> None:
    path = disks.whole_disk(tmp_path)
    disks.write_at(path, EXT.start + offset, sign)
    volume = surveyed(path).volumes[0]
    assert volume.kind == "raw"
    assert volume.note.startswith("signs of ext and ")
    assert name in volume.note


def test_a_boot_partition_is_carried_without_a_warning(tmp_path: Path) -> None:
    path = disks.empty(tmp_path / "guest.raw", 8 * MIB)
    bios_boot = "21686148-6449-6E6F-744E-656564454649"
    disks.table(path, (Part(MIB, MIB, bios_boot), Part(2 * MIB, MIB, "L")))
    disks.write_at(path, MIB, b"\xeb\x63GRUB core")
    found = surveyed(path)
    assert found.volumes[0].note == "BIOS boot partition: carried as it is"
    assert found.volumes[1].note == "empty: reads as zeros"
    assert found.warnings == ()


def test_a_dirty_file_system_gives_no_free_ranges(tmp_path: Path) -> None:
    path = disks.whole_disk(tmp_path)
    volume = tmp_path / "volume"
    volume.write_bytes(disks.ext4(tmp_path))
    run("debugfs", "-w", "-R", "ssv state 2", volume)
    disks.write_at(path, EXT.start, volume.read_bytes())
    found = surveyed(path)
    assert found.volumes[0].state == "dirty"
    assert total(intersect(found.free, np.array([[EXT.start, EXT.start + EXT.size]]))) == 0


def test_a_damaged_file_system_is_raw_and_the_others_are_not(tmp_path: Path) -> None:
    path = disks.whole_disk(tmp_path)
    disks.write_at(path, EXT.start + 1024 + 24, b"\xff\xff\xff\xff")  # s_log_block_size
    found = surveyed(path)
    assert [one.kind for one in found.volumes] == ["raw", "vfat", "swap", "raw"]
    assert found.warnings[0].startswith("partition 1: ")
    assert "it cannot be stubbed: up to" in found.warnings[0]


def surveyed_at_once(path: Path) -> Survey:
    with open_disk(path) as disk:
        return survey(disk, at_once=True)


def assert_equal(left: Survey, right: Survey) -> None:
    for name in (one.name for one in fields(Survey)):
        one, other = getattr(left, name), getattr(right, name)
        same = np.array_equal(one, other) if isinstance(one, np.ndarray) else str(one) == str(other)
        assert same, name


def test_one_child_for_all_finds_what_one_for_each_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, damaged = disks.whole_disk(tmp_path), tmp_path / "damaged.raw"
    damaged.write_bytes(sound.read_bytes())
    disks.write_at(damaged, EXT.start + 1024 + 24, b"\xff\xff\xff\xff")  # s_log_block_size
    expected = [surveyed(path) for path in (sound, damaged)]
    asked = []
    exchange = child.exchange

    def noted(command: list[str], job: child.Job) -> tuple[int, bytearray, bytes]:
        asked.append(job.place)
        return exchange(command, job)

    monkeypatch.setattr(child, "exchange", noted)
    for path, one in zip((sound, damaged), expected, strict=True):
        assert_equal(surveyed_at_once(path), one)
    assert asked == [sound.name, damaged.name]


def test_where_one_child_for_all_fails_each_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "WORKER", "tests.survey.crashing_worker")
    path = disks.whole_disk(tmp_path)
    found = surveyed_at_once(path)
    assert [one.kind for one in found.volumes] == ["raw", "vfat", "swap", "raw"]
    assert_equal(found, surveyed(path))


def test_a_volume_whose_reader_hits_a_limit_is_raw(tmp_path: Path) -> None:
    path = disks.whole_disk(tmp_path)
    with open_disk(path) as disk:
        found = survey(disk, limits=Limits(memory_bytes=150 << 20))
    assert found.volumes[1].kind == "vfat"
    # whatever the small limit does to the ext reader, it is no error and never half an answer
    assert found.volumes[0].kind in {"raw", "ext4"}


def test_a_contradicting_table_is_an_error(tmp_path: Path) -> None:
    path = disks.empty(tmp_path / "guest.raw", 8 * MIB)
    disks.table(path, (Part(MIB, MIB, "83"), Part(2 * MIB, MIB, "83")), kind="dos")
    disks.write_at(path, 0x1BE + 8, (4095).to_bytes(4, "little"))  # now they overlap
    with pytest.raises(InputError, match=r"the partition table of .* cannot be read: "):
        surveyed(path)


def test_a_contradicting_table_behind_a_server_is_not_blamed_on_the_server(tmp_path: Path) -> None:
    path = disks.whole_disk(tmp_path)
    disks.write_at(path, 1024 + 32, b"\xff" * 16)  # the first entry's sectors
    disks.write_at(path, DISK_BYTES - 512, bytes(512))  # the backup header
    with (
        QemuNbd_of(path) as uri,
        open_disk(uri) as disk,
        pytest.raises(InputError, match="cannot be read: GPT") as caught,
    ):
        survey(disk)
    assert "sgdisk --verify" in caught.value.hint


def test_a_server_that_takes_no_second_client_is_a_clear_error(tmp_path: Path) -> None:
    with QemuNbd_of(disks.empty(tmp_path / "guest.raw", MIB)) as uri, open_disk(uri) as disk:
        Path(uri.rpartition("=")[2]).unlink()
        with pytest.raises(
            InputError, match=r"the partition table of nbd.* cannot be read"
        ) as caught:
            survey(disk)
    assert "--shared=0" in caught.value.hint


def cover_the_backup_table(path: Path) -> None:
    """Let the last partition of a GPT disk reach to the end of the disk."""
    with path.open("r+b") as file:
        table = bytearray(file.read(34 * 512))
        struct.pack_into("<Q", table, 1024 + 3 * 128 + 40, DISK_BYTES // 512 - 1)
        struct.pack_into("<I", table, 512 + 88, zlib.crc32(table[1024:]))
        struct.pack_into("<I", table, 512 + 16, 0)
        struct.pack_into("<I", table, 512 + 16, zlib.crc32(table[512 : 512 + 92]))
        file.seek(0)
        file.write(table)


def test_a_table_of_very_many_partitions_is_surveyed(tmp_path: Path) -> None:
    """Each of a sector, and each outside the usable sectors, which is a warning."""
    count, first = 4096, 3000
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", b"\1" * 16, bytes(16), lba, lba, 0, b"")
        for lba in range(first, first + count)
    )
    fields = (1, 9999, 9000, 9001, bytes(16), 2, count, 128, zlib.crc32(entries))
    blank = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
    header = blank[:16] + zlib.crc32(blank).to_bytes(4, "little") + blank[20:]
    path = disks.empty(tmp_path / "guest.raw", 8 * MIB)
    disks.write_at(path, 446 + 4, b"\xee" + struct.pack("<3sII", bytes(3), 1, 9999))
    disks.write_at(path, 510, b"\x55\xaa")
    disks.write_at(path, 512, header)
    disks.write_at(path, 1024, entries)
    assert len(surveyed(path).volumes) == count


def test_a_file_system_over_the_partition_table_gives_nothing_away(tmp_path: Path) -> None:
    path = disks.whole_disk(tmp_path)
    backup = path.read_bytes()[-33 * 512 :]
    disks.write_at(path, RAW.start, disks.ext4(tmp_path, DISK_BYTES - RAW.start))
    disks.write_at(path, DISK_BYTES - len(backup), backup)
    cover_the_backup_table(path)
    found = surveyed(path)
    assert found.volumes[3].end == DISK_BYTES
    assert found.volumes[3].kind == "raw"
    assert found.volumes[3].note == "it covers a part of the partition table"
    table = np.array([[0, 34 * 512], [DISK_BYTES - len(backup), DISK_BYTES]])
    assert total(intersect(found.free, table)) == 0


def test_a_volume_from_the_first_sector_of_an_mbr_disk_is_read(tmp_path: Path) -> None:
    path = disks.empty(tmp_path / "stick.raw", 64 * MIB)
    run("mkfs.fat", "--mbr=yes", "-F", "32", path)
    found = surveyed(path)
    assert found.table == "mbr"
    assert [(one.start, one.end, one.kind) for one in found.volumes] == [(0, 64 * MIB, "vfat")]
    assert found.warnings == ()
    assert total(found.free) > 60 * MIB
    assert int(found.free[0, 0]) >= 512


def test_a_boot_record_inside_a_volume_gives_nothing_away(tmp_path: Path) -> None:
    """Only the volume's own first sector may be a record: here it is one of the chain's."""
    path = disks.empty(tmp_path / "guest.raw", 64 * MIB)
    disks.write_at(path, MIB, disks.ext4(tmp_path))
    entries = ((0x83, 2048, 48 * 2048), (0x05, 50 * 2048, 4 * 2048))
    packed = (struct.pack("<B3sB3sII", 0, b"", kind, b"", *rest) for kind, *rest in entries)
    disks.write_at(path, 446, b"".join(packed).ljust(64, b"\0") + b"\x55\xaa")
    logical = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 0, 4 * 2048)  # from its own record on
    link = struct.pack("<B3sB3sII", 0, b"", 0x05, b"", 2048, 2048)  # to the middle of it
    disks.write_at(path, 50 * MIB + 446, (logical + link).ljust(64, b"\0") + b"\x55\xaa")
    disks.write_at(path, 51 * MIB + 510, b"\x55\xaa")
    fat = disks.make_volume(tmp_path, "fat", 4 * MIB, "mkfs.vfat")
    disks.write_at(path, 50 * MIB, fat[:446])
    disks.write_at(path, 50 * MIB + 512, fat[512:MIB])
    found = surveyed(path)
    assert [(one.number, one.kind) for one in found.volumes] == [(1, "ext4"), (5, "raw")]
    assert found.volumes[1].note == "it covers a part of the partition table"


def test_a_reader_that_dies_leaves_its_volume_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real supervision, with a worker whose ext reader crashes and whose others work."""
    monkeypatch.setattr(child, "WORKER", "tests.survey.crashing_worker")
    found = surveyed(disks.whole_disk(tmp_path))
    assert [one.kind for one in found.volumes] == ["raw", "vfat", "swap", "raw"]
    assert found.warnings[0].startswith(
        "partition 1: the ext reader stopped (signal 11, SIGSEGV) while reading volume 1 of "
        "guest.raw; it cannot be stubbed: up to"
    )


def test_each_volume_has_its_own_clock_and_all_together_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "WORKER", "tests.survey.hanging_worker")
    monkeypatch.setattr("packer.survey.survey.WALL_FACTOR", 2)
    path = disks.whole_disk(tmp_path)
    begin = time.monotonic()
    with pytest.raises(
        InputError, match=r"all of its 4 volumes within 10 seconds, found 2 done"
    ) as caught:
        surveyed(path, Limits(wall_seconds=5))
    assert 10 < time.monotonic() - begin < 15
    assert caught.value.message.startswith(f"{path} cannot be surveyed: ")
    assert "faster storage" in caught.value.hint


def test_a_volume_that_takes_too_long_is_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "WORKER", "tests.survey.hanging_worker")
    path = tmp_path / "whole.raw"
    path.write_bytes(disks.ext4(tmp_path))
    found = surveyed(path, Limits(wall_seconds=4))
    assert [one.kind for one in found.volumes] == ["raw"]
    assert "the ext reader took longer than 4 seconds" in found.warnings[0]


def test_every_reader_has_a_name_of_its_own() -> None:
    names = [one.name for one in worker.READERS]
    assert len(set(names)) == len(names)


def test_a_survey_of_a_small_disk_costs_little(tmp_path: Path) -> None:
    """One child for the table, one for each file system."""
    path = tmp_path / "whole.raw"
    path.write_bytes(disks.ext4(tmp_path))
    surveyed(path)
    begin = time.monotonic()
    with open_disk(path) as disk:
        survey(disk)
    assert time.monotonic() - begin < 2  # two children


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_disk_with_random_damage_is_surveyed_or_refused(tmp_path: Path, seed: int) -> None:
    """Noise over metadata: whatever comes out is sound, and nothing but InputError escapes."""
    path = disks.whole_disk(tmp_path)
    chance = random.Random(seed)
    for _ in range(30):
        start = chance.choice([0, EXT.start, EXT.start, FAT.start, SWAP.start])
        size = 34 * 512 if start == 0 else 128 * 1024
        where = start + chance.randrange(512, size)
        disks.write_at(path, where, chance.randbytes(chance.choice([1, 1, 4, 32])))
    with suppress(InputError):
        surveyed(path)


def survey_a_million_files(path: Path) -> tuple[int, tuple[str, ...], int]:
    """Return (files, warnings, peak KiB of the largest child), in a process of its own.

    The kernel keeps one peak for all children that a process ever had.
    """
    child.WORKER = "tests.survey.large_worker"
    with open_disk(path) as disk:
        found = survey(disk, limits=Limits(memory_bytes=1 << 30))
    assert len(found.name) == len(found.inode)
    return len(found.name), found.warnings, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@pytest.mark.slow
def test_a_million_files_fit_the_limit(tmp_path: Path) -> None:
    path = disks.empty(tmp_path / "large.raw", 5 << 30)
    disks.write_at(path, 0, disks.ext4(tmp_path)[:2048])
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        files, warnings, peak_kib = pool.submit(survey_a_million_files, path).result()
    assert (files, warnings) == (1_000_000, ())
    assert peak_kib < 700 << 10


@pytest.mark.guest
@pytest.mark.parametrize("name", ["debian-bios", "debian-uefi"])
def test_a_real_guest_is_surveyed(name: str) -> None:
    found = surveyed(build(name))
    assert "ext4" in {one.kind for one in found.volumes}
    assert all(one.state == "clean" for one in found.volumes)
    assert found.warnings == ()
    assert "/etc/os-release" in found.name or any(
        link == "/etc/os-release" for _, link, _ in found.symlinks
    )
