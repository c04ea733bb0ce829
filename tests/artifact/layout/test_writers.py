"""What every kind of layout that is written keeps to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from packer.artifact import manifest as manifests
from packer.artifact.layout.directory import DirectoryWriter
from packer.artifact.layout.extras import Extra
from packer.artifact.layout.in_place import InPlaceWriter
from packer.artifact.layout.iso_writer import IsoWriter
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.layout.tar import TarWriter
from packer.artifact.manifest import Blob
from packer.errors import Error, InputError, UsageError
from tests.artifact.fake_packs import read_everything, sha256, write_pack
from tests.artifact.layout.media import file_size_limit, small_medium
from tests.artifact.layout.writers import Kind, every_kind, fill

ABSENT = "sha256:" + "0" * 64


@every_kind
def test_what_was_written_is_read_again(tmp_path: Path, kind: Kind) -> None:
    with kind.make(tmp_path / "pack") as writer:
        pack = write_pack(writer)
    layout = open_layout(tmp_path / "pack")
    assert (layout.location, layout.remote) == (str(tmp_path / "pack"), False)
    assert read_everything(layout) == (pack.manifest, pack.blobs)
    assert layout.blob_size(ABSENT) is None
    layout.close()


@every_kind
def test_an_existing_name_is_refused_unless_told(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "pack"
    with kind.make(path) as writer:
        write_pack(writer, ["boot"])
    with pytest.raises(UsageError, match="exists"):
        kind.make(path)
    with kind.replace(path) as writer:
        pack = write_pack(writer, ["boot", "private"])
    assert read_everything(open_layout(path)) == (pack.manifest, pack.blobs)
    assert list(tmp_path.iterdir()) == [path]


@every_kind
def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "pack"
    with kind.make(path) as writer:
        path.write_text("mine")
        with pytest.raises(UsageError):
            write_pack(writer)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "mine"


@every_kind
def test_nothing_is_left_when_writing_is_given_up(tmp_path: Path, kind: Kind) -> None:
    with kind.make(tmp_path / "pack") as writer:
        writer.add(b"one")
        writer.stream().write(b"never finished")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="finished or aborted"):
        writer.add(b"two")


@every_kind
def test_manifest_and_blobs_must_agree(tmp_path: Path, kind: Kind) -> None:
    with kind.make(tmp_path / "pack") as writer:
        config, disk_map = writer.add(b"config"), writer.add(b"map")
        extra = Blob(ABSENT, 1)
        one_more = manifests.build(config=config, maps=[disk_map], bundles={"boot": extra})
        with pytest.raises(ValueError, match=ABSENT):
            writer.finish([manifests.Entry(one_more, "demo:1")])
        unnamed = writer.add(b"unnamed")
        none = manifests.build(config=config, maps=[disk_map], bundles={})
        with pytest.raises(ValueError, match=unnamed.digest):
            writer.finish([manifests.Entry(none, "demo:1")])
    assert list(tmp_path.iterdir()) == []


@every_kind
def test_a_blob_that_was_begun_and_dropped_is_not_part_of_it(tmp_path: Path, kind: Kind) -> None:
    with kind.make(tmp_path / "pack") as writer:
        with writer.stream() as dropped:
            dropped.write(b"no")
        pack = write_pack(writer)
    assert read_everything(open_layout(tmp_path / "pack")) == (pack.manifest, pack.blobs)


@every_kind
def test_the_same_bytes_are_stored_once(tmp_path: Path, kind: Kind) -> None:
    with kind.make(tmp_path / "pack") as writer:
        config, same = writer.add(b"config"), writer.add(b"same")
        assert writer.add(bytearray(b"same")) == same
        manifest = manifests.build(config=config, maps=[same, same], bundles={"boot": same})
        writer.finish([manifests.Entry(manifest, "demo:1")])
    assert read_everything(open_layout(tmp_path / "pack"))[0] == manifest


@every_kind
def test_blobs_are_copied_from_another_layout_and_verified(tmp_path: Path, kind: Kind) -> None:
    first = tmp_path / "first"
    with DirectoryWriter(first) as writer:
        pack = write_pack(writer)
    source = open_layout(first)
    with kind.make(tmp_path / "second") as second:
        for blob in pack.manifest.blobs():
            assert second.copy(source, Blob(blob.digest, blob.size)).digest == blob.digest
        second.finish([manifests.Entry(pack.manifest, "demo:3")])
    assert read_everything(open_layout(tmp_path / "second")) == (pack.manifest, pack.blobs)

    boot = pack.manifest.bundles()["boot"]
    (first / "blobs" / "sha256" / boot.digest[7:]).write_bytes(b"x" * boot.size)
    for wrong in (boot.digest, ABSENT):
        with kind.make(tmp_path / "third") as third:
            with pytest.raises(InputError):
                third.copy(source, Blob(wrong, boot.size))
            write_pack(third)
        shutil.rmtree(tmp_path / "third", ignore_errors=True)
        (tmp_path / "third").unlink(missing_ok=True)


@pytest.mark.root
@every_kind
def test_a_full_medium_is_an_error_and_leaves_nothing(tmp_path: Path, kind: Kind) -> None:
    with small_medium(tmp_path / "stick", 2 << 20) as stick:
        with (
            pytest.raises(Error, match="No space left") as caught,
            kind.make(stick / "p") as writer,
        ):
            fill(writer, bundle_bytes=5 << 20)
        assert "full" in caught.value.hint
        assert list(stick.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", [TarWriter, IsoWriter])
def test_a_file_that_fits_only_once_leaves_nothing(
    tmp_path: Path, kind: type[TarWriter | IsoWriter]
) -> None:
    with small_medium(tmp_path / "stick", 8 << 20) as stick:
        with pytest.raises(Error, match="No space left"), kind(stick / "p") as writer:
            fill(writer, bundle_bytes=6 << 20)
        assert list(stick.iterdir()) == []


@pytest.mark.root
@every_kind
def test_what_has_no_room_is_refused_before_anything_is_copied(tmp_path: Path, kind: Kind) -> None:
    with small_medium(tmp_path / "stick", 2 << 20) as stick, kind.make(stick / "p") as writer:
        writer.check_room([Blob(ABSENT, 1 << 19)])
        with pytest.raises(Error, match=r"3\.1 MB are needed there") as caught:
            writer.check_room([Blob(ABSENT, 3 << 20)] if kind.name == "folder" else THREE)
        assert "full" in caught.value.hint


THREE = [Blob("sha256:" + digit * 64, size << 18) for digit, size in (("1", 4), ("2", 2), ("3", 2))]
"""2 MiB; the largest of it lies there twice for a while."""


@pytest.mark.root
@every_kind
def test_a_read_only_medium_is_an_error(tmp_path: Path, kind: Kind) -> None:
    with small_medium(tmp_path / "stick", 1 << 20, read_only=True) as stick:
        with pytest.raises(Error, match="Read-only") as caught:
            kind.make(stick / "pack")
        assert "read-only" in caught.value.hint


@every_kind
def test_a_file_that_may_not_grow_is_an_error_and_leaves_nothing(
    tmp_path: Path, kind: Kind
) -> None:
    with file_size_limit(1 << 20):
        with (
            pytest.raises(Error, match="File too large") as caught,
            kind.make(tmp_path / "p") as writer,
        ):
            fill(writer, bundle_bytes=5 << 20)
        assert "FAT" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@every_kind
def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(Error, match="No such file"):
        kind.make(tmp_path / "absent" / "pack")


@pytest.mark.parametrize("kind", [TarWriter, IsoWriter])
def test_what_is_no_file_is_never_replaced(
    tmp_path: Path, kind: type[TarWriter | IsoWriter]
) -> None:
    path = tmp_path / "home"
    path.mkdir()
    (path / "thesis.txt").touch()
    with pytest.raises(UsageError):
        kind(path, replace=True)
    assert (path / "thesis.txt").exists()


@every_kind
def test_the_size_of_the_medium_is_known_before_it_is_written(tmp_path: Path, kind: Kind) -> None:
    with kind.make(tmp_path / "p") as writer:
        pack = write_pack(writer, ["boot", "private", *(f"shared-{n:03d}" for n in range(40))])
        most = writer.medium_bytes([len(data) for data in pack.blobs.values()])
    found = sum(path.stat().st_size for path in [tmp_path / "p", *(tmp_path / "p").rglob("*")])
    slack = 16 << 10 if kind.name != "folder" else 50 * (32 << 10)
    assert found <= most <= found + slack


class TestCreateLayout:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a/", DirectoryWriter), ("b.vmpack", TarWriter), ("c.iso", IsoWriter),
            ("d.ISO", IsoWriter), ("e.iso/", DirectoryWriter), ("there/", InPlaceWriter),
        ],
    )  # fmt: skip
    def test_the_name_says_what_is_written(
        self, tmp_path: Path, name: str, kind: type[object]
    ) -> None:
        (tmp_path / "there").mkdir()
        with create_layout(f"{tmp_path}/{name}") as writer:
            assert isinstance(writer, kind)

    @pytest.mark.parametrize("replace", [False, True])
    def test_a_folder_that_exists_is_written_into_only_when_it_is_named_so(
        self, tmp_path: Path, replace: bool
    ) -> None:
        (tmp_path / "there").mkdir()
        with pytest.raises(UsageError, match="exists") as caught:
            create_layout(tmp_path / "there", replace=replace)
        assert f"{tmp_path}/there/" in caught.value.hint

    @pytest.mark.parametrize("name", ["https://example.org/demo/", "s3://bucket/demo.vmpack"])
    def test_an_address_that_nothing_can_be_written_to_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="found another address"):
            create_layout(name)

    @pytest.mark.root
    @pytest.mark.parametrize("name", ["", "."])
    def test_the_current_folder_is_not_written_into_by_mistake(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError):
            create_layout(name)
        assert list(tmp_path.iterdir()) == []

    def test_a_mount_point_is_written_into_however_it_is_named(self, tmp_path: Path) -> None:
        with (
            small_medium(tmp_path / "stick", 1 << 20) as stick,
            create_layout(stick) as writer,
        ):
            assert isinstance(writer, InPlaceWriter)

    def test_files_beside_a_tar_file_are_refused(self, tmp_path: Path) -> None:
        extras = [Extra("unpacker/vmpack-linux-x86_64", b"program")]
        for place in (tmp_path / "demo.vmpack", "oci://localhost/demo:1"):
            with pytest.raises(UsageError, match="beside the pack"):
                create_layout(place, extras=extras)

    def test_a_name_that_no_file_can_have_is_one_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="File name too long"):
            create_layout(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    "name",
    [
        "", "/etc/passwd", "../up", "a/../b", "a//b", "a/", "index.json", "oci-layout", "Blobs/x",
        "blobs/sha256/x", "x" * 65, "a/b/c/d/e/f/g", "with blank", "naïve", "a\0b", ".hidden",
        "a\n",
    ],
)  # fmt: skip
def test_a_file_beside_a_pack_has_a_name_that_every_medium_holds(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an extra file"):
        Extra(name, b"")


def test_sizes_of_extra_files_are_those_of_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "wheel").write_bytes(b"x" * 1234)
    for extra in (Extra("a", b"x" * 1234), Extra("a", tmp_path / "wheel")):
        with extra.open() as file:
            assert sha256(file.read()) == sha256(b"x" * extra.size)
