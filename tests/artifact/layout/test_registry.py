"""Packs in a real registry, read and written as layouts."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures.registry import Running, registry
from packer.artifact import manifest as manifests
from packer.artifact import media_types
from packer.artifact.copy import Extent, copy_packs
from packer.artifact.layout.base import read_blob
from packer.artifact.layout.directory import DirectoryLayout, DirectoryWriter
from packer.artifact.layout.open import create_layout
from packer.artifact.layout.registry import RegistryLayout, RegistryWriter
from packer.artifact.manifest import Blob, Entry
from packer.artifact.opened import OpenedPack
from packer.errors import Error, InputError, UsageError
from packer.transport.registry import Registry
from packer.transport.registry_reference import parse_reference
from packer.transport.response import TransportError
from tests.artifact import real_packs
from tests.artifact.fake_packs import FakePack, sha256, write_pack
from tests.registry.conftest import (
    Address,
    _no_credentials,  # noqa: F401 a fixture
    address,  # noqa: F401 a fixture
    docker_registry,  # noqa: F401 a fixture
    repository,  # noqa: F401 a fixture
)
from tests.registry.proxy import Fault, Proxy, Request, always, once, proxy
from tests.unpack.simulated import CLASSES, DATA


@pytest.fixture
def place(docker_registry: Running, address: Address) -> str:  # noqa: F811
    """An address of this test's own."""
    return address(docker_registry.host)


@pytest.fixture
def stored(place: str) -> FakePack:
    """A pack that lies there."""
    with RegistryWriter(place) as writer:
        return write_pack(writer)


Before = Callable[..., tuple[str, Proxy]]


@pytest.fixture
def before(docker_registry: Running, address: Address) -> Iterator[Before]:  # noqa: F811
    """`before(fault)`: the same place behind a proxy with that fault."""
    with ExitStack() as stack:

        def before(fault: Fault = lambda _: False, tag: str = "1") -> tuple[str, Proxy]:
            server = stack.enter_context(proxy(docker_registry.host, fault))
            return address(server.host, tag), server

        yield before


def tags_at(place: str) -> list[str]:
    reference = parse_reference(place)
    with Registry(reference) as found, contextlib.suppress(Error):
        return sorted(found.tags())
    return []


def blob_of(pack: FakePack, title: str) -> str:
    return pack.manifest.bundles()[title].digest


# Reading


def test_what_was_written_is_read(place: str, stored: FakePack) -> None:
    with contextlib.closing(RegistryLayout(place)) as layout:
        assert layout.location == place
        assert layout.remote
        ((name, blob),) = manifests.decode_index(layout.index())
        assert (name, blob) == ("1", stored.manifest_blob)
        for digest, data in stored.blobs.items():
            assert layout.blob_size(digest) == len(data)
            assert read_blob(layout, digest, 1 << 20) == data
        assert manifests.decode(read_blob(layout, blob.digest, 1 << 20)) == stored.manifest


def test_a_digest_names_a_pack_too(place: str, stored: FakePack) -> None:
    by_digest = place.removesuffix(":1") + "@" + stored.manifest_blob.digest
    with contextlib.closing(RegistryLayout(by_digest)) as layout:
        assert OpenedPack(layout).manifest == stored.manifest


def test_ranges_of_a_blob_are_read(place: str, stored: FakePack) -> None:
    digest = blob_of(stored, "shared-000")
    ranges = [(2990, 10), (0, 5), (7, 0), (100, 1000)]
    with contextlib.closing(RegistryLayout(place)) as layout:
        found = dict(layout.read_many(digest, ranges))
    data = stored.blobs[digest]
    assert found == {row: data[at : at + n] for row, (at, n) in enumerate(ranges)}


def test_sizes_cost_no_request(before: Before, stored: FakePack) -> None:
    there, server = before()
    with contextlib.closing(RegistryLayout(there)) as layout:
        for digest in stored.blobs:
            assert layout.blob_size(digest)
        assert layout.blob_size(sha256(b"no such blob")) is None
        layout.index()
    assert len(server.methods("GET", "HEAD")) == 1


def test_a_registry_that_ignores_ranges_sends_each_blob_once(
    before: Before, stored: FakePack, tmp_path: Path
) -> None:
    def whole(request: Request) -> bool:
        del request.headers["Range"]
        return False

    there, server = before(whole)
    digest = blob_of(stored, "shared-000")
    data = stored.blobs[digest]
    with contextlib.closing(RegistryLayout(there)) as layout:
        ranges = [(at, 100) for at in range(0, 3000, 100)]
        found = dict(layout.read_many(digest, ranges))
        assert b"".join(found[row] for row in sorted(found)) == data
        assert len([one for one in server.seen if digest in one.path]) == 1
        with DirectoryWriter(tmp_path / "copy") as writer:
            writer.copy(layout, Blob(digest, len(data)))
    assert len([one for one in server.seen if digest in one.path]) == 2


@pytest.mark.parametrize("where", [(0, 3001), (3000, 1), (-1, 5), (5, -1)])
def test_no_range_outside_a_blob_is_asked_for(
    place: str, stored: FakePack, where: tuple[int, int]
) -> None:
    with contextlib.closing(RegistryLayout(place)) as layout, pytest.raises(InputError):
        layout.read(blob_of(stored, "shared-000"), *where)


def test_without_a_tag_the_tags_are_named(place: str, stored: FakePack) -> None:
    with pytest.raises(UsageError, match="expected a tag") as caught:
        RegistryLayout(place.removesuffix(":1"))
    assert caught.value.hint == "tags there: 1"


def test_an_unknown_tag_is_an_error_that_names_the_others(place: str, stored: FakePack) -> None:
    with pytest.raises(InputError, match="found none") as caught:
        RegistryLayout(place.removesuffix(":1") + ":2")
    assert caught.value.hint == "tags there: 1"


def test_an_unknown_repository_is_an_error(place: str) -> None:
    with pytest.raises(InputError, match="found none") as caught:
        RegistryLayout(place)
    assert "NAME_UNKNOWN" in caught.value.hint


def test_tags_in_a_hint_break_no_line(before: Before, stored: FakePack) -> None:
    def many(request: Request) -> None:
        tags = [f"a\n\x1b[31m{number}" for number in range(5000)]
        request.give(200, {}, json.dumps({"tags": tags}).encode())

    there, _ = before(always(many, path="/tags/list"), tag="")
    with pytest.raises(UsageError) as caught:
        RegistryLayout(there)
    assert "5,000 in all" in caught.value.hint
    assert "\n" not in caught.value.hint
    assert "\x1b" not in caught.value.hint
    assert len(caught.value.hint) < 500


def served(data: bytes, **headers: str) -> Fault:
    """A registry whose manifests are these bytes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return always(lambda one: one.give(200, dict(named), data), method="GET", path="/manifests/")


IMAGE = {
    "schemaVersion": 2,
    "mediaType": media_types.OCI_MANIFEST,
    "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": sha256(b""),
        "size": 0,
    },
    "layers": [],
}
NO_PACKS = {
    "nothing": b"",
    "no JSON": b"<html>",
    "an image": json.dumps(IMAGE).encode(),
    "an image index": json.dumps(
        {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}
    ).encode(),
    "nested": b"[" * 1_000_000,
}


@pytest.mark.parametrize("data", NO_PACKS.values(), ids=NO_PACKS)
def test_what_is_no_pack_is_refused(before: Before, data: bytes) -> None:
    there, _ = before(served(data))
    with pytest.raises(InputError, match="127.0.0.1") as caught:  # noqa: RUF043
        RegistryLayout(there)
    assert "\n" not in str(caught.value)


def test_an_endless_manifest_is_refused(before: Before) -> None:
    there, _ = before(served(b" " * (manifests.MAX_MANIFEST_BYTES + 1)))
    with pytest.raises(TransportError, match="at most 4194304 bytes"):
        RegistryLayout(there)


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(
    before: Before, stored: FakePack
) -> None:
    there, _ = before(served(manifests.encode(stored.manifest)), tag="")
    RegistryLayout(f"{there}@{stored.manifest_blob.digest}").close()
    with pytest.raises(InputError, match="expected bytes with that SHA-256"):
        RegistryLayout(f"{there}@{sha256(b'another')}")


def test_a_registry_that_contradicts_itself_is_named(before: Before, stored: FakePack) -> None:
    data = manifests.encode(stored.manifest)
    there, _ = before(served(data, Docker_Content_Digest=sha256(b"another")))
    with pytest.raises(TransportError, match=sha256(b"another")) as caught:
        RegistryLayout(there)
    assert stored.manifest_blob.digest in str(caught.value)


def test_a_wrong_blob_is_noticed(before: Before, stored: FakePack, tmp_path: Path) -> None:
    digest = blob_of(stored, "boot")

    def wrong(request: Request) -> None:
        status, headers, body = request.ask()
        request.give(status, headers, bytes(one ^ 1 for one in body))

    there, _ = before(always(wrong, path=digest))
    with contextlib.closing(RegistryLayout(there)) as layout:
        with pytest.raises(InputError, match=digest):
            read_blob(layout, digest, 1 << 20)
        with DirectoryWriter(tmp_path / "copy") as writer, pytest.raises(InputError, match=digest):
            writer.copy(layout, Blob(digest, 1000))


def test_a_blob_that_is_gone_is_named(before: Before, stored: FakePack) -> None:
    digest = blob_of(stored, "boot")
    there, _ = before(always(lambda one: one.refuse(404), path=digest))
    with (
        contextlib.closing(RegistryLayout(there)) as layout,
        pytest.raises(InputError, match=f"does not hold blob {digest}"),
    ):
        layout.read(digest, 0, 10)


# Writing


def test_the_tag_comes_last(before: Before) -> None:
    there, server = before()
    with RegistryWriter(there) as writer:
        pack = write_pack(writer)
        assert writer.tags == ["1"]
        assert writer.sent_bytes == sum(map(len, pack.blobs.values()))
    puts = [one.path.partition("?")[0] for one in server.methods("PUT")]
    assert len(puts) == len(pack.blobs)
    assert [path for path in puts if "/manifests/" in path] == puts[-1:]
    assert puts[-1].endswith("/manifests/1")


def test_nothing_is_tagged_when_a_blob_fails(before: Before, place: str) -> None:
    fault = once(lambda one: one.refuse(400), method="PUT")
    there, _ = before(fault)
    with RegistryWriter(there) as writer, pytest.raises(TransportError, match="400"):
        write_pack(writer)
    assert tags_at(place) == []


def test_what_is_there_is_not_sent_again(before: Before, stored: FakePack) -> None:
    there, server = before(tag="2")
    with RegistryWriter(there) as writer:
        write_pack(writer)
        assert writer.sent_bytes == stored.manifest_blob.size
    assert not server.methods("POST", "PATCH")


def test_a_tag_that_is_taken_is_not_moved(before: Before, stored: FakePack) -> None:
    there, server = before()
    with pytest.raises(UsageError, match="exists already"):
        RegistryWriter(there)
    assert not server.methods("POST", "PUT")
    with RegistryWriter(there, replace=True) as writer:
        write_pack(writer, bundles=["boot"])
    with contextlib.closing(RegistryLayout(there)) as layout:
        assert list(OpenedPack(layout).manifest.bundles()) == ["boot"]


def test_a_tag_that_names_something_else_is_not_moved_either(before: Before) -> None:
    there, _ = before(served(b"{}"))
    with pytest.raises(UsageError, match="exists already"):
        RegistryWriter(there)


def test_the_same_bytes_twice_are_sent_once(before: Before) -> None:
    there, server = before()
    with RegistryWriter(there) as writer:
        first = writer.add(b"the same")
        with writer.stream() as stream:
            stream.write(b"the same")
            assert stream.finish() == first
    assert len(server.methods("PUT")) == 1


def test_manifest_and_blobs_must_agree(place: str) -> None:
    with RegistryWriter(place) as writer:
        pack = write_pack(writer)
        writer.add(b"more")
        with pytest.raises(ValueError, match="differ"):
            writer.finish([Entry(pack.manifest, "demo:3")])


def test_nothing_is_left_here(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with RegistryWriter(place) as writer:
        with writer.stream() as stream:
            stream.write(b"begun")
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_an_address_with_a_digest_cannot_be_written(place: str) -> None:
    with pytest.raises(UsageError, match="found a digest"):
        RegistryWriter(f"{place.removesuffix(':1')}@{sha256(b'')}")


# Copies


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[OpenedPack]:
    with real_packs.write_pack(tmp_path / "full.vmpack", DATA, CLASSES) as pack:
        yield pack


def copied(packs: list[OpenedPack], place: str, extent: Extent = Extent.FULL) -> RegistryWriter:
    writer = create_layout(place)
    assert isinstance(writer, RegistryWriter)
    with writer:
        copy_packs(packs, writer, extent)
    return writer


@pytest.mark.parametrize("extent", list(Extent))
def test_a_copy_goes_there_and_back(
    place: str, pack: OpenedPack, tmp_path: Path, extent: Extent
) -> None:
    copied([pack], place, extent)
    with create_layout(tmp_path / "straight.vmpack") as writer:
        copy_packs([pack], writer, extent)
    with (
        OpenedPack(RegistryLayout(place)) as there,
        create_layout(tmp_path / "back.vmpack") as writer,
    ):
        copy_packs([there], writer, extent)
    straight, back = (tmp_path / f"{name}.vmpack" for name in ("straight", "back"))
    assert back.read_bytes() == straight.read_bytes()


def test_the_version_is_the_tag_of_a_pack_alone(place: str, pack: OpenedPack) -> None:
    assert copied([pack], place.removesuffix(":1")).tags == ["1"]
    with pytest.raises(UsageError, match=":1 exists already"):
        copied([pack], place.removesuffix(":1"))


def test_each_of_several_packs_gets_a_tag(place: str, pack: OpenedPack, tmp_path: Path) -> None:
    bare = place.removesuffix(":1")
    with real_packs.write_pack(tmp_path / "b.vmpack", DATA[:3], CLASSES[:3], name="lab.x") as other:
        assert copied([pack, other], bare).tags == ["demo-1", "lab.x-1"]
        with OpenedPack(RegistryLayout(f"{bare}:lab.x-1")) as found:
            assert found.config_digest == other.config_digest
        with pytest.raises(UsageError, match="exists already"):
            copied([pack, other], bare)
        with pytest.raises(UsageError, match="one pack for one tag"):
            copied([pack, other], f"{bare}:both")
    assert tags_at(place) == ["demo-1", "lab.x-1"]


def test_no_pack_of_several_is_tagged_when_a_tag_is_taken(
    place: str, pack: OpenedPack, tmp_path: Path
) -> None:
    bare = place.removesuffix(":1")
    with real_packs.write_pack(tmp_path / "b.vmpack", DATA[:3], CLASSES[:3], name="lab") as other:
        copied([other], f"{bare}:lab-1")
        with pytest.raises(UsageError, match="lab-1 exists already"):
            copied([pack, other], bare)
    assert tags_at(place) == ["lab-1"]


def test_a_damaged_pack_is_not_sent(place: str, pack: OpenedPack, tmp_path: Path) -> None:
    with create_layout(f"{tmp_path}/damaged/") as writer:
        copy_packs([pack], writer, Extent.FULL)
    digest = pack.manifest.bundles()["private"].digest
    path = tmp_path / "damaged/blobs/sha256" / digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with (
        OpenedPack(DirectoryLayout(tmp_path / "damaged")) as damaged,
        pytest.raises(InputError, match=digest),
    ):
        copied([damaged], place)
    assert tags_at(place) == []


def test_a_copy_within_a_registry_sends_no_blob(
    before: Before, place: str, pack: OpenedPack
) -> None:
    copied([pack], place)
    there, server = before()
    other = there.replace("/demo", "/other")
    with OpenedPack(RegistryLayout(there)) as source:
        writer = copied([source], other)
    assert writer.sent_bytes == len(manifests.encode(source.manifest))
    assert [one.path.rpartition("/")[2] for one in server.methods("PUT")] == ["1"]
    bundles = [one.digest for one in source.manifest.bundles().values()]
    assert not [one for one in server.methods("GET") if one.path.rpartition("/")[2] in bundles]


def test_a_copy_from_one_registry_to_another(place: str, pack: OpenedPack, tmp_path: Path) -> None:
    copied([pack], place)
    with registry(tmp_path / "second") as second:
        other = f"oci://{second.host}/elsewhere:1"
        advanced: list[int] = []
        with OpenedPack(RegistryLayout(place)) as source, RegistryWriter(other) as writer:
            for layer in source.manifest.bundles().values():
                blob = Blob(layer.digest, layer.size)
                advanced.clear()
                writer.copy(source.layout, blob, advanced.append)
                assert sum(advanced) == layer.size
                advanced.clear()
                writer.copy(source.layout, blob, advanced.append)
                assert advanced == [layer.size]
            copy_packs([source], writer, Extent.FULL)
        with OpenedPack(RegistryLayout(other)) as found:
            assert found.config_bytes == pack.config_bytes
            for layer in found.manifest.bundles().values():
                read_blob(found.layout, layer.digest, 1 << 30)
