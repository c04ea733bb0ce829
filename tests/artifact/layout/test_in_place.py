"""Layouts written into folders that exist; on real FAT and exFAT in tests/peers."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from packer.artifact.layout.base import Layout
from packer.artifact.layout.directory import DirectoryLayout, DirectoryWriter
from packer.artifact.layout.extras import Extra, Page
from packer.artifact.layout.in_place import InPlaceWriter
from packer.artifact.layout.left_behind import lock_folder
from packer.artifact.layout.open import open_layout
from packer.artifact.layout.staging import FAT_FILE_BYTES
from packer.artifact.manifest import Blob, Entry
from packer.errors import Error, InputError, InUseError, UsageError
from tests.artifact.fake_packs import FakePack, read_everything, write_pack
from tests.artifact.layout.media import file_size_limit, small_medium
from tests.artifact.layout.writers import fill

FOREIGN = {
    "System Volume Information/IndexerVolumeGuid": b"x",
    "photos/cat.jpg": b"meow",
    "blobs/readme.txt": b"a folder of somebody else's with the name of ours",
    "blobs/sha256/notes.txt": b"and one more",
}
PROGRAM = Extra("unpacker/vmpack-linux-x86_64", b"\x7fELF" * 100, executable=True)


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """A folder with other files."""
    folder = tmp_path / "stick"
    for name, data in FOREIGN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def page(text: str) -> Page:
    return Page(lambda layout, extras: text.encode() + layout.index(), lambda blobs: 10_000)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def of(pack: FakePack) -> set[str]:
    """The files of a pack in its folder."""
    return {"oci-layout", "index.json", *(f"blobs/sha256/{one[7:]}" for one in pack.blobs)}


def test_what_lies_there_stays_and_the_pack_is_whole(stick: Path) -> None:
    with InPlaceWriter(stick, extras=[PROGRAM], page=page("one")) as writer:
        pack = write_pack(writer)
    found = files(stick)
    assert found.keys() == FOREIGN.keys() | of(pack) | {"index.html", PROGRAM.name}
    assert {name: found[name] for name in FOREIGN} == FOREIGN
    assert found["index.html"] == b"one" + found["index.json"]
    assert stat.S_IMODE((stick / PROGRAM.name).stat().st_mode) & 0o111 == 0o111
    layout = open_layout(stick)
    assert read_everything(layout) == (pack.manifest, pack.blobs)
    layout.close()


def test_a_layout_is_replaced_only_when_told(stick: Path) -> None:
    with InPlaceWriter(stick) as writer:
        write_pack(writer, ["boot", "private", "shared-000"])
    before = files(stick)
    with pytest.raises(UsageError, match="holds a layout") as caught:
        InPlaceWriter(stick)
    assert "--force" in caught.value.hint
    assert files(stick) == before
    with InPlaceWriter(stick, replace=True, page=page("two")) as writer:
        pack = write_pack(writer, ["boot"])
    assert files(stick).keys() == FOREIGN.keys() | of(pack) | {"index.html"}
    assert read_everything(open_layout(stick)) == (pack.manifest, pack.blobs)


def test_until_the_end_the_old_pack_is_whole(stick: Path) -> None:
    with InPlaceWriter(stick) as writer:
        old = write_pack(writer, ["boot", "private"])
    with InPlaceWriter(stick, replace=True) as writer:
        for data in (b"new", b"newer"):
            writer.add(data)
            assert read_everything(open_layout(stick)) == (old.manifest, old.blobs)
    assert files(stick).keys() == FOREIGN.keys() | of(old), "given up: what was new went"
    assert read_everything(open_layout(stick)) == (old.manifest, old.blobs)


def test_what_is_there_already_is_not_written_again(tmp_path: Path, stick: Path) -> None:
    with DirectoryWriter(tmp_path / "pack") as writer:
        pack = write_pack(writer)
    source = open_layout(tmp_path / "pack")
    private = pack.manifest.bundles()["private"].digest
    damaged = stick / "blobs" / "sha256" / pack.manifest.bundles()["boot"].digest[7:]
    inodes: list[int] = []
    for replace in (False, True):
        with InPlaceWriter(stick, replace=replace) as writer:
            for blob in pack.manifest.blobs():
                writer.copy(source, Blob(blob.digest, blob.size))
            writer.finish([Entry(pack.manifest, "demo:3")])
        assert read_everything(open_layout(stick)) == (pack.manifest, pack.blobs)
        inodes.append((stick / "blobs" / "sha256" / private[7:]).stat().st_ino)
        damaged.write_bytes(b"x" * damaged.stat().st_size)
    assert inodes[0] == inodes[1]


@pytest.mark.parametrize(
    "leftover",
    [
        [f"blobs/sha256/{'a' * 64}", f"blobs/sha256/{'b' * 64}.partial"],
        ["oci-layout", "index.html", "blobs/sha256/incoming-3.partial"],
        ["oci-layout", "index.json.partial", "index.html.partial", "oci-layout.partial"],
    ],
    ids=["blobs", "page", "index"],
)
def test_what_a_killed_run_left_is_taken_away(stick: Path, leftover: list[str]) -> None:
    for name in leftover:
        (stick / name).write_bytes(b"left")
    with InPlaceWriter(stick, page=page("whole")) as writer:
        pack = write_pack(writer)
    assert files(stick).keys() == FOREIGN.keys() | of(pack) | {"index.html"}


def test_nothing_is_left_when_writing_is_given_up(stick: Path) -> None:
    (stick / "blobs" / "sha256" / ("a" * 64)).write_bytes(b"of a killed run")
    with InPlaceWriter(stick, extras=[PROGRAM]) as writer:
        writer.add(b"one")
        writer.stream().write(b"never finished")
    assert files(stick) == FOREIGN
    empty = stick / "empty"
    empty.mkdir()
    with InPlaceWriter(empty) as writer:
        writer.add(b"one")
    assert list(empty.iterdir()) == []


def test_a_page_that_cannot_be_made_leaves_nothing(stick: Path) -> None:
    def fail(layout: Layout, extras: Sequence[Extra]) -> bytes:
        raise InputError("the map is damaged")

    with (
        pytest.raises(InputError, match="map is damaged"),
        InPlaceWriter(stick, extras=[PROGRAM], page=Page(fail, lambda blobs: 1)) as writer,
    ):
        write_pack(writer)
    assert files(stick) == FOREIGN


@pytest.mark.parametrize("name", ["index.html", PROGRAM.name])
def test_files_of_somebody_else_are_not_overwritten(stick: Path, name: str) -> None:
    (stick / name).parent.mkdir(exist_ok=True)
    (stick / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match="belongs to no layout"):
        InPlaceWriter(stick, extras=[PROGRAM], page=page("x"))
    assert files(stick) == FOREIGN | {name: b"mine"}


def test_an_index_of_something_else_is_never_replaced(stick: Path) -> None:
    (stick / "index.json").write_bytes(b"mine")
    for replace in (False, True):
        with pytest.raises(UsageError, match=r"index\.json of something else"):
            InPlaceWriter(stick, replace=replace)
    assert files(stick) == FOREIGN | {"index.json": b"mine"}


def test_two_runs_do_not_write_at_once(stick: Path) -> None:
    fd = lock_folder(stick)
    with pytest.raises(InUseError, match="another run"):
        InPlaceWriter(stick)
    os.close(fd)
    with InPlaceWriter(stick) as writer:
        with pytest.raises(InUseError, match="another run"):
            InPlaceWriter(stick)
        write_pack(writer)
    InPlaceWriter(stick, replace=True).abort()


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "unpacker"])
def test_a_link_to_another_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    stick, home = tmp_path / "stick", tmp_path / "home"
    (stick / name).parent.mkdir(parents=True)
    home.mkdir()
    (stick / name).symlink_to(home)
    with (
        pytest.raises(UsageError, match="is a symbolic link"),
        InPlaceWriter(stick, extras=[PROGRAM]) as writer,
    ):
        write_pack(writer)
    assert list(home.iterdir()) == []
    assert (stick / name).is_symlink()


@pytest.mark.parametrize("kind", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(
    tmp_path: Path, kind: Callable[[Path, Path], None]
) -> None:
    """A stranger's medium must not make us write elsewhere."""
    with DirectoryWriter(tmp_path / "pack") as writer:
        pack = write_pack(writer)
    source = open_layout(tmp_path / "pack")
    stick, secret = tmp_path / "stick", tmp_path / "secret"
    (stick / "blobs" / "sha256").mkdir(parents=True)
    secret.write_bytes(b"")
    blob = f"blobs/sha256/{pack.manifest.config.digest[7:]}"
    own = ["index.json", "oci-layout", "index.html", PROGRAM.name, "blobs/sha256/incoming-0", blob]
    for name in (blob, *(f"{one}.partial" for one in own)):
        (stick / name).parent.mkdir(exist_ok=True)
        kind(secret, stick / name)
    with InPlaceWriter(stick, extras=[PROGRAM], page=page("x")) as writer:
        writer.copy(source, Blob(pack.manifest.config.digest, pack.manifest.config.size))
        assert write_pack(writer).blobs == pack.blobs
    assert secret.read_bytes() == b""
    assert files(stick).keys() == of(pack) | {"index.html", PROGRAM.name}
    assert read_everything(open_layout(stick)) == (pack.manifest, pack.blobs)


class Breaking(DirectoryLayout):
    """A layout far away whose connection breaks after so many bytes."""

    remote = True

    def __init__(self, path: Path, left: int) -> None:
        super().__init__(path)
        self.left = left
        self.sent = 0

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        for row, data in super().read_many(digest, ranges):
            if len(data) > self.left:
                raise InputError("the connection broke")
            self.left -= len(data)
            self.sent += len(data)
            yield row, data


def test_what_came_over_the_network_is_not_fetched_twice(tmp_path: Path, stick: Path) -> None:
    with DirectoryWriter(tmp_path / "far") as writer:
        fill(writer, bundle_bytes=20 << 20)
    manifest, _ = read_everything(DirectoryLayout(tmp_path / "far"))
    boot = manifest.bundles()["boot"]
    broken = Breaking(tmp_path / "far", left=13 << 20)
    with pytest.raises(InputError, match="broke"), InPlaceWriter(stick) as writer:
        writer.copy(broken, Blob(boot.digest, boot.size))
    assert not (stick / "index.json").exists()
    assert broken.sent == 12 << 20
    whole = Breaking(tmp_path / "far", left=1 << 30)
    with InPlaceWriter(stick) as writer:
        for blob in manifest.blobs():
            writer.copy(whole, Blob(blob.digest, blob.size))
        writer.finish([Entry(manifest, "demo:1")])
    assert whole.sent < 9 << 20
    assert read_everything(open_layout(stick))[0] == manifest
    assert not [name for name in files(stick) if name.endswith(".partial")]


def test_a_file_that_may_not_grow_is_an_error_and_leaves_nothing(stick: Path) -> None:
    with file_size_limit(1 << 20):
        with pytest.raises(Error, match="File too large") as caught, InPlaceWriter(stick) as writer:
            fill(writer, bundle_bytes=5 << 20)
        assert "exFAT" in caught.value.hint
    assert files(stick) == FOREIGN


@pytest.mark.root
def test_a_full_medium_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    with small_medium(tmp_path / "stick", 4 << 20) as stick:
        with InPlaceWriter(stick) as writer:
            fill(writer, bundle_bytes=2 << 20)
        before = files(stick)
        with (
            pytest.raises(Error, match="No space left") as caught,
            InPlaceWriter(stick, replace=True) as writer,
        ):
            fill(writer, bundle_bytes=3 << 20)
        assert "full" in caught.value.hint
        assert files(stick) == before


@pytest.mark.root
def test_what_has_no_room_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    with small_medium(tmp_path / "stick", 2 << 20) as stick, InPlaceWriter(stick) as writer:
        with pytest.raises(Error, match=r"3\.1 MB are needed there, 2\.1 MB are free"):
            writer.check_room([Blob("sha256:" + "0" * 64, 3 << 20)])
        there = stick / "blobs" / "sha256" / ("0" * 64 + ".partial")
        there.write_bytes(bytes(1 << 20))
        writer.check_room([Blob("sha256:" + "0" * 64, 2 << 20)])


@pytest.mark.root
def test_fat_holds_no_file_of_4_gib(tmp_path: Path) -> None:
    """The kernel's own FAT, where it has one; elsewhere tests/peers meets it in an appliance."""
    image, stick = tmp_path / "fat.img", tmp_path / "stick"
    with image.open("wb") as file:
        file.truncate(6 << 30)
    subprocess.run(["mkfs.fat", "-F", "32", image], check=True, capture_output=True)
    stick.mkdir()
    mount = ["mount", "-t", "vfat", "-o", "loop", str(image), str(stick)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this kernel mounts no FAT")
    try:
        with InPlaceWriter(stick) as writer:
            writer.check_room([Blob("sha256:" + "0" * 64, FAT_FILE_BYTES)])
            with pytest.raises(Error, match=r"FAT holds files of up to 4\.3 GB") as caught:
                writer.check_room([Blob("sha256:" + "0" * 64, FAT_FILE_BYTES + 1)])
            assert "exFAT" in caught.value.hint
        assert list(stick.iterdir()) == []
    finally:
        subprocess.run(["umount", stick], check=True)


def test_a_folder_that_went_meanwhile_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Error, match="No such file"):
        InPlaceWriter(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"):
        InPlaceWriter(tmp_path / "file")
