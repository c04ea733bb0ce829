"""What a server is told, and what makes two servers one."""

from __future__ import annotations

from pathlib import Path

import pytest

from packer.errors import InputError
from packer.run.server.spec import (
    MAX_SPEC_BYTES,
    ServerSpec,
    absolute_location,
    absolute_source,
    decode_spec,
    encode_spec,
    nbd_uri,
    server_spec,
)

CONFIG = "sha256:" + "1" * 64


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("dir:usr", "dir:{here}/usr"),
        ("dir:/usr", "dir:/usr"),
        ("disk:vm.qcow2", "disk:{here}/vm.qcow2"),
        ("disk:nbd://host", "disk:nbd://host"),
        ("pack:other.vmpack#demo:2", "pack:{here}/other.vmpack#demo:2"),
        ("pack:https://host/demo/", "pack:https://host/demo/"),
        ("pack:oci://host/demo:1", "pack:oci://host/demo:1"),
        ("deb:archives", "deb:{here}/archives"),
        ("medium:win.iso", "medium:{here}/win.iso"),
        ("symbols:pdb", "symbols:{here}/pdb"),
        ("symbols:https://host/", "symbols:https://host/"),
        ("store:", "store:"),
        ("store:mine", "store:{here}/mine"),
        ("store://host:7436/", "store://host:7436/"),
        ("store+https://host/", "store+https://host/"),
        ("apt:", "apt:"),
        ("https://host/demo/", "https://host/demo/"),
        ("oci://host/demo:1", "oci://host/demo:1"),
    ],
)
def test_a_source_means_the_same_from_everywhere(here: Path, uri: str, absolute: str) -> None:
    assert absolute_source(uri) == absolute.format(here=here)


@pytest.mark.parametrize(
    ("location", "absolute"),
    [
        ("demo.vmpack", "{here}/demo.vmpack"),
        ("pack:demo.vmpack", "{here}/demo.vmpack"),
        ("demos.iso#demo:3", "{here}/demos.iso#demo:3"),
        ("https://host/demo/#demo", "https://host/demo/#demo"),
        ("oci://host/demo:1", "oci://host/demo:1"),
    ],
)
def test_a_location_means_the_same_from_everywhere(
    here: Path, location: str, absolute: str
) -> None:
    assert absolute_location(location) == absolute.format(here=here)


def test_what_is_written_is_read_again() -> None:
    spec = server_spec("demo.vmpack", CONFIG, Path("store"), ("dir:usr", "apt:"), complete=True)
    assert decode_spec(encode_spec(spec)) == spec


def test_those_who_read_the_same_disk_share_a_server(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = server_spec("demo.vmpack", CONFIG, Path("store"))
    assert server_spec(str(here / "demo.vmpack"), CONFIG, here / "store").key == spec.key
    assert server_spec("demo.vmpack", CONFIG, Path("store"), complete=True).key == spec.key
    others = [
        server_spec("demo.vmpack", "sha256:" + "2" * 64, Path("store")),
        server_spec("demo.vmpack", CONFIG, Path("other")),
        server_spec("demo.vmpack", CONFIG, Path("store"), ("apt:",)),
        server_spec("demo.vmpack", CONFIG, Path("store"), offline=True),
        server_spec("copy.vmpack", CONFIG, Path("store")),
    ]
    keys = {one.key for one in others} | {spec.key}
    assert len(keys) == len(others) + 1
    monkeypatch.setenv("VMPACK_HOME", str(here / "another"))
    assert spec.key not in keys  # its packages and its memory of files are others


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"pack": 1, "config": "", "store": ""}',
        b'{"pack": "", "config": "", "store": "", "trust": true}',
        b"\xff\xfe",
        b"[" * MAX_SPEC_BYTES,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="a server's description"):
        decode_spec(data)


def test_the_address_of_an_export_is_a_uri() -> None:
    assert nbd_uri(Path("/run/a b/nbd"), "demo/1") == "nbd+unix:///demo%2F1?socket=/run/a%20b/nbd"
    assert isinstance(server_spec("x", CONFIG, Path("store")), ServerSpec)
