from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from packer.artifact.layout.base import read_blob
from packer.artifact.layout.directory import DirectoryLayout, DirectoryWriter
from packer.artifact.layout.open import open_layout
from packer.errors import InputError
from tests.artifact.fake_packs import FakePack, read_everything, sha256, write_pack

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


@pytest.mark.parametrize("suffix", ["", ";1"])
def test_a_medium_that_shows_capitals_is_read(folder: Path, pack: FakePack, suffix: str) -> None:
    """As plain ISO 9660 names are shown where nobody maps them."""
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        version = "" if path.is_dir() else suffix
        path.rename(path.with_name(path.name.upper() + version))
    assert read_everything(open_layout(folder)) == (pack.manifest, pack.blobs)


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
