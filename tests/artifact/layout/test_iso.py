"""ISO images that we write and read; what other tools make of them is in tests/peers."""

from __future__ import annotations

import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from formats.filesystem.iso9660 import Entry, Iso9660
from formats.source import FileSource, Memory
from packer.artifact import manifest as manifests
from packer.artifact.layout.base import Layout, most_index_bytes
from packer.artifact.layout.extras import Extra, Page
from packer.artifact.layout.iso import IsoLayout, is_iso
from packer.artifact.layout.iso_writer import IsoWriter, iso_bytes
from packer.artifact.layout.open import is_layout, open_layout
from packer.artifact.layout.tar import TarLayout, TarWriter
from packer.errors import Error, InputError
from tests.artifact.fake_packs import FakePack, read_everything, write_pack
from tests.formats.damage import at_most_one_gib, damaged

SECTOR = 2048
EXTRAS = (
    Extra("unpacker/vmpack-linux-x86_64", b"\x7fELF" * 999, executable=True),
    Extra("unpacker/wheels/vmpack-0.1-py3-none-any.whl", b"PK" * 5000),
    Extra("unpacker/wheels/empty.whl", b""),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demo.iso"


@pytest.fixture
def pack(path: Path) -> FakePack:
    with IsoWriter(path, extras=EXTRAS, page=page(b"<!DOCTYPE html>")) as writer:
        return write_pack(writer)


def page(data: bytes) -> Page:
    return Page(lambda layout, extras: data, lambda blobs: 10_000)


def files(path: Path) -> dict[str, Entry]:
    """Every file of an image."""

    def walk(folder: Entry, name: str) -> Iterator[tuple[str, Entry]]:
        for entry in volume.entries(folder).values():
            if entry.is_folder:
                yield from walk(entry, f"{name}{entry.name}/")
            else:
                yield name + entry.name, entry

    with FileSource(path) as source:
        volume = Iso9660(source)
        return dict(walk(volume.root, ""))


def test_an_image_is_known_by_its_content(tmp_path: Path, path: Path, pack: FakePack) -> None:
    renamed = path.rename(tmp_path / "demo.vmpack")
    layout = open_layout(renamed)
    assert isinstance(layout, IsoLayout)
    assert read_everything(layout) == (pack.manifest, pack.blobs)
    assert is_iso(renamed)
    assert is_layout(renamed)
    with TarWriter(path) as writer:
        write_pack(writer)
    assert isinstance(open_layout(path), TarLayout)


def test_a_tar_file_with_the_mark_of_an_image_in_it_is_a_tar_file(tmp_path: Path) -> None:
    """Its first sectors are free for others, so a file can be both; only one may be meant."""
    (tmp_path / "mark").write_bytes(bytes(32769 - 512) + b"CD001" + bytes(4096))
    with tarfile.open(tmp_path / "both", "w") as tar:
        tar.add(tmp_path / "mark", "mark")
    assert not is_iso(tmp_path / "both")


def test_what_lies_beside_the_blobs_is_there(path: Path, pack: FakePack) -> None:
    found = files(path)
    blobs = {f"blobs/sha256/{digest[7:]}" for digest in pack.blobs}
    beside = {"oci-layout", "index.json", "index.html", *(extra.name for extra in EXTRAS)}
    assert found.keys() == blobs | beside
    with FileSource(path) as source:
        for extra in EXTRAS:
            spans = found[extra.name].spans(0, extra.size)
            assert b"".join(source.pread(*span) for span in spans) == extra.data


def test_files_lie_in_the_order_in_which_they_are_read(path: Path, pack: FakePack) -> None:
    layers = [pack.manifest.config, *pack.manifest.layers]
    names = [f"blobs/sha256/{digest[7:]}" for digest in (
        pack.manifest_blob.digest, *(layer.digest for layer in layers))]  # fmt: skip
    expected = ["oci-layout", "index.json", *names, "index.html", *(e.name for e in EXTRAS[:2])]
    found = files(path)
    starts = [found[name].runs[0][0] for name in expected]
    assert starts == sorted(starts)
    ends = [
        start + -(-found[n].size // SECTOR) * SECTOR
        for n, start in zip(expected, starts, strict=True)
    ]
    assert ends[:-1] == starts[1:], "nothing lies between them"
    assert ends[-1] == path.stat().st_size


def test_the_same_files_give_the_same_image(
    tmp_path: Path, path: Path, pack: FakePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.25)
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "other-name.iso"
    with IsoWriter(again, extras=EXTRAS, page=page(b"<!DOCTYPE html>")) as writer:
        write_pack(writer)
    monkeypatch.undo()
    time.tzset()
    assert again.read_bytes() == path.read_bytes()


def test_no_time_and_no_place_is_written(path: Path, pack: FakePack) -> None:
    data = path.read_bytes()[: 64 * SECTOR]
    year = time.gmtime().tm_year
    assert str(year).encode() not in data
    assert bytes([year - 1900, time.gmtime().tm_mon]) not in data
    assert path.parent.name.encode() not in data


@pytest.mark.parametrize("bundles", [1, 3, 60, 250])
def test_the_size_of_an_image_is_known_exactly(tmp_path: Path, bundles: int) -> None:
    titles = ["boot", *(f"shared-{number:03d}" for number in range(bundles - 1))]
    with IsoWriter(tmp_path / "a.iso", extras=EXTRAS, page=page(b"x" * 10_000)) as writer:
        pack = write_pack(writer, titles)
        sizes = [len(data) for data in pack.blobs.values()]
        most = writer.medium_bytes(sizes)
    beside = [("index.html", 10_000), *((extra.name, extra.size) for extra in EXTRAS)]
    assert iso_bytes(sizes, beside) == most
    size = (tmp_path / "a.iso").stat().st_size
    index = files(tmp_path / "a.iso")["index.json"].size
    spare = -(-most_index_bytes(len(sizes)) // SECTOR) - -(-index // SECTOR)
    assert size == most - spare * SECTOR, "only index.json is smaller than it could be"


def test_what_a_page_is_made_of_is_the_layout_itself(tmp_path: Path) -> None:
    seen: list[tuple[bytes, Sequence[Extra]]] = []

    def make(layout: Layout, extras: Sequence[Extra]) -> bytes:
        seen.append((layout.index(), extras))
        return b"page"

    with IsoWriter(tmp_path / "a.iso", extras=EXTRAS, page=Page(make, lambda blobs: 4)) as writer:
        write_pack(writer)
    assert seen == [(open_layout(tmp_path / "a.iso").index(), EXTRAS)]


def test_a_file_that_shrinks_while_it_is_copied_leaves_nothing(tmp_path: Path) -> None:
    class Shrinking(Extra):
        @property
        def size(self) -> int:
            return len(self.data) + 1 if isinstance(self.data, bytes) else 0

    extra = Shrinking("unpacker/vmpack-linux-x86_64", b"program")
    with (
        pytest.raises(Error, match="vmpack-linux-x86_64 became shorter"),
        IsoWriter(tmp_path / "a.iso", extras=[extra]) as writer,
    ):
        write_pack(writer)
    assert list(tmp_path.iterdir()) == []


class FarAway(Memory):
    """An image far away: counts the requests that reading it takes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.requests = 0
        self.together = 0

    def pread(self, offset: int, length: int) -> bytes:
        self.requests += 1
        return super().pread(offset, length)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        self.together += 1
        for row, (offset, length) in enumerate(ranges):
            yield row, super().pread(offset, length)


def test_an_image_far_away_is_read_where_it_lies(path: Path, pack: FakePack) -> None:
    source = FarAway(path.read_bytes())
    layout = IsoLayout(source, "far away", remote=True, read_ranges=source.read_ranges)
    assert layout.remote
    assert source.requests < 12, "descriptors, three folders, oci-layout"
    before = source.requests
    boot = pack.manifest.bundles()["private"]
    data = pack.blobs[boot.digest]
    ranges = [(1500, 500), (0, 1), (7, 0)]
    expected = {row: data[at : at + length] for row, (at, length) in enumerate(ranges)}
    assert dict(layout.read_many(boot.digest, ranges)) == expected
    assert (source.requests, source.together) == (before, 1)


def test_ranges_lie_inside_a_blob(path: Path, pack: FakePack) -> None:
    layout = open_layout(path)
    boot = pack.manifest.bundles()["private"]
    assert list(layout.read_many(boot.digest, [])) == []
    for digest, offset, length in (
        (boot.digest, boot.size, 1), (boot.digest, -1, 1), (boot.digest, 0, boot.size + 1),
        (boot.digest, 0, -1), ("sha256:" + "0" * 64, 0, 1), ("sha256:../../index.json", 0, 1),
    ):  # fmt: skip
        with pytest.raises(InputError):
            layout.read(digest, offset, length)
    layout.close()


def test_a_folder_that_has_a_blobs_name_is_none(tmp_path: Path) -> None:
    """A name of 64 digits that is a folder; made by another tool."""
    (tmp_path / "tree/blobs/sha256" / ("0" * 64)).mkdir(parents=True)
    (tmp_path / "tree/oci-layout").write_bytes(manifests.OCI_LAYOUT)
    layout = made_of(tmp_path / "tree")
    assert layout.blob_size("sha256:" + "0" * 64) is None
    with pytest.raises(InputError, match=r"expected the file index\.json"):
        layout.index()


@pytest.mark.parametrize("lacking", ["oci-layout", "blobs", "blobs/sha256"])
def test_an_image_of_something_else_is_no_pack(tmp_path: Path, lacking: str) -> None:
    tree = tmp_path / "tree"
    (tree / "blobs" / "sha256").mkdir(parents=True)
    (tree / "oci-layout").write_bytes(manifests.OCI_LAYOUT)
    (tree / "index.json").write_bytes(b"{}")
    (tree / lacking).rename(tmp_path / "moved")
    (tree / lacking).symlink_to("/etc/hostname")
    with pytest.raises(InputError):
        made_of(tree)
    assert is_iso(tmp_path / "tree.iso")
    assert not is_layout(tmp_path / "tree.iso")


def made_of(tree: Path) -> IsoLayout:
    image = tree.with_suffix(".iso")
    subprocess.run(["genisoimage", "-quiet", "-R", "-o", image, tree], check=True)
    layout = open_layout(image)
    assert isinstance(layout, IsoLayout)
    return layout


def test_an_index_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tree/blobs/sha256").mkdir(parents=True)
    (tmp_path / "tree/oci-layout").write_bytes(manifests.OCI_LAYOUT)
    (tmp_path / "tree/index.json").write_bytes(bytes((4 << 20) + 1))
    with pytest.raises(InputError, match="at most 4194304 bytes"):
        made_of(tmp_path / "tree").index()


def test_two_thousand_damaged_images_are_errors_or_harmless(path: Path, pack: FakePack) -> None:
    """Bits flipped and ends cut off, half of them in what describes the files. Each in its time.

    Of the processor: others may keep this host busy.
    """
    data = path.read_bytes()
    areas = [(16 * SECTOR, 44 * SECTOR), (0, len(data))]
    slowest, refused = 0.0, 0
    with at_most_one_gib():
        for broken in damaged(data, areas, 2000, seed=5):
            began = time.process_time()
            try:
                manifest, _ = read_everything(IsoLayout(Memory(broken), "damaged"))
                assert manifest == pack.manifest
            except InputError:
                refused += 1
            slowest = max(slowest, time.process_time() - began)
    assert 200 < refused < 2000
    assert slowest < 1


@pytest.mark.slow
def test_a_file_of_more_than_4_gib_is_one_file(tmp_path: Path) -> None:
    """In several extents; xorriso and the kernel read the same (tests/peers)."""
    size = (4 << 30) + 12345
    with (tmp_path / "big").open("wb") as big:
        for number in range(0, 4100, 100):
            big.seek(number << 20)
            big.write(b"%d MiB" % number)
        big.truncate(size)
    with IsoWriter(tmp_path / "a.iso", extras=[Extra("big", tmp_path / "big")]) as writer:
        pack = write_pack(writer)
    assert read_everything(open_layout(tmp_path / "a.iso")) == (pack.manifest, pack.blobs)
    entry = files(tmp_path / "a.iso")["big"]
    assert (entry.size, len(entry.runs)) == (size, 1)
    with FileSource(tmp_path / "a.iso") as source:
        for number in range(0, 4100, 100):
            ((start, length),) = entry.spans(number << 20, 8)
            assert source.pread(start, length).rstrip(b"\0") == b"%d MiB" % number
    shown = subprocess.run(
        ["xorriso", "-indev", tmp_path / "a.iso", "-lsl", "/big"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f" {size} " in shown
    (tmp_path / "a.iso").unlink()
