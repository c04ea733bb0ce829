from __future__ import annotations

import tracemalloc

import msgspec
import numpy as np
import pytest

from packer.artifact.hints import Hints, Package, decode_hints, encode_hints
from packer.columns import encode_column
from packer.errors import InputError

PATHS = ["/usr/bin/ls", "/usr/bin/lsblk", "/usr/share/doc/\udcff/x", "/usr/share/doc/ä"]


def hints() -> Hints:
    return Hints(
        content=np.array([0, 0, 1, 4], dtype=np.int64),
        path=PATHS,
        file_size=np.array([10, 20, 30, 40], dtype=np.int64),
        file_offset=np.array([0, 4096, 0, 0], dtype=np.int64),
        package=np.array([0, -1, 1, 1], dtype=np.int64),
        packages=(
            Package("dpkg", "coreutils", "9.1-1", "amd64", "pool/c.deb", "ab" * 32, 1000),
            Package("dpkg", "base-files", "12.4", "amd64"),
        ),
    )


def test_decoding_encoded_hints_gives_the_same_hints() -> None:
    found = decode_hints(encode_hints(hints()), 5)
    assert found.path == PATHS
    assert found.packages == hints().packages
    for name in ("content", "file_size", "file_offset", "package"):
        assert np.array_equal(getattr(found, name), getattr(hints(), name))
    assert encode_hints(found) == encode_hints(hints())


def test_no_hints_at_all_are_legal() -> None:
    none = np.empty(0, dtype=np.int64)
    assert decode_hints(encode_hints(Hints(none, [], none, none, none, ())), 5).path == []


def test_the_rows_of_a_content_are_found() -> None:
    assert list(hints().of(0)) == [0, 1]
    assert list(hints().of(2)) == []
    assert list(hints().of(4)) == [3]


def rewritten(**changes: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(encode_hints(hints())) | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 9}, "expected schema 1, found 9"),
        ({"content_step": encode_column(np.array([0, 0, 1, 9]))}, "content_step"),
        ({"package": encode_column(np.array([0, 0, 0, 3]))}, "package: not in the list"),
        ({"file_size": encode_column(np.array([1]))}, "expected 4 rows, found 1"),
        ({"shared_prefix": encode_column(np.array([5, 0, 0, 0]))}, "longer than the path before"),
        ({"path_tails": b"/a\0/b\0/c"}, "not one path a row"),
        ({"path_tails": b"a\0/b\0/c\0/d"}, "does not begin with /"),
        ({"path_tails": b"/" + b"a" * 5000 + b"\0/b\0/c\0/d"}, "above 4096 bytes"),
    ],
)
def test_hints_that_break_a_rule_are_named_with_it(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_hints(rewritten(**changes), 5)


def test_names_of_nothing_but_nul_are_counted_before_they_take_memory() -> None:
    data = rewritten(path_tails=bytes(32 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="not one path a row"):
            decode_hints(data, 5)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20  # cut, they would be 256 MiB of rows
    finally:
        tracemalloc.stop()


def test_every_flipped_byte_is_an_error_or_other_legal_hints() -> None:
    data = encode_hints(hints())
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x81
        try:
            found = decode_hints(bytes(broken), 5)
        except InputError:
            continue
        assert all(path.startswith("/") for path in found.path)
        assert len(found.content) == len(found.path)
        assert (found.content < 5).all()
