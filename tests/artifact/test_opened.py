"""The parts of a pack are believed only when they are what the part above them names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from packer.artifact import config as configs
from packer.artifact import manifest as manifests
from packer.artifact.config import Config, Disk, HintsRef, digest
from packer.artifact.contents import Class
from packer.artifact.hints import encode_hints
from packer.artifact.index import Index, encode_index
from packer.artifact.keys import generate
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.map import encode_map
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.errors import InputError
from tests.artifact.make import contents_of, small_map
from tests.artifact.real_packs import hints_of, no_hints, straight_map, write_pack
from tests.artifact.test_map import same

DATA = [b"boot" * 500, b"private" * 700, b"shared" * 900]
CLASSES = list(Class)
CONTENTS = contents_of(DATA, CLASSES)
MAP = encode_map(straight_map(CONTENTS))
HINTS = encode_hints(no_hints())


def honest_config(**changes: object) -> Config:
    facts: dict[str, object] = {
        "name": "demo",
        "version": 1,
        "disks": (Disk(straight_map(CONTENTS).size, 512, digest(MAP), len(MAP)),),
        "hints": HintsRef(digest(HINTS), len(HINTS)),
    }
    return Config(**(facts | changes))  # type: ignore[arg-type]


OpenWith = Callable[..., OpenedPack]


@pytest.fixture
def open_with(tmp_path: Path) -> Iterator[OpenWith]:
    """Open a pack whose parts are these; what is not given is honest, None is absent."""
    opened: list[OpenedPack] = []

    def make(
        config: Config | None = None,
        disk_map: bytes = compress(MAP, 3),
        hints: bytes | None = compress(HINTS, 3),
        index: bytes | None = None,
    ) -> OpenedPack:
        place = tmp_path / f"{len(opened)}.vmpack"
        with create_layout(place) as writer:
            manifest = manifests.build(
                config=writer.add(configs.encode(config or honest_config())),
                maps=[writer.add(disk_map)],
                hints=None if hints is None else writer.add(hints),
                frame_index=None if index is None else writer.add(index),
                signature=None,
                bundles={},
            )
            writer.finish([manifests.Entry(manifest, "demo:1")])
        opened.append(OpenedPack(open_layout(place)))
        return opened[-1]

    yield make
    for pack in opened:
        pack.close()


def test_every_part_of_a_pack_comes_back_as_it_was_written(tmp_path: Path) -> None:
    key = generate(tmp_path / "key")
    disk_map = straight_map(CONTENTS)
    hints = hints_of(CONTENTS, [(2, "/usr/x", -1)])
    for place in (tmp_path / "a.vmpack", f"{tmp_path}/folder/"):
        pack = write_pack(place, DATA, CLASSES, hints=hints, keys=[key], sources=["apt:x"])
        assert same(pack.map, disk_map)
        assert pack.hints.path == ["/usr/x"]
        assert pack.index.content.tolist() == [0, 1, 2]
        assert (pack.config.ref_name, pack.config.sources) == ("demo:1", ("apt:x",))
        assert pack.config_digest == digest(pack.config_bytes)
        assert pack.envelope is not None
        assert json.loads(pack.envelope)["payloadType"]
        pack.close()


def test_an_unsigned_pack_has_no_envelope(open_with: OpenWith) -> None:
    assert open_with().envelope is None


def test_nothing_but_the_table_of_contents_is_read_before_it_is_needed(open_with: OpenWith) -> None:
    pack = open_with(disk_map=b"not a map", hints=b"not hints", index=b"not an index")
    assert pack.config.name == "demo"
    for part in ("map", "hints", "index"):
        with pytest.raises(InputError, match="not a"):
            getattr(pack, part)


def test_another_map_than_the_config_names_is_refused(open_with: OpenWith) -> None:
    other = encode_map(small_map())
    with pytest.raises(InputError, match="map"):
        _ = open_with(disk_map=compress(other, 3)).map
    same_size = bytearray(MAP)
    same_size[-1] ^= 1
    with pytest.raises(InputError, match="map: expected sha256:"):
        _ = open_with(disk_map=compress(bytes(same_size), 3)).map


def test_a_map_of_another_disk_size_than_the_config_says_is_refused(open_with: OpenWith) -> None:
    disk = Disk(straight_map(CONTENTS).size + 512, 512, digest(MAP), len(MAP))
    with pytest.raises(InputError, match="as the config says"):
        _ = open_with(honest_config(disks=(disk,))).map


def test_a_map_that_unpacks_to_more_than_the_config_says_is_refused(open_with: OpenWith) -> None:
    bomb = compress(bytes(1 << 28), 3)
    with pytest.raises(InputError, match=f"more than the {len(MAP)} bytes"):
        _ = open_with(disk_map=bomb).map


def test_other_hints_than_the_config_names_are_refused(open_with: OpenWith) -> None:
    other = encode_hints(hints_of(CONTENTS, [(1, "/x", -1)]))
    with pytest.raises(InputError, match="hints"):
        _ = open_with(hints=compress(other, 3)).hints
    named = honest_config(hints=HintsRef(digest(other), len(other)))
    assert open_with(named, hints=compress(other, 3)).hints.path == ["/x"]


def test_a_copy_without_hints_or_index_says_so(open_with: OpenWith) -> None:
    pack = open_with(hints=None)
    with pytest.raises(InputError, match="hints: this copy carries none"):
        _ = pack.hints
    with pytest.raises(InputError, match="frame index: this copy carries none"):
        _ = pack.index


def test_an_index_that_says_it_is_larger_than_any_is_not_unpacked(open_with: OpenWith) -> None:
    bomb = compress(bytes(5 << 20), 3)
    with pytest.raises(InputError, match="frame index: expected at most"):
        _ = open_with(index=bomb).index


def test_a_part_that_is_longer_than_its_frame_can_be_is_not_read(open_with: OpenWith) -> None:
    padded = compress(MAP, 3) + bytes(1 << 20)
    with pytest.raises(InputError, match="expected at most"):
        _ = open_with(disk_map=padded).map


def test_an_index_may_name_the_bundles_of_its_own_copy_only(open_with: OpenWith) -> None:
    none = np.empty(0, dtype=np.int64)
    bundles = tuple(digest(b"%d" % number) for number in range(1000))
    index = Index(bundles, none, none, none, none, none, none, none)
    with pytest.raises(InputError, match="bundles of this copy only, found 1000 others"):
        _ = open_with(index=compress(encode_index(index), 3)).index


def test_frames_that_reach_past_their_bundle_are_refused(tmp_path: Path) -> None:
    with write_pack(tmp_path / "a.vmpack", DATA, CLASSES) as pack:
        index = pack.index
        sizes = [layer.size for layer in pack.manifest.bundles().values()]
        assert index.bundle_bytes() == sizes
        longer = index.stored_bytes + (np.arange(len(index.bundle)) == 1)
        with pytest.raises(InputError, match=f"frames of {sizes[1]} bytes in .*{sizes[1] + 1}"):
            _ = with_index(pack, replace(index, stored_bytes=longer)).index


def with_index(pack: OpenedPack, index: Index) -> OpenedPack:
    """Return a copy of a pack with another frame index, which nobody signs."""
    place = f"{pack.layout.location}.changed"
    with create_layout(place) as writer:
        for blob in (*pack.manifest.kept(), *pack.manifest.bundles().values()):
            writer.copy(pack.layout, manifests.Blob(blob.digest, blob.size))
        changed = writer.add(compress(encode_index(index), 3))
        bundles = {t: manifests.Blob(b.digest, b.size) for t, b in pack.manifest.bundles().items()}
        manifest = manifests.copy_of(pack.manifest, changed, bundles)
        writer.finish([manifests.Entry(manifest, pack.config.ref_name)])
    return OpenedPack(open_layout(place))


def test_an_error_in_a_part_names_the_pack(open_with: OpenWith) -> None:
    pack = open_with(index=compress(b"no MessagePack", 3))
    with pytest.raises(InputError, match=f"{pack.layout.location}: frame index: not the"):
        _ = pack.index


def test_a_blob_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    pack = write_pack(f"{place}/", DATA, CLASSES)
    blob = place / "blobs" / "sha256" / pack.manifest.config.digest.removeprefix("sha256:")
    pack.close()
    blob.write_bytes(blob.read_bytes().replace(b'"demo"', b'"evil"'))
    with pytest.raises(InputError, match="expected bytes with that SHA-256"):
        _ = OpenedPack(open_layout(place)).config


def test_a_copy_can_use_the_map_of_another_copy_but_not_of_another_pack(
    open_with: OpenWith,
) -> None:
    full, copy, stranger = (
        open_with(),
        open_with(disk_map=b"unread"),
        open_with(honest_config(version=2)),
    )
    copy.share_map(full)
    assert copy.map is full.map
    with pytest.raises(ValueError, match="two different packs"):
        stranger.share_map(full)
