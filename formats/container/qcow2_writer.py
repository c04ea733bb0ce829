"""qcow2, version 3: where everything lies in a file whose guest clusters are known beforehand.

Source: qemu `docs/interop/qcow2.txt`, sections "Header", "Header extensions", "Host cluster
management" and "Cluster mapping". The file is laid out once and never grows,

    header | reference count table, its blocks | L1 table | L2 tables | guest clusters

so that each of its clusters is used once, and a guest's byte has its place before any is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from formats.container import c_qcow2 as c
from formats.errors import Unsupported
from formats.ranges import Ranges, complement, spread, subtract, union

Columns = NDArray[np.int64]

SMALLEST_CLUSTER_BITS = 12
"""4 KiB, the block of most file systems: so few clusters as can be are known in part only."""

MAX_CLUSTERS = 1 << 24
"""Of its own that an image may have: their numbers are held in memory."""

_ENTRY_BYTES = 8  # of the L1 table, of L2 tables and of the reference count table
_COUNT_BYTES = (1 << c.REFCOUNT_ORDER) // 8


@dataclass(frozen=True, slots=True)
class _Sections:
    """Where each section begins, in clusters from the file's start; end: of the file."""

    count_table: int
    count_blocks: int
    l1_table: int
    l2_tables: int
    data: int
    end: int


@dataclass(frozen=True, slots=True)
class Image:
    """A qcow2 file: `head` yields what describes it, `runs` says where a guest's bytes go.

    size: of the disk, bytes. clusters: int64[n], numbers of the guest's clusters that the file
    has, sorted, distinct. cluster_bits: their size as a power of two. backing: what all others are
    read from, a file or a URI, and its format; "" for nothing: they read as zeros.
    """

    size: int
    clusters: Columns
    cluster_bits: int = SMALLEST_CLUSTER_BITS
    backing: str = ""
    backing_format: str = ""

    def __post_init__(self) -> None:
        length = len(self.backing.encode())
        if length > c.MAX_BACKING_NAME_BYTES:
            most = c.MAX_BACKING_NAME_BYTES
            reason = f"expected a backing file's name of at most {most} bytes, found {length}"
            raise Unsupported("qcow2 header", 8, reason)
        if self._l1_entries * _ENTRY_BYTES > c.MAX_L1_BYTES:
            reason = f"a disk of {self.size} bytes in clusters of {self.cluster_size}"
            raise Unsupported("qcow2 header", 36, reason)

    @property
    def cluster_size(self) -> int:
        """Return the bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def file_size(self) -> int:
        """Return the bytes of the file."""
        return self._sections().end * self.cluster_size

    def head(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset in the file, bytes) of all that describes the guest's clusters."""
        at, size = self._sections(), self.cluster_size
        yield 0, self._header(at)
        yield at.count_table * size, _entries(np.arange(at.count_blocks, at.l1_table) * size)
        per_block = size // _COUNT_BYTES
        for row, block in enumerate(range(at.count_blocks, at.l1_table)):
            used = min(at.end - row * per_block, per_block)
            yield block * size, np.ones(used, dtype=">u2").tobytes()
        yield from self._mapping(at)

    def runs(self) -> Columns:
        """Return int64[k, 3]: where a run begins in the guest, and in the file, and its bytes.

        The last one may reach past the end of the disk, to the end of its cluster.
        """
        first = np.flatnonzero(np.diff(self.clusters, prepend=-2) != 1)
        length = np.diff(first, append=len(self.clusters))
        data = self._sections().data
        return np.stack([self.clusters[first], data + first, length], axis=1) * self.cluster_size

    @property
    def _per_table(self) -> int:
        """Return how many entries of 8 bytes a cluster takes."""
        return self.cluster_size // _ENTRY_BYTES

    @property
    def _l1_entries(self) -> int:
        return -(-self.size // (self._per_table * self.cluster_size))

    def _header(self, at: _Sections) -> bytes:
        backing, form = self.backing.encode(), self.backing_format.encode()
        extensions = c.EXTENSION.pack(c.EXTENSION_END, 0)
        if form:
            named = c.EXTENSION.pack(c.EXTENSION_BACKING_FORMAT, len(form)) + form
            extensions = named + bytes(-len(named) % 8) + extensions
        length = c.COMPRESSION_TYPE_OFFSET
        numbers = (
            *(length + len(extensions) if backing else 0, len(backing)),
            *(self.cluster_bits, self.size, 0),
            *(self._l1_entries, at.l1_table * self.cluster_size),
            *(at.count_table * self.cluster_size, at.count_blocks - at.count_table),
            *(0, 0),
        )
        head = c.HEADER_V2.pack(c.MAGIC, c.VERSION_3, *numbers)
        return head + c.HEADER_V3.pack(0, 0, 0, c.REFCOUNT_ORDER, length) + extensions + backing

    def _mapping(self, at: _Sections) -> Iterator[tuple[int, bytes]]:
        """Yield the L1 table, then the L2 tables."""
        size, per_table = self.cluster_size, self._per_table
        tables, first = np.unique(self.clusters // per_table, return_index=True)
        l1_table = np.zeros(self._l1_entries, dtype=np.int64)
        l1_table[tables] = (at.l2_tables + np.arange(len(tables))) * size
        yield at.l1_table * size, _entries(l1_table, c.COPIED)
        bounds = [*first.tolist(), len(self.clusters)]
        for row, (low, high) in enumerate(pairwise(bounds)):
            l2_table = np.zeros(per_table, dtype=np.int64)
            l2_table[self.clusters[low:high] % per_table] = (at.data + np.arange(low, high)) * size
            yield (at.l2_tables + row) * size, _entries(l2_table, c.COPIED)

    def _sections(self) -> _Sections:
        l1_clusters = -(-self._l1_entries // self._per_table)
        l2_clusters = len(np.unique(self.clusters // self._per_table))
        rest = 1 + l1_clusters + l2_clusters + len(self.clusters)
        table = blocks = -1
        needed = (0, 0)
        while (table, blocks) != needed:  # counts count themselves, too
            table, blocks = needed
            some = -(-(rest + table + blocks) * _COUNT_BYTES // self.cluster_size)
            needed = (-(-some // self._per_table), some)
        l1_table = 1 + table + blocks
        l2_tables = l1_table + l1_clusters
        data = l2_tables + l2_clusters
        return _Sections(1, 1 + table, l1_table, l2_tables, data, data + len(self.clusters))


def fitting_cluster_bits(size: int) -> int:
    """Return the smallest cluster size, as a power of two, that a disk of `size` bytes goes into.

    Raises Unsupported when it goes into none.
    """
    for bits in range(SMALLEST_CLUSTER_BITS, c.MAX_CLUSTER_BITS + 1):
        cluster = 1 << bits
        if -(-size // (cluster // _ENTRY_BYTES * cluster)) * _ENTRY_BYTES <= c.MAX_L1_BYTES:
            return bits
    raise Unsupported("qcow2 header", 24, f"a disk of {size} bytes is too large for qcow2")


def clusters_inside(known: Ranges, wanted: Ranges, size: int, cluster_bits: int) -> Columns:
    """Return the clusters of a disk of `size` bytes all of whose bytes are known, int64[n].

    known: what of the disk can be written. wanted: a part of it; a cluster without any byte of it
    is left out. Raises Unsupported for more than MAX_CLUSTERS.
    """
    cluster = 1 << cluster_bits
    end = -(-size // cluster) * cluster
    known = union(known, np.array([[size, end]], dtype=np.int64))
    unknown = complement(known, 0, end)
    rows = subtract(_touched(wanted, cluster), _touched(unknown, cluster))
    length = rows[:, 1] - rows[:, 0]
    if int(length.sum()) > MAX_CLUSTERS:
        reason = f"expected at most {MAX_CLUSTERS} clusters of its own, found {int(length.sum())}"
        raise Unsupported("qcow2 image", 0, reason)
    return spread(rows[:, 0], length)[1]


def _touched(ranges: Ranges, cluster: int) -> Ranges:
    """Return the numbers of the clusters that ranges of bytes lie in, as ranges."""
    return union(np.stack([ranges[:, 0] // cluster, -(-ranges[:, 1] // cluster)], axis=1))


def _entries(offsets: Columns, flags: int = 0) -> bytes:
    """Return a table: offsets in the file, with `flags` where there is one."""
    entries = offsets.astype(np.uint64)
    entries[entries != 0] |= np.uint64(flags)
    return entries.astype(">u8").tobytes()
