from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.artifact.deltas import (
    MAX_DELTA_BYTES,
    Deltas,
    apply_patch,
    decode_deltas,
    encode_deltas,
    make_patch,
)
from packer.columns import encode_column
from packer.errors import InputError
from tests.artifact.make import contents_of
from tests.artifact.real_packs import noise

MIB = 1 << 20
CONTENTS = contents_of([b"a" * 10_000, b"b" * 20_000, b"c" * 30_000])


def deltas() -> Deltas:
    return Deltas(
        np.array([0, 2]),
        np.arange(64, dtype=np.uint8).reshape(2, 32),
        np.array([9_000, 31_000]),
        np.array([500, 70]),
    )


def column(*values: int) -> object:
    return encode_column(np.array(values, dtype=np.int64))


def test_a_table_comes_back_as_it_was() -> None:
    again = decode_deltas(encode_deltas(deltas()), CONTENTS, 570)
    for name in Deltas.__slots__:
        assert np.array_equal(getattr(again, name), getattr(deltas(), name))
    assert again.offset.tolist() == [0, 500]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"schema": 2}, "expected schema 1, found 2"),
        ({"content_step": column(0, 2)}, "content_step"),
        ({"content_step": column(0, 1, 0, 0)}, "content_step"),
        ({"content_step": column(1 << 62, 1 << 62)}, "content_step"),
        ({"base_digest": bytes(63)}, "base_digest"),
        ({"base_bytes": column(0, 5)}, "base_bytes"),
        ({"base_bytes": column(5, MAX_DELTA_BYTES + 1)}, "base_bytes"),
        ({"base_bytes": column(5)}, "base_bytes"),
        ({"stored_bytes": column(0, 5)}, "stored_bytes"),
        ({"stored_bytes": column(5, 1 << 30)}, "stored_bytes"),
        ({"stored_bytes": column(500, 71)}, "stored_bytes: more than the blob holds"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(changes: dict[str, object], rule: str) -> None:
    wire = msgspec.msgpack.decode(encode_deltas(deltas()))
    with pytest.raises(InputError, match=f"^deltas: {rule}"):
        decode_deltas(msgspec.msgpack.encode(wire | changes), CONTENTS, 570)


def test_a_damaged_table_is_refused_or_still_within_bounds() -> None:
    data, chance = encode_deltas(deltas()), random.Random(3)
    for _ in range(2000):
        broken = bytearray(data)
        broken[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            found = decode_deltas(bytes(broken), CONTENTS, 570)
        except InputError:
            continue
        assert int(found.content[-1]) < len(CONTENTS)
        assert int(found.stored_bytes.sum()) <= 570


@given(st.binary(max_size=3000), st.binary(min_size=1, max_size=3000), st.booleans())
def test_a_patch_makes_the_new_bytes_of_the_old_ones(old: bytes, tail: bytes, inside: bool) -> None:
    base = old + b"at least"
    new = base[: len(base) // 2] + tail + base[len(base) // 2 :] if inside else tail
    assert apply_patch(make_patch(base, new, 3), base, len(new), "patch") == new


def test_a_patch_of_a_large_file_is_as_small_as_the_change() -> None:
    base = noise(12 * MIB, 1)
    new = base[5000:] + noise(3000, 2)
    patch = make_patch(base, new, 12)
    assert len(patch) < 5000
    assert make_patch(base, new, 12) == patch
    assert apply_patch(patch, base, len(new), "patch") == new


def test_a_patch_never_makes_more_than_it_should() -> None:
    base, new = noise(100_000, 1), noise(200_000, 2)
    patch = make_patch(base, new, 3)
    for size in (len(new) - 1, len(new) + 1, 1, 1 << 40):
        with pytest.raises(InputError, match="makes another number"):
            apply_patch(patch, base, size, "patch")
    with pytest.raises(InputError, match="an end, found otherwise"):
        apply_patch(patch + b"more", base, len(new), "patch")
    with pytest.raises(InputError):
        apply_patch(patch[:-10], base, len(new), "patch")
    with pytest.raises(InputError):
        apply_patch(b"no patch", base, 8, "patch")


def test_a_damaged_patch_gives_an_error_or_bytes_of_the_right_number() -> None:
    base = noise(50_000, 1)
    new = base[:20_000] + b"changed" + base[20_000:]
    patch, chance = make_patch(base, new, 3), random.Random(5)
    for _ in range(1000):
        broken = bytearray(patch)
        broken[chance.randrange(len(patch))] ^= 1 << chance.randrange(8)
        try:
            assert len(apply_patch(bytes(broken), base, len(new), "patch")) == len(new)
        except InputError:
            continue
