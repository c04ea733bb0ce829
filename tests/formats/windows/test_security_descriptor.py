"""Who may read a file: descriptors by hand, each for one rule of MS-DTYP."""

from __future__ import annotations

import random
import struct

import pytest

from formats.errors import Corrupt
from formats.windows.security_descriptor import everybody_may_read

EVERYONE = bytes.fromhex("010100000000000100000000")
AUTHENTICATED = bytes.fromhex("01010000000000050b000000")
USERS = bytes.fromhex("01020000000000052000000021020000")
ADMINISTRATORS = bytes.fromhex("01020000000000052000000020020000")
SYSTEM = bytes.fromhex("010100000000000512000000")
GUESTS = bytes.fromhex("01020000000000052000000022020000")

ALLOW, DENY, ALLOW_IF, DENY_IF = 0, 1, 9, 10
READ_AND_EXECUTE, FULL, WRITE = 0x1200A9, 0x1F01FF, 0x2
INHERIT_ONLY = 0x08


def entry(sid: bytes, mask: int, kind: int = ALLOW, flags: int = 0) -> bytes:
    return struct.pack("<BBHI", kind, flags, 8 + len(sid), mask) + sid


def descriptor(*entries: bytes) -> bytes:
    """As Windows lays one out: the list behind the header, owner and group behind that."""
    body = b"".join(entries)
    acl = struct.pack("<BBHHH", 2, 0, 8 + len(body), len(entries), 0) + body
    owner = 20 + len(acl)
    group = owner + len(SYSTEM)
    return struct.pack("<BBHIIII", 1, 0, 0x8004, owner, group, 0, 20) + acl + SYSTEM + SYSTEM


ADMINS_ONLY = (entry(SYSTEM, FULL), entry(ADMINISTRATORS, FULL))


@pytest.mark.parametrize(
    ("entries", "readable"),
    [
        ((*ADMINS_ONLY, entry(USERS, READ_AND_EXECUTE)), True),
        ((*ADMINS_ONLY, entry(EVERYONE, READ_AND_EXECUTE)), True),
        ((*ADMINS_ONLY, entry(AUTHENTICATED, READ_AND_EXECUTE)), True),
        ((entry(USERS, 0x80000000),), True),
        ((entry(USERS, 0x10000000),), True),
        (ADMINS_ONLY, False),
        ((), False),
        ((entry(GUESTS, FULL),), False),
        ((entry(USERS, WRITE),), False),
        ((entry(USERS, READ_AND_EXECUTE, flags=INHERIT_ONLY),), False),
        ((entry(USERS, READ_AND_EXECUTE, kind=ALLOW_IF),), False),
        ((entry(GUESTS, READ_AND_EXECUTE, kind=DENY), entry(USERS, FULL)), False),
        ((entry(GUESTS, READ_AND_EXECUTE, kind=DENY_IF), entry(USERS, FULL)), False),
        ((entry(USERS, WRITE, kind=DENY), entry(USERS, FULL)), True),
        ((entry(USERS, READ_AND_EXECUTE), entry(USERS, FULL, kind=DENY)), True),
    ],
)
def test_the_first_entry_that_speaks_of_reading_decides(
    entries: tuple[bytes, ...], readable: bool
) -> None:
    assert everybody_may_read(descriptor(*entries)) is readable
    assert everybody_may_read(descriptor(*entries) + bytes(300)) is readable, "readers pad"


def test_without_a_list_everything_is_allowed() -> None:
    whole = descriptor(*ADMINS_ONLY)
    assert everybody_may_read(whole[:16] + bytes(4) + whole[20:])
    assert everybody_may_read(whole[:2] + struct.pack("<H", 0x8000) + whole[4:])


def test_what_is_no_descriptor_is_corrupt() -> None:
    whole = descriptor(*ADMINS_ONLY)
    for bad in (b"", whole[:19], b"\2" + whole[1:], whole[:2] + b"\4\0" + whole[4:], whole[:30]):
        with pytest.raises(Corrupt):
            everybody_may_read(bad)


def test_damage_is_an_error_or_an_answer() -> None:
    chance = random.Random(4)
    whole = descriptor(*ADMINS_ONLY, entry(USERS, READ_AND_EXECUTE))
    for _ in range(2000):
        bad = bytearray(whole[: chance.randrange(len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            if bad:
                bad[chance.randrange(len(bad))] = chance.randrange(256)
        try:
            assert everybody_may_read(bytes(bad)) in (True, False)
        except Corrupt:
            continue
