from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.run.netboot.tftp_packets import (
    MAX_BLOCK_BYTES,
    MAX_OPTIONS,
    MAX_REQUEST_BYTES,
    MAX_WINDOW,
    Code,
    Refusal,
    acknowledged,
    agree,
    data_packet,
    error_packet,
    options_packet,
    parse_request,
)


def read_request(*words: str) -> bytes:
    return b"\0\1" + b"".join(word.encode() + b"\0" for word in words)


def test_a_request_with_options() -> None:
    request = parse_request(read_request("boot.ipxe", "OCTET", "BlkSize", "1432", "tsize", "0"))
    assert request.name == "boot.ipxe"
    assert request.options == {"blksize": "1432", "tsize": "0"}


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (read_request("vmlinuz", "netascii"), Code.ILLEGAL),
        (read_request("vmlinuz", "mail"), Code.ILLEGAL),
        (read_request("v" * 129, "octet"), Code.NOT_FOUND),
        (read_request("vmlinuz"), Code.ILLEGAL),
        (read_request("vmlinuz", "octet") + b"\1", Code.ILLEGAL),
        (read_request("vmlinuz", "octet", "x" * MAX_REQUEST_BYTES), Code.ILLEGAL),
        (b"\0\1", Code.ILLEGAL),
        (b"\0\1\0", Code.ILLEGAL),
        (b"", Code.ILLEGAL),
        (b"\0\2" + read_request("vmlinuz", "octet")[2:], Code.ACCESS),
    ],
)
def test_what_is_no_request_to_read_is_refused(packet: bytes, code: Code) -> None:
    with pytest.raises(Refusal) as raised:
        parse_request(packet)
    assert raised.value.code == code


@given(st.binary(max_size=600))
def test_any_packet_is_a_bounded_request_or_refused(packet: bytes) -> None:
    try:
        request = parse_request(b"\0\1" + packet)
    except Refusal as refusal:
        answer = error_packet(refusal)
    else:
        terms = agree(request.options, 12345)
        answer = options_packet(terms.accepted or {})
        assert len(request.options) <= MAX_OPTIONS
        assert 8 <= terms.block_bytes <= MAX_BLOCK_BYTES
        assert 1 <= terms.window <= MAX_WINDOW
    assert len(answer) < 100


@pytest.mark.parametrize(
    ("asked", "accepted"),
    [
        ({}, None),
        ({"blksize": "1468"}, {"blksize": "1468"}),
        ({"blksize": "65464"}, {"blksize": "1468"}),  # a smaller one may be answered: RFC 2348
        ({"blksize": "7"}, None),
        ({"blksize": "-1"}, None),
        ({"blksize": "9" * 400}, None),
        ({"blksize": "\uff11\uff14"}, None),  # digits, but not those of the RFC
        ({"windowsize": "8"}, {"windowsize": "8"}),
        ({"windowsize": "65535"}, {"windowsize": "32"}),
        ({"windowsize": "0"}, None),
        ({"timeout": "3"}, {"timeout": "3"}),
        ({"timeout": "255"}, None),
        ({"tsize": "0"}, {"tsize": "777"}),
        ({"multicast": ""}, None),
        ({"tsize": "0", "windowsize": "2"}, {"windowsize": "2", "tsize": "777"}),
    ],
)
def test_options_are_answered_as_far_as_they_are_bearable(
    asked: dict[str, str], accepted: dict[str, str] | None
) -> None:
    assert agree(asked, 777).accepted == accepted


def test_packets_are_those_of_the_rfc() -> None:
    assert data_packet(1, b"abc") == b"\0\3\0\1abc"
    assert data_packet(65536 + 5, b"") == b"\0\3\0\5"
    assert options_packet({"tsize": "9"}) == b"\0\6tsize\x009\0"
    assert error_packet(Refusal(Code.NOT_FOUND, "no such file")) == b"\0\5\0\1no such file\0"
    assert acknowledged(struct.pack(">HH", 4, 65535)) == 65535
    assert acknowledged(b"\0\4\0") is None
    assert acknowledged(b"\0\3\0\1") is None
