from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import pyzstd
from hypothesis import given
from hypothesis import strategies as st

from packer.artifact import manifest as manifests
from packer.artifact.contents import Class
from packer.artifact.index import encode_index, no_frames
from packer.artifact.keys import generate
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.opened import OpenedPack
from packer.artifact.want import (
    MAX_WANT_HEAD_BYTES,
    WANT_ROW_BYTES,
    decode_want,
    encode_want,
    wanted_rows,
    write_tables,
    write_want,
)
from packer.artifact.zstd import compress
from packer.columns import MAX_ROWS
from packer.errors import InputError, UsageError
from tests.artifact.make import contents_of
from tests.artifact.real_packs import hints_of, noise, write_pack

CONFIG = "sha256:" + "5" * 64
MIB = 1 << 20
DATA = [noise(size, seed) for seed, size in enumerate((512, 5_000, 3 * MIB + 7, 90, 2 * MIB, 40))]
CLASSES = [Class.BOOT, Class.PRIVATE, Class.SHARED, Class.SHARED, Class.PRIVATE, Class.SHARED]
COUNT = len(DATA)


def rows(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def full_pack(folder: Path, name: str = "demo") -> OpenedPack:
    folder.mkdir(exist_ok=True)
    hints = hints_of(contents_of(DATA), [(row, f"/srv/file-{row}", -1) for row in range(COUNT)])
    key = generate(folder / f"key-{name}")
    return write_pack(folder / f"{name}.vmpack", DATA, CLASSES, hints=hints, name=name, keys=[key])


@pytest.fixture
def pack(tmp_path: Path) -> OpenedPack:
    return full_pack(tmp_path)


@given(st.integers(1, 300), st.data())
def test_decoding_an_encoded_list_gives_the_same_rows(contents: int, data: st.DataObject) -> None:
    wanted = sorted(data.draw(st.sets(st.integers(0, contents - 1), min_size=1)))
    found = decode_want(encode_want(CONFIG, rows(*wanted)), CONFIG, contents)
    assert found.tolist() == wanted


def rewritten(**changes: object) -> bytes:
    whole = msgspec.msgpack.decode(encode_want(CONFIG, rows(1, 4, 5)))
    return msgspec.msgpack.encode({**whole, **changes})


def test_unknown_keys_are_passed_over() -> None:
    assert decode_want(rewritten(later=[1]), CONFIG, COUNT).tolist() == [1, 4, 5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "expected schema 1, found 2"),
        ({"config": "sha256:" + "6" * 64}, f"expected this pack's, {CONFIG}, found 'sha256:6666"),
        ({"config": ""}, "config: expected this pack's"),
        ({"content_step": [0, 0, b""]}, "expected 1 to 6 rows, found 0"),
        ({"content_step": [0, 7, b""]}, "expected 1 to 6 rows, found 7"),
        ({"content_step": [0, MAX_ROWS, b""]}, "expected 1 to 6 rows"),
        ({"content_step": [0, -1, b""]}, "expected 1 to 6 rows, found -1"),
        ({"content_step": [1, 3, b"\x01\x02\x01"]}, "past the last of 6 contents"),
        ({"content_step": [1, 1, b"\x06"]}, "past the last of 6 contents"),
        ({"content_step": [8, 2, b"\xff\xff" * 7 + b"\x7f\x7f"]}, "past the last of 6"),
        ({"content_step": [8, 1, b"\xff" * 8]}, "a value is 2^63 or more"),
        ({"content_step": [1, 3, b"\x01"]}, "expected 3 bytes, found 1"),
        ({"content_step": [9, 1, bytes(9)]}, "9 bytes a value"),
        ({"content_step": "rows"}, "not the MessagePack it should be"),
    ],
)
def test_a_list_that_breaks_a_rule_is_named_with_it(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_want(rewritten(**changes), CONFIG, COUNT)
    assert str(caught.value).startswith("want-list: ")
    assert words in str(caught.value)


def test_every_flipped_bit_is_an_error_or_another_legal_list() -> None:
    good = encode_want(CONFIG, rows(0, 1, 4))
    for position in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[position // 8] ^= 1 << position % 8
        try:
            found = decode_want(bytes(damaged), CONFIG, COUNT)
        except InputError:
            continue
        assert len(found) > 0
        assert (np.diff(found) > 0).all()
        assert found[0] >= 0
        assert found[-1] < COUNT


def test_a_list_is_a_copy_of_the_pack_without_bundles(pack: OpenedPack, tmp_path: Path) -> None:
    report = write_want(pack, rows(2, 4), tmp_path / "missing.want")
    assert (report.ref_name, report.identity) == ("demo:1", pack.config_digest)
    assert (report.contents, report.content_bytes) == (2, 5 * MIB + 7)
    assert 0 < report.stored_bytes < (tmp_path / "missing.want").stat().st_size < 16_384
    with OpenedPack(open_layout(tmp_path / "missing.want")) as made:
        assert wanted_rows(made).tolist() == [2, 4]
        assert made.manifest.bundles() == {}
        assert made.index.bundles == ()
        assert made.manifest.kept() == pack.manifest.kept()
        assert made.envelope == pack.envelope
        assert made.hints.path == pack.hints.path
        assert made.map.contents.digest.tobytes() == pack.map.contents.digest.tobytes()


def test_the_same_list_has_the_same_bytes(pack: OpenedPack, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_want(pack, rows(0, 5), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_list_takes_the_place_of_an_older_one_of_its_pack(
    pack: OpenedPack, tmp_path: Path
) -> None:
    for wanted in (rows(0, 1, 2), rows(1)):
        write_want(pack, wanted, tmp_path / "missing.want")
    with OpenedPack(open_layout(tmp_path / "missing.want")) as made:
        assert wanted_rows(made).tolist() == [1]


@pytest.mark.parametrize("what", ["another pack's list", "its pack", "a filled list", "a file"])
def test_nothing_else_is_replaced_by_a_list(pack: OpenedPack, tmp_path: Path, what: str) -> None:
    place = tmp_path / "taken"
    if what == "another pack's list":
        write_want(full_pack(tmp_path / "other", "other"), rows(1), place)
    elif what == "its pack":
        place = Path(pack.layout.location)
    elif what == "a file":
        place.write_text("my diary")
    else:
        with create_layout(place) as writer:
            bundles = {"boot": writer.add(b"a bundle")}
            writer.finish([write_tables(pack, rows(1), no_frames(), bundles, writer)])
    before = place.read_bytes()
    with pytest.raises(UsageError, match=r"exists already and is no want-list of this pack"):
        write_want(pack, rows(1), place)
    assert place.read_bytes() == before


def test_a_list_needs_a_name(
    pack: OpenedPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name would be the folder that somebody is in."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="a want-list needs a name"):
        write_want(pack, rows(1), "")
    assert sorted(tmp_path.iterdir()) == before


def test_a_pack_without_a_list_is_none(pack: OpenedPack) -> None:
    with pytest.raises(InputError, match="expected a want-list") as caught:
        wanted_rows(pack)
    assert "--want" in caught.value.hint


def test_a_list_that_claims_more_than_its_pack_can_want_is_not_unpacked(
    pack: OpenedPack, tmp_path: Path
) -> None:
    most = MAX_WANT_HEAD_BYTES + WANT_ROW_BYTES * COUNT
    bomb = compress(bytes(most + 1), 3)
    claims_more = pyzstd.ZstdCompressor(3)
    claims_more._set_pledged_input_size(1 << 40)
    endless = claims_more.compress(bytes(4096), pyzstd.ZstdCompressor.FLUSH_BLOCK)
    for number, layer in enumerate((bomb, endless, noise(200_000, 3), b"no frame")):
        place = tmp_path / f"{number}.want"
        with create_layout(place) as writer:
            frame_index = writer.add(compress(encode_index(no_frames()), 3))
            for kept in pack.manifest.kept():
                writer.copy(pack.layout, manifests.Blob(kept.digest, kept.size))
            want = writer.add(layer)
            manifest = manifests.copy_of(pack.manifest, frame_index, {}, want=want)
            writer.finish([manifests.Entry(manifest, "demo:1")])
        with OpenedPack(open_layout(place)) as made, pytest.raises(InputError) as caught:
            wanted_rows(made)
        assert str(caught.value).startswith(f"{place}: ")


def test_a_list_is_no_part_of_another_copy(pack: OpenedPack, tmp_path: Path) -> None:
    write_want(pack, rows(3), tmp_path / "missing.want")
    with OpenedPack(open_layout(tmp_path / "missing.want")) as made:
        index = manifests.Blob(made.manifest.frame_index().digest, 1)  # type: ignore[union-attr]
        copy = manifests.copy_of(made.manifest, index, {})
        assert made.manifest.want() is not None
        assert copy.want() is None
        assert copy.kept() == made.manifest.kept()


def test_contents_and_hints_of_some_rows_are_renumbered(pack: OpenedPack) -> None:
    chosen = rows(1, 2, 4)
    contents, hints = pack.map.contents.only(chosen), pack.hints.only(chosen)
    expected = contents_of([DATA[row] for row in (1, 2, 4)], [CLASSES[row] for row in (1, 2, 4)])
    for name in ("digest", "size", "classes", "blocks", "block_start"):
        assert np.array_equal(getattr(contents, name), getattr(expected, name)), name
    assert hints.content.tolist() == [0, 1, 2]
    assert hints.path == ["/srv/file-1", "/srv/file-2", "/srv/file-4"]
    assert hints.file_size.tolist() == [5_000, 3 * MIB + 7, 2 * MIB]
    nothing = rows()
    assert len(pack.map.contents.only(nothing)) == 0
    assert pack.hints.only(nothing).path == []
