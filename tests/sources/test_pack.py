"""Contents out of the bundles of a pack: matched by digest, whatever the pack says of itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from formats.source import FileSource
from packer.artifact.contents import Class, Contents
from packer.artifact.index import Index, offsets_in_bundles
from packer.artifact.layout.open import open_layout
from packer.artifact.layout.tar import TarLayout
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.sources.base import Blockwise, Bytes, Piece, SourceError, Wanted
from packer.sources.open import open_pack
from packer.sources.pack import PackSource
from tests.artifact.make import contents_of
from tests.artifact.real_packs import MIB, hints_of, no_hints, write_pack
from tests.round_trip.mirror import mirror
from tests.unpack.simulated import CLASSES, DATA, numbered

ALL = list(range(len(DATA)))


def source_of(pack: OpenedPack) -> PackSource:
    return PackSource("pack:", pack.layout, pack.map.contents, pack.index)


def wanted(contents: Contents, rows: Sequence[int] | None = None) -> Wanted:
    asked = range(len(contents)) if rows is None else rows
    return Wanted(contents, np.array(list(asked), dtype=np.int64), no_hints())


def fetched(source: PackSource, rows: Sequence[int]) -> dict[int, bytes]:
    """Return the bytes of each content; every piece must come once."""
    found: dict[int, dict[int, bytes]] = {}
    for piece in source.fetch(np.array(rows, dtype=np.int64)):
        assert isinstance(piece, Bytes)
        assert piece.block not in found.setdefault(piece.row, {})
        found[piece.row][piece.block] = bytes(piece.data)
    return {row: b"".join(blocks[n] for n in sorted(blocks)) for row, blocks in found.items()}


@pytest.mark.parametrize("form", ["a.vmpack", "a/"])
def test_a_pack_offers_and_gives_what_its_bundles_hold(tmp_path: Path, form: str) -> None:
    pack = write_pack(f"{tmp_path}/{form}", DATA, CLASSES, carried=[Class.BOOT, Class.SHARED])
    source = source_of(pack)
    assert source.local
    rows = source.find(wanted(pack.map.contents), deep=False).rows.tolist()
    assert rows == [0, 2, 3, 4, 5]
    assert fetched(source, rows) == {row: DATA[row] for row in rows}
    assert fetched(source, [4]) == {4: DATA[4]}
    assert fetched(source, []) == {}
    source.close()


def test_only_what_is_asked_for_is_offered(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "a.vmpack", DATA, CLASSES)
    source = source_of(pack)
    assert source.find(wanted(pack.map.contents, [1, 4]), deep=True).rows.tolist() == [1, 4]
    assert source.find(wanted(pack.map.contents, []), deep=True).rows.tolist() == []
    source.close()


def test_contents_of_another_pack_are_found_by_their_digest(tmp_path: Path) -> None:
    source = source_of(write_pack(tmp_path / "a.vmpack", DATA, CLASSES))
    other = [numbered(999, 40), DATA[5], DATA[2], numbered(5, 41), DATA[0]]
    offers = source.find(wanted(contents_of(other)), deep=False)
    assert offers.rows.tolist() == [1, 2, 4]
    assert fetched(source, [1, 2, 4]) == {1: DATA[5], 2: DATA[2], 4: DATA[0]}
    # Asked about its own contents again, it answers for those.
    again = wanted(contents_of(DATA, CLASSES))
    assert source.find(again, deep=False).rows.tolist() == ALL
    assert fetched(source, [3]) == {3: DATA[3]}
    source.close()


def test_a_pack_without_contents_offers_nothing(tmp_path: Path) -> None:
    source = source_of(write_pack(tmp_path / "a.vmpack", [], []))
    assert source.find(wanted(contents_of(DATA)), deep=False).rows.tolist() == []
    assert source.find(wanted(contents_of([])), deep=False).rows.tolist() == []
    source.close()


def test_a_digest_that_another_map_gives_another_size_is_not_offered(tmp_path: Path) -> None:
    source = source_of(write_pack(tmp_path / "a.vmpack", DATA, CLASSES))
    honest = contents_of(DATA)
    lie = replace(honest, size=np.where(np.arange(len(DATA)) == 3, 20_481, honest.size))
    assert source.find(wanted(lie), deep=False).rows.tolist() == [0, 1, 2, 4, 5]
    source.close()


def test_what_lies_in_an_absent_bundle_is_not_offered(tmp_path: Path) -> None:
    pack = write_pack(f"{tmp_path}/a/", DATA, CLASSES)
    blob = pack.manifest.bundles()["shared-000"].digest.removeprefix("sha256:")
    (tmp_path / "a" / "blobs" / "sha256" / blob).unlink()
    source = source_of(pack)
    assert source.find(wanted(pack.map.contents), deep=False).rows.tolist() == [0, 1]
    source.close()


class InThreeBundles:
    """One content of three MiB, each in a bundle of its own, between two small ones."""

    def __init__(self, folder: Path) -> None:
        self.data = [b"first", numbered(3 * MIB, 9), b"last"]
        self.contents = contents_of(self.data)
        blocks = [self.data[1][n * MIB : (n + 1) * MIB] for n in range(3)]
        frames = [self.data[0], *blocks, self.data[2]]
        packed = [compress(frame, 1) for frame in frames]
        bundles = [packed[0] + packed[1], packed[2], packed[3] + packed[4]]
        pack = write_pack(f"{folder}/three/", bundles, [Class.SHARED] * 3)
        blobs = folder / "three" / "blobs" / "sha256"
        self.blobs = [blobs / bytes(pack.map.contents.digest[n]).hex() for n in range(3)]
        for path, bundle in zip(self.blobs, bundles, strict=True):
            path.write_bytes(bundle)
        bundle_of_frame = np.array([0, 0, 1, 2, 2], dtype=np.int64)
        stored = np.array([len(one) for one in packed], dtype=np.int64)
        self.index = Index(
            tuple(f"sha256:{path.name}" for path in self.blobs),
            bundle_of_frame,
            offsets_in_bundles(bundle_of_frame, stored),
            stored,
            np.array([len(frame) for frame in frames], dtype=np.int64),
            np.array([0, 1, 2], dtype=np.int64),
            np.array([0, 1, 4], dtype=np.int64),
            np.zeros(3, dtype=np.int64),
        )
        pack.close()
        self.folder = folder / "three"

    def source(self) -> PackSource:
        return PackSource("pack:", open_layout(self.folder), self.contents, self.index)


def test_a_content_over_several_bundles_comes_whole(tmp_path: Path) -> None:
    three = InThreeBundles(tmp_path)
    source = three.source()
    rows = source.find(wanted(three.contents), deep=False).rows.tolist()
    assert fetched(source, rows) == dict(enumerate(three.data))
    source.close()


@pytest.mark.parametrize(("absent", "left"), [(0, [2]), (1, [0, 2]), (2, [0])])
def test_a_content_of_which_any_bundle_is_absent_is_not_offered(
    tmp_path: Path, absent: int, left: list[int]
) -> None:
    three = InThreeBundles(tmp_path)
    three.blobs[absent].unlink()
    source = three.source()
    rows = source.find(wanted(three.contents), deep=False).rows.tolist()
    assert rows == left
    assert fetched(source, rows) == {row: three.data[row] for row in left}
    source.close()


def test_a_damaged_frame_costs_its_own_contents_only(tmp_path: Path) -> None:
    three = InThreeBundles(tmp_path)
    data = bytearray(three.blobs[0].read_bytes())
    data[:4] = b"junk"  # the magic number of the first frame
    three.blobs[0].write_bytes(data)
    source = three.source()
    rows = source.find(wanted(three.contents), deep=False).rows.tolist()
    assert rows == [0, 1, 2]
    assert fetched(source, rows) == {1: three.data[1], 2: three.data[2]}
    source.close()


def test_a_bundle_that_ends_too_early_is_an_error_and_what_came_before_stands(
    tmp_path: Path,
) -> None:
    three = InThreeBundles(tmp_path)
    os.truncate(three.blobs[2], three.blobs[2].stat().st_size - 1)
    source = three.source()
    rows = source.find(wanted(three.contents), deep=False).rows
    pieces: list[Piece] = []
    with pytest.raises(SourceError, match="blob sha256:") as caught:
        pieces.extend(source.fetch(rows))
    assert caught.value.hint
    assert [(piece.row, piece.block) for piece in pieces if isinstance(piece, Bytes)] == [
        (0, 0),
        (1, 0),
        (1, 1),
    ]
    source.close()


def remote(path: Path) -> TarLayout:
    """Return a tar as it is read from the network: what is read costs traffic."""
    file = FileSource(path)
    return TarLayout(file, str(path), remote=True, on_close=file.close)


def test_on_the_network_a_frame_costs_what_it_takes_there_once_for_all_it_holds(
    tmp_path: Path,
) -> None:
    data = [numbered(10_000, n) for n in range(20)] + [numbered(2 * MIB + 9, 50)]
    contents = contents_of(data)
    hints = hints_of(contents, [(n, f"/{n % 2}/{n:02}", -1) for n in range(20)])
    pack = write_pack(tmp_path / "a.vmpack", data, [Class.SHARED] * 21, hints=hints)
    (bundle,) = pack.manifest.bundles().values()
    source = PackSource("https:", remote(tmp_path / "a.vmpack"), pack.map.contents, pack.index)
    assert not source.local
    offers = source.find(wanted(pack.map.contents), deep=False)
    assert offers.rows.tolist() == list(range(21))
    # Two folders make two mixed frames; what stands alone has no group, and costs its own frames.
    assert len(offers.group_bytes) == 2
    assert sorted(set(offers.group.tolist())) == [-1, 0, 1]
    assert offers.group[:20].min() >= 0
    assert int(offers.cost_bytes.sum() + offers.group_bytes.sum()) == bundle.size
    assert offers.cost_bytes[20] > 2 * MIB
    assert offers.cost_bytes[:20].tolist() == [0] * 20
    one = source.find(wanted(pack.map.contents, [3]), deep=False)
    assert int(one.group_bytes[one.group[0]]) < bundle.size // 10
    assert fetched(source, range(21)) == dict(enumerate(data))
    source.close()
    pack.close()


def test_on_this_host_nothing_costs_anything(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "a.vmpack", DATA, CLASSES)
    source = source_of(pack)
    offers = source.find(wanted(pack.map.contents), deep=False)
    assert offers.cost_bytes.sum() == offers.group_bytes.sum() == 0
    source.close()


def test_a_bundle_that_a_server_lacks_costs_its_contents_and_no_others(tmp_path: Path) -> None:
    """Its manifest names it, so that it is offered once."""
    write_pack(f"{tmp_path}/a/", DATA, CLASSES).close()
    with mirror(tmp_path / "a") as server, open_pack(server.url) as pack:
        private = pack.manifest.bundles()["private"].digest.removeprefix("sha256:")
        (tmp_path / "a" / "blobs" / "sha256" / private).unlink()
        source = source_of(pack)
        assert source.find(wanted(pack.map.contents), deep=False).rows.tolist() == ALL
        came: set[int] = set()
        with pytest.raises(SourceError, match="does not hold blob"):
            came.update(piece.row for piece in source.fetch(np.array(ALL)))
        rest = [row for row in ALL if CLASSES[row] != Class.PRIVATE]
        assert sorted(came) == rest
        assert source.find(wanted(pack.map.contents), deep=True).rows.tolist() == rest
        assert fetched(source, rest) == {row: DATA[row] for row in rest}


def test_an_open_pack_on_a_server_has_cost_one_request_for_each_document(tmp_path: Path) -> None:
    write_pack(f"{tmp_path}/a/", DATA, CLASSES).close()
    with mirror(tmp_path / "a") as server, open_pack(server.url) as pack:
        source_of(pack).find(wanted(pack.map.contents), deep=False)
        assert server.requests == 6  # oci-layout, index.json, manifest, config, map, frame index
        assert len(pack.hints.path) == 0
        assert server.requests == 7


# -- single pieces ---------------------------------------------------------------------------------


def pieces_of(source: PackSource, pieces: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    rows, blocks = np.array(pieces, dtype=np.int64).T
    found = list(source.fetch_blocks(rows, blocks))
    assert len({(one.row, one.block) for one in found}) == len(found)
    return {(one.row, one.block): bytes(one.data) for one in found}


def test_a_single_block_of_a_large_content_comes_alone(tmp_path: Path) -> None:
    three = InThreeBundles(tmp_path)
    source = three.source()
    assert isinstance(source, Blockwise)
    source.find(wanted(three.contents), deep=False)
    large = three.data[1]
    assert pieces_of(source, [(1, 1)]) == {(1, 1): large[MIB : 2 * MIB]}
    assert pieces_of(source, [(1, 2), (1, 0), (2, 0)]) == {
        (1, 0): large[:MIB],
        (1, 2): large[2 * MIB :],
        (2, 0): three.data[2],
    }
    source.close()


def test_what_shares_a_frame_with_a_wanted_piece_comes_with_it(tmp_path: Path) -> None:
    """Of what is wanted: contents of another pack are told by their rows there."""
    data = [numbered(10_000, n) for n in range(8)]
    pack = write_pack(tmp_path / "a.vmpack", data, [Class.SHARED] * 8)
    source = PackSource("https:", remote(tmp_path / "a.vmpack"), pack.map.contents, pack.index)
    others = contents_of([numbered(99, 50), data[6], data[1], data[3]])
    assert source.find(wanted(others), deep=False).rows.tolist() == [1, 2, 3]
    found = pieces_of(source, [(2, 0)])
    assert found == {(1, 0): data[6], (2, 0): data[1], (3, 0): data[3]}
    cost = source.cost_of_blocks(np.array([1, 2]), np.array([0, 0]))
    assert cost == pack.manifest.bundles()["shared-000"].size
    source.close()
    pack.close()


def test_a_bundle_that_comes_back_is_used_after_renewal(tmp_path: Path) -> None:
    write_pack(f"{tmp_path}/a/", DATA, CLASSES).close()
    with mirror(tmp_path / "a") as server, open_pack(server.url) as pack:
        private = pack.manifest.bundles()["private"].digest.removeprefix("sha256:")
        path = tmp_path / "a" / "blobs" / "sha256" / private
        path.rename(tmp_path / "away")
        source = source_of(pack)
        source.find(wanted(pack.map.contents), deep=False)
        with pytest.raises(SourceError, match="does not hold blob"):
            pieces_of(source, [(1, 0)])
        (tmp_path / "away").rename(path)
        assert source.find(wanted(pack.map.contents, [1]), deep=False).rows.tolist() == []
        source.renew()
        assert source.find(wanted(pack.map.contents, [1]), deep=False).rows.tolist() == [1]
        assert pieces_of(source, [(1, 0)]) == {(1, 0): DATA[1]}
