"""Whether everybody may read a file, by its self-relative security descriptor.

References: MS-DTYP (Windows Data Types), 2.4.2 (SID), 2.4.3 (ACCESS_MASK), 2.4.4 (ACE), 2.4.5
(ACL), 2.4.6 (SECURITY_DESCRIPTOR), 2.5.3.2 (access check: the first entry that speaks of a right
decides it).
"""

from __future__ import annotations

from collections.abc import Iterator

from formats.errors import Corrupt

# SECURITY_DESCRIPTOR: offsets of its fields
_CONTROL = 2  # 16 bits
_DACL = 16  # offset of the discretionary access list, bytes; 0: none
_HEADER_BYTES = 20
_DACL_PRESENT = 0x0004
_SELF_RELATIVE = 0x8000

# ACL and ACE: offsets of their fields
_ACL_BYTES = 2  # of the whole list, header included
_ACL_COUNT = 4
_ACL_HEADER_BYTES = 8
_ACE_TYPE = 0
_ACE_FLAGS = 1
_ACE_BYTES = 2  # of the entry, header included
_ACE_MASK = 4
_ACE_SID = 8

_ALLOWED, _DENIED = 0x00, 0x01
_ALL_DENIED = (_DENIED, 0x06, 0x0A, 0x0C)  # plain, of an object, with a condition, both
_INHERIT_ONLY = 0x08  # speaks of files that will be made below, not of this one

_READ_DATA = 0x0000_0001  # of a folder: list it
_GENERIC_READ, _GENERIC_ALL = 0x8000_0000, 0x1000_0000
_READS = _READ_DATA | _GENERIC_READ | _GENERIC_ALL

_EVERYBODY = (
    bytes.fromhex("010100000000000100000000"),  # S-1-1-0: Everyone
    bytes.fromhex("01010000000000050b000000"),  # S-1-5-11: Authenticated Users
    bytes.fromhex("01020000000000052000000021020000"),  # S-1-5-32-545: the group Users
)


def everybody_may_read(descriptor: bytes) -> bool:
    """Return whether each user of the Windows that wrote this may read the file or list the folder.

    Conditional entries allow nobody, and one that denies anybody denies all: who is in doubt may
    not. Raises Corrupt for what is no descriptor.
    """
    if len(descriptor) < _HEADER_BYTES or descriptor[0] != 1:
        raise Corrupt("security descriptor", 0, f"{len(descriptor)} bytes are none")
    control = _u16(descriptor, _CONTROL)
    if not control & _SELF_RELATIVE:
        raise Corrupt("security descriptor", _CONTROL, f"control {control:#06x}: not self-relative")
    start = int.from_bytes(descriptor[_DACL : _DACL + 4], "little")
    if not control & _DACL_PRESENT or start == 0:
        return True  # MS-DTYP 2.5.3.2: without a list everything is allowed
    for kind, mask, sid in _entries(descriptor, start):
        if mask & _READS and kind in _ALL_DENIED:
            return False
        if mask & _READS and kind == _ALLOWED and sid.startswith(_EVERYBODY):
            return True
    return False


def _entries(descriptor: bytes, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type, access mask, SID and what may follow it) of the entries that count here."""
    if start + _ACL_HEADER_BYTES > len(descriptor):
        raise Corrupt("access list", start, f"the descriptor has {len(descriptor)} bytes")
    end = start + _u16(descriptor, start + _ACL_BYTES)
    position = start + _ACL_HEADER_BYTES
    if end > len(descriptor):
        raise Corrupt("access list", start, f"ends at {end} of {len(descriptor)} bytes")
    for _ in range(_u16(descriptor, start + _ACL_COUNT)):
        if position + _ACE_SID > end:
            raise Corrupt("access list entry", position, f"the list ends at {end}")
        length = _u16(descriptor, position + _ACE_BYTES)
        if length < _ACE_SID or position + length > end:
            raise Corrupt("access list entry", position, f"{length} bytes, the list ends at {end}")
        mask = int.from_bytes(descriptor[position + _ACE_MASK : position + _ACE_SID], "little")
        if not descriptor[position + _ACE_FLAGS] & _INHERIT_ONLY:
            kind = descriptor[position + _ACE_TYPE]
            yield kind, mask, descriptor[position + _ACE_SID : position + length]
        position += length


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")
