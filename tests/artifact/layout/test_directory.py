from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from packer.artifact import manifest as manifests
from packer.artifact.layout.base import LayoutWriter, read_blob
from packer.artifact.layout.directory import DirectoryLayout, DirectoryWriter
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.layout.tar import TarWriter
from packer.artifact.manifest import Blob
from packer.errors import Error, InputError, UsageError
from tests.artifact.fake_packs import FakePack, read_everything, sha256, write_pack
from tests.artifact.layout.media import file_size_limit, small_medium

ABSENT = "sha256:" + "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pack"


@pytest.fixture
def pack(folder: Path) -> FakePack:
    with DirectoryWriter(folder) as writer:
        return write_pack(writer)


def blob_path(folder: Path, digest: str) -> Path:
    return folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def test_what_was_written_is_read_again(folder: Path, pack: FakePack) -> None:
    layout = open_layout(folder)
    assert isinstance(layout, DirectoryLayout)
    assert (layout.location, layout.remote) == (str(folder), False)
    assert read_everything(layout) == (pack.manifest, pack.blobs)
    layout.close()


def test_a_copy_with_the_boot_bundle_only_is_complete_in_itself(folder: Path) -> None:
    with DirectoryWriter(folder) as writer:
        pack = write_pack(writer, ["boot"])
    assert list(pack.manifest.bundles()) == ["boot"]
    assert read_everything(open_layout(folder)) == (pack.manifest, pack.blobs)


def test_nothing_lies_beside_the_blobs_that_the_manifest_names(
    folder: Path, pack: FakePack
) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    blobs = {f"blobs/sha256/{digest.removeprefix('sha256:')}" for digest in pack.blobs}
    assert found == {"index.json", "oci-layout"} | blobs
    assert list(folder.parent.iterdir()) == [folder]


def test_ranges_are_read_from_several_threads(folder: Path, pack: FakePack) -> None:
    layout = open_layout(folder)
    digest, data = max(pack.blobs.items(), key=lambda item: len(item[1]))
    ranges = [(100, 50), (0, 10), (len(data) - 1, 1), (len(data), 0)]
    results: list[dict[int, bytes]] = []

    def read() -> None:
        for _ in range(50):
            results.append(dict(layout.read_many(digest, ranges)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {row: data[start : start + length] for row, (start, length) in enumerate(ranges)}
    assert results == [expected] * 200


def test_absent_blobs_and_ranges_are_errors(folder: Path, pack: FakePack) -> None:
    layout = open_layout(folder)
    digest = pack.manifest.config.digest
    size = pack.manifest.config.size
    assert layout.blob_size(ABSENT) is None
    assert layout.blob_size(digest) == size
    assert list(layout.read_many(digest, [])) == []
    for name, offset, length in (
        (ABSENT, 0, 1), (digest, size, 1), (digest, -1, 1), (digest, 0, -1), (digest, 0, 1 << 62),
    ):  # fmt: skip
        with pytest.raises(InputError):
            layout.read(name, offset, length)


@pytest.mark.parametrize(
    "digest",
    [
        "", "sha256:", "sha256:../../../etc/passwd", "/etc/passwd", "sha256:" + "A" * 64,
        "sha256:" + "0" * 64 + "\n", "sha256:" + "0" * 63 + "\0", "sha512:" + "0" * 128,
    ],
)  # fmt: skip
def test_a_digest_is_never_a_path(folder: Path, pack: FakePack, digest: str) -> None:
    layout = open_layout(folder)
    with pytest.raises(InputError):
        layout.blob_size(digest)
    with pytest.raises(InputError):
        layout.read(digest, 0, 1)


def test_a_damaged_blob_is_an_error(folder: Path, pack: FakePack) -> None:
    digest = pack.manifest.config.digest
    path = blob_path(folder, digest)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(
        InputError, match=f"expected bytes with that SHA-256, found {sha256(b'')[:7]}"
    ):
        read_blob(open_layout(folder), digest, 1 << 20)
    with pytest.raises(InputError, match="expected at most 10 bytes"):
        read_blob(open_layout(folder), digest, 10)


def test_a_blob_that_shrinks_while_it_is_read_is_an_error(folder: Path, pack: FakePack) -> None:
    digest = pack.manifest.bundles()["private"].digest
    pieces = open_layout(folder).read_many(digest, [(0, 10), (1000, 10)])
    next(pieces)
    os.truncate(blob_path(folder, digest), 500)
    with pytest.raises(InputError):
        next(pieces)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device link"])
def test_only_regular_files_are_opened(folder: Path, pack: FakePack, kind: str) -> None:
    digest = pack.manifest.config.digest
    path = blob_path(folder, digest)
    content = path.read_bytes()
    path.unlink()
    if kind == "link":
        outside = folder.parent / "secret"
        outside.write_bytes(content)
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError):
        read_blob(open_layout(folder), digest, 1 << 20)


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "blobs", "blobs/sha256"])
def test_no_part_of_the_layout_may_be_a_link(folder: Path, pack: FakePack, name: str) -> None:
    moved = folder.parent / "moved"
    (folder / name).rename(moved)
    (folder / name).symlink_to(moved)
    with pytest.raises(InputError):
        read_everything(open_layout(folder))


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "blobs", "blobs/sha256"])
def test_a_part_that_is_missing_is_an_error(folder: Path, pack: FakePack, name: str) -> None:
    (folder / name).rename(folder.parent / "moved")
    with pytest.raises(InputError, match=str(folder)):
        read_everything(open_layout(folder))


def test_an_absurdly_large_index_is_not_read(folder: Path, pack: FakePack) -> None:
    os.truncate(folder / "index.json", 1 << 40)
    with pytest.raises(InputError, match="at most 4194304 bytes"):
        open_layout(folder).index()


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name in ("pipe", "absent", ".", "empty", "a\0b"):
        with pytest.raises(InputError):
            open_layout(tmp_path / name)
    with pytest.raises(InputError):
        open_layout("/dev/zero")


@pytest.mark.parametrize("kind", [DirectoryWriter, TarWriter])
class TestEveryWriter:
    def test_an_existing_name_is_refused_unless_told(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        path = tmp_path / "pack"
        with kind(path) as writer:
            write_pack(writer, ["boot"])
        with pytest.raises(UsageError, match="exists"):
            kind(path)
        with kind(path, replace=True) as writer:
            pack = write_pack(writer, ["boot", "private"])
        assert read_everything(open_layout(path)) == (pack.manifest, pack.blobs)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_name_that_is_taken_meanwhile_is_not_overwritten(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        path = tmp_path / "pack"
        with kind(path) as writer:
            path.write_text("mine")
            with pytest.raises(UsageError):
                write_pack(writer)
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_text() == "mine"

    def test_what_is_no_layout_is_never_replaced(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        path = tmp_path / "home"
        path.mkdir()
        (path / "thesis.txt").touch()
        with pytest.raises(UsageError):
            kind(path, replace=True)
        assert (path / "thesis.txt").exists()

    def test_nothing_is_left_when_writing_is_given_up(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with kind(tmp_path / "pack") as writer:
            writer.add(b"one")
            writer.stream().write(b"never finished")
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ValueError, match="finished or aborted"):
            writer.add(b"two")

    def test_manifest_and_blobs_must_agree(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with kind(tmp_path / "pack") as writer:
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

    def test_a_blob_that_was_begun_and_dropped_is_not_part_of_it(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with kind(tmp_path / "pack") as writer:
            with writer.stream() as dropped:
                dropped.write(b"no")
            pack = write_pack(writer)
        assert read_everything(open_layout(tmp_path / "pack")) == (pack.manifest, pack.blobs)

    def test_the_same_bytes_are_stored_once(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with kind(tmp_path / "pack") as writer:
            config, same = writer.add(b"config"), writer.add(b"same")
            assert writer.add(bytearray(b"same")) == same
            manifest = manifests.build(config=config, maps=[same, same], bundles={"boot": same})
            writer.finish([manifests.Entry(manifest, "demo:1")])
        assert read_everything(open_layout(tmp_path / "pack"))[0] == manifest

    def test_blobs_are_copied_from_another_layout_and_verified(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with DirectoryWriter(tmp_path / "first") as writer:
            pack = write_pack(writer)
        source = open_layout(tmp_path / "first")
        with kind(tmp_path / "second") as second:
            for blob in pack.manifest.blobs():
                assert second.copy(source, Blob(blob.digest, blob.size)).digest == blob.digest
            second.finish([manifests.Entry(pack.manifest, "demo:3")])
        assert read_everything(open_layout(tmp_path / "second")) == (pack.manifest, pack.blobs)

        boot = pack.manifest.bundles()["boot"]
        blob_path(tmp_path / "first", boot.digest).write_bytes(b"x" * boot.size)
        for wrong in (boot.digest, ABSENT):
            with kind(tmp_path / "third") as third:
                with pytest.raises(InputError):
                    third.copy(source, Blob(wrong, boot.size))
                write_pack(third)
            shutil.rmtree(tmp_path / "third", ignore_errors=True)
            (tmp_path / "third").unlink(missing_ok=True)

    @pytest.mark.root
    def test_a_full_medium_is_an_error_and_leaves_nothing(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with small_medium(tmp_path / "stick", 2 << 20) as stick:
            with pytest.raises(Error, match="No space left") as caught, kind(stick / "p") as writer:
                fill(writer, bundle_bytes=5 << 20)
            assert "full" in caught.value.hint
            assert list(stick.iterdir()) == []

    @pytest.mark.root
    def test_a_read_only_medium_is_an_error(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with small_medium(tmp_path / "stick", 1 << 20, read_only=True) as stick:
            with pytest.raises(Error, match="Read-only") as caught:
                kind(stick / "pack")
            assert "read-only" in caught.value.hint

    def test_a_file_that_may_not_grow_is_an_error_and_leaves_nothing(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with file_size_limit(1 << 20):
            with pytest.raises(Error, match="File too large") as caught, kind(tmp_path / "p") as w:
                fill(w, bundle_bytes=5 << 20)
            assert "FAT" in caught.value.hint
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_not_there_is_an_error(
        self, tmp_path: Path, kind: type[DirectoryWriter | TarWriter]
    ) -> None:
        with pytest.raises(Error, match="No such file"):
            kind(tmp_path / "absent" / "pack")


def fill(writer: LayoutWriter, bundle_bytes: int) -> None:
    with writer.stream() as stream:
        for _ in range(bundle_bytes >> 16):
            stream.write(os.urandom(1 << 16))
        boot = stream.finish()
    config, disk_map = writer.add(b"config"), writer.add(b"map")
    manifest = manifests.build(config=config, maps=[disk_map], bundles={"boot": boot})
    writer.finish([manifests.Entry(manifest, "demo:1")])


@pytest.mark.root
def test_a_tar_file_that_fits_only_once_leaves_nothing(tmp_path: Path) -> None:
    with small_medium(tmp_path / "stick", 2 << 20) as stick:
        with pytest.raises(Error, match="No space left"), TarWriter(stick / "p") as writer:
            fill(writer, bundle_bytes=3 << 19)
        assert list(stick.iterdir()) == []


def test_the_name_says_whether_a_folder_or_a_file_is_written(tmp_path: Path) -> None:
    for name, kind in (("a/", DirectoryWriter), ("b.vmpack", TarWriter)):
        with create_layout(f"{tmp_path}/{name}") as writer:
            assert isinstance(writer, kind)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists"):
        create_layout(tmp_path / "there")


def test_skopeo_reads_and_copies_a_folder(folder: Path, pack: FakePack, tmp_path: Path) -> None:
    raw = skopeo("inspect", "--raw", f"oci:{folder}")
    assert raw == pack.blobs[pack.manifest_blob.digest]
    assert skopeo("inspect", "--raw", f"oci:{folder}:demo:3") == raw
    skopeo("copy", f"oci:{folder}", f"dir:{tmp_path / 'plain'}")
    for blob in pack.manifest.blobs():
        copied = tmp_path / "plain" / blob.digest.removeprefix("sha256:")
        assert copied.read_bytes() == pack.blobs[blob.digest]
    skopeo("copy", f"oci:{folder}", f"oci:{tmp_path / 'again'}:demo:3")
    assert read_everything(open_layout(tmp_path / "again")) == (pack.manifest, pack.blobs)


def skopeo(*arguments: str) -> bytes:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True).stdout


def test_a_name_that_no_file_can_have_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        create_layout(tmp_path / ("x" * 300))
