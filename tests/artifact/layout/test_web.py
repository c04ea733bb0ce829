from __future__ import annotations

import hashlib
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.artifact.layout.base import read_blob
from packer.artifact.layout.web import WebLayout
from packer.artifact.manifest import OCI_LAYOUT
from packer.errors import InputError, UsageError
from packer.transport.http import Client, TransportError
from tests.transport.servers import Answer, nginx, serving

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
