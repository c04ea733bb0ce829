from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest

from packer.artifact import manifest as manifests
from packer.artifact import media_types
from packer.artifact.manifest import Blob, Manifest, build, choose, decode, decode_index, encode
from packer.errors import Error, InputError
from tests.artifact.fake_packs import sha256
from tests.artifact.mutate import mutations


def blob(text: str) -> Blob:
    return Blob(sha256(text.encode()), len(text))


FULL = build(
    config=blob("config"),
    maps=[blob("map 0"), blob("map 1")],
    hints=blob("hints"),
    frame_index=blob("index"),
    signature=blob("signature"),
    bundles={
        "shared-1000": blob("s1000"),
        "shared-001": blob("s1"),
        "private": blob("private"),
        "shared-000": blob("s0"),
        "boot": blob("boot"),
    },
)
BOOT_ONLY = build(config=blob("config"), maps=[blob("map 0")], bundles={"boot": blob("boot")})


def document() -> Any:
    return json.loads(encode(FULL))


def with_layers(change: Any) -> bytes:
    whole = document()
    change(whole["layers"])
    return json.dumps(whole).encode()


@pytest.mark.parametrize("manifest", [FULL, BOOT_ONLY])
def test_encode_and_decode_are_inverses(manifest: Manifest) -> None:
    assert decode(encode(manifest)) == manifest
    assert encode(decode(encode(manifest))) == encode(manifest)


def test_layers_come_in_the_order_in_which_a_reader_needs_them() -> None:
    assert [layer.digest for layer in FULL.layers] == [
        blob(text).digest
        for text in (
            "signature", "map 0", "map 1", "index", "hints",
            "boot", "private", "s0", "s1", "s1000",
        )
    ]  # fmt: skip


def test_parts_are_found_by_type_and_annotation() -> None:
    assert [layer.digest for layer in FULL.maps()] == [blob("map 0").digest, blob("map 1").digest]
    assert list(FULL.bundles()) == ["boot", "private", "shared-000", "shared-001", "shared-1000"]
    assert FULL.bundles()["boot"].size == 4
    for part, text in (
        (FULL.hints(), "hints"),
        (FULL.frame_index(), "index"),
        (FULL.signature(), "signature"),
    ):
        assert part is not None
        assert part.digest == blob(text).digest


def test_a_copy_names_only_what_it_holds() -> None:
    assert list(BOOT_ONLY.bundles()) == ["boot"]
    assert BOOT_ONLY.signature() is None
    assert BOOT_ONLY.hints() is None


def test_one_blob_may_stand_for_two_parts() -> None:
    twice = build(config=blob("config"), maps=[blob("m"), blob("m")], bundles={"boot": blob("m")})
    assert [b.digest for b in decode(encode(twice)).blobs()] == [
        blob("config").digest,
        blob("m").digest,
    ]


def test_it_is_an_oci_image_manifest_with_an_artifact_type() -> None:
    whole = document()
    assert whole["schemaVersion"] == 2
    assert whole["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert whole["artifactType"] == "application/vnd.vmpack.pack.v1"
    assert whole["config"]["mediaType"] == "application/vnd.vmpack.config.v1+json"
    assert whole["layers"][-1]["annotations"] == {"org.opencontainers.image.title": "shared-1000"}
    assert "annotations" not in whole["layers"][0]


def test_a_bundle_needs_a_legal_title() -> None:
    with pytest.raises(ValueError, match=r"\.\./boot"):
        build(config=blob("config"), maps=[blob("map")], bundles={"../boot": blob("boot")})


def test_layers_of_unknown_type_are_passed_over() -> None:
    extra = {"mediaType": "application/vnd.other", "digest": sha256(b""), "size": 0}
    decoded = decode(with_layers(lambda layers: layers.extend([extra, extra])))
    assert decoded.bundles() == FULL.bundles()
    assert len(decoded.layers) == len(FULL.layers) + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[5].update(digest="sha256:xyz"), r"layers\[5\].digest: "),
        (lambda x: x[5].update(digest="sha512:" + "0" * 128), r"layers\[5\].digest: "),
        (lambda x: x[5].update(size=-1), r"layers\[5\].size: expected `int` >= 0, found -1"),
        (lambda x: x[5].update(size=1 << 63), r"layers\[5\].size: "),
        (lambda x: x[5].pop("size"), r"layers\[5\].size: missing"),
        (lambda x: x[5].update(mediaType=""), r"layers\[5\].mediaType: "),
        (lambda x: x[5].update(annotations={}), r"layers\[5\]: annotations\.org\.open"),
        (lambda x: x[5].update(annotations={media_types.TITLE: "a/b"}), r"layers\[5\]: ann"),
        (lambda x: x[5].update(annotations={media_types.TITLE: "private"}), "expected one"),
        (lambda x: x[5].update(annotations={media_types.TITLE: 1}), r"layers\[5\]\.annotations"),
        (lambda x: x[2].update(annotations={media_types.DISK: "0"}), "expected one"),
        (lambda x: x[2].update(annotations={media_types.DISK: "2"}), "without gaps"),
        (lambda x: x[2].update(annotations={media_types.DISK: "-1"}), r"layers\[2\]: ann"),
        (lambda x: x[2].update(annotations={media_types.DISK: "\u0661"}), r"layers\[2\]: ann"),
        (lambda x: x.append(x[0]), r"layers\[10\]: expected one"),
        (lambda x: x.__delitem__(slice(1, 3)), "layers: expected maps"),
        (lambda x: x[5].update(x[6], size=5, annotations=x[5]["annotations"]), "one size of sha"),
        (lambda x: x.append({**x[6], "mediaType": "a/b", "size": 5}), "one size of sha256:"),
    ],
)
def test_errors_name_the_key(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(with_layers(change))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schemaVersion", 1),
        ("mediaType", "application/vnd.docker.distribution.manifest.v2+json"),
        ("artifactType", "application/vnd.vmpack.pack.v2"),
        ("config", {"mediaType": "application/json", "digest": sha256(b""), "size": 0}),
    ],
)
def test_another_kind_of_manifest_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key):
        decode(json.dumps({**document(), key: value}).encode())


def test_a_manifest_is_bounded_before_it_is_parsed() -> None:
    with pytest.raises(InputError, match="at most 4194304 bytes"):
        decode(b"[" * (manifests.MAX_MANIFEST_BYTES + 1))
    bundles = {f"shared-{row:05d}": blob(str(row)) for row in range(20_000)}
    with pytest.raises(InputError, match="expected at most 4194304 bytes, found"):
        encode(build(config=blob("config"), maps=[blob("map")], bundles=bundles))


def test_every_flipped_byte_is_an_error_or_still_a_manifest() -> None:
    data = encode(BOOT_ONLY)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                manifest = decode(bytes(damaged))
            except Error:
                continue
            assert decode(encode(manifest)) == manifest


def test_a_damaged_manifest_is_refused_or_still_one() -> None:
    legal = 0
    for data in mutations(encode(FULL), random.Random(2), 3000):
        try:
            manifest = decode(data)
        except InputError:
            continue
        legal += 1
        assert decode(encode(manifest)) == manifest
        sizes = {(one.digest, one.size) for one in (manifest.config, *manifest.layers)}
        assert len(sizes) == len(manifest.blobs())
        again = manifests.copy_of(
            manifest,
            blob("another index"),
            {title: Blob(one.digest, one.size) for title, one in manifest.bundles().items()},
        )
        assert decode(encode(again)).bundles().keys() == manifest.bundles().keys()
    assert legal > 100


def index(*ref_names: str) -> bytes:
    return manifests.encode_index([(name, blob(name)) for name in ref_names])


def test_an_index_names_one_manifest() -> None:
    named = decode_index(index("demo:3"))
    assert named == (("demo:3", blob("demo:3")),)
    assert choose(named) == choose(named, "demo:3") == choose(named, "demo") == named[0]
    with pytest.raises(InputError, match="demo:4") as caught:
        choose(named, "demo:4")
    assert "demo:3" in caught.value.hint


def test_of_several_manifests_the_user_names_one() -> None:
    named = decode_index(index("demo:1", "demo:2", "other:1"))
    assert choose(named, "demo:1") == ("demo:1", blob("demo:1"))
    with pytest.raises(InputError, match="expected one pack, found 3") as caught:
        choose(named)
    assert "demo:1, demo:2, other:1" in caught.value.hint


def test_a_name_alone_means_the_highest_version() -> None:
    named = decode_index(index("demo:9", "demo:10", "demo:x", "demolition:11", "demo:-12"))
    assert choose(named, "demo")[0] == "demo:10"
    with pytest.raises(InputError, match="found 0"):
        choose(named, "dem")


def test_a_version_that_is_listed_twice_is_never_guessed() -> None:
    both = [("demo:3", blob("x")), ("demo:2", blob("y")), ("demo:3", blob("z"))]
    named = decode_index(manifests.encode_index(both))
    for name in ("demo:3", "demo"):
        with pytest.raises(InputError, match="found 2"):
            choose(named, name)
    assert choose(named, "demo:2")[1] == blob("y")


def test_an_index_names_no_more_packs_than_anybody_would_look_at() -> None:
    names = [f"demo:{number}" for number in range(1, manifests.MAX_PACKS + 2)]
    assert len(decode_index(index(*names[:-1]))) == manifests.MAX_PACKS
    with pytest.raises(InputError, match="manifests: expected at most 1024 packs, found 1025"):
        decode_index(index(*names))
    entry = {"mediaType": "a/b", "digest": sha256(b""), "size": 1}
    other = {"schemaVersion": 2, "manifests": [entry] * 10_000}  # of other kinds
    assert decode_index(json.dumps(other).encode()) == ()


def test_a_damaged_index_is_refused_or_still_one() -> None:
    data, legal = index("demo:1", "demo:2", "lab:1"), 0
    for broken in mutations(data, random.Random(3), 3000):
        try:
            named = decode_index(broken)
        except InputError:
            continue
        legal += 1
        for name in (None, "demo", "lab:1"):
            with contextlib.suppress(InputError):
                assert choose(named, name) in named
    assert legal > 100


def test_the_same_pack_under_two_names_is_one_pack() -> None:
    both = manifests.encode_index([("latest", blob("x")), ("demo:1", blob("x"))])
    assert choose(decode_index(both))[1] == blob("x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"schemaVersion": 2, "manifests": []}',
        b'{"schemaVersion": 1, "manifests": []}',
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "a/b", "digest": "x", "size": 1}]}',
    ],
)
def test_an_index_without_a_pack_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        choose(decode_index(data))


def test_the_layout_file_must_be_of_version_1() -> None:
    manifests.check_oci_layout(manifests.OCI_LAYOUT)
    for data in (b"", b"{}", b'{"imageLayoutVersion": "2.0.0"}', b'{"imageLayoutVersion": 1}'):
        with pytest.raises(InputError):
            manifests.check_oci_layout(data)
