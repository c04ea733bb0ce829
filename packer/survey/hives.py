"""Ask a child for keys of a registry hive on a disk.

What it answers is checked here as far as it can be: paths and names are text, data are bytes of
bounded size, and every row belongs to something.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from formats.windows.hive import MAX_KEY_NAME, MAX_VALUE_NAME, Value
from formats.windows.hive_log import CLEAN, REPLAYED, STALE
from formats.windows.hive_query import (
    MAX_DEPTH,
    MAX_WARNINGS,
    Bounds,
    KeyRecord,
    View,
    Wanted,
)
from packer.survey import wire
from packer.survey.answers import ask, demand, demand_texts
from packer.survey.disk import Disk
from packer.survey.limits import Limits
from packer.survey.opening import pack_files

HIVE_LIMITS = Limits(cpu_seconds=60)
"""Real hives take less than a second, the largest logs ten."""

_STATES = (CLEAN, REPLAYED, STALE)
_MAX_PATH_CHARACTERS = MAX_DEPTH * (MAX_KEY_NAME + 1)
_MAX_TYPE = 0xFFFF_FFFF


def read_hive(
    disk: Disk,
    primary: NDArray[np.int64],
    logs: Sequence[NDArray[np.int64]],
    wanted: Sequence[Wanted],
    *,
    limits: Limits | None = None,
) -> View:
    """Return the wanted keys of a hive, after a replay of its logs.

    primary, logs: each as int64[n, 3], the runs of formats.source.Runs with offsets of the disk;
    the logs in the order `.LOG`, `.LOG1`, `.LOG2`, as many as there are.
    Raises InputError when it cannot be read, or when the child does not answer as it should.
    """
    asked = [
        (one.path, one.depth, None if one.values is None else list(one.values)) for one in wanted
    ]
    request = wire.ReadHive(disk.opening, pack_files([primary, *logs]), asked)
    return ask(
        disk,
        "registry",
        request,
        wire.HiveReply,
        believe_hive,
        what="a registry hive on",
        limits=limits or HIVE_LIMITS,
        hint="start the guest and shut it down again, which makes Windows mend its registry",
    )


def believe_hive(reply: wire.HiveReply) -> View:
    """Return the reply as records, with names that are safe to print.

    Raises MalformedError when it contradicts itself or is more than a query may return.
    """
    bounds = Bounds()
    demand(reply.state in _STATES, f"the state {reply.state!r}")
    demand(len(reply.keys) <= bounds.keys, f"{len(reply.keys)} keys")
    demand(len(reply.data) <= bounds.total_bytes, f"{len(reply.data)} bytes of values")
    demand(len(set(reply.keys)) == len(reply.keys), "a key twice")
    keys = demand_texts(reply.keys, _MAX_PATH_CHARACTERS)
    names = demand_texts(reply.names, MAX_VALUE_NAME)
    row, kind, size = wire.unpack_columns(reply.values, "values", 3)
    demand(len(row) == len(names) <= bounds.entries, "not a name for each value")
    demand(bool((row[1:] >= row[:-1]).all()), "values are not sorted by key")
    demand(not (row >= len(keys)).any(), "a value of no key")
    demand(not (kind > _MAX_TYPE).any(), "a type of more than 32 bits")
    demand(not (size > bounds.value_bytes).any(), "a value that is too big")
    demand(int(size.sum()) == len(reply.data), "not as many bytes as the values have")
    ends = np.cumsum(size)
    values = [
        Value(name, number, reply.data[end - length : end])
        for name, number, length, end in zip(
            names, kind.tolist(), size.tolist(), ends.tolist(), strict=True
        )
    ]
    firsts = np.searchsorted(row, np.arange(len(keys) + 1)).tolist()
    return View(
        tuple(
            KeyRecord(path, tuple(values[firsts[number] : firsts[number + 1]]))
            for number, path in enumerate(keys)
        ),
        reply.state,
        tuple(_sentences(reply.done)),
        tuple(_sentences(reply.warnings)),
    )


def _sentences(texts: list[str]) -> list[str]:
    demand(len(texts) <= 2 * MAX_WARNINGS, f"{len(texts)} sentences")
    return demand_texts(texts, 2 * MAX_VALUE_NAME + _MAX_PATH_CHARACTERS)
