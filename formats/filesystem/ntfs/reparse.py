"""Reparse points: symbolic links and junctions, and everything else that is not what it seems.

Source: Microsoft [MS-FSCC] 2.1.2.4 (symbolic link) and 2.1.2.5 (mount point); offsets and lengths
of names are in bytes from the names' start.
"""

from __future__ import annotations

import re
import struct

from formats.filesystem.ntfs.piece import decode_name

SYMBOLIC_LINK = 0xA000_000C
MOUNT_POINT = 0xA000_0003
MAX_REPARSE_BYTES = 16 << 10  # [MS-FSCC] 2.1.2

_HEADER = struct.Struct("<IHHHHHH")  # tag, length, reserved; substitute offset, length; print ones
_NAMES = {SYMBOLIC_LINK: 20, MOUNT_POINT: 16}  # where names begin; a link has u32 flags before
_ON_A_DRIVE = re.compile(r"(?:\\\?\?\\|\\\\\?\\)?[A-Za-z]:(?:\\|$)")


def link_target(value: bytes) -> str:
    r"""Return where a symbolic link or junction leads, with "/"; "" for everything else.

    A target with a drive letter is taken for one in the same volume, which does not know its
    letter. Targets in other volumes ("\??\Volume{…}\", "\??\UNC\…") are left out.
    """
    if len(value) < _HEADER.size:
        return ""
    tag, _, _, offset, length, _, _ = _HEADER.unpack_from(value)
    start = _NAMES.get(tag, 0) + offset
    if tag not in _NAMES or length % 2 or start + length > len(value):
        return ""
    target = decode_name(value[start : start + length]).rstrip("\\")
    on_a_drive = _ON_A_DRIVE.match(target + "\\")
    if on_a_drive:
        target = "\\" + target[on_a_drive.end() :]
    elif target.startswith((r"\??", r"\\")) or tag == MOUNT_POINT:
        return ""
    return "" if "/" in target or "\0" in target else target.replace("\\", "/")
