"""A copy is the same pack with fewer of its bundles, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from packer.artifact import frames, media_types
from packer.artifact import manifest as manifests
from packer.artifact.contents import Class
from packer.artifact.copy import CopyReport, Extent, copy_packs
from packer.artifact.frames import FrameReader
from packer.artifact.keys import generate
from packer.artifact.layout.base import read_blob
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.opened import OpenedPack
from packer.errors import Error, InputError, UsageError
from packer.sources.base import Wanted
from packer.sources.pack import PackSource
from tests.artifact.layout.media import small_medium
from tests.artifact.make import contents_of
from tests.artifact.real_packs import hints_of, write_pack
from tests.unpack.simulated import CLASSES, DATA, numbered

MIB = 1 << 20


@pytest.fixture
def full(tmp_path: Path) -> Iterator[OpenedPack]:
    key = generate(tmp_path / "key")
    hints = hints_of(contents_of(DATA, CLASSES), [(2, "/usr/lib/x", -1)])
    pack = write_pack(tmp_path / "full.vmpack", DATA, CLASSES, hints=hints, keys=[key])
    yield pack
    pack.close()


def copy_to(
    pack: OpenedPack, output: Path | str, extent: Extent, *, replace: bool = False
) -> CopyReport:
    with create_layout(output, replace=replace) as writer:
        return copy_packs([pack], writer, extent)


def opened(path: Path | str) -> OpenedPack:
    return OpenedPack(open_layout(path))


def readable(pack: OpenedPack) -> dict[int, bytes]:
    """Return what the bundles of a copy really hold."""
    source = PackSource("pack:", pack.layout, pack.map.contents, pack.index)
    rows = np.arange(len(pack.map.contents), dtype=np.int64)
    found: dict[int, dict[int, bytes]] = {}
    for piece in source.fetch(
        source.find(Wanted(pack.map.contents, rows, pack.hints), deep=False).rows
    ):
        found.setdefault(piece.row, {})[piece.block] = bytes(piece.data)  # type: ignore[union-attr]
    return {row: b"".join(blocks[n] for n in sorted(blocks)) for row, blocks in found.items()}


@pytest.mark.parametrize("form", ["copy.vmpack", "copy/"])
@pytest.mark.parametrize(
    ("extent", "bundles"),
    [
        (Extent.BOOT, ["boot"]),
        (Extent.THIN, ["boot", "private"]),
        (Extent.FULL, ["boot", "private", "shared-000"]),
    ],
)
def test_a_copy_is_the_same_pack_with_some_of_its_bundles(
    full: OpenedPack, tmp_path: Path, extent: Extent, bundles: list[str], form: str
) -> None:
    report = copy_to(full, f"{tmp_path}/{form}", extent)
    copy = opened(tmp_path / form)
    assert list(copy.manifest.bundles()) == bundles
    assert copy.config_bytes == full.config_bytes
    assert copy.envelope == full.envelope
    assert report.packs[0].identity == full.config_digest
    assert copy.map.end.tolist() == full.map.end.tolist()
    assert copy.hints.path == full.hints.path
    expected = {row: data for row, data in enumerate(DATA) if CLASSES[row] in extent.classes}
    assert readable(copy) == expected
    left_out = {row for row in range(len(DATA)) if row not in expected}
    assert sum(count for count, _ in report.packs[0].lacking.values()) == len(left_out)
    assert sum(size for _, size in report.packs[0].lacking.values()) == sum(
        len(DATA[r]) for r in left_out
    )
    for blob in copy.manifest.blobs():  # and nothing is named that is not there
        assert len(read_blob(copy.layout, blob.digest, 1 << 30)) == blob.size
    copy.close()


def test_a_copy_of_a_copy_is_the_same_copy(full: OpenedPack, tmp_path: Path) -> None:
    copy_to(full, tmp_path / "one.vmpack", Extent.THIN)
    one = opened(tmp_path / "one.vmpack")
    copy_to(one, tmp_path / "two.vmpack", Extent.THIN)
    one.close()
    assert (tmp_path / "one.vmpack").read_bytes() == (tmp_path / "two.vmpack").read_bytes()


def test_a_thin_copy_gives_a_boot_copy_but_no_full_one(full: OpenedPack, tmp_path: Path) -> None:
    copy_to(full, tmp_path / "thin.vmpack", Extent.THIN)
    thin = opened(tmp_path / "thin.vmpack")
    copy_to(thin, tmp_path / "boot.vmpack", Extent.BOOT)
    shared = sum(one == Class.SHARED for one in CLASSES)
    with pytest.raises(InputError, match=f"no complete full copy: {shared} contents") as caught:
        copy_to(thin, tmp_path / "full-again.vmpack", Extent.FULL)
    assert "fuller copy" in caught.value.hint
    assert not (tmp_path / "full-again.vmpack").exists()
    thin.close()


def test_a_damaged_bundle_is_not_copied(tmp_path: Path) -> None:
    pack = write_pack(f"{tmp_path}/pack/", DATA, CLASSES)
    bundle = pack.manifest.bundles()["private"]
    path = tmp_path / "pack" / "blobs" / "sha256" / bundle.digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    copy_to(pack, tmp_path / "boot.vmpack", Extent.BOOT)
    with pytest.raises(InputError, match="expected bytes with that SHA-256"):
        copy_to(pack, tmp_path / "thin.vmpack", Extent.THIN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boot.vmpack", "pack"]
    pack.close()


def test_an_existing_copy_is_replaced_only_when_asked(full: OpenedPack, tmp_path: Path) -> None:
    place = tmp_path / "copy.vmpack"
    place.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already"):
        copy_to(full, place, Extent.THIN)
    assert place.read_bytes() == b"precious"
    copy_to(full, place, Extent.THIN, replace=True)
    assert readable(opened(place))[1] == DATA[1]


def test_a_pack_can_be_replaced_by_its_own_copy(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "a.vmpack", DATA, CLASSES)
    copy_to(pack, tmp_path / "a.vmpack", Extent.BOOT, replace=True)
    assert list(opened(tmp_path / "a.vmpack").manifest.bundles()) == ["boot"]
    pack.close()


@pytest.mark.root
def test_a_full_medium_leaves_nothing_behind(full: OpenedPack, tmp_path: Path) -> None:
    with small_medium(tmp_path / "stick", 2 * MIB) as folder:
        with pytest.raises(Error, match=r"are needed there, .* are free"):
            copy_to(full, folder / "copy.vmpack", Extent.FULL)
        assert list(folder.iterdir()) == []


def test_a_pack_without_shared_contents_is_complete_when_thin(tmp_path: Path) -> None:
    data = [numbered(5000, 1), numbered(5000, 2)]
    pack = write_pack(tmp_path / "a.vmpack", data, [Class.BOOT, Class.PRIVATE])
    assert copy_to(pack, tmp_path / "b.vmpack", Extent.THIN).packs[0].lacking == {}
    pack.close()


def test_deltas_travel_with_full_copies_only(tmp_path: Path) -> None:
    patches = [b"not looked at", b"by a copy"]
    deltas = (b"a table of deltas", patches)
    with write_pack(f"{tmp_path}/full/", DATA, CLASSES, deltas=deltas) as pack:
        layers = pack.manifest.deltas()
        assert layers is not None
        for extent in Extent:
            report = copy_to(pack, tmp_path / f"{extent.value}.vmpack", extent)
            with opened(tmp_path / f"{extent.value}.vmpack") as copy:
                assert copy.manifest.deltas() == (layers if extent is Extent.FULL else None)
                stored = sum(blob.size for blob in copy.manifest.blobs())
            assert stored < report.medium_bytes
        copy_to(pack, f"{tmp_path}/again/", Extent.FULL)
        with opened(tmp_path / "again") as copy:
            data = copy.layout.read(layers[1].digest, 0, layers[1].size)
        assert data == b"".join(patches)


def test_a_bundle_with_two_titles_keeps_both(tmp_path: Path) -> None:
    """No vmpack writes one; another tool may find that two of its blobs are the same."""
    data = [numbered(5000, 1), numbered(5000, 2)]
    with write_pack(tmp_path / "a.vmpack", data, [Class.BOOT, Class.SHARED]) as pack:
        *others, boot, shared = pack.manifest.layers
        private = replace(shared, annotations={media_types.TITLE: "private"})
        layers = (*others, boot, private, shared)
        pack.__dict__["manifest"] = replace(pack.manifest, layers=layers)
        copy_to(pack, tmp_path / "full.vmpack", Extent.FULL)
    with opened(tmp_path / "full.vmpack") as full:
        assert list(full.manifest.bundles()) == ["boot", "private", "shared-000"]
        copy_to(full, tmp_path / "thin.vmpack", Extent.THIN)
    with opened(tmp_path / "thin.vmpack") as thin:
        assert readable(thin) == dict(enumerate(data))


def test_a_manifest_that_outgrows_its_bound_when_it_is_written_anew_is_refused(
    tmp_path: Path,
) -> None:
    """A stranger's manifest may be written more tersely than ours."""
    data = [numbered(5000, 1), numbered(5000, 2)]
    with write_pack(tmp_path / "a.vmpack", data, [Class.BOOT, Class.SHARED]) as pack:
        *others, shared = pack.manifest.layers
        many = [
            replace(shared, annotations={media_types.TITLE: f"shared-{number:03d}"})
            for number in range(16_000)
        ]
        terse = msgspec.json.encode(replace(pack.manifest, layers=(*others, *many)))
        pack.__dict__["manifest"] = manifests.decode(terse)
        with pytest.raises(InputError, match="manifest: expected at most 4194304 bytes, found"):
            copy_to(pack, tmp_path / "b.vmpack", Extent.FULL)
    assert [one.name for one in tmp_path.iterdir()] == ["a.vmpack"]


def test_frames_are_read_in_their_order_and_each_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "BYTES_AT_ONCE", MIB)
    place = tmp_path / "a.vmpack"
    with write_pack(place, DATA, CLASSES) as pack:
        index = pack.index
        everything = np.arange(len(index.bundle))
        bundles = pack.manifest.bundles().values()
        stored = b"".join(pack.layout.read(one.digest, 0, one.size) for one in bundles)
        assert b"".join(FrameReader(pack, index).read(everything)) == stored
        some = everything[1::2]
        assert [len(one) for one in FrameReader(pack, index).read(some)] == (
            index.stored_bytes[some].tolist()
        )
        assert list(FrameReader(pack, index).read(everything[:0])) == []
        # The last block of a large content, which begins frames before.
        with place.open("r+b") as file:
            file.seek(place.read_bytes().index(DATA[2][3 * MIB + 100 : 3 * MIB + 108]))
            file.write(b"tampered")
        with pytest.raises(InputError, match=f"expected {pack.map.contents.name(2)} in it"):
            list(FrameReader(pack, index).read(everything))
