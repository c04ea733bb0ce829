"""What a volume seems to be, from its magic bytes: so that people learn at once what must travel.

Nothing is decided by this but words, with one exception: a volume that carries two magics is
nobody's. Sources: util-linux `libblkid/src/superblocks/*.c` (the file is named with each row),
and where it has none, the project that defines the format.
"""

from __future__ import annotations

from dataclasses import dataclass

from formats.source import Source


@dataclass(frozen=True, slots=True)
class Magic:
    """Bytes at an offset of the volume, and what they are the sign of."""

    offset: int
    magic: bytes
    name: str
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Guess:
    """What a volume seems to be.

    note: for people. quiet: whether it is small and meant to be carried whole, so that nobody
    needs to be warned. claims: whether a file system that is found there as well cannot be
    trusted (a member of a RAID 0 begins like the file system of the whole array). certain: whether
    no file system that is found there means anything.
    """

    name: str
    note: str
    quiet: bool = False
    claims: bool = True
    certain: bool = False


_KIB = 1024
_RAID = "Linux RAID member"

MAGICS = (
    Magic(0, b"LUKS\xba\xbe", "LUKS", encrypted=True),  # luks.c
    Magic(3, b"-FVE-FS-", "BitLocker", encrypted=True),  # bitlocker.c, Vista and later
    Magic(  # bitlocker.c, BDE_HDR_TOGO_OFFSET: a FAT boot sector that is none
        0x1A8, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001"), "BitLocker To Go", encrypted=True
    ),
    Magic(0x018, b"LVM2 001", "LVM physical volume"),  # lvm.c, label in sector 0
    Magic(0x218, b"LVM2 001", "LVM physical volume"),  # lvm.c, sector 1, which is the usual one
    Magic(0x418, b"LVM2 001", "LVM physical volume"),  # lvm.c, sector 2
    Magic(0x618, b"LVM2 001", "LVM physical volume"),  # lvm.c, sector 3
    Magic(0, b"\xfc\x4e\x2b\xa9", _RAID),  # linux_raid.c, MD_SB_MAGIC, version 1.1
    Magic(4 * _KIB, b"\xfc\x4e\x2b\xa9", _RAID),  # version 1.2
    Magic(3, b"EXFAT   ", "exFAT"),  # exfat.c
    Magic(0, b"\0\0\0ReFS\0", "ReFS"),  # refs.c
    Magic(0, b"XFSB", "XFS"),  # xfs.c
    Magic(64 * _KIB + 0x40, b"_BHRfS_M", "btrfs"),  # btrfs.c
    Magic(4 * _KIB + 0x18, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), "bcache"),  # bcache.c
    Magic(4 * _KIB + 0x18, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef"), "bcachefs"),
    Magic(1 * _KIB, b"\x10\x20\xf5\xf2", "F2FS"),  # f2fs.c
    Magic(1 * _KIB, b"\xe2\xe1\xf5\xe0", "EROFS"),  # erofs.c
    Magic(0, b"hsqs", "squashfs"),  # squashfs.c, version 4, little-endian
    Magic(32 * _KIB, b"JFS1", "JFS"),  # jfs.c
    Magic(64 * _KIB + 0x34, b"ReIsEr", "ReiserFS"),  # reiserfs.c, all versions of 3.6
    Magic(64 * _KIB + 0x55C, b"\x19\x01\x54\x19", "UFS2"),  # ufs.c
    Magic(32, b"NXSB", "APFS"),  # apfs.c
    # hfs.c; with the version behind it (Apple TN1150), or an ext with 11080 inodes begins alike
    Magic(1 * _KIB, b"H+\0\4", "HFS+"),
    Magic(1 * _KIB, b"HX\0\5", "HFSX"),
    Magic(1024 * _KIB, b"\x0d\xd0\x01\xc0", "VMFS member"),  # vmfs.c
    Magic(0, b"integrt\0", "dm-integrity"),  # Linux drivers/md/dm-integrity.c, SB_MAGIC
    Magic(0, b"verity\0\0", "dm-verity hash tree"),  # verity_hash.c
    Magic(0, b"dmvdo001", "VDO"),  # vdo.c
    Magic(32 * _KIB + 1, b"CD001", "ISO 9660"),  # iso9660.c
)


@dataclass(frozen=True, slots=True)
class Label:
    """Where a file system of some magic keeps the name that people gave it, in bytes."""

    magic_offset: int
    magic: bytes
    offset: int
    length: int


LABELS = (
    Label(1 * _KIB + 0x38, b"\x53\xef", 1 * _KIB + 0x78, 16),  # ext.c
    Label(0x36, b"FAT", 0x2B, 11),  # vfat.c, FAT12 and FAT16
    Label(0x52, b"FAT32", 0x47, 11),  # vfat.c
    Label(0, b"XFSB", 0x6C, 12),  # xfs.c
    Label(64 * _KIB + 0x40, b"_BHRfS_M", 64 * _KIB + 0x12B, 256),  # btrfs.c
    Label(32 * _KIB + 1, b"CD001", 32 * _KIB + 40, 32),  # iso9660.c
    Label(4 * _KIB - 10, b"SWAPSPACE2", 1 * _KIB + 0x1C, 16),  # swap.c
    Label(0, b"LUKS\xba\xbe\0\2", 0x18, 48),  # luks.c, version 2
)

_NO_LABEL = "NO NAME"  # what FAT has instead of nothing; Microsoft "FAT: General Overview" 1.03

_ZFS_RING = 128 * _KIB  # zfs.c: uberblocks of label 0, one per KiB at least
_ZFS_MAGIC = (0x00BAB10C).to_bytes(8, "little")
_ZFS_SLOTS = 128

_MD_MAGIC = b"\xfc\x4e\x2b\xa9"

QUIET_TYPES = {
    # UEFI specification and the lists that follow it (util-linux `include/pt-gpt-partnames.h`)
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot partition",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved partition",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PReP boot partition",
    "41": "PReP boot partition",
}

SPREAD_TYPES = {
    # Microsoft, "PARTITION_INFORMATION_GPT structure" (winioctl.h); "Disk Partition Types" (42).
    # What such a partition holds may be a stripe, or begin in the middle of a file system.
    "42": "dynamic disk (LDM)",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "database of a dynamic disk (LDM)",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "dynamic disk (LDM)",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "Storage Spaces",
}

_PREFIX_BYTES = _ZFS_RING + _ZFS_SLOTS * _KIB


def recognise(source: Source, partition_type: str) -> Guess | None:
    """Return what a volume seems to be, or None when nothing is known about it.

    Raises FormatError when it cannot be read.
    """
    if partition_type in SPREAD_TYPES:
        name = SPREAD_TYPES[partition_type]
        return Guess(name, f"{name}: no reader for it", certain=True)
    start = source.pread(0, min(source.size, _PREFIX_BYTES))
    for one in MAGICS:
        if _has(source, start, one):
            return Guess(one.name, _describe(one, start))
    if _has_uberblock(start):
        return Guess("ZFS", "ZFS: no reader for it")
    if _has_md_at_end(source):
        return Guess(_RAID, f"{_RAID}: no reader for it")
    if partition_type in QUIET_TYPES:
        name = QUIET_TYPES[partition_type]
        return Guess(name, f"{name}: carried as it is", quiet=True, claims=False)
    return None


def label_of(source: Source) -> str:
    """Return the label in a volume's superblock, for people; "" where none is known.

    Raises FormatError when it cannot be read.
    """
    start = source.pread(0, min(source.size, _PREFIX_BYTES))
    for one in LABELS:
        if start[one.magic_offset :].startswith(one.magic):
            text = start[one.offset : one.offset + one.length].partition(b"\0")[0]
            label = text.decode("utf-8", "replace").strip()
            return "" if label == _NO_LABEL else label
    return ""


def _has(source: Source, start: bytes, one: Magic) -> bool:
    end = one.offset + len(one.magic)
    if end <= len(start):
        return start[one.offset : end] == one.magic
    return end <= source.size and source.pread(one.offset, len(one.magic)) == one.magic


def _describe(one: Magic, start: bytes) -> str:
    name = one.name
    if name == "LUKS":  # luks.c: version, u16 big-endian, behind the magic
        name += str(int.from_bytes(start[6:8], "big"))
    return f"{name}: encrypted" if one.encrypted else f"{name}: no reader for it"


def _has_uberblock(start: bytes) -> bool:
    offsets = range(_ZFS_RING, _ZFS_RING + _ZFS_SLOTS * _KIB, _KIB)
    return any(start[offset : offset + len(_ZFS_MAGIC)] == _ZFS_MAGIC for offset in offsets)


def _has_md_at_end(source: Source) -> bool:
    """Look for the superblocks of versions 0.90 and 1.0 (linux_raid.c)."""
    version_0 = (source.size & ~0xFFFF) - 0x10000
    version_1 = (source.size // 512 - 16 & ~7) * 512
    return any(
        offset > 0 and source.pread(offset, len(_MD_MAGIC)) == _MD_MAGIC
        for offset in (version_0, version_1)
    )
