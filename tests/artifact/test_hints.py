from __future__ import annotations

import tracemalloc
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from packer.artifact.hints import Hints, Package, decode_hints, encode_hints
from packer.artifact.programs import Programs
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


# --- programs ---


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def with_programs() -> Hints:
    programs = Programs(
        column(0, 4), column(0xFFFF_FFFF, 0x5D69A3D8), column(0x1F4000, 0xFFFF_FFFF)
    )
    return replace(hints(), programs=programs)


def test_programs_come_back_as_they_were() -> None:
    data = encode_hints(with_programs())
    found = decode_hints(data, 5).programs
    assert found.content.tolist() == [0, 4]
    assert found.of(4) == (0x5D69A3D8, 0xFFFF_FFFF)
    assert found.of(1) is None
    assert found.of(5) is None
    assert encode_hints(decode_hints(data, 5)) == data


def test_hints_without_programs_do_not_mention_them() -> None:
    assert "programs" not in msgspec.msgpack.decode(encode_hints(hints()))
    assert decode_hints(encode_hints(hints()), 5).programs.of(0) is None


def test_what_is_said_of_some_contents_keeps_their_programs() -> None:
    some = with_programs().only(column(1, 4))
    assert some.content.tolist() == [0, 1]
    assert some.programs.content.tolist() == [1]
    assert some.programs.of(1) == (0x5D69A3D8, 0xFFFF_FFFF)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"content_step": encode_column(column(0, 4))}, "past the last content"),
        ({"content_step": encode_column(column(0, 1 << 62))}, "content_step: out of bounds"),
        ({"content_step": encode_column(column())}, "0 rows for 5 contents"),
        ({"content_step": encode_column(column(*bytes(6)))}, "6 rows for 5 contents"),
        ({"content_step": (0, 1 << 60, b"")}, "rows for 5 contents"),
        ({"content_step": (0, -1, b"")}, "-1 rows"),
        ({"timestamp": encode_column(column(1, 1 << 32))}, "timestamp: more than 32 bits"),
        ({"size_of_image": encode_column(column(1))}, "size_of_image: expected 2 rows, found 1"),
        ({"size_of_image": encode_column(column(1 << 32, 1))}, "size_of_image: more than 32 bits"),
    ],
)
def test_programs_that_break_a_rule_are_named_with_it(table: dict[str, object], words: str) -> None:
    whole = msgspec.msgpack.decode(encode_hints(with_programs()))
    changed = msgspec.msgpack.encode(whole | {"programs": whole["programs"] | table})
    with pytest.raises(InputError, match=words):
        decode_hints(changed, 5)


def test_half_a_table_of_programs_is_no_table() -> None:
    whole = msgspec.msgpack.decode(encode_hints(with_programs()))
    del whole["programs"]["timestamp"]
    with pytest.raises(InputError, match="timestamp"):
        decode_hints(msgspec.msgpack.encode(whole), 5)
