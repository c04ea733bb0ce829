"""The checksum of log entries, against values of the reference implementation."""

from __future__ import annotations

import pytest

from formats.windows.marvin32 import marvin32

SEED = 0x5D70D359C498B3F8

# dgryski/go-marvin32, marvin_test.go: made with Microsoft's C code, both halves folded into one
REFERENCE = {
    b"": 0xF7F2C954,
    b"a": 0xD46E71F7,
    b"ab": 0xB40C651C,
    b"abc": 0x5B3BC23D,
    b"abcd": 0x6B15E57B,
    b"abcdefgh": 0x54793238,
    b"abcdefghij": 0x68A8001D,
    b"C is as portable as Stonehedge!!": 0xC5F56430,
    b"The major problem is with sendmail.  -Mark Horton": 0x52ABB615,
}


@pytest.mark.parametrize("data", REFERENCE)
def test_agrees_with_the_reference(data: bytes) -> None:
    found = marvin32(SEED, data)
    assert found >> 32 ^ found & 0xFFFF_FFFF == REFERENCE[data]
