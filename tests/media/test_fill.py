"""Filling a want-list: exactly what is wanted, proven, as far as somebody has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from packer.artifact.contents import Class
from packer.artifact.keys import generate
from packer.artifact.layout.open import open_layout
from packer.artifact.map import Kind, decode_map, encode_map
from packer.artifact.opened import OpenedPack
from packer.artifact.want import wanted_rows, write_want
from packer.clone import CLONE_UNIT_BYTES
from packer.errors import InputError, InUseError, UsageError
from packer.media.fill import FillReport, fill_list, one_after_the_other
from packer.sources.against import holds
from packer.sources.base import Piece, Source, Wanted
from packer.sources.pack import PackSource
from packer.unpack.output import Output
from packer.unpack.unpack import ContentsMissingError, unpack
from tests.artifact.make import contents_of
from tests.artifact.real_packs import disk_of, hints_of, noise, straight_map, write_pack

MIB = 1 << 20
SIZES = (512, 5_000, 3 * MIB + 7, 90, 2 * MIB, 40, 4096, 200_000, 8192)
DATA = [noise(size, seed) for seed, size in enumerate(SIZES)]
CLASSES = [Class(row % 3) for row in range(len(DATA))]
ALL = tuple(range(len(DATA)))


class Scene:
    """A pack in several copies, and a want-list of it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._key = generate(folder / "key")
        self.full = self.copy("full")
        self.boot = self.copy("boot", (Class.BOOT,))

    def copy(self, name: str, carried: Sequence[Class] = tuple(Class)) -> OpenedPack:
        hints = hints_of(contents_of(DATA), [(row, f"/srv/{row}.bin", -1) for row in ALL])
        place = self.folder / f"{name}.vmpack"
        made = write_pack(place, DATA, CLASSES, hints=hints, carried=carried, keys=[self._key])
        return self._stack.enter_context(made)

    def open(self, name: str) -> OpenedPack:
        return self._stack.enter_context(OpenedPack(open_layout(self.folder / name)))

    def want(self, *rows: int) -> OpenedPack:
        write_want(self.full, np.array(rows, dtype=np.int64), self.folder / "missing.want")
        return self.open("missing.want")

    def fill(
        self, want: OpenedPack, output: str, *sources: Source, replace: bool = False
    ) -> FillReport:
        return fill_list(want, self.folder / output, sources, replace=replace, jobs=2)


def source(pack: OpenedPack, *rows: int) -> PackSource:
    """What has these contents of a pack, or all that the pack has."""
    index = pack.index if not rows else pack.index.of_contents(np.array(rows, dtype=np.int64))
    return PackSource(f"pack:{pack.layout.location}", pack.layout, pack.map.contents, index)


def held(pack: OpenedPack) -> list[int]:
    """The contents that a copy says it has, all of them proven."""
    said = pack.index.content
    proven = holds(source(pack), Wanted(pack.map.contents, said, pack.hints))
    assert proven.tolist() == said.tolist()
    return list(said.tolist())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"key", "key.pub"}


@pytest.mark.parametrize("wanted", [(0,), (2,), (1, 3, 4), ALL], ids=str)
def test_a_filled_list_holds_what_is_wanted_and_nothing_else(
    scene: Scene, wanted: tuple[int, ...]
) -> None:
    want = scene.want(*wanted)
    report = scene.fill(want, "filled.vmpack", source(scene.full))
    filled = scene.open("filled.vmpack")
    assert held(filled) == list(wanted)
    assert report.wanted == report.found == (len(wanted), sum(SIZES[row] for row in wanted))
    assert report.missing == ()
    assert 0 < report.stored_bytes <= (scene.folder / "filled.vmpack").stat().st_size
    assert filled.manifest.kept() == scene.full.manifest.kept()
    titles = {CLASSES[row].name.lower() for row in wanted}
    assert {title.partition("-")[0] for title in filled.manifest.bundles()} == titles
    assert names(scene.folder) == {"full.vmpack", "boot.vmpack", "missing.want", "filled.vmpack"}


def test_filling_twice_gives_the_same_bytes(scene: Scene) -> None:
    want = scene.want(1, 2, 7)
    for name in ("one", "two/"):
        scene.fill(want, name, source(scene.full))
    scene.fill(want, "three", source(scene.full, 2), source(scene.full))
    assert (scene.folder / "one").read_bytes() == (scene.folder / "three").read_bytes()
    assert scene.open("two").manifest == scene.open("one").manifest


def test_what_nobody_has_is_left_out_and_said(scene: Scene) -> None:
    want = scene.want(1, 2, 3)
    report = scene.fill(want, "half.vmpack", source(scene.full, 2))
    assert held(scene.open("half.vmpack")) == [2]
    assert report.found == (1, SIZES[2])
    contents = scene.full.map.contents
    assert report.missing == tuple(
        (contents.name(row), SIZES[row], f"/srv/{row}.bin") for row in (1, 3)
    )


def test_a_half_filled_list_is_filled_further_from_other_sources(scene: Scene) -> None:
    want = scene.want(1, 2, 3, 4)
    scene.fill(want, "half.vmpack", source(scene.full, 2, 3))
    half = scene.open("half.vmpack")
    assert wanted_rows(half).tolist() == [1, 2, 3, 4]
    report = scene.fill(half, "filled.vmpack", source(scene.full, 1, 4))
    assert report.missing == ()
    assert held(scene.open("filled.vmpack")) == [1, 2, 3, 4]
    # The other way: the list itself again, and the half as one of the sources.
    scene.fill(want, "again.vmpack", source(half), source(scene.full, 1, 4))
    whole = (scene.folder / "filled.vmpack").read_bytes()
    assert (scene.folder / "again.vmpack").read_bytes() == whole


def test_a_half_is_replaced_by_what_it_is_filled_to(scene: Scene) -> None:
    scene.fill(scene.want(0, 1), "half.vmpack", source(scene.full, 0))
    half = scene.open("half.vmpack")
    with pytest.raises(UsageError, match="exists already"):
        scene.fill(half, "half.vmpack", source(scene.full))
    scene.fill(half, "half.vmpack", source(scene.full, 1), replace=True)
    assert held(scene.open("half.vmpack")) == [0, 1]


def test_two_halves_complete_a_disk_that_is_half_there(scene: Scene) -> None:
    disk = scene.folder / "disk.raw"
    with pytest.raises(ContentsMissingError) as caught:
        unpack(scene.boot, disk, [], jobs=2)
    missing = caught.value.rows.tolist()
    assert missing == [row for row in ALL if CLASSES[row] != Class.BOOT]
    want = scene.want(*missing)
    scene.fill(want, "one.vmpack", source(scene.full, *missing[:3]))
    scene.fill(want, "two.vmpack", source(scene.full, *missing[2:]))
    halves = [source(scene.open(f"{name}.vmpack")) for name in ("one", "two")]
    report = unpack(scene.boot, disk, halves, jobs=2)
    assert report.resumed_bytes == sum(SIZES[row] for row in ALL if row not in missing)
    assert disk.read_bytes() == disk_of(straight_map(contents_of(DATA)), DATA)


def test_where_nothing_is_found_nothing_is_written(scene: Scene) -> None:
    with pytest.raises(ContentsMissingError, match="nobody has 2 contents") as caught:
        scene.fill(scene.want(4, 7), "filled.vmpack", source(scene.boot))
    assert "/srv/4.bin" in str(caught.value)
    assert names(scene.folder) == {"full.vmpack", "boot.vmpack", "missing.want"}


def test_a_pack_that_is_no_list_is_refused_and_nothing_written(scene: Scene) -> None:
    with pytest.raises(InputError, match="expected a want-list"):
        scene.fill(scene.boot, "filled.vmpack", source(scene.full))
    assert names(scene.folder) == {"full.vmpack", "boot.vmpack"}


def test_what_an_interrupted_run_found_is_taken_up(scene: Scene) -> None:
    want = scene.want(1, 2, 4)
    contents = want.map.contents.only(wanted_rows(want))
    layout = one_after_the_other(contents)
    with Output(scene.folder / "filled.vmpack.contents", layout.size) as left:
        left.pwrite(int(layout.start[layout.content == 1][0]), DATA[2])
        left.pwrite(0, b"wrong" * 500)  # in the place of the first
    report = scene.fill(want, "filled.vmpack", source(scene.full))
    assert report.resumed_bytes == SIZES[2]
    assert sum(one.proven_bytes for one in report.supplied) == SIZES[1] + SIZES[4]
    assert held(scene.open("filled.vmpack")) == [1, 2, 4]
    assert not list(scene.folder.glob("*.partial"))


class Looking(PackSource):
    """A source that notes which files there are when it is asked for contents."""

    def __init__(self, pack: OpenedPack, folder: Path) -> None:
        super().__init__("pack:looking", pack.layout, pack.map.contents, pack.index)
        self._folder = folder
        self.seen: set[str] = set()

    def fetch(self, rows: NDArray[np.int64]) -> Iterator[Piece]:
        self.seen |= {str(one.relative_to(self._folder)) for one in self._folder.rglob("*.partial")}
        return super().fetch(rows)


def test_into_a_folder_that_exists_nothing_is_collected_beside_it(scene: Scene) -> None:
    """What lies beside a mount point is another medium."""
    want = scene.want(1, 2, 4)
    stick = scene.folder / "stick"
    stick.mkdir()
    (stick / "cat.jpg").write_bytes(b"meow")
    contents = want.map.contents.only(wanted_rows(want))
    layout = one_after_the_other(contents)
    with Output(stick / "filled.contents", layout.size) as left:  # of an interrupted run
        left.pwrite(int(layout.start[layout.content == 1][0]), DATA[2])
    looking = Looking(scene.full, scene.folder)
    report = fill_list(want, f"{stick}/", [looking])
    assert report.resumed_bytes == SIZES[2]
    assert looking.seen == {"stick/filled.contents.partial"}
    assert held(scene.open("stick")) == [1, 2, 4]
    assert names(stick) == {"blobs", "cat.jpg", "index.html", "index.json", "oci-layout"}
    with pytest.raises(UsageError, match="exists already"):
        fill_list(want, f"{stick}/", [source(scene.full)])
    fill_list(scene.open("stick"), f"{stick}/", [source(scene.full)], replace=True)
    assert held(scene.open("stick")) == [1, 2, 4]
    assert names(stick) == {"blobs", "cat.jpg", "index.html", "index.json", "oci-layout"}


def test_two_runs_do_not_write_one_file(scene: Scene) -> None:
    want = scene.want(1)
    with (
        Output(scene.folder / "filled.vmpack.contents", 4096),
        pytest.raises(InUseError, match="another vmpack"),
    ):
        scene.fill(want, "filled.vmpack", source(scene.full))
    assert not (scene.folder / "filled.vmpack").exists()


def test_wanted_contents_lie_in_a_row_in_whole_units() -> None:
    contents = contents_of(DATA, CLASSES)
    made = one_after_the_other(contents)
    read = decode_map(encode_map(made))
    assert np.array_equal(read.end, made.end)
    assert read.content[read.content >= 0].tolist() == list(ALL)
    starts = made.start[made.content >= 0]
    assert (starts % CLONE_UNIT_BYTES == 0).all()
    assert ((made.end - made.start)[made.content >= 0] == contents.size).all()
    assert made.size == sum(-(-size // CLONE_UNIT_BYTES) * CLONE_UNIT_BYTES for size in SIZES)
    assert made.bytes_of_kind(Kind.CONTENT) == sum(SIZES)
