from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from packer.sources.against import holds, prove
from packer.sources.base import Bytes, FileRange, SourceError, Wanted, is_near
from packer.sources.disk import DiskSource
from tests.artifact.make import contents_of
from tests.sources.asking import as_hints, whole_files
from tests.survey.disks import FILES, whole_disk

MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def qcow2(image: Path) -> Path:
    path = image.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", image, path], check=True)
    return path


@pytest.fixture
def source(image: Path) -> Iterator[DiskSource]:
    source = DiskSource(str(image))
    yield source
    source.close()


def fetched(source: DiskSource, rows: np.ndarray, wanted: Wanted) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for piece in source.fetch(rows):
        if isinstance(piece, FileRange):
            size = int(wanted.contents.size[piece.row])
            found[piece.row] = os.pread(piece.fd, size, piece.offset)
        else:
            assert len(found.get(piece.row, b"")) == piece.block * MIB
            found[piece.row] = found.get(piece.row, b"") + bytes(piece.data)
    return found


def test_files_of_a_raw_disk_are_ranges_of_its_file(source: DiskSource) -> None:
    wanted = whole_files(FILES)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == list(range(len(FILES)))
    assert all(isinstance(piece, FileRange) for piece in source.fetch(rows))
    assert fetched(source, rows, wanted) == dict(enumerate(FILES.values()))
    assert source.local


def test_files_of_a_qcow2_come_block_by_block(qcow2: Path) -> None:
    source = DiskSource(str(qcow2))
    wanted = whole_files(FILES)
    rows = source.find(wanted, deep=False).rows
    assert all(isinstance(piece, Bytes) for piece in source.fetch(rows))
    assert fetched(source, rows, wanted) == dict(enumerate(FILES.values()))
    source.close()


@pytest.mark.parametrize("prefix", ["/boot", "/boot/efi"])
def test_a_volume_may_be_mounted_somewhere_in_the_guest(source: DiskSource, prefix: str) -> None:
    path, data = next(iter(FILES.items()))
    assert source.find(whole_files({prefix + path: data}), deep=False).rows.tolist() == [0]
    assert source.find(whole_files({"/a/b/c" + path: data}), deep=False).rows.tolist() == []


def test_another_size_or_path_is_not_offered(source: DiskSource) -> None:
    path, data = next(iter(FILES.items()))
    wanted = whole_files({path: data + b"x", "/elsewhere": data})
    assert source.find(wanted, deep=False).rows.tolist() == []


def test_a_deep_search_goes_by_digest(source: DiskSource) -> None:
    _, data = next(iter(FILES.items()))
    wanted = whole_files({"/elsewhere": data, "/never": data[::-1] + b"?"})
    rows = source.find(wanted, deep=True).rows
    assert rows.tolist() == [0]
    assert fetched(source, rows, wanted) == {0: data}


def test_a_wrong_guess_is_not_proven(source: DiskSource) -> None:
    paths = list(FILES)
    contents = contents_of([FILES[paths[1]]])
    size = len(FILES[paths[0]])
    hints = as_hints([(0, paths[0], size, 0), (0, "/moved", len(FILES[paths[1]]), 0)])
    contents.size[0] = size  # a pack that lies about the size gets a wrong offer, no more
    wanted = Wanted(contents, np.arange(1), hints)
    assert source.find(wanted, deep=False).rows.tolist() == [0]
    assert len(holds(source, wanted)) == 0


def test_hints_that_contradict_the_contents_are_ignored(source: DiskSource) -> None:
    path, data = next(iter(FILES.items()))
    for offset in (-1, 1, 2**62):
        wanted = Wanted(contents_of([data]), np.arange(1), as_hints([(0, path, len(data), offset)]))
        assert source.find(wanted, deep=False).rows.tolist() == []


def ext4_of(tree: Path) -> Path:
    image = tree.with_suffix(".raw")
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image], check=True)
    return image


@pytest.mark.parametrize("container", ["raw", "qcow2"])
def test_pieces_of_sparse_files_and_large_files_are_had(tmp_path: Path, container: str) -> None:
    large = os.urandom(5 * MIB + 77)
    head = b"head" * 1024
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").write_bytes(large)
    (tmp_path / "tree" / "sparse").write_bytes(head)
    os.truncate(tmp_path / "tree" / "sparse", 8 * MIB)
    path = ext4_of(tmp_path / "tree")
    if container == "qcow2":
        raw, path = path, path.with_suffix(".qcow2")
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    contents = contents_of([head, large, large[MIB : 2 * MIB]])
    places = [
        (0, "/sparse", 8 * MIB, 0),
        (1, "/large", len(large), 0),
        (2, "/large", len(large), MIB),
    ]
    wanted = Wanted(contents, np.arange(3), as_hints(places))
    source = DiskSource(str(path))
    rows = source.find(wanted, deep=False).rows
    assert fetched(source, rows, wanted) == {0: head, 1: large, 2: large[MIB : 2 * MIB]}
    assert prove(source, contents, rows).tolist() == [0, 1, 2]
    source.close()


def test_holes_within_a_content_read_as_zeros(tmp_path: Path) -> None:
    data = b"x" * 4096 + bytes(MIB) + b"y" * 5000
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "file").open("wb") as file:
        file.write(data[:4096])
        file.seek(4096 + MIB)
        file.write(data[4096 + MIB :])
    source = DiskSource(str(ext4_of(tmp_path / "tree")))
    wanted = whole_files({"/file": data})
    for deep in (False, True):
        rows = source.find(wanted, deep=deep).rows
        assert fetched(source, rows, wanted) == {0: data}
    assert holds(source, wanted).tolist() == [0]
    source.close()


def test_a_disk_that_changes_under_us_gives_wrong_offers_and_no_errors(
    image: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.raw"
    copy.write_bytes(image.read_bytes())
    source = DiskSource(str(copy))
    wanted = whole_files(FILES)
    rows = source.find(wanted, deep=False).rows
    with copy.open("r+b") as file:
        file.write(os.urandom(96 * MIB))
    assert len(rows) == len(FILES)
    assert len(prove(source, wanted.contents, rows)) == 0
    source.close()


@pytest.mark.parametrize("path", ["missing.raw", "."])
def test_a_disk_that_cannot_be_opened_is_an_error(tmp_path: Path, path: str) -> None:
    source = DiskSource(str(tmp_path / path))
    with pytest.raises(SourceError, match="disk:"):
        source.find(whole_files({"/a": b"a"}), deep=False)
    source.close()


def test_a_server_in_the_network_is_near_and_not_local() -> None:
    assert not DiskSource("nbd://example.org/demo").local
    assert is_near(DiskSource("nbd://example.org/demo"))
    assert DiskSource("nbd+unix:///?socket=/run/x").local
    assert not is_near(DiskSource("nbd+unix:///?socket=/run/x"))


def test_another_machines_disk_is_read_through_nbd_and_its_bytes_are_counted(image: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["qemu-nbd", "--read-only", "--shared=8", "--persistent", "--format=raw",
               "--bind=127.0.0.1", f"--port={port}", str(image)]  # fmt: skip
    with subprocess.Popen(command) as server:
        try:
            source = DiskSource(f"nbd://127.0.0.1:{port}")
            wanted = whole_files(FILES)
            for _ in range(500):
                with suppress(SourceError):
                    offers = source.find(wanted, deep=False)
                    break
                time.sleep(0.02)
            assert offers.cost_bytes.tolist() == [len(data) for data in FILES.values()]
            assert fetched(source, offers.rows, wanted) == dict(enumerate(FILES.values()))
            source.close()
        finally:
            server.terminate()


def test_no_descriptor_is_left_open(image: Path, qcow2: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (image, qcow2):
        source = DiskSource(str(path))
        rows = source.find(whole_files(FILES), deep=True).rows
        pieces = source.fetch(rows)
        next(pieces)
        del pieces
        source.close()
        source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
