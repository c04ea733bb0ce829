"""An ext volume as libfsext accepts it."""

from __future__ import annotations

import struct

import numpy as np

from formats.filesystem import c_ext
from formats.filesystem.ext_space import Layout, group_starts, has_superblock
from formats.ranges import Ranges
from formats.source import Source, check_bounds

_LIBFSEXT_COMPAT = 0x103F
"""s_feature_compat bits that libfsext 20260821 accepts, found by setting each one."""
_NEEDLESS_INCOMPAT = c_ext.INCOMPAT_MMP | c_ext.INCOMPAT_LARGEDIR
_LIBFSEXT_INODE_FLAGS = 0x1029D0FB
"""i_flags bits that libfsext 20260821 accepts, found the same way; among those that it refuses are
TOPDIR, HUGE_FILE, VERITY, EOFBLOCKS, PROJINHERIT and CASEFOLD, of directories too."""
_FLAGS_AT = 0x20  # i_flags in an inode


class Presented:
    """The volume without the feature bits that libfsext refuses but need not know.

    A compat feature changes nothing for a reader by definition; multi-mount protection is one
    more reserved block; a large directory has one more level above the blocks that are read.
    Revision 0 is presented as revision 1 with the sizes that revision 0 has by definition.
    No flag of an inode changes where its blocks are; whether its bytes are plain is judged by
    the flags on disk and not by these.
    """

    def __init__(self, source: Source, layout: Layout) -> None:
        superblock = layout.superblock
        self.source = source
        self.size = source.size
        self._features = (
            superblock.compat & _LIBFSEXT_COMPAT,
            superblock.incompat & ~_NEEDLESS_INCOMPAT,
        )
        starts = group_starts(superblock)[has_superblock(superblock)] * superblock.block_size
        starts[0] = c_ext.SUPERBLOCK_OFFSET
        same = c_ext.with_features(superblock.raw, *self._features) == superblock.raw
        self._superblocks = starts[:0] if same else starts
        self._inode_size = superblock.inode_size
        self._table_size = superblock.inodes_per_group * superblock.inode_size
        self._tables = np.sort(layout.inode_table) * superblock.block_size

    def pread(self, offset: int, length: int) -> bytes:
        """Return the bytes as they are shown to libfsext, which reads inodes one by one."""
        check_bounds("ext volume", self.size, offset, length)
        data = self.source.pread(offset, length)
        if length == self._inode_size:
            (flags,) = struct.unpack_from("<I", data, _FLAGS_AT)
            if flags & ~_LIBFSEXT_INODE_FLAGS and self._is_inode(offset):
                shown = struct.pack("<I", flags & _LIBFSEXT_INODE_FLAGS)
                return data[:_FLAGS_AT] + shown + data[_FLAGS_AT + len(shown) :]
        return self._with_superblocks(offset, data) if len(self._superblocks) else data

    def data_ranges(self, start: int, end: int) -> Ranges:
        """Return the data ranges of the volume beneath."""
        return self.source.data_ranges(start, end)

    def _is_inode(self, offset: int) -> bool:
        row = int(np.searchsorted(self._tables, offset, side="right")) - 1
        inside = offset - int(self._tables[row]) if row >= 0 else self._table_size
        return inside < self._table_size and inside % self._inode_size == 0

    def _with_superblocks(self, offset: int, data: bytes) -> bytes:
        end = offset + len(data)
        places = self._superblocks
        first = int(np.searchsorted(places, offset - c_ext.SUPERBLOCK_SIZE, side="right"))
        last = int(np.searchsorted(places, end, side="left"))
        for start in places[first:last].tolist():
            copy = self.source.pread(start, c_ext.SUPERBLOCK_SIZE)
            copy = c_ext.with_features(copy, *self._features)
            cut = slice(max(offset - start, 0), min(end - start, len(copy)))
            at = start + cut.start - offset
            data = data[:at] + copy[cut] + data[at + cut.stop - cut.start :]
        return data
