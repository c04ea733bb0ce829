"""A disk inside a file as plain columns: which guest bytes lie where, and how they are packed.

Whoever parses a container produces the columns; whoever reads the disk needs only them. So a
process that never parses an untrusted header can read the disk that another one has parsed.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from typing import Final

import numpy as np
import pyzstd
from numpy.typing import NDArray

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.ranges import Ranges, clip, empty_ranges, intersect, overlap_of_sorted, union
from formats.source import Source, check_bounds

Columns = NDArray[np.int64]

CACHE_BYTES = 16 << 20
MAX_CLUSTER_BYTES = 2 << 20  # the largest of any container read here (qcow2)
MAX_STORED_BYTES = 2 * MAX_CLUSTER_BYTES  # qcow2: 2**13 sectors of 512 bytes
RAW_DEFLATE_WINDOW_BITS = -12  # 4 KiB window, no header; qemu block/qcow2-threads.c
ZSTD_WINDOW_LOG_MAX = 27  # 128 MiB, zstd's own default limit
MAX_HOLE_PAIRS = 1 << 22  # beyond, holes of the file are not worth their memory

_PLAIN, _COMPRESSED, _BACKED = 0, 1, 2
_GUEST, _LENGTH, _KIND, _ROW = range(4)


def no_runs() -> Columns:
    """Return the `runs` of a disk without plain data."""
    return np.empty((0, 3), dtype=np.int64)


def no_compressed() -> Columns:
    """Return the `compressed` of a disk without compressed clusters."""
    return np.empty((0, 4), dtype=np.int64)


class FlatDisk:
    """A source that reads a disk from its columns; safe to use from several threads.

    runs: int64 (n, 3): guest offset, host offset, length in bytes, of plain data.
    compressed: int64 (n, 4): guest offset, host offset, stored length, length in the guest, all in
    bytes. Each is one cluster that unpacks to `cluster_size` bytes; the last may be cut by the end
    of the disk. A stored length may reach past the end of the file, as writers round it up.
    compression: "deflate" (raw, without zlib header) or "zstd".
    backed: ranges of the guest that are read from `backing`, zeros after its end.
    Everything else reads as zeros.

    Raises Corrupt when rows are unsorted, overlap or leave the disk, Truncated when they leave
    the file; nothing outside the file is ever believed to be zero.
    """

    def __init__(
        self,
        file: Source,
        size: int,
        runs: Columns,
        compressed: Columns,
        cluster_size: int,
        compression: str,
        backing: Source | None = None,
        backed: Ranges | None = None,
    ) -> None:
        if compression not in {"deflate", "zstd"}:
            raise Unsupported("flat disk", 0, f"compression {compression!r}")
        if not 1 <= cluster_size <= MAX_CLUSTER_BYTES:
            raise Unsupported("flat disk", 0, f"clusters of {cluster_size} bytes")
        self.file = file
        self.size: Final = size
        self.runs = runs
        self.compressed = compressed
        self.cluster_size = cluster_size
        self.compression = compression
        self.backing = backing
        self.backed = _present_in(backing, backed)
        self._segments = _segments(runs, compressed, self.backed, size)
        _check_file_bounds(runs, compressed, cluster_size, file.size)
        self._starts = np.ascontiguousarray(self._segments[:, _GUEST])
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cache_clusters = max(CACHE_BYTES // cluster_size, 1)
        self._lock = threading.Lock()
        self._file_data: Ranges | None = None

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes; also raises Corrupt for a cluster that does not unpack."""
        check_bounds("disk", self.size, offset, length)
        pieces: list[bytes] = []
        end = offset + length
        row = max(int(np.searchsorted(self._starts, offset, side="right")) - 1, 0)
        while offset < end:
            if row == len(self._segments):
                pieces.append(bytes(end - offset))
                break
            start, segment_length, kind, column_row = self._segments[row].tolist()
            if offset < start:
                take = min(end, start) - offset
                pieces.append(bytes(take))
                offset += take
            inside = offset - start
            take = min(end - offset, segment_length - inside)
            if take > 0:
                pieces.append(self._read_segment(kind, column_row, inside, take))
                offset += take
            row += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def data_ranges(self, start: int, end: int) -> Ranges:
        """Return what is allocated here or in the backing, without the holes of their files."""
        check_bounds("disk", self.size, start, end - start)
        packed_ends = self.compressed[:, 0] + self.compressed[:, 3]
        packed = np.stack([self.compressed[:, 0], packed_ends], axis=1)
        sets = [clip(self._plain_data(start, end), start, end), clip(packed, start, end)]
        backed = clip(self.backed, start, end)
        if self.backing is not None and len(backed):
            low, high = int(backed[0, 0]), int(backed[-1, 1])
            sets.append(intersect(self.backing.data_ranges(low, high), backed))
        return union(*sets)

    def _read_segment(self, kind: int, row: int, inside: int, length: int) -> bytes:
        if kind == _PLAIN:
            return self.file.pread(int(self.runs[row, 1]) + inside, length)
        if kind == _COMPRESSED:
            return self._cluster(row)[inside : inside + length]
        assert self.backing is not None  # no segment of this kind exists without one
        return self.backing.pread(int(self.backed[row, 0]) + inside, length)

    def _cluster(self, row: int) -> bytes:
        with self._lock:
            found = self._cache.get(row)
            if found is not None:
                self._cache.move_to_end(row)
                return found
        cluster = self._unpack(row)
        with self._lock:
            self._cache[row] = cluster
            while len(self._cache) > self._cache_clusters:
                self._cache.popitem(last=False)
        return cluster

    def _unpack(self, row: int) -> bytes:
        _, host, stored, _ = self.compressed[row].tolist()
        data = self.file.pread(host, min(stored, self.file.size - host))
        structure = f"{self.compression} cluster"
        try:
            if self.compression == "deflate":
                cluster = zlib.decompressobj(RAW_DEFLATE_WINDOW_BITS).decompress(
                    data, self.cluster_size
                )
            else:
                cluster = _unpack_zstd(data, self.cluster_size)
        except (zlib.error, pyzstd.ZstdError) as error:
            raise Corrupt(structure, host, str(error)) from error
        if len(cluster) == self.cluster_size:
            return cluster
        kind: type[FormatError] = Truncated if len(data) < stored else Corrupt
        raise kind(
            structure, host, f"expected {self.cluster_size} bytes, unpacked to {len(cluster)}"
        )

    def _plain_data(self, start: int, end: int) -> Ranges:
        """Return the runs that touch `[start, end)`, without the holes of the file."""
        first = int(np.searchsorted(self.runs[:, 0], start, side="right")) - 1
        last = int(np.searchsorted(self.runs[:, 0], end, side="left"))
        runs = self.runs[max(first, 0) : last]
        if self._file_data is None:  # two threads may both compute it, to the same result
            self._file_data = self.file.data_ranges(0, self.file.size)
        return _without_holes(runs, self._file_data)


def _unpack_zstd(data: bytes, length: int) -> bytes:
    """Unpack up to `length` bytes from frames that padding may follow."""
    options = {int(pyzstd.DParameter.windowLogMax): ZSTD_WINDOW_LOG_MAX}
    return pyzstd.ZstdDecompressor(option=options).decompress(data, length)


def _present_in(backing: Source | None, backed: Ranges | None) -> Ranges:
    if backing is None or backed is None:
        return empty_ranges()
    return clip(backed, 0, backing.size)


def _segments(runs: Columns, compressed: Columns, backed: Ranges, size: int) -> Columns:
    """Return all rows as one sorted table: guest offset, length, kind, row in their column."""
    parts = [
        (runs[:, 0], runs[:, 2], _PLAIN),
        (compressed[:, 0], compressed[:, 3], _COMPRESSED),
        (backed[:, 0], backed[:, 1] - backed[:, 0], _BACKED),
    ]
    table = np.concatenate(
        [
            np.stack(
                [guest, length, np.full(len(guest), kind), np.arange(len(guest))], axis=1
            ).astype(np.int64)
            for guest, length, kind in parts
        ]
    )
    table = table[np.argsort(table[:, _GUEST], kind="stable")]
    guest, length = table[:, _GUEST], table[:, _LENGTH]
    # written so that no sum can overflow: the columns may come from a process that was deceived
    outside = (guest < 0) | (length <= 0) | (length > size) | (guest > size - length)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise Corrupt(
            "flat disk", int(guest[row]), f"{int(length[row])} bytes leave the disk of {size} bytes"
        )
    if (clash := overlap_of_sorted(np.stack([guest, guest + length], axis=1))) >= 0:
        raise Corrupt("flat disk", int(guest[clash]), "two rows hold the same guest bytes")
    for name, rows in (("runs", runs), ("compressed", compressed), ("backed", backed)):
        if (np.diff(rows[:, 0]) < 0).any():
            raise Corrupt("flat disk", 0, f"the rows of {name} are not sorted")
    return table


def _check_file_bounds(
    runs: Columns, compressed: Columns, cluster_size: int, file_size: int
) -> None:
    host, length = runs[:, 1], runs[:, 2]
    if (outside := (host < 0) | (host > file_size - length)).any():
        row = int(np.flatnonzero(outside)[0])
        raise Truncated(
            "data cluster",
            int(host[row]),
            f"expected {int(length[row])} bytes, the file ends at byte {file_size}",
        )
    host, stored, length = compressed[:, 1], compressed[:, 2], compressed[:, 3]
    if (outside := (host < 0) | (host >= file_size)).any():
        row = int(np.flatnonzero(outside)[0])
        raise Truncated("compressed cluster", int(host[row]), f"the file ends at byte {file_size}")
    if ((stored <= 0) | (stored > MAX_STORED_BYTES) | (length > cluster_size)).any():
        raise Corrupt("compressed cluster", 0, "a stored or unpacked length is out of bounds")


def _without_holes(runs: Columns, data: Ranges) -> Ranges:
    """Return the guest ranges of `runs` whose host bytes lie in `data`; no loop over either."""
    whole = np.stack([runs[:, 0], runs[:, 0] + runs[:, 2]], axis=1)
    if len(runs) == 0:
        return empty_ranges()
    host, host_end = runs[:, 1], runs[:, 1] + runs[:, 2]
    first = np.searchsorted(data[:, 1], host, side="right")
    last = np.searchsorted(data[:, 0], host_end, side="left")
    counts = np.maximum(last - first, 0)
    if counts.sum() > MAX_HOLE_PAIRS:
        return whole
    rows = np.repeat(np.arange(len(runs)), counts)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = data[first[rows] + nth]
    shift = runs[rows, 0] - host[rows]
    starts = np.maximum(pieces[:, 0], host[rows]) + shift
    ends = np.minimum(pieces[:, 1], host_end[rows]) + shift
    return np.stack([starts, ends], axis=1)
