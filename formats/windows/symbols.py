"""Where symbol servers keep a program.

Sources: Microsoft, "Using SymStore" and "SymStore Command-Line Options" (/compress) in
learn.microsoft.com/windows-hardware/drivers/debugger; dotnet/symstore, revision 047b224,
docs/specs/SSQP_Key_Conventions.md, section "PE-timestamp-filesize"; Chromium,
chrome_elf/third_party_dlls/packed_list_format.cc (GetFingerprintString: "%08X%x").
"""

from __future__ import annotations

from formats.errors import Unsupported

_MAX_FIELD = 0xFFFF_FFFF


def symbol_path(name: str, timestamp: int, size_of_image: int) -> str:
    """Return the path of a program in a symbol store, "/" between its parts.

    name: of the file alone, in any case; clients ask in lower case, Microsoft's server takes
    either, a folder on Linux holds what was put there. timestamp: TimeDateStamp, eight digits in
    upper case. size_of_image: bytes, as few digits as needed, in lower case.
    Raises Unsupported for a name that is a path, and ValueError for fields above 32 bits.
    """
    if not name or name in (".", "..") or any(letter in "/\\\0" for letter in name):
        raise Unsupported("symbol path", 0, f"{name!r} is no name of a file")
    if not (0 <= timestamp <= _MAX_FIELD and 0 <= size_of_image <= _MAX_FIELD):
        raise ValueError(f"TimeDateStamp {timestamp}, SizeOfImage {size_of_image}")
    return f"{name}/{timestamp:08X}{size_of_image:x}/{name}"


def compressed_path(path: str) -> str:
    """Return where a store that compresses keeps the file: "….dll" is the cabinet "….dl_"."""
    return path[:-1] + "_"
