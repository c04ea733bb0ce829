"""Digests of units: which of those that are equally long may be equal, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from packer.artifact.contents import digest_keys
from packer.columns import Column
from packer.density.units import Units
from packer.progress import Advance

HEAD_BYTES = 4096
"""What is read of a unit to find out whether reading all of it is worth while."""

_STEP_BYTES = 1 << 20
_BATCH = 256


def digest_units(
    units: Units,
    fds: Sequence[int],
    wanted: Column,
    most_bytes: int,
    *,
    jobs: int,
    advance: Advance,
) -> Column:
    """Return a number for each wanted unit, the same for those that begin with equal bytes.

    most_bytes: how much of each is read. A number is good for one call. Raises OSError.
    """
    bounds = units.bounds()

    def digests(part: Column) -> bytes:
        return b"".join(_digest(units, fds, bounds, row, most_bytes, advance) for row in part)

    parts = [wanted[low : low + _BATCH] for low in range(0, len(wanted), _BATCH)]
    with ThreadPoolExecutor(jobs) as pool:
        found = np.frombuffer(b"".join(pool.map(digests, parts)), dtype=np.uint8)
    if len(wanted) == 0:
        return wanted
    keys = digest_keys(found.reshape(len(wanted), -1))
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _digest(
    units: Units, fds: Sequence[int], bounds: Column, row: int, most_bytes: int, advance: Advance
) -> bytes:
    """Return the SHA-256 of the first bytes of a unit; what lies in no block is passed over."""
    fd, end = fds[int(units.disk[row])], min(int(units.size[row]), most_bytes)
    hasher = hashlib.sha256()
    for extent in range(int(bounds[row]), int(bounds[row + 1])):
        at, host = int(units.at[extent]), int(units.host[extent])
        rest = min(int(units.length[extent]), end - at)
        while rest > 0:
            data = os.pread(fd, min(rest, _STEP_BYTES), host)
            if not data:  # the file has been cut off meanwhile
                break
            hasher.update(data)
            host, rest = host + len(data), rest - len(data)
    advance(end)
    return hasher.digest()
