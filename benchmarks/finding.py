"""Finding sources on this host: how much of it is read, and how long the second time takes."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench
from packer.artifact.contents import Contents
from packer.sources.base import Wanted
from packer.sources.directory import default_sources, package_owned_roots
from packer.sources.memory import Memory
from packer.sources.open import open_pack
from packer.text import format_bytes

SECOND_TIME_SECONDS = 1.0


def measure_finding(bench: Bench) -> None:
    """Look for every content of the pack in the whole trees that packages own here, twice."""
    database = bench.work / "files.sqlite"
    with open_pack(str(bench.pack)) as pack:
        contents = pack.map.contents
        wanted = Wanted(contents, np.arange(len(contents)), pack.hints)
        before = _bytes_read()
        _find(wanted, None)
        read = _bytes_read() - before
        seconds = []
        for _ in range(2):
            started = time.monotonic()
            memory = Memory(database)
            _find(wanted, memory)
            memory.close()
            seconds.append(time.monotonic() - started)
        same_size = _bytes_of_sizes(contents)
    what = "finding sources in all folders of this host's packages"
    bench.add(
        f"{what}: bytes read",
        format_bytes(read),
        "",
        ratio=read / same_size,
        against=f"files of wanted sizes ({format_bytes(same_size)})",
        aim=1.0,
    )
    bench.add(
        f"{what}: the second time",
        f"{seconds[1]:.2f} s (the first time {seconds[0]:.1f} s)",
        "",
        ratio=seconds[1] / SECOND_TIME_SECONDS,
        against=f"{SECOND_TIME_SECONDS:g} s",
        aim=1.0,
    )


def _find(wanted: Wanted, memory: Memory | None) -> None:
    for source in default_sources(memory):
        source.find(wanted, deep=True)
        source.close()


def _bytes_read() -> int:
    """Return the bytes that this process has read so far, by the kernel's own accounting."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def _bytes_of_sizes(contents: Contents) -> int:
    """Return the bytes of all files below the same roots that have the size of a content.

    Found with nothing but os.walk: each file once, however many names it has.
    """
    sizes = frozenset(contents.size.tolist())
    seen: dict[tuple[int, int], int] = {}
    for root, excluded in package_owned_roots():
        for folder, _, names in os.walk(root):
            if any(Path(folder).is_relative_to(f"{root}{one}") for one in excluded):
                continue
            for name in names:
                status = os.lstat(f"{folder}/{name}")
                if stat.S_ISREG(status.st_mode) and status.st_size in sizes:
                    seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())
