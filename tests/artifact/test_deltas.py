from __future__ import annotations

import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pyzstd
from hypothesis import given
from hypothesis import strategies as st

from packer.artifact.deltas import (
    MAX_DELTA_BYTES,
    Deltas,
    apply_patch,
    as_base,
    decode_deltas,
    encode_deltas,
    make_patch,
)
from packer.columns import MAX_ROWS, PackedColumn, encode_column
from packer.errors import InputError
from tests.artifact.make import contents_of
from tests.artifact.mutate import mutations
from tests.artifact.real_packs import noise

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("name", ["content_step", "base_bytes", "stored_bytes"])
def test_a_column_of_zeros_that_has_no_end_takes_no_memory(name: str) -> None:
    wire = msgspec.msgpack.decode(encode_deltas(deltas()))
    data = msgspec.msgpack.encode(wire | {name: PackedColumn(0, MAX_ROWS, b"")})
    tracemalloc.start()
    with pytest.raises(InputError, match=name):
        decode_deltas(data, CONTENTS, 570)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < MIB


def test_a_damaged_table_is_refused_or_still_within_bounds() -> None:
    legal = 0
    for data in mutations(encode_deltas(deltas()), random.Random(3), 4000):
        try:
            found = decode_deltas(data, CONTENTS, 570)
        except InputError:
            continue
        legal += 1
        assert np.array_equal(np.unique(found.content), found.content)
        assert (found.content < len(CONTENTS)).all()
        assert (found.offset + found.stored_bytes <= 570).all()
        assert ((found.base_bytes > 0) & (found.base_bytes <= MAX_DELTA_BYTES)).all()
        assert len(found.base_digest) == len(found.content)
    assert legal > 100


def applied(patch: bytes, base: bytes, size: int) -> bytes:
    return b"".join(apply_patch(patch, as_base(base), size, "patch"))


@given(st.binary(max_size=3000), st.binary(min_size=1, max_size=3000), st.booleans())
def test_a_patch_makes_the_new_bytes_of_the_old_ones(old: bytes, tail: bytes, inside: bool) -> None:
    base = old + b"at least"
    new = base[: len(base) // 2] + tail + base[len(base) // 2 :] if inside else tail
    assert applied(make_patch(as_base(base), new, 3), base, len(new)) == new


def test_a_patch_of_a_large_file_is_as_small_as_the_change() -> None:
    base = noise(12 * MIB, 1)
    new = base[5000:] + noise(3000, 2)
    patch = make_patch(as_base(base), new, 12)
    assert len(patch) < 5000
    assert make_patch(as_base(base), new, 12) == patch
    assert applied(patch, base, len(new)) == new


@pytest.mark.parametrize("size", [1, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_what_a_patch_makes_comes_in_blocks(size: int) -> None:
    new = noise(size, 4)
    patch = make_patch(as_base(new[: size // 2] + b"at least"), new, 3)
    blocks = list(apply_patch(patch, as_base(new[: size // 2] + b"at least"), size, "patch"))
    assert [len(one) for one in blocks[:-1]] == [MIB] * ((size - 1) // MIB)
    assert b"".join(blocks) == new


def test_a_patch_never_makes_more_than_it_should() -> None:
    base, new = noise(100_000, 1), noise(200_000, 2)
    patch = make_patch(as_base(base), new, 3)
    for size in (len(new) - 1, len(new) + 1, 1, 1 << 40):
        with pytest.raises(InputError, match="makes another number"):
            applied(patch, base, size)
    with pytest.raises(InputError, match="expected the end of the patch, found more"):
        applied(patch + b"more", base, len(new))
    with pytest.raises(InputError, match="the patch ends before"):
        applied(patch[:-10], base, len(new))
    with pytest.raises(InputError, match="not a zstd frame"):
        applied(b"no patch", base, 8)


def test_a_patch_that_asks_for_more_memory_than_it_needs_is_refused() -> None:
    base, new = noise(10_000, 1), noise(20_000, 2)
    option: dict[int, int] = {pyzstd.CParameter.windowLog: 27}
    made = pyzstd.ZstdCompressor(option, zstd_dict=as_base(base).as_prefix)
    patch = made.compress(new[:5000]) + made.flush(made.FLUSH_BLOCK)
    patch += made.compress(new[5000:], made.FLUSH_FRAME)
    with pytest.raises(InputError):
        applied(patch, base, len(new))


def test_a_damaged_patch_gives_an_error_or_bytes_of_the_right_number() -> None:
    base = noise(50_000, 1)
    new = base[:20_000] + b"changed" + base[20_000:]
    made = 0
    for broken in mutations(make_patch(as_base(base), new, 3), random.Random(5), 2000):
        try:
            assert len(applied(broken, base, len(new))) == len(new)
            made += 1
        except InputError:
            continue
    assert made > 10


MEASURED = """
import resource, sys
import numpy as np
from packer.artifact.deltas import apply_patch, as_base, make_patch
size = 64 << 20
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
raw = np.random.default_rng(1).bytes(size)
new = bytearray(raw)
new[1000:1007] = b"changed"
if sys.argv[1] == "apply":
    with open("patch", "rb") as file:
        patch = file.read()
    del new
base = as_base(raw)
before = peak()
del raw
if sys.argv[1] == "apply":
    assert sum(map(len, apply_patch(patch, base, size, "patch"))) == size
else:
    with open("patch", "wb") as file:
        file.write(make_patch(base, new, 12))
print((peak() - before) / size)
"""
"""How much more memory than two copies of the base is needed, in sizes of the content."""


def test_base_and_content_are_all_that_has_to_fit_into_memory(tmp_path: Path) -> None:
    """At 2 GiB each, one copy more can be one too many."""
    for step in ("make", "apply"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, step],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert float(done.stdout) < 0.6, step
