"""Answers with several ranges: of honest servers in all their spellings, and of hostile ones."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.transport.multipart import (
    MAX_FILLING_BYTES,
    MAX_HEADER_BYTES,
    MultipartError,
    boundary_of,
    read_parts,
)

DATA = random.Random(1).randbytes(10_000)
NGINX = (
    b"\r\n--00000000000000000001\r\nContent-Type: text/plain\r\n"
    b"Content-Range: bytes 0-4/10000\r\n\r\n" + DATA[:5] + b"\r\n--00000000000000000001\r\n"
    b"Content-Type: text/plain\r\nContent-Range: bytes 9-11/10000\r\n\r\n"
    + DATA[9:12] + b"\r\n--00000000000000000001--\r\n"
)  # fmt: skip
CADDY = (
    b"--b\r\nContent-Range: bytes 0-4/10000\r\nContent-Type: \r\n\r\n" + DATA[:5]
    + b"\r\n--b\r\ncontent-range:bytes 9-11/*\r\n\r\n" + DATA[9:12] + b"\r\n--b--\r\n"
)  # fmt: skip
PART = b"--b\r\nContent-Range: bytes 0-4/10000\r\n\r\n" + DATA[:5] + b"\r\n"


def parts_of(
    body: bytes, boundary: bytes = b"b", step: int = 1 << 18, most: int = 10
) -> list[tuple[int, int, int | None, bytes]]:
    chunks = (body[at : at + step] for at in range(0, len(body), step))
    return [
        (part.start, part.end, part.total, b"".join(part.chunks))
        for part in read_parts(chunks, boundary, most)
    ]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1 << 18])
@pytest.mark.parametrize(
    ("body", "boundary", "total"),
    [(NGINX, b"0" * 19 + b"1", 10_000), (CADDY, b"b", None)],
    ids=["nginx", "caddy"],
)
def test_parts_of_known_servers_are_read_however_they_arrive(
    body: bytes, boundary: bytes, total: int | None, step: int
) -> None:
    found = parts_of(body, boundary, step)
    assert found == [(0, 5, 10_000, DATA[:5]), (9, 12, total, DATA[9:12])]


@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 900)), min_size=1, max_size=8),
    st.integers(1, 3000),
)
def test_what_was_put_in_comes_out(ranges: list[tuple[int, int]], step: int) -> None:
    body = b"".join(
        b"--b\r\nContent-Range: bytes %d-%d/10000\r\n\r\n%b\r\n"
        % (start, start + length - 1, DATA[start : start + length])
        for start, length in ranges
    )
    found = parts_of(body + b"--b--", step=step)
    assert [data for *_, data in found] == [DATA[o : o + length] for o, length in ranges]


def test_chunks_that_nobody_read_are_passed_over() -> None:
    parts = read_parts(iter([CADDY]), b"b", 10)
    assert [part.start for part in parts] == [0, 9]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/byteranges; boundary=00000000000000000001", b"0" * 19 + b"1"),
        ('multipart/byteranges;boundary="a b;c"', b"a b;c"),
        ("Multipart/ByteRanges; charset=x; BOUNDARY=<q1w2e3>", b"<q1w2e3>"),
        ("multipart/byteranges; boundary=abc; charset=x", b"abc"),
        ("multipart/byteranges", b""),
        ("multipart/byteranges; boundary=", b""),
        ("multipart/form-data; boundary=abc", b""),
        ("text/plain", b""),
        ("", b""),
        ('multipart/byteranges; boundary="' + "x" * 201 + '"', b""),
    ],
)
def test_the_boundary_is_found_in_the_type(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "body",
    [
        b"no delimiter" * 1000,
        b"x" * (MAX_FILLING_BYTES + 1) + b"\r\n" + PART + b"--b--",
        b"junk " + PART + b"--b--",
        b"--b--\r\n",
        b"--bogus\r\nContent-Range: bytes 0-4/10000\r\n\r\nabcde\r\n--b--",
        PART.replace(b"Content-Range", b"Content-Rank") + b"--b--",
        PART.replace(b"bytes 0-4", b"bytes 4-0") + b"--b--",
        PART.replace(b"bytes 0-4", b"bytes=0-4") + b"--b--",
        PART.replace(b"bytes 0-4", b"bytes 0-4,6-7") + b"--b--",
        PART.replace(b"/10000", b"/4") + b"--b--",
        PART.replace(b"0-4", b"0-%d" % 10**18) + b"--b--",
        PART.replace(b"0-4", b"0-%d" % 10**25) + b"--b--",
        PART.replace(b"0-4", b"0-5") + b"--b--" + b"x" * 30,
        PART.replace(b"0-4", b"0-3") + b"--b--",
        PART.replace(b"\r\n\r\n", b"\r\nContent-Range: bytes 0-4/10000\r\n\r\n") + b"--b--",
        PART.replace(b"\r\n\r\n", b"\r\nx: " + b"y" * MAX_HEADER_BYTES + b"\r\n\r\n") + b"--b--",
        PART.replace(b"\r\n", b"\n") + b"--b--",
        PART * 11 + b"--b--",
    ],
)
@pytest.mark.parametrize("step", [5, 1 << 18])
def test_what_breaks_the_rules_is_refused(body: bytes, step: int) -> None:
    with pytest.raises(MultipartError):
        parts_of(body, step=step)


def test_a_body_cut_anywhere_is_told_from_a_whole_one() -> None:
    for length in range(len(CADDY) - 2):
        with pytest.raises(MultipartError, match="ends"):
            parts_of(CADDY[:length])
    parts_of(CADDY[:-2])


def test_endless_headers_preambles_and_epilogues_end_at_their_bounds() -> None:
    taken = 0

    def endless(first: bytes) -> Iterator[bytes]:
        nonlocal taken
        yield first
        for _ in range(1000):
            taken += 100
            yield b"x" * 100

    for first in (b"--b\r\n", b"x", b"\r\n"):
        with pytest.raises(MultipartError):
            list(read_parts(endless(first), b"b", 10))
    assert [part.start for part in read_parts(endless(PART + b"--b--"), b"b", 10)] == [0]
    assert taken < 4 * (MAX_HEADER_BYTES + MAX_FILLING_BYTES)


def test_a_part_of_any_size_is_never_gathered() -> None:
    size = 1 << 40
    head = b"--b\r\nContent-Range: bytes 0-%d/*\r\n\r\n" % (size - 1)

    def forever() -> Iterator[bytes]:
        yield head
        while True:
            yield b"x" * 1000

    part = next(read_parts(forever(), b"b", 1))
    assert part.end == size
    received = 0
    for chunk in part.chunks:
        assert len(chunk) <= 1000
        received += len(chunk)
        if received > 1_000_000:
            break
