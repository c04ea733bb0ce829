"""Whatever a source does: what counts as proven is right, and an honest source completes it."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.map import Kind, Map
from packer.errors import Error
from packer.progress import Silent
from packer.sources.base import Bytes, FileRange, Piece
from packer.sources.memory import RACY_NS
from packer.sources.store import Store
from packer.unpack.output import Output
from tests.artifact.layout.media import small_medium
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of
from tests.host import shared_bytes, sharing_file_system
from tests.unpack.simulated import (
    DATA,
    MIB,
    MISDEEDS,
    Bench,
    Files,
    Simulated,
    breaks_after,
    flipped,
    numbered,
    right_then_wrong,
    sample_map,
)

SIZES = [len(data) for data in DATA]


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    """`make_bench(path)`: an output with its assembler, closed after the test."""
    benches: list[Bench] = []

    def make(*arguments: Path | Map | bytes) -> Bench:
        benches.append(Bench(*arguments))  # type: ignore[arg-type]
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(tmp_path: Path, make_bench: MakeBench) -> Bench:
    return make_bench(tmp_path / "disk")


local_or_not = pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])


@local_or_not
def test_an_honest_source_makes_the_disk(bench: Bench, local: bool) -> None:
    proven, complaints = bench.place(Simulated(local=local))
    assert (proven, complaints) == (sum(SIZES), [])
    assert bench.written() == bench.disk


@local_or_not
@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_source_that_does_wrong_leaves_nothing_wrong_as_proven(
    bench: Bench, misdeed: str, local: bool
) -> None:
    bench.place(Simulated("bad:", local=local, twist=MISDEEDS[misdeed]))
    bench.place(Simulated("bad:", local=not local, twist=MISDEEDS[misdeed]))
    bench.finish()


@local_or_not
def test_a_source_that_breaks_is_believed_for_what_came_before(bench: Bench, local: bool) -> None:
    source = Simulated(local=local, twist=breaks_after(3))
    proven, complaints = bench.place(source, np.array([0, 1, 2], dtype=np.int64))
    assert complaints == ["the cable was pulled"]
    assert proven == SIZES[0] + SIZES[1] + MIB
    assert bench.assembler.missing().tolist() == [2, 3, 4, 5]
    bench.finish()


@local_or_not
def test_a_wrong_copy_of_what_is_proven_changes_nothing(bench: Bench, local: bool) -> None:
    proven, _ = bench.place(Simulated(local=local, twist=right_then_wrong))
    assert proven == sum(SIZES)
    assert bench.written() == bench.disk


def test_blocks_of_one_content_may_come_from_several_sources(bench: Bench) -> None:
    def only(parity: int) -> Callable[[Iterator[Piece]], Iterator[Piece]]:
        return lambda pieces: (p for p in pieces if isinstance(p, Bytes) and p.block % 2 == parity)

    rows = np.array([2, 5], dtype=np.int64)
    assert bench.place(Simulated(twist=only(0)), rows)[0] == 3 * MIB
    assert {2, 5} <= set(bench.assembler.missing().tolist())
    assert bench.place(Simulated(twist=only(1)), rows)[0] == 2 * MIB + 5000
    assert not {2, 5} & set(bench.assembler.missing().tolist())


def test_pieces_may_be_views_of_a_larger_buffer(bench: Bench) -> None:
    def views(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            assert isinstance(piece, Bytes)
            frame = b"before" + bytes(piece.data) + b"after"
            yield Bytes(piece.row, piece.block, memoryview(frame)[6:-5])

    bench.place(Simulated(twist=views))
    bench.finish()


def test_what_was_proven_can_be_kept_in_a_store(bench: Bench, tmp_path: Path) -> None:
    """Contents in one piece and fragmented ones alike."""
    bench.place(Simulated())
    store = Store(tmp_path / "store")
    for row, data in enumerate(DATA):
        bench.assembler.keep(row, store)
        assert store.holds(hashlib.sha256(data).digest(), len(data))
    assert store.verify() == ()


def test_a_disk_without_contents_is_complete_at_once(make_bench: MakeBench, tmp_path: Path) -> None:
    empty = map_of(contents_of([]), [(Kind.ZERO, 1 << 20, -1, 0)])
    bench = make_bench(tmp_path / "disk", empty, bytes(1 << 20))
    assert bench.assembler.missing().tolist() == []
    assert bench.assembler.take_up(lambda _: None) == 0


# -- files -----------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"another version")


def empty(path: Path) -> None:
    os.truncate(path, 0)


MEDDLING = {"truncates": truncate, "overwrites": overwrite, "empties": empty}


@local_or_not
@pytest.mark.parametrize("offset", [0, 512, 4096])
def test_files_make_the_disk_wherever_in_them_the_contents_begin(
    bench: Bench, tmp_path: Path, offset: int, local: bool
) -> None:
    bench.place(Files(tmp_path / "files", offset=offset, local=local))
    assert bench.written() == bench.disk


@local_or_not
@pytest.mark.parametrize("what", MEDDLING)
def test_a_file_that_changes_after_it_was_offered_proves_nothing(
    bench: Bench, tmp_path: Path, what: str, local: bool
) -> None:
    source = Files(tmp_path / "files", meddle=MEDDLING[what], local=local)
    bench.place(source)
    assert {0, 1, 3} <= set(bench.assembler.missing().tolist())
    bench.finish()


# -- files whose blocks can be shared --------------------------------------------------------------


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that can share blocks."""
    if os.geteuid() != 0:
        pytest.skip("loop mounts need root")
    with sharing_file_system(tmp_path_factory.mktemp("xfs")) as place:
        yield place


@pytest.fixture
def sharing(xfs: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty folder on it."""
    folder = xfs / str(abs(hash(request.node.nodeid)))
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.root
def test_blocks_are_shared_where_the_file_system_can(make_bench: MakeBench, sharing: Path) -> None:
    bench = make_bench(sharing / "disk")
    proven, _ = bench.place(Files(sharing / "files"))
    assert proven == sum(SIZES)
    assert bench.written() == bench.disk
    os.fsync(bench.output.fd)
    whole_blocks = 2 * MIB + 3 * MIB + 2 * 20_480 + 32_768  # of contents 5, 2, 3 twice, 1
    assert shared_bytes(bench.output.partial) >= whole_blocks


@pytest.mark.root
@pytest.mark.parametrize("offset", [1, 512, 4095, 4096, 8192])
def test_sharing_and_copying_give_the_same_disk(
    make_bench: MakeBench, sharing: Path, offset: int
) -> None:
    bench = make_bench(sharing / "disk")
    bench.place(Files(sharing / "files", offset=offset))
    assert bench.assembler.missing().tolist() == []
    assert bench.written() == bench.disk
    os.fsync(bench.output.fd)
    assert (shared_bytes(bench.output.partial) > 0) == (offset % 4096 == 0)


@pytest.mark.root
@pytest.mark.parametrize("what", MEDDLING)
def test_a_file_that_changes_before_it_is_shared_proves_nothing_wrong(
    make_bench: MakeBench, sharing: Path, what: str
) -> None:
    bench = make_bench(sharing / "disk")
    bench.place(Files(sharing / "files", meddle=MEDDLING[what]))
    assert {0, 1, 3} <= set(bench.assembler.missing().tolist())
    bench.finish()


@pytest.mark.root
def test_a_file_that_changes_all_the_time_never_proves_a_wrong_byte(
    make_bench: MakeBench, sharing: Path
) -> None:
    """What is hashed is what the output shares, not what the file held a moment before."""
    size = 2 * MIB
    data = [numbered(size, seed) for seed in range(20)]
    disk_map = map_of(contents_of(data), [(Kind.CONTENT, size, row, 0) for row in range(20)])
    source = Files(sharing / "files", dict(enumerate(data)))
    stop = threading.Event()

    def scribble() -> None:
        fds = [os.open(source.path(row), os.O_RDWR) for row in range(20)]
        while not stop.is_set():
            for fd in fds:
                os.pwrite(fd, b"SCRIBBLE", 1_500_000)
        for fd in fds:
            os.close(fd)

    bench = make_bench(sharing / "disk", disk_map, b"".join(data))
    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        for _ in range(3):
            bench.place(source)
    finally:
        stop.set()
        writer.join()
    bench.check_proven()
    bench.place(Simulated(held=dict(enumerate(data))))
    assert bench.written() == bench.disk


@pytest.mark.root
@pytest.mark.parametrize("seconds", [0, RACY_NS / 1e9 + 0.5], ids=["fresh", "settled"])
def test_a_file_that_is_wrong_only_while_its_blocks_are_shared_proves_nothing(
    make_bench: MakeBench, sharing: Path, seconds: float
) -> None:
    """Before and after that moment the file holds what it should: its bytes alone do not tell."""
    source = Files(sharing / "files")
    time.sleep(seconds)
    bench = make_bench(sharing / "disk")
    bench.output.close()
    bench.output = bench.assembler.output = OutputOfAnEvilMoment(sharing / "disk", bench.disk_map)
    bench.place(source, np.array([5], dtype=np.int64))
    assert 5 in bench.assembler.missing()
    bench.finish()


class OutputThatCannotBeRead(Output):
    """An output on a medium that takes everything and gives nothing back."""

    def pread(self, offset: int, length: int) -> bytes:
        raise OSError(errno.EIO, "no")


@pytest.mark.root
@pytest.mark.parametrize(("seconds", "proven"), [(0, False), (RACY_NS / 1e9 + 0.5, True)])
def test_shared_blocks_of_a_settled_file_alone_are_proven_without_reading_the_output(
    make_bench: MakeBench, sharing: Path, seconds: float, proven: bool
) -> None:
    source = Files(sharing / "files")
    time.sleep(seconds)
    bench = make_bench(sharing / "disk")
    bench.output.close()
    output = OutputThatCannotBeRead(sharing / "disk", bench.disk_map.size)
    bench.output = bench.assembler.output = output
    rows = np.array([5], dtype=np.int64)
    bench.assembler.place_all(source, rows, lambda _: None)
    assert (5 not in bench.assembler.missing()) == proven


class OutputOfAnEvilMoment(Output):
    """An output for which other files are changed just before their blocks are shared, and back."""

    def __init__(self, path: Path, disk_map: Map) -> None:
        super().__init__(path, disk_map.size)

    def clone(self, fd: int, offset: int, target: int, length: int) -> bool:
        right = os.pread(fd, length, offset)
        with open(f"/proc/self/fd/{fd}", "r+b") as file:  # noqa: PTH123 - follows to the file
            file.seek(offset)
            file.write(b"wrong" * (length // 5))
        shared = super().clone(fd, offset, target, length)
        with open(f"/proc/self/fd/{fd}", "r+b") as file:  # noqa: PTH123
            file.seek(offset)
            file.write(right)
        return shared


@pytest.mark.root
def test_a_wrong_file_does_not_overwrite_blocks_that_another_source_has_proven(
    make_bench: MakeBench,
    sharing: Path,
) -> None:
    bench = make_bench(sharing / "disk")

    def all_but_the_last(pieces: Iterator[Piece]) -> Iterator[Piece]:
        return iter(list(pieces)[:-1])

    rows = np.array([2], dtype=np.int64)
    proven, _ = bench.place(Simulated(twist=all_but_the_last), rows)
    assert proven == 3 * MIB
    bench.place(Files(sharing / "files", {2: numbered(SIZES[2], 77)}), rows)
    # Its first three blocks count as proven since before: they must still be what was proven.
    start = 12_288
    assert bench.written()[start : start + 3 * MIB] == DATA[2][: 3 * MIB]
    bench.finish()


@pytest.mark.root
def test_a_second_wrong_file_for_the_same_content_changes_nothing(
    make_bench: MakeBench, sharing: Path
) -> None:
    wrong = {row: numbered(size, 50 + row) for row, size in enumerate(SIZES)}
    liar = Files(sharing / "wrong", wrong)

    def then_lie(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            yield piece
            fd = os.open(liar.path(piece.row), os.O_RDONLY)
            yield FileRange(piece.row, fd, 0)
            os.close(fd)

    bench = make_bench(sharing / "disk")
    bench.place(Files(sharing / "files", twist=then_lie))
    bench.place(Files(sharing / "files"))
    bench.finish()


@pytest.mark.root
def test_a_file_for_a_content_that_nobody_asked_for_is_not_touched(
    make_bench: MakeBench, sharing: Path
) -> None:
    wrong = Files(sharing / "wrong", {row: numbered(SIZES[row], 90) for row in (2, 3, 5)})

    def of_others(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            for row in (2, 3, 5):
                fd = os.open(wrong.path(row), os.O_RDONLY)
                yield FileRange(row, fd, 0)
                os.close(fd)
            yield piece

    bench = make_bench(sharing / "disk")
    bench.place(Files(sharing / "files"), np.array([2, 3, 5], dtype=np.int64))
    bench.place(Simulated(twist=of_others), np.array([0, 1], dtype=np.int64))
    assert bench.assembler.missing().tolist() == [4]
    bench.finish()


# -- what an interrupted run has left --------------------------------------------------------------


def left_over(make_bench: MakeBench, path: Path, data: bytes, disk_map: Map | None = None) -> Bench:
    """Return a bench whose partial file holds `data` when it is opened."""
    path.with_name(path.name + ".partial").write_bytes(data)
    return make_bench(path, disk_map or sample_map())


def take_up(bench: Bench) -> int:
    told: list[int] = []
    bench.assembler.clear_rest(Silent())
    proven = bench.assembler.take_up(told.append)
    assert proven == sum(told)
    bench.check_proven()
    return proven


def test_what_is_right_already_is_not_fetched_again(make_bench: MakeBench, tmp_path: Path) -> None:
    whole = make_bench(tmp_path / "first")
    whole.place(Simulated())
    bench = left_over(make_bench, tmp_path / "disk", whole.written())
    assert bench.output.resumed
    assert take_up(bench) == sum(SIZES)
    assert bench.assembler.missing().tolist() == []
    assert bench.written() == bench.disk


def test_stale_bytes_of_ranges_without_contents_become_zeros(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    """They may hold another guest's secrets: an earlier version's free blocks were contents."""
    bench = left_over(make_bench, tmp_path / "disk", b"\xee" * sample_map().size)
    assert take_up(bench) == 0
    found = bench.written()
    for kind in (Kind.ZERO, Kind.UNUSED, Kind.DROPPED):
        for start, end in bench.disk_map.ranges_of_kind(kind).tolist():
            assert not any(found[start:end])
    bench.finish()


def test_only_the_blocks_that_are_right_are_taken_over(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    whole = make_bench(tmp_path / "first")
    whole.place(Simulated())
    data = bytearray(whole.written())
    data[12_288 + MIB + 7] ^= 1  # the second block of content 2
    twin = int(whole.assembler.places.first_offset[3])
    data[twin + 100] ^= 1  # one of content 3's two places
    bench = left_over(make_bench, tmp_path / "disk", bytes(data))
    assert take_up(bench) == sum(SIZES) - MIB - SIZES[3]
    assert bench.assembler.missing().tolist() == [2, 3]
    bench.finish()


def test_a_run_that_stopped_early_leaves_holes_that_are_not_even_read(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    first = make_bench(tmp_path / "disk")
    first.place(Simulated(), np.array([1, 5], dtype=np.int64))
    first.close()
    bench = make_bench(tmp_path / "disk")
    assert take_up(bench) == SIZES[1] + SIZES[5]
    assert bench.assembler.missing().tolist() == [0, 2, 3, 4]
    bench.finish()


@pytest.mark.parametrize("size", [1, 5_000_000, 20_000_000])
def test_a_partial_file_of_another_disk_is_no_obstacle(
    make_bench: MakeBench, tmp_path: Path, size: int
) -> None:
    bench = left_over(make_bench, tmp_path / "disk", numbered(size, 8))
    assert take_up(bench) == 0
    assert os.fstat(bench.output.fd).st_size == bench.disk_map.size
    bench.finish()


def test_a_fresh_output_has_nothing_to_take_up(bench: Bench) -> None:
    assert not bench.output.resumed
    assert take_up(bench) == 0


# -- an output that fails --------------------------------------------------------------------------


@pytest.mark.root
@local_or_not
def test_a_full_medium_is_an_error_and_not_a_complaint_about_the_source(
    make_bench: MakeBench, tmp_path: Path, local: bool
) -> None:
    with small_medium(tmp_path / "small", 2 << 20) as folder:
        bench = make_bench(folder / "disk")
        with pytest.raises(Error, match="No space left") as caught:
            bench.place(Simulated(local=local))
        assert "run the same command again" in caught.value.hint
        bench.check_proven()
        bench.close()
        assert [path.name for path in folder.iterdir()] == ["disk.partial"]


def test_the_sample_disk_has_all_that_is_hard() -> None:
    """Or the tests above would prove less than they say."""
    disk_map = sample_map()
    assert {Kind(int(kind)) for kind in disk_map.kind} == set(Kind)
    assert {Class(int(one)) for one in disk_map.contents.classes} == set(Class)
    assert disk_of(disk_map, DATA) != bytes(disk_map.size)
    assert flipped(b"ab") != b"ab"
