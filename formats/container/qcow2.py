"""qcow2, versions 2 and 3, read-only: header, the active L1 table and its L2 tables as columns.

Source: qemu `docs/interop/qcow2.txt`; where that text is silent, what qemu's reader does
(`block/qcow2.c`, `qcow2_do_open`; `block/qcow2-cluster.c`, `qcow2_get_host_offset`).

Three decisions differ from qemu's, all on the safe side:
- A backing file is never opened here. The name in the header is only reported.
- A data cluster past the end of the file is Truncated, not zeros: qemu's own files end with whole
  clusters (or with the end of the disk), so a shorter one has lost data.
- An L2 table that two L1 entries name is Corrupt. No writer shares them, and it would let a small
  file describe a huge number of runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from formats.container import c_qcow2 as c
from formats.container.flat import Columns, FlatDisk, no_compressed, no_runs
from formats.errors import Corrupt, Truncated, Unsupported
from formats.ranges import Ranges, complement, empty_ranges, union
from formats.source import Source

MAX_ROWS = 1 << 22  # 4 Mi scattered runs, 256 GiB of 64 KiB clusters; keeps memory below 1 GiB
BATCH_ENTRIES = 1 << 16  # L2 entries decoded at a time, so that small tables share one numpy call

_U64 = np.uint64


class BackingRequired(Unsupported):
    """An image with a backing file, opened without one.

    name: what the header calls the backing file; untrusted, for people to read. format: its
    format's name, or "" when the header gives none.
    """

    def __init__(self, offset: int, name: str, backing_format: str) -> None:
        super().__init__("qcow2 header", offset, f"the image needs its backing file {name!r}")
        self.name = name
        self.format = backing_format


@dataclass(frozen=True, slots=True)
class Mapping:
    """The allocation of the active disk.

    runs and compressed: as FlatDisk takes them. zeros: guest ranges that read as zeros whatever
    the backing file holds.
    """

    runs: Columns
    compressed: Columns
    zeros: Ranges


class Qcow2(FlatDisk):
    """A qcow2 image as a source of its guest's bytes.

    runs, compressed, zeros: see Mapping; backed: what comes from `backing`, which is only used
    when the header names a backing file.

    Raises BackingRequired, Corrupt, Truncated or Unsupported; nothing is believed unchecked.
    """

    def __init__(self, source: Source, backing: Source | None = None) -> None:
        header = read_header(source)
        self.header = header
        self.backing_name, self.backing_format = read_backing(source, header)
        if self.backing_name and backing is None:
            raise BackingRequired(
                header.backing_name_offset, self.backing_name, self.backing_format
            )
        mapping = read_mapping(source, header)
        self.zeros = mapping.zeros
        super().__init__(
            source,
            header.size,
            mapping.runs,
            mapping.compressed,
            header.cluster_size,
            c.COMPRESSION_NAMES[header.compression_type],
            backing if self.backing_name else None,
            _unallocated(mapping, header.size) if self.backing_name else None,
        )


def read_header(source: Source) -> c.Header:
    """Return the checked header.

    Raises Truncated, Corrupt or Unsupported.
    """
    start = source.pread(0, min(source.size, c.COMPRESSION_TYPE_OFFSET + 1))
    if len(start) < c.HEADER_V2.size:
        raise Truncated("qcow2 header", 0, f"expected 72 bytes, the file has {len(start)}")
    if not start.startswith(c.MAGIC):
        raise Corrupt("qcow2 header", 0, f"expected magic {c.MAGIC!r}, found {start[:4]!r}")
    header = c.Header(*c.HEADER_V2.unpack_from(start)[1:])
    if header.version not in (c.VERSION_2, c.VERSION_3):
        raise Unsupported("qcow2 header", 4, f"expected version 2 or 3, found {header.version}")
    if header.version == c.VERSION_3:
        header = _with_version_3(header, start)
    _check_features(header)
    _check_geometry(header, source.size)
    return header


def _with_version_3(header: c.Header, start: bytes) -> c.Header:
    if len(start) < c.COMPRESSION_TYPE_OFFSET:
        raise Truncated("qcow2 header", 0, f"expected 104 bytes, the file has {len(start)}")
    incompatible, compatible, autoclear, refcount_order, header_length = c.HEADER_V3.unpack_from(
        start, c.HEADER_V2.size
    )
    has_type = header_length > c.COMPRESSION_TYPE_OFFSET
    if has_type and len(start) <= c.COMPRESSION_TYPE_OFFSET:
        raise Truncated("qcow2 header", 0, f"expected {header_length} bytes")
    return replace(
        header,
        incompatible_features=incompatible,
        compatible_features=compatible,
        autoclear_features=autoclear,
        refcount_order=refcount_order,
        header_length=header_length,
        compression_type=start[c.COMPRESSION_TYPE_OFFSET] if has_type else 0,
    )


def _check_features(header: c.Header) -> None:
    features = header.incompatible_features
    if unknown := features & ~c.INCOMPATIBLE_KNOWN:
        raise Unsupported("qcow2 header", 72, f"incompatible features {unknown:#x}")
    if features & c.INCOMPATIBLE_CORRUPT:
        raise Corrupt("qcow2 header", 72, "the image is marked corrupt; qemu-img check repairs it")
    if features & c.INCOMPATIBLE_EXTERNAL_DATA:
        raise Unsupported("qcow2 header", 72, "the guest's data lies in an external data file")
    if header.crypt_method:
        raise Unsupported("qcow2 header", 32, f"encryption method {header.crypt_method}")
    if header.compression_type not in c.COMPRESSION_NAMES:
        raise Unsupported("qcow2 header", 104, f"compression type {header.compression_type}")
    if bool(features & c.INCOMPATIBLE_COMPRESSION_TYPE) != bool(header.compression_type):
        raise Corrupt("qcow2 header", 104, "compression type and its feature bit disagree")


def _check_geometry(header: c.Header, file_size: int) -> None:
    lowest = c.MIN_CLUSTER_BITS_EXTENDED if header.extended_l2 else c.MIN_CLUSTER_BITS
    if not lowest <= header.cluster_bits <= c.MAX_CLUSTER_BITS:
        raise Corrupt(
            "qcow2 header",
            20,
            f"expected cluster_bits {lowest}..{c.MAX_CLUSTER_BITS}, found {header.cluster_bits}",
        )
    if header.refcount_order > c.MAX_REFCOUNT_ORDER:
        raise Corrupt("qcow2 header", 96, f"refcount_order {header.refcount_order} exceeds 6")
    if header.version == c.VERSION_3 and not (
        c.COMPRESSION_TYPE_OFFSET <= header.header_length <= header.cluster_size
    ):
        raise Corrupt("qcow2 header", 100, f"header_length {header.header_length} is impossible")
    if header.l1_size * 8 > c.MAX_L1_BYTES:
        raise Unsupported("qcow2 header", 36, f"an L1 table of {header.l1_size} entries")
    if header.l1_size < header.l1_entries_needed:
        raise Corrupt(
            "qcow2 header",
            36,
            f"a disk of {header.size} bytes needs {header.l1_entries_needed} L1 entries, "
            f"found {header.l1_size}",
        )
    if header.l1_table_offset % header.cluster_size:
        raise Corrupt("qcow2 header", 40, "the L1 table is not aligned to a cluster")
    if header.l1_table_offset + header.l1_size * 8 > file_size:
        raise Corrupt(
            "qcow2 header",
            40,
            f"the L1 table at {header.l1_table_offset} leaves the file of {file_size} bytes",
        )


def read_backing(source: Source, header: c.Header) -> tuple[str, str]:
    """Return name and format of the backing file as the header gives them, "" for none.

    Raises Corrupt when either does not lie in the first cluster.
    """
    offset, length = header.backing_name_offset, header.backing_name_length
    if offset == 0:
        return "", ""
    first_cluster = min(header.cluster_size, source.size)
    if length > c.MAX_BACKING_NAME_BYTES or length == 0 or offset + length > first_cluster:
        raise Corrupt("qcow2 header", 8, f"a backing file name of {length} bytes at {offset}")
    name = source.pread(offset, length).decode("utf-8", "surrogateescape")
    return name, _backing_format(source.pread(0, first_cluster), header)


def _backing_format(cluster: bytes, header: c.Header) -> str:
    position = header.header_length
    while position + c.EXTENSION.size <= len(cluster):
        kind, length = c.EXTENSION.unpack_from(cluster, position)
        start = position + c.EXTENSION.size
        if kind == c.EXTENSION_END:
            break
        if start + length > len(cluster):
            raise Corrupt("qcow2 header extension", position, f"{length} bytes leave the cluster")
        if kind == c.EXTENSION_BACKING_FORMAT:
            return cluster[start : start + length].decode("ascii", "backslashreplace")
        position = start + -(-length // 8) * 8
    return ""


def read_mapping(source: Source, header: c.Header) -> Mapping:
    """Return the allocation of the active disk; memory grows with its runs, not its size.

    Raises Corrupt for tables or clusters that are misaligned, outside the file or shared,
    Unsupported for more than MAX_ROWS rows.
    """
    tables = _l2_tables(source, header)
    decode = _Decoder(header)
    per_batch = max(BATCH_ENTRIES // header.l2_entries, 1)
    for first in range(0, len(tables), per_batch):
        batch = tables[first : first + per_batch]
        data = b"".join(
            source.pread(offset, header.cluster_size) for offset in batch[:, 1].tolist()
        )
        decode.add(batch[:, 0], batch[:, 1], data)
    return decode.mapping()


def _l2_tables(source: Source, header: c.Header) -> Columns:
    """Return (L1 index, host offset) of each L2 table of the active disk."""
    raw = source.pread(header.l1_table_offset, header.l1_entries_needed * 8)
    entries = np.frombuffer(raw, dtype=">u8").astype(_U64)
    offsets = (entries & _U64(c.L1_OFFSET_MASK)).astype(np.int64)
    used = np.flatnonzero(offsets)
    offsets = offsets[used]
    bad = (offsets % header.cluster_size != 0) | (offsets > source.size - header.cluster_size)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise Corrupt(
            "qcow2 L1 table",
            header.l1_table_offset + int(used[row]) * 8,
            f"an L2 table at {int(offsets[row])}, expected a cluster inside the file",
        )
    if len(np.unique(offsets)) != len(offsets):
        raise Corrupt("qcow2 L1 table", header.l1_table_offset, "two entries share an L2 table")
    return np.stack([used, offsets], axis=1).astype(np.int64)


class _Decoder:
    """Collects columns from L2 tables that come in guest order."""

    def __init__(self, header: c.Header) -> None:
        self.header = header
        self.table_bits = header.l2_entries.bit_length() - 1
        self.rows = 0
        self.runs: list[Columns] = [no_runs()]
        self.compressed: list[Columns] = [no_compressed()]
        self.zeros: list[Ranges] = [empty_ranges()]

    def add(self, l1_indexes: Columns, offsets: Columns, data: bytes) -> None:
        header = self.header
        words = np.frombuffer(data, dtype=">u8").astype(_U64)
        entries, bitmaps = (words[::2], words[1::2]) if header.extended_l2 else (words, None)
        used = np.flatnonzero(entries if bitmaps is None else entries | bitmaps)
        table, index = used >> self.table_bits, used & (header.l2_entries - 1)
        guest = (l1_indexes[table] * header.l2_entries + index) * header.cluster_size
        if len(guest) and guest[-1] >= header.size:
            inside = guest < header.size
            used, guest, table, index = used[inside], guest[inside], table[inside], index[inside]
        entry = entries[used]
        where = offsets[table] + index * header.l2_entry_bytes
        packed = (entry & _U64(c.L2_COMPRESSED)) != 0
        self._add_compressed(guest[packed], entry[packed])
        plain = np.flatnonzero(~packed)
        host = (entry[plain] & _U64(c.L2_OFFSET_MASK)).astype(np.int64)
        self._check_hosts(host, where[plain])
        if bitmaps is None:
            self._add_clusters(guest[plain], host, entry[plain], where[plain])
        else:
            self._add_subclusters(guest[plain], host, bitmaps[used[plain]], where[plain])
        if self.rows > MAX_ROWS:
            raise Unsupported("qcow2 L2 table", 0, f"the disk lies in more than {MAX_ROWS} pieces")

    def mapping(self) -> Mapping:
        return Mapping(
            _merged(np.concatenate(self.runs)),
            np.concatenate(self.compressed),
            union(*self.zeros),
        )

    def _check_hosts(self, host: Columns, where: Columns) -> None:
        bad = np.flatnonzero(host & (self.header.cluster_size - 1))
        if len(bad):
            raise Corrupt(
                "qcow2 L2 entry",
                int(where[bad[0]]),
                f"cluster offset {int(host[bad[0]])} is not aligned to a cluster",
            )

    def _add_compressed(self, guest: Columns, entry: NDArray[np.uint64]) -> None:
        """Read descriptors: x = 62 - (cluster_bits - 8); bits 0..x-1 host offset in bytes, bits
        x..61 further 512-byte sectors that the data touches."""
        bits = self.header.cluster_bits
        shift = 62 - (bits - 8)
        host = (entry & _U64((1 << shift) - 1)).astype(np.int64)
        sectors = ((entry >> _U64(shift)) & _U64((1 << (bits - 8)) - 1)).astype(np.int64) + 1
        stored = sectors * c.SECTOR_BYTES - host % c.SECTOR_BYTES
        length = np.minimum(self.header.cluster_size, self.header.size - guest)
        self.compressed.append(np.stack([guest, host, stored, length], axis=1).astype(np.int64))
        self.rows += len(guest)

    def _add_clusters(
        self, guest: Columns, host: Columns, entry: NDArray[np.uint64], where: Columns
    ) -> None:
        zero = (entry & _U64(c.L2_ZERO)) != 0
        if self.header.version == c.VERSION_2 and zero.any():
            raise Corrupt(
                "qcow2 L2 entry", int(where[zero][0]), "a zero cluster in a version 2 image"
            )
        self._add_zeros(guest[zero], self.header.cluster_size)
        data = ~zero & (host != 0)
        self._add_runs(guest[data], host[data], self.header.cluster_size)

    def _add_subclusters(
        self, guest: Columns, host: Columns, bitmap: NDArray[np.uint64], where: Columns
    ) -> None:
        """Bits 0..31: subcluster is allocated; bits 32..63: it reads as zeros; never both."""
        count = c.SUBCLUSTERS_PER_CLUSTER
        size = self.header.cluster_size // count
        allocated = bitmap & _U64((1 << count) - 1)
        zero = bitmap >> _U64(count)
        bad = np.flatnonzero(((allocated & zero) != 0) | ((host == 0) & (allocated != 0)))
        if len(bad):
            raise Corrupt(
                "qcow2 extended L2 entry",
                int(where[bad[0]]) + 8,
                f"impossible subcluster bitmap {int(bitmap[bad[0]]):#018x}",
            )
        bits = np.arange(count, dtype=_U64)
        row, nth = np.nonzero((zero[:, None] >> bits) & _U64(1))
        self._add_zeros(guest[row] + nth * size, size)
        row, nth = np.nonzero((allocated[:, None] >> bits) & _U64(1))
        self._add_runs(guest[row] + nth * size, host[row] + nth * size, size)

    def _add_zeros(self, guest: Columns, length: int) -> None:
        inside = guest[guest < self.header.size]
        ends = np.minimum(inside + length, self.header.size)
        self.zeros.append(union(np.stack([inside, ends], axis=1)))
        self.rows += len(self.zeros[-1])

    def _add_runs(self, guest: Columns, host: Columns, length: int) -> None:
        inside = guest < self.header.size
        guest, host = guest[inside], host[inside]
        lengths = np.minimum(length, self.header.size - guest)
        self.runs.append(_merged(np.stack([guest, host, lengths], axis=1).astype(np.int64)))
        self.rows += len(self.runs[-1])


def _merged(runs: Columns) -> Columns:
    """Join rows of sorted runs that follow each other both in the guest and in the file."""
    if len(runs) == 0:
        return no_runs()
    ends = runs[:-1, :2] + runs[:-1, 2:]
    first = np.ones(len(runs), dtype=bool)
    first[1:] = (runs[1:, :2] != ends).any(axis=1)
    starts = np.flatnonzero(first)
    return np.column_stack([runs[starts, :2], np.add.reduceat(runs[:, 2], starts)])


def _unallocated(mapping: Mapping, size: int) -> Ranges:
    runs = np.stack([mapping.runs[:, 0], mapping.runs[:, 0] + mapping.runs[:, 2]], axis=1)
    packed = mapping.compressed[:, [0, 3]].copy()
    packed[:, 1] += packed[:, 0]
    return complement(union(runs, packed, mapping.zeros), 0, size)
