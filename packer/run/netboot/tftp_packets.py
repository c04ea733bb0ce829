"""The packets of TFTP: what a stranger's request says, and what both sides agree on.

Sources: RFC 1350 (packets), RFC 2347 (options), 2348 (blksize), 2349 (timeout, tsize),
7440 (windowsize).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

MAX_REQUEST_BYTES = 512
"""RFC 2347: a request, with its options, fits into as much."""

MAX_OPTIONS = 16
MAX_NAME_CHARACTERS = 128

USUAL_BLOCK_BYTES = 512
MIN_BLOCK_BYTES = 8
MAX_BLOCK_BYTES = 1468
"""What goes into a frame of Ethernet (1500) with the headers of IP, UDP and TFTP (20, 8, 4): a
larger packet would be cut into pieces, which many a boot ROM does not put together."""

MAX_WINDOW = 32
"""Packets that are sent without waiting for an answer."""

MAX_TIMEOUT_SECONDS = 8
"""Who asks for longer times hears ours: silent clients must not hold their places for minutes."""

BLOCK_NUMBERS = 1 << 16
"""Numbers of blocks begin anew after as many."""

_NUMBER = re.compile("[0-9]{1,10}")
_HEAD = struct.Struct(">H")  # 0: u16 opcode
_HEAD_AND_NUMBER = struct.Struct(">HH")  # 2: u16 number of a block, or an error's code


class Opcode(IntEnum):
    """What a packet is."""

    READ = 1
    WRITE = 2
    DATA = 3
    ACK = 4
    ERROR = 5
    OPTIONS = 6


class Code(IntEnum):
    """Why something is refused."""

    UNDEFINED = 0
    NOT_FOUND = 1
    ACCESS = 2
    ILLEGAL = 4


class Refusal(Exception):
    """A request that is answered with an error packet."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants to read. options: names in lower case, as asked for."""

    name: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Terms:
    """How a file is sent. accepted: the options to be confirmed, none for a client without any.

    block_bytes: of data in a packet. window: packets in flight. timeout_seconds: until a packet is
    sent again, or None where the client leaves that to us.
    """

    block_bytes: int = USUAL_BLOCK_BYTES
    window: int = 1
    timeout_seconds: int | None = None
    accepted: Mapping[str, str] | None = None


def opcode_of(packet: bytes) -> int:
    """Return the opcode of a packet, 0 for one that has none."""
    return int(_HEAD.unpack_from(packet)[0]) if len(packet) >= _HEAD.size else 0


def parse_request(packet: bytes) -> Request:
    """Return the request for reading that a packet is. Raises Refusal."""
    opcode = opcode_of(packet)
    if opcode == Opcode.WRITE:
        raise Refusal(Code.ACCESS, "nothing is written here")
    words = packet[_HEAD.size :].split(b"\0")
    if opcode != Opcode.READ or len(packet) > MAX_REQUEST_BYTES or len(words) < 3 or words.pop():
        raise Refusal(Code.ILLEGAL, "expected a request for reading")
    name, mode, *pairs = (word.decode("latin-1") for word in words)
    if mode.lower() != "octet":
        raise Refusal(Code.ILLEGAL, "expected mode octet")
    if len(name) > MAX_NAME_CHARACTERS:
        raise Refusal(Code.NOT_FOUND, "no such file")
    # What is no pair, or too much, is passed over as options that are not known are.
    named = zip(pairs[::2], pairs[1::2], strict=False)
    return Request(name, dict([(key.lower(), value) for key, value in named][:MAX_OPTIONS]))


def agree(options: Mapping[str, str], size: int) -> Terms:
    """Return the terms for a file of `size` bytes: what was asked for, as far as it is bearable."""
    asked = {key: int(text) for key, text in options.items() if _NUMBER.fullmatch(text)}
    accepted: dict[str, str] = {}
    block_bytes, window, timeout = USUAL_BLOCK_BYTES, 1, None
    if (value := asked.get("blksize", 0)) >= MIN_BLOCK_BYTES:
        block_bytes = min(value, MAX_BLOCK_BYTES)
        accepted["blksize"] = str(block_bytes)
    if (value := asked.get("windowsize", 0)) >= 1:
        window = min(value, MAX_WINDOW)
        accepted["windowsize"] = str(window)
    if 1 <= (value := asked.get("timeout", 0)) <= MAX_TIMEOUT_SECONDS:
        timeout = value  # RFC 2349: it may be left out of the answer, but not changed
        accepted["timeout"] = str(value)
    if "tsize" in asked:
        accepted["tsize"] = str(size)
    return Terms(block_bytes, window, timeout, accepted or None)


def data_packet(number: int, data: bytes | memoryview) -> bytes:
    """Return a block; number: counted from 1, without the turn at BLOCK_NUMBERS."""
    return _HEAD_AND_NUMBER.pack(Opcode.DATA, number % BLOCK_NUMBERS) + data


def options_packet(accepted: Mapping[str, str]) -> bytes:
    """Return the packet that confirms options."""
    words = "".join(f"{key}\0{value}\0" for key, value in accepted.items())
    return _HEAD.pack(Opcode.OPTIONS) + words.encode("ascii")


def error_packet(refusal: Refusal) -> bytes:
    """Return the packet that says why."""
    text = str(refusal).encode("ascii", "replace")
    return _HEAD_AND_NUMBER.pack(Opcode.ERROR, refusal.code) + text + b"\0"


def acknowledged(packet: bytes) -> int | None:
    """Return the number of the block that an ACK confirms, or None for another packet."""
    if len(packet) < _HEAD_AND_NUMBER.size or opcode_of(packet) != Opcode.ACK:
        return None
    return int(_HEAD_AND_NUMBER.unpack_from(packet)[1])
