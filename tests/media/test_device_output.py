"""A disk that is written over a device: its beginning last, zeros without writing, one writer."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packer.errors import Error, InUseError
from packer.media.device import Device, look_at
from packer.media.device_output import HEAD_BYTES, MARK, DeviceOutput
from packer.media.medium import Medium, is_zero
from packer.progress import Silent, ignore
from packer.sources.store import Store
from packer.unpack.assemble import Assembler
from tests.artifact.layout.media import small_medium
from tests.host import needs_root, run
from tests.survey.disks import MIB, empty, loop_device, write_at
from tests.unpack.simulated import DATA, Simulated, sample_disk, sample_map

SIZE = 8 * MIB
OLD = random.Random(1).randbytes(SIZE + MIB)
NEW = random.Random(2).randbytes(SIZE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image larger than the disk, full of noise."""
    path = tmp_path / "image"
    path.write_bytes(OLD)
    return path


@contextmanager
def memory_file_system(point: Path) -> Iterator[Path]:
    """A file system that can punch no holes and has no O_DIRECT."""
    point.mkdir()
    run("mount", "-t", "ramfs", "ramfs", point)
    try:
        yield point
    finally:
        run("umount", point)


def test_all_but_the_beginning_is_written_at_once_and_that_with_commit(image: Path) -> None:
    with DeviceOutput(look_at(image), SIZE) as output:
        output.begin("demo:1")
        for offset in range(0, SIZE, 100_000):
            output.pwrite(offset, NEW[offset : offset + 100_000])
        output.flush()
        held = image.read_bytes()
        assert held.startswith(MARK)
        assert held[512:HEAD_BYTES] == bytes(HEAD_BYTES - 512)
        assert held[HEAD_BYTES:SIZE] == NEW[HEAD_BYTES:]
        assert bytes(output.head) == NEW[:HEAD_BYTES]
        output.commit()
    held = image.read_bytes()
    assert held[:SIZE] == NEW
    assert held[SIZE:] == OLD[SIZE:], "what lies behind the disk was touched"


def test_a_half_written_device_has_no_boot_signature_and_says_what_it_is(image: Path) -> None:
    with DeviceOutput(look_at(image), SIZE) as output:
        output.begin("demo:1 sha256:…")
    start = image.read_bytes()[:512]
    assert start[510:] == b"\0\0"
    text = start.rstrip(b"\0").decode()
    assert text == (
        "vmpack: half written, not usable yet. Run the same `vmpack write` again: demo:1 sha256:…\n"
    )


def test_what_it_reads_is_what_the_disk_will_be(image: Path) -> None:
    """Also across the end of what is still in memory; nothing there is lost by the mark."""
    with DeviceOutput(look_at(image), SIZE) as output:
        output.begin("demo:1")
        assert output.pread(0, HEAD_BYTES) == OLD[:HEAD_BYTES]
        output.pwrite(HEAD_BYTES - 10, b"in memory!on the medium")
        assert output.pread(HEAD_BYTES - 12, 26) == (
            OLD[HEAD_BYTES - 12 : HEAD_BYTES - 10]
            + b"in memory!on the medium"
            + OLD[HEAD_BYTES + 13 : HEAD_BYTES + 14]
        )
        output.commit()
    assert image.read_bytes()[HEAD_BYTES - 10 :].startswith(b"in memory!on the medium")


@pytest.mark.parametrize("size", [512, 4096, 5000, HEAD_BYTES, HEAD_BYTES + 512])
def test_a_disk_may_be_smaller_than_its_beginning(image: Path, size: int) -> None:
    with DeviceOutput(look_at(image), size) as output:
        output.begin("demo:1")
        output.pwrite(0, NEW[:size])
        output.commit()
    assert image.read_bytes() == NEW[:size] + OLD[size:]


CLEARED = [
    (0, SIZE),
    (0, 100),
    (HEAD_BYTES - 5, HEAD_BYTES + 5),
    (HEAD_BYTES + 1, HEAD_BYTES + 4097),
    (2 * MIB, 4 * MIB),
    (2 * MIB - 100, 4 * MIB + 100),
    (3 * MIB + 512, 6 * MIB + 1024),
    (SIZE - 1, SIZE),
]


def cleared(path: Path, start: int, end: int) -> bytes:
    with DeviceOutput(look_at(path), SIZE) as output:
        output.begin("demo:1")
        output.clear(start, end)
        output.commit()
    return path.read_bytes()[:SIZE]


@pytest.mark.parametrize(("start", "end"), CLEARED)
def test_what_is_cleared_reads_as_zeros_and_nothing_else_does(
    image: Path, start: int, end: int
) -> None:
    assert cleared(image, start, end) == OLD[:start] + bytes(end - start) + OLD[end:SIZE]


@needs_root
@pytest.mark.parametrize(("start", "end"), CLEARED)
def test_it_is_so_on_a_device_that_can_forget_and_on_one_that_cannot(
    tmp_path: Path, image: Path, start: int, end: int
) -> None:
    expected = OLD[:start] + bytes(end - start) + OLD[end:SIZE]
    with loop_device(image) as path:
        assert cleared(path, start, end) == expected
    with memory_file_system(tmp_path / "memory") as memory:
        (memory / "image").write_bytes(OLD)
        with loop_device(memory / "image") as path:
            assert cleared(path, start, end) == expected
        (memory / "image").write_bytes(OLD)
        assert cleared(memory / "image", start, end) == expected


@needs_root
def test_a_long_cleared_range_is_forgotten_by_the_device_and_not_written(image: Path) -> None:
    with loop_device(image) as path:
        cleared(path, 2 * MIB, SIZE)
    assert image.stat().st_blocks * 512 <= 3 * MIB + 65536, "the zeros take space"


@needs_root
def test_zeros_are_not_written_again(tmp_path: Path) -> None:
    """On a device that can forget nothing: to read is faster than to write, and wears nothing."""
    with memory_file_system(tmp_path / "memory") as memory:
        image = empty(memory / "image", SIZE)
        write_at(image, 5 * MIB + 1, b"x")
        with loop_device(image) as path, DeviceOutput(look_at(path), SIZE) as output:
            statistics = Path(f"/sys/block/{path.name}/stat")
            before = int(statistics.read_text().split()[6])
            output.clear(HEAD_BYTES, SIZE)
            output.flush()
            written = (int(statistics.read_text().split()[6]) - before) * 512
        assert image.read_bytes() == bytes(SIZE)
    assert 0 < written <= MIB


def test_a_blank_device_has_nothing_to_take_up_and_any_other_may_have(tmp_path: Path) -> None:
    path = empty(tmp_path / "image", SIZE)
    with DeviceOutput(look_at(path), SIZE) as output:
        assert not output.resumed
        output.begin("demo:1")
    with DeviceOutput(look_at(path), SIZE) as output:
        assert output.resumed
    other = empty(tmp_path / "other", SIZE)
    write_at(other, SIZE - 1, b"x")
    with DeviceOutput(look_at(other), 4 * MIB) as output:
        assert output.resumed


# -- as the target of an assembler -----------------------------------------------------------------


@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
def test_an_assembler_makes_the_disk_of_it_and_keeps_contents_from_there(
    tmp_path: Path, image: Path, local: bool
) -> None:
    """Those that are still in memory, too; the store gets copies, never blocks of the device."""
    store = Store(tmp_path / "store")
    with DeviceOutput(look_at(image), len(sample_disk())) as output:
        output.begin("demo:1")
        assembler = Assembler(sample_map(), output, 2)
        assembler.clear_rest(Silent())
        assert assembler.take_up(ignore) == 0
        assembler.place_all(Simulated(local=local), assembler.missing(), ignore)
        assert assembler.missing().tolist() == []
        for row, data in enumerate(DATA):
            assembler.keep(row, store)
            assert store.holds(hashlib.sha256(data).digest(), len(data))
        output.commit()
    assert store.verify() == ()
    assert image.read_bytes()[: len(sample_disk())] == sample_disk()


def test_what_is_right_on_a_device_is_taken_up_even_where_it_is_not_written_yet(
    image: Path,
) -> None:
    """The beginning was read before the mark was put there."""
    damaged = bytearray(sample_disk() + OLD)
    place = int(sample_map().start[4])  # the first block of the third content
    damaged[place] ^= 1
    image.write_bytes(damaged)
    with DeviceOutput(look_at(image), len(sample_disk())) as output:
        output.begin("demo:1")
        assembler = Assembler(sample_map(), output, 2)
        assembler.clear_rest(Silent())
        assert assembler.take_up(ignore) == sum(map(len, DATA)) - MIB
        assert assembler.missing().tolist() == [2]
        assembler.place_all(Simulated(), assembler.missing(), ignore)
        output.commit()
    assert image.read_bytes() == sample_disk() + OLD


@needs_root
def test_what_an_earlier_run_wrote_is_taken_up_from_the_medium_and_not_from_memory(
    image: Path,
) -> None:
    """Else what the medium lost would count as right, and never be written again."""
    with loop_device(image) as path, path.open("rb") as another:
        assert another.read(SIZE) == OLD[:SIZE]
        write_at(image, 3 * MIB, b"lost")
        with DeviceOutput(look_at(path), SIZE) as output:
            assert output.pread(3 * MIB, 4) == b"lost"


# -- one writer ------------------------------------------------------------------------------------

SECOND = """
import sys
from packer.errors import InUseError
from packer.media.device import look_at
from packer.media.device_output import DeviceOutput
try:
    DeviceOutput(look_at(sys.argv[1]), 4096)
except InUseError as error:
    print(error)
"""


def second(path: Path) -> str:
    """What a second process is told that wants the same device."""
    return run(sys.executable, "-c", SECOND, path)


def test_a_second_writer_is_refused(image: Path) -> None:
    with DeviceOutput(look_at(image), SIZE):
        assert "another program has locked it" in second(image)
    assert second(image) == ""


@needs_root
def test_a_device_cannot_be_mounted_or_written_by_others_meanwhile(
    tmp_path: Path, image: Path
) -> None:
    point = tmp_path / "point"
    point.mkdir()
    with loop_device(image) as path:
        run("mke2fs", "-q", "-t", "ext4", path)
        with DeviceOutput(look_at(path), SIZE):
            done = subprocess.run(
                ["mount", path, point], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                run("umount", point)
            assert "busy" in done.stderr
            assert "the kernel uses it" in second(path)
        run("mount", path, point)
        try:
            with pytest.raises(InUseError, match="the kernel uses it: it is mounted"):
                DeviceOutput(look_at(path), SIZE)
        finally:
            run("umount", point)


def test_another_file_in_its_place_is_not_written(image: Path, tmp_path: Path) -> None:
    device = look_at(image)
    image.rename(tmp_path / "moved")
    image.write_bytes(OLD)
    with pytest.raises(InUseError, match="was replaced meanwhile"):
        DeviceOutput(device, SIZE)
    (tmp_path / "moved").replace(image)
    os.truncate(image, SIZE)
    with pytest.raises(InUseError, match="was replaced meanwhile"):
        DeviceOutput(device, SIZE)
    assert image.read_bytes() == OLD[:SIZE]


def test_a_link_in_its_place_is_not_followed(image: Path, tmp_path: Path) -> None:
    device = look_at(image)
    image.rename(tmp_path / "moved")
    image.symlink_to(tmp_path / "moved")
    with pytest.raises(Error, match="cannot be opened"):
        DeviceOutput(device, SIZE)


@needs_root
def test_another_device_under_its_name_is_not_written(tmp_path: Path, image: Path) -> None:
    """As after a stick was pulled and another one put in, which gets the same letter."""
    other = empty(tmp_path / "other", SIZE + 2 * MIB)
    with loop_device(image) as path:
        device = look_at(path)
    with loop_device(other, "--find") as path:
        found = look_at(path)
        assert found != device
        same_name = Device(path, device.name, device.size, 512, number=found.number)
        with pytest.raises(InUseError, match="was replaced meanwhile"):
            DeviceOutput(same_name, SIZE)


# -- media that fail -------------------------------------------------------------------------------


@needs_root
def test_a_device_that_takes_no_more_is_one_clear_error(tmp_path: Path) -> None:
    """A loop device answers with an I/O error when the disk below its file is full."""
    with small_medium(tmp_path / "small", 4 * MIB) as small:
        image = empty(small / "image", SIZE)
        with loop_device(image) as path, DeviceOutput(look_at(path), SIZE) as output:
            output.begin("demo:1")
            with pytest.raises(Error, match="cannot write") as caught:
                write_all(output)
            assert caught.value.hint
        assert image.read_bytes().startswith(MARK)


def write_all(output: DeviceOutput) -> None:
    for offset in range(0, SIZE, MIB):
        output.pwrite(offset, NEW[offset : offset + MIB])
    output.flush()


def test_a_read_only_file_is_one_clear_error(image: Path) -> None:
    if os.geteuid() == 0:
        run("chattr", "+i", image)
    else:
        image.chmod(0o400)
    try:
        with pytest.raises(Error, match=r"cannot be opened: (Operation not|Permission)"):
            DeviceOutput(look_at(image), SIZE)
    finally:
        if os.geteuid() == 0:
            run("chattr", "-i", image)


# -- the medium itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 4096), (4095, 2), (5000, 100_000), (SIZE + MIB - 7, 7), (9, 0)],
)
def test_a_medium_is_read_at_any_offset(image: Path, offset: int, length: int) -> None:
    with image.open("rb") as file:
        medium = Medium(file.fileno())
        assert bytes(medium.read(offset, length)) == OLD[offset : offset + length]
        medium.close()


def test_a_medium_that_ends_early_is_an_error(image: Path) -> None:
    with image.open("rb") as file:
        medium = Medium(file.fileno())
        with pytest.raises(OSError, match="ends at byte"):
            medium.read(SIZE + MIB - 10, 11)
        medium.close()


@needs_root
def test_what_the_kernel_remembers_of_a_device_is_not_what_is_read(image: Path) -> None:
    """The image below is changed behind the back of the loop device's cache."""
    with loop_device(image) as path, path.open("rb") as file:
        assert file.read(4096) == OLD[:4096]
        write_at(image, 100, b"changed")
        assert os.pread(file.fileno(), 4096, 0) == OLD[:4096], "it is not in the cache"
        medium = Medium(file.fileno())
        assert bytes(medium.read(100, 7)) == b"changed"
        medium.close()


@pytest.mark.parametrize("place", [None, 0, 7, 8, 99, 100])
def test_zeros_are_told_from_anything_else(place: int | None) -> None:
    data = bytearray(101)
    if place is not None:
        data[place] = 1
    assert is_zero(bytes(data)) == (place is None)
    assert is_zero(memoryview(data)[:place])
