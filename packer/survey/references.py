"""Which further files a container names, before anybody else's program opens them.

What an image names must not choose what is opened: a VMDK descriptor may list `/etc/shadow` as
its extent, and qemu would hand it out as the guest's disk. Sources: qemu `block/vmdk.c`
(`vmdk_parse_extents`, `vmdk_open_desc_file`, `vmdk_parent_open`), `block/vpc.c`, `block/vhdx.c`,
`block/vdi.c`; the last two refuse images with a parent themselves.
"""

from __future__ import annotations

import re

from formats.errors import Unsupported
from formats.source import Source

CONTAINERS = ("vmdk", "vhd", "vhdx", "vdi", "parallels")
"""What is read through qemu; qemu's own old formats (qed, qcow) are not worth the risk."""

_SPARSE_MAGIC = b"KDMV"
_ESX_MAGIC = b"COWD"
_CAPACITY = slice(12, 20)  # u64 little-endian, sectors; 0: only the descriptor counts
_DESCRIPTOR_SECTOR = slice(28, 36)  # u64 little-endian
_SPARSE_HEADER_BYTES = 512
_SECTOR_BYTES = 512
_OFFSET_WRAPS_AT = 1 << 64  # vmdk_open_vmdk4 shifts the sector in an u64, whatever falls out
_PARENT_DESCRIPTOR_OFFSET = 0x200  # where vmdk_parent_open looks, whatever the header says
_DESCRIPTOR_BYTES = (1 << 20) - 1  # vmdk_read_desc reads no more

# Every line that qemu opens a file for ends with one of these types and a name in quotes, of which
# its `sscanf` demands only the first one. The pattern is wider than that, so that nothing it
# accepts is missed.
_EXTENT = re.compile(rb'(?:FLAT|SPARSE|VMFS)\s*"([^\n\r"]+)', re.IGNORECASE)
_PARENT_CID = re.compile(rb"parentCID\s*=\s*([0-9a-fA-F]+)", re.IGNORECASE)
_NO_PARENT = 0xFFFF_FFFF
_PARENT_NAME = re.compile(rb'parentFileNameHint\s*=\s*"[^\n\r"]', re.IGNORECASE)

_VHD_MAGIC = b"conectix"
_VHD_TYPE = slice(60, 64)  # u32 big-endian
_VHD_DIFFERENCING = 4
_VHD_FOOTER_BYTES = 512


def referenced_files(source: Source, container: str) -> list[str]:
    """Return the names of the files that hold the container's data besides itself.

    Raises Unsupported for a container that has a parent, or that is not in CONTAINERS.
    """
    if container not in CONTAINERS:
        raise Unsupported(container, 0, "no reader for this kind of container")
    if container == "vmdk":
        return _vmdk_extents(source)
    if container == "vhd":
        _refuse_differencing(source)
    return []


def is_indirect_extent(start: bytes) -> bool:
    """Say whether a file that a VMDK names as its extent would name further files itself.

    start: its first 20 bytes or more.
    """
    return start[:4] == _SPARSE_MAGIC and not any(start[_CAPACITY])


def is_plain_name(name: str) -> bool:
    """Say whether a name can only mean a file next to the one that names it."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\:")


def _vmdk_extents(source: Source) -> list[str]:
    start = source.pread(0, min(source.size, _SPARSE_HEADER_BYTES))
    if start.startswith(_SPARSE_MAGIC):
        recorded = int.from_bytes(start[_DESCRIPTOR_SECTOR], "little") * _SECTOR_BYTES
        offsets = {recorded % _OFFSET_WRAPS_AT, _PARENT_DESCRIPTOR_OFFSET}
    elif start.startswith(_ESX_MAGIC):
        return []  # qemu reads no descriptor of it
    else:
        offsets = {0}  # qemu takes whatever has no magic for a descriptor
    texts = [_descriptor(source, offset) for offset in offsets if offset < source.size]
    for text in texts:
        parents = _PARENT_CID.findall(text)
        if _PARENT_NAME.search(text) or any(int(one, 16) != _NO_PARENT for one in parents):
            raise Unsupported("VMDK descriptor", 0, "the image is a snapshot on top of another one")
    if start.startswith(_SPARSE_MAGIC) and any(start[_CAPACITY]):
        return []  # its own descriptor lists the file itself, and qemu does not follow that
    names = {name for text in texts for name in _EXTENT.findall(text)}
    # A byte that is no UTF-8 becomes a backslash, which no plain name has: were it replaced by
    # something harmless, another file would be checked than the one that qemu opens.
    return sorted(name.decode("utf-8", "backslashreplace") for name in names)


def _descriptor(source: Source, offset: int) -> bytes:
    text = source.pread(offset, min(source.size - offset, _DESCRIPTOR_BYTES))
    return text.split(b"\0", 1)[0]


def _refuse_differencing(source: Source) -> None:
    places = [0, source.size - _VHD_FOOTER_BYTES]
    for offset in places:
        footer = source.pread(offset, min(source.size, _VHD_FOOTER_BYTES)) if offset >= 0 else b""
        kind = int.from_bytes(footer[_VHD_TYPE], "big")
        if footer.startswith(_VHD_MAGIC) and kind == _VHD_DIFFERENCING:
            raise Unsupported("VHD footer", offset, "the image is a snapshot on top of another one")
