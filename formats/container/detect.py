"""Which container a file is, by its magic alone."""

from __future__ import annotations

from formats.source import Source

_SECTOR_BYTES = 512
_PREFIX_BYTES = 4096

_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    # offset, magic, name; source: the probe function of qemu block/<driver>.c
    (0, b"QFI\xfb\x00\x00\x00\x02", "qcow2"),  # qcow2.c, version 2
    (0, b"QFI\xfb\x00\x00\x00\x03", "qcow2"),  # qcow2.c, version 3
    (0, b"QFI\xfb\x00\x00\x00\x01", "qcow"),  # qcow.c, version 1: another format
    (0, b"QED\x00", "qed"),  # qed.c
    (0, b"KDMV", "vmdk"),  # vmdk.c, VMDK4_MAGIC: hosted sparse extent
    (0, b"COWD", "vmdk"),  # vmdk.c, VMDK3_MAGIC: ESX sparse extent
    (0, b"# Disk DescriptorFile", "vmdk"),  # vmdk.c: text descriptor that names its extents
    (0, b"vhdxfile", "vhdx"),  # vhdx.c, file type identifier
    (0, b"conectix", "vhd"),  # vpc.c: copy of the footer, dynamic and differencing disks
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),  # vdi.c, VDI_SIGNATURE 0xbeda107f, little-endian
    (0, b"WithoutFreeSpace", "parallels"),  # parallels.c, HEADER_MAGIC
    (0, b"WithouFreSpacExt", "parallels"),  # parallels.c, HEADER_MAGIC2
)

_FOOTER_MAGIC = b"conectix"  # VHD specification, "Hard Disk Footer Format": 0, 8 bytes
_FOOTER_TYPE = slice(60, 64)  # u32 big-endian, 2 fixed, 3 dynamic, 4 differencing
_FOOTER_TYPE_FIXED = 2
_FOOTER_CHECKSUM = slice(64, 68)  # u32 big-endian: complement of the sum of all other bytes


def detect(source: Source) -> str:
    """Return "raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "parallels", "qcow" or "qed".

    "raw" is the answer when nothing else fits. A guest that writes another format's magic to its
    first sector makes a raw disk look like one: name the format where it is known.
    """
    prefix = source.pread(0, min(source.size, _PREFIX_BYTES))
    for offset, magic, name in _MAGICS:
        if prefix[offset : offset + len(magic)] == magic:
            return name
    return "vhd" if _has_fixed_vhd_footer(source) else "raw"


def _has_fixed_vhd_footer(source: Source) -> bool:
    """Say whether the last sector is the footer of a fixed VHD, which has no header.

    The checksum decides: eight letters at the end of a raw disk prove nothing.
    """
    if source.size < _SECTOR_BYTES:
        return False
    footer = source.pread(source.size - _SECTOR_BYTES, _SECTOR_BYTES)
    if not footer.startswith(_FOOTER_MAGIC):
        return False
    others = sum(footer) - sum(footer[_FOOTER_CHECKSUM])
    checksum = int.from_bytes(footer[_FOOTER_CHECKSUM], "big")
    kind = int.from_bytes(footer[_FOOTER_TYPE], "big")
    return kind == _FOOTER_TYPE_FIXED and checksum == ~others & 0xFFFF_FFFF
