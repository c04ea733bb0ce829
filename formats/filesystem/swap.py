"""Linux swap areas: one header page, then pages whose loss is harmless.

Source: Linux `include/linux/swap.h` (`union swap_header`), `mm/swapfile.c` (`read_swap_header`),
`kernel/power/swap.c` (`struct swsusp_header`); other suspend signatures: util-linux
`libblkid/src/superblocks/swap.c`.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from formats.errors import Corrupt, Truncated, Unsupported
from formats.filesystem.model import FileSystem
from formats.ranges import as_ranges, empty_ranges
from formats.source import Source

PAGE_SIZES = (4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10)
SIGNATURE_BYTES = 10  # the last ten bytes of the first page
SIGNATURE_V1 = b"SWAPSPACE2"
SIGNATURE_V0 = b"SWAP-SPACE"  # before Linux 2.2: no header, the page is a bitmap of usable pages
SUSPEND_SIGNATURES = (
    b"S1SUSPEND",  # kernel/power/swap.c, HIBERNATE_SIG
    b"S2SUSPEND",
    b"ULSUSPEND",  # uswsusp
    b"LINHIB0001",
    b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c",  # TuxOnIce
)

HEADER_OFFSET = 1024  # the first 1024 bytes are left to boot loaders and disk labels
VERSION = 1
MAX_BAD_PAGES = 637  # MAX_SWAP_BADPAGES of 4 KiB pages


@dataclass(frozen=True, slots=True)
class Header:
    """`union swap_header`, in the byte order of the machine that wrote it."""

    version: int  # 1024: u32, 1
    last_page: int  # 1028: u32, number of the area's last page; page 0 is this header
    bad_page_count: int  # 1032: u32, entries of the list at 1536
    uuid: bytes  # 1036: 16 bytes
    label: bytes  # 1052: 16 bytes, NUL-padded


_LAYOUTS = (struct.Struct("<III16s16s"), struct.Struct(">III16s16s"))


def probe(source: Source) -> bool:
    """Say whether a swap or suspend signature ends a first page of any size."""
    return _find_signature(source) is not None


def read(source: Source) -> FileSystem:
    """Return the swap area: its pages are `dropped`, unless it holds a suspended system.

    Only what the header counts as pages is dropped; what follows in the volume is not swap.

    Raises Corrupt without a signature or with an impossible header, Truncated when the area is
    larger than the volume, Unsupported for another version.
    """
    found = _find_signature(source)
    if found is None:
        raise Corrupt("swap header", 0, "no signature ends a page of 4 to 64 KiB")
    page_size, signature = found
    suspended = signature in SUSPEND_SIGNATURES
    if signature == SIGNATURE_V0:
        label, identifier = "", ""
        end = min(source.size, (page_size - SIGNATURE_BYTES) * 8 * page_size)
    else:
        header = _read_header(source)
        label = header.label.split(b"\0", 1)[0].decode("utf-8", "replace")
        identifier = str(uuid.UUID(bytes=header.uuid)) if any(header.uuid) else ""
        end = (header.last_page + 1) * page_size
        _check(header, end, source.size)
    pages = as_ranges([(page_size, end)]) if end > page_size else empty_ranges()
    reason = f"the signature {signature!r} marks a suspended system" if suspended else ""
    return FileSystem(
        kind="swap",
        block_size=page_size,
        label=label,
        uuid=identifier,
        state="hibernated" if suspended else "clean",
        state_reason=reason,
        dropped=empty_ranges() if suspended else pages,
    )


def _find_signature(source: Source) -> tuple[int, bytes] | None:
    """Return page size and signature."""
    for page_size in PAGE_SIZES:
        if page_size > source.size:
            break
        tail = source.pread(page_size - SIGNATURE_BYTES, SIGNATURE_BYTES)
        for signature in (SIGNATURE_V1, SIGNATURE_V0, *SUSPEND_SIGNATURES):
            if tail.startswith(signature):
                return page_size, signature
    return None


def _read_header(source: Source) -> Header:
    for layout in _LAYOUTS:
        header = Header(*layout.unpack(source.pread(HEADER_OFFSET, layout.size)))
        if header.version == VERSION:
            return header
    raise Unsupported("swap header", HEADER_OFFSET, "expected version 1 in either byte order")


def _check(header: Header, end: int, volume_size: int) -> None:
    if header.last_page == 0:
        raise Corrupt("swap header", HEADER_OFFSET + 4, "the area has no pages")
    if header.bad_page_count > MAX_BAD_PAGES:
        raise Corrupt("swap header", HEADER_OFFSET + 8, f"{header.bad_page_count} bad pages")
    if end > volume_size:
        raise Truncated("swap area", 0, f"expected {end} bytes, the volume has {volume_size}")
