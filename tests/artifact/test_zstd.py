"""Every bound of a frame holds, whatever the frame says of itself."""

from __future__ import annotations

import hashlib
import random
import resource
import time

import pytest
import pyzstd
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.artifact.zstd import (
    compress,
    compress_within_reason,
    decompress,
    decompress_proven,
    recorded_size,
)
from packer.errors import InputError

TEXT = b"the same words again and again; " * 1000
NOISE = random.Random(1).randbytes(50_000)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=5000), st.integers(1, 19))
def test_what_was_compressed_comes_back(data: bytes, level: int) -> None:
    assert decompress(compress(data, level), len(data), "test") == data
    assert decompress(compress_within_reason(data, level), len(data), "test") == data


def test_a_frame_is_the_same_each_time_and_says_how_much_it_holds() -> None:
    assert compress(TEXT, 19) == compress(memoryview(bytearray(TEXT)), 19)
    assert recorded_size(compress(TEXT, 3), "test") == len(TEXT)


def test_what_is_compressed_already_is_not_tried_hard() -> None:
    assert compress_within_reason(NOISE, 19) == compress(NOISE, 1)
    assert compress_within_reason(TEXT, 19) == compress(TEXT, 19)


@pytest.mark.parametrize("wrong", [1, len(TEXT) - 1, len(TEXT) // 2])
def test_a_frame_that_holds_more_than_expected_is_refused(wrong: int) -> None:
    with pytest.raises(InputError, match=f"demo: the frame holds more than the {wrong} bytes"):
        decompress(compress(TEXT, 3), wrong, "demo")


def test_a_frame_that_holds_less_than_expected_is_refused() -> None:
    with pytest.raises(InputError, match=f"expected {len(TEXT) + 1} bytes, the frame holds"):
        decompress(compress(TEXT, 3), len(TEXT) + 1, "demo")


@pytest.mark.parametrize("tail", [b"\0", b"junk", compress(b"another frame", 3)])
def test_what_follows_a_frame_is_refused(tail: bytes) -> None:
    with pytest.raises(InputError, match=f"{len(tail)} bytes follow the frame"):
        decompress(compress(TEXT, 3) + tail, len(TEXT), "demo")


def test_every_shortened_frame_is_refused() -> None:
    frame = compress(NOISE[:3000] + TEXT, 3)
    for length in range(0, len(frame), 37):
        with pytest.raises(InputError, match="demo"):
            decompress(frame[:length], 3000 + len(TEXT), "demo")


def test_a_flipped_byte_gives_an_error_or_other_bytes_of_the_right_number() -> None:
    data = NOISE[:300] + TEXT
    frame = compress(data, 3)
    refused = 0
    for place in range(len(frame)):
        broken = bytearray(frame)
        broken[place] ^= 0x55
        try:
            found = decompress(bytes(broken), len(data), "demo")
        except InputError:
            refused += 1
            continue
        assert len(found) == len(data)
    assert refused > 0


def test_a_frame_that_asks_for_a_large_window_is_refused() -> None:
    compressor = pyzstd.ZstdCompressor({pyzstd.CParameter.windowLog: 28})
    frame = compressor.compress(TEXT) + compressor.flush()  # its size is not known in advance
    with pytest.raises(InputError, match="not a readable zstd frame"):
        decompress(frame, len(TEXT), "demo")
    largest = pyzstd.ZstdCompressor({pyzstd.CParameter.windowLog: 27})
    frame = largest.compress(TEXT) + largest.flush()
    assert decompress(frame, len(TEXT), "demo") == TEXT


def test_a_bomb_is_not_unpacked_to_find_out_that_it_is_one() -> None:
    bomb = compress(bytes(1 << 30), 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(InputError, match="more than the 1000 bytes"):
        decompress(bomb, 1000, "demo")
    assert time.process_time() - started < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize("junk", [b"", b"\0" * 100, b"not a frame at all", NOISE[:1000]])
def test_what_is_no_frame_is_refused(junk: bytes) -> None:
    with pytest.raises(InputError, match="demo"):
        decompress(junk, 100, "demo")
    with pytest.raises(InputError, match="demo"):
        recorded_size(junk, "demo")


def test_a_frame_that_does_not_say_how_much_it_holds_is_refused_where_it_must() -> None:
    compressor = pyzstd.ZstdCompressor()
    frame = compressor.compress(TEXT) + compressor.flush()
    with pytest.raises(InputError, match="does not say how much"):
        recorded_size(frame, "demo")


def test_what_comes_out_is_compared_with_its_digest() -> None:
    name = "sha256:" + hashlib.sha256(TEXT).hexdigest()
    assert decompress_proven(compress(TEXT, 3), len(TEXT), name, "demo") == TEXT
    other = TEXT[:-1] + b"!"
    with pytest.raises(InputError, match=f"demo: expected {name}, found sha256:"):
        decompress_proven(compress(other, 3), len(TEXT), name, "demo")
