from __future__ import annotations

import hashlib
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.artifact.layout.base import Expecting, read_blob
from packer.artifact.layout.web import WebLayout
from packer.artifact.manifest import OCI_LAYOUT, Blob
from packer.errors import Error, InputError, UsageError
from packer.transport.http import Client, TransportError
from tests.transport.servers import Answer, Server, nginx, serving

BLOB = random.Random(3).randbytes(2 << 20)
NAME = "sha256:" + hashlib.sha256(BLOB).hexdigest()
ABSENT = "sha256:" + "0" * 64


def fill(folder: Path) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_bytes(OCI_LAYOUT)
    (folder / "index.json").write_bytes(b"{}")
    (blobs / NAME.removeprefix("sha256:")).write_bytes(BLOB)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "root"
    fill(root / "demo")
    with tarfile.open(root / "demo.vmpack", "w") as tar:
        for name in ("oci-layout", "index.json", "blobs/sha256/" + NAME.removeprefix("sha256:")):
            tar.add(root / "demo" / name, name)
    (root / "page.html").write_text("<html>nothing here</html>" * 100)
    with nginx(root, tmp_path / "nginx") as url:
        yield url


@pytest.mark.parametrize("address", ["/demo/", "/demo", "/demo/?key=1", "/demo.vmpack"])
def test_directories_and_tar_files_read_alike(base: str, address: str) -> None:
    layout = WebLayout(base + address)
    assert layout.remote
    assert layout.index() == b"{}"
    assert layout.blob_size(NAME) == len(BLOB)
    assert layout.blob_size(ABSENT) is None
    assert layout.read(NAME, 12345, 678) == BLOB[12345:13023]
    assert read_blob(layout, NAME, len(BLOB)) == BLOB
    ranges = [(1 << 20, 1000), (0, 10), (500_000, 0), (5, 10)]
    found = dict(layout.read_many(NAME, ranges))
    assert found == {row: BLOB[o : o + length] for row, (o, length) in enumerate(ranges)}
    for digest, offset in ((ABSENT, 0), (NAME, len(BLOB)), ("sha256:../../x", 0)):
        with pytest.raises(InputError):
            layout.read(digest, offset, 1)
        with pytest.raises(InputError):
            list(layout.read_many(digest, [(offset, 1)]))
    layout.close()


@pytest.mark.parametrize("address", ["/demo/", "/demo.vmpack"])
def test_a_small_read_moves_few_bytes(base: str, address: str) -> None:
    with Client() as client:
        layout = WebLayout(base + address, client)
        layout.read(NAME, 1 << 20, 1000)
        assert client.received_bytes < 40_000
        layout.close()
        assert client.get_size(base + "/demo.vmpack") > len(BLOB)  # a shared client stays open


@pytest.mark.parametrize("address", ["/absent", "/absent/", "/page.html", "/"])
def test_what_is_no_pack_is_refused_with_both_reasons(base: str, address: str) -> None:
    with pytest.raises(InputError, match="expected a pack, found none") as caught:
        WebLayout(base + address)
    assert caught.value.hint


@pytest.mark.parametrize(
    "address", ["ftp://host/x", "/etc/passwd", "http://", "http://[::1/", "file:///etc/x"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError):
        WebLayout(address)


def test_a_server_without_ranges_serves_directories_only(base: str, tmp_path: Path) -> None:
    root = tmp_path / "root"

    def whole(answer: Answer, _: int) -> None:
        path = root / answer.path.lstrip("/")
        if not path.is_file():
            return answer.give(404, {"Content-Length": "0"}, b"")
        data = path.read_bytes()
        return answer.give(200, {"Content-Length": str(len(data))}, data)

    with serving(whole) as server:
        layout = WebLayout(server.url + "/demo/")
        assert dict(layout.read_many(NAME, [(9, 9), (0, 9)])) == {0: BLOB[9:18], 1: BLOB[:9]}
        layout.close()
        with pytest.raises(InputError, match="whole files only"):
            WebLayout(server.url + "/demo.vmpack")


def test_a_dead_server_is_no_missing_pack() -> None:
    with serving(lambda *_: None) as server:
        url = server.url
    with (
        Client(attempts=2, back_off_seconds=0.01) as client,
        pytest.raises(TransportError, match="refused"),
    ):
        WebLayout(url + "/demo/", client)


@pytest.fixture
def server(base: str, tmp_path: Path) -> Iterator[Server]:
    """The same files from a server that keeps what was asked."""
    root = tmp_path / "root"

    def files(answer: Answer, _: int) -> None:
        path = root / answer.path.lstrip("/")
        if not path.is_file():
            return answer.give(404, {"Content-Length": "0"}, b"")
        return answer.give_range(path.read_bytes())

    with serving(files) as server:
        yield server


def paths_asked(server: Server) -> list[str]:
    return [path.rpartition("/")[2][:8] for path, _ in server.asked]


def test_what_a_manifest_tells_is_not_asked_for(server: Server) -> None:
    layout = WebLayout(server.url + "/demo/")
    assert isinstance(layout, Expecting)
    layout.expect([Blob(NAME, len(BLOB)), Blob(ABSENT, 1000)])
    assert layout.index() == layout.index() == b"{}"
    assert layout.blob_size(NAME) == len(BLOB)
    assert read_blob(layout, NAME, len(BLOB)) == BLOB
    assert paths_asked(server) == ["oci-layo", "index.js", NAME[7:15]]
    layout.close()


def test_a_blob_that_a_manifest_names_and_that_is_not_there_is_found_out(server: Server) -> None:
    layout = WebLayout(server.url + "/demo/")
    layout.expect([Blob(ABSENT, 1000)])
    assert layout.blob_size(ABSENT) == 1000
    with pytest.raises(InputError, match="does not hold blob"):
        layout.read(ABSENT, 0, 10)
    assert layout.blob_size(ABSENT) is None
    layout.expect([Blob(ABSENT, 1000)])
    assert layout.blob_size(ABSENT) is None
    layout.close()


@pytest.mark.parametrize("promised", [len(BLOB) + 1, 1 << 62, len(BLOB) - 1, 0])
def test_a_wrong_size_in_a_manifest_is_an_error_and_no_wrong_bytes(
    server: Server, promised: int
) -> None:
    layout = WebLayout(server.url + "/demo/")
    layout.expect([Blob(NAME, promised)])
    with pytest.raises(Error):
        read_blob(layout, NAME, 2 * len(BLOB))
    found = dict(layout.read_many(NAME, [(0, min(10, promised))]))
    assert found == {0: BLOB[: min(10, promised)]}
    layout.close()


def test_far_ranges_of_a_blob_travel_in_one_request(server: Server) -> None:
    layout = WebLayout(server.url + "/demo/")
    layout.expect([Blob(NAME, len(BLOB))])
    layout.read(NAME, 0, 10)
    before = len(server.asked)
    ranges = [(offset, 10) for offset in range(0, len(BLOB), 100_000)]
    found = dict(layout.read_many(NAME, ranges))
    assert found == {row: BLOB[o : o + length] for row, (o, length) in enumerate(ranges)}
    assert len(server.asked) - before == 1
    layout.close()
