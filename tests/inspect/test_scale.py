"""What it costs to inspect a volume of many files: processor time, memory, and how both grow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host import run
from tests.round_trip.command import VMPACK
from tests.round_trip.packs import Guest

pytestmark = [pytest.mark.guest, pytest.mark.slow]
FILES = (10_000, 100_000)
MOST_CPU_S = 10.0
MOST_BYTES = 1 << 30
SAMPLE_S = 0.02
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """cpu_s: of the command and its children, user and system. largest_bytes: the most memory that
    any one of them held; together_bytes: all of them at the same time, sampled, shared pages
    counted for each.
    """

    cpu_s: float
    largest_bytes: int
    together_bytes: int
    output: str


# A process is charged with the memory of the one that started it, so a small one starts it.
_COUNT = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss << 10, file=sys.stderr)
sys.exit(code)
"""


def inspect(image: Path, home: Path) -> Cost:
    with (home / "output").open("w+") as output, (home / "used").open("w+") as used:
        process = subprocess.Popen(
            [sys.executable, "-c", _COUNT, VMPACK, "inspect", image],
            env={**os.environ, "VMPACK_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=used,
        )
        together = [0]
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, together, ended))
        sampler.start()
        try:
            assert process.wait() == 0
        finally:
            ended.set()
            sampler.join()
        output.seek(0)
        used.seek(0)
        cpu_s, largest_bytes = used.read().splitlines()[-1].split()
        return Cost(float(cpu_s), int(largest_bytes), together[0], output.read())


def _sample(pid: int, most: list[int], ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_S):
        most[0] = max(most[0], _memory(pid))


def _memory(pid: int) -> int:
    """Resident bytes of a process and all below it; of one that has just ended: none."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [one for task in tasks for one in (task / "children").read_text().split()]
    except OSError:
        return 0
    return resident + sum(_memory(int(one)) for one in children)


def test_a_hundred_thousand_files_on_ntfs(
    build_guest: Callable[[str], Guest], tmp_path: Path
) -> None:
    """The least of three runs: others use these processors."""
    image = build_guest("windows-100000-files").image
    costs = [inspect(image, tmp_path) for _ in range(3)]
    least = min(cost.cpu_s for cost in costs)
    assert least <= MOST_CPU_S, "the wall clock shows as much when nothing else runs"
    for cost in costs:
        assert "private  80,000 contents" in cost.output  # the others are resident
        assert 50 << 20 < cost.largest_bytes <= MOST_BYTES
        assert 50 << 20 < cost.together_bytes <= MOST_BYTES


def test_ten_times_the_files_take_about_ten_times_the_work(
    build_guest: Callable[[str], Guest], tmp_path: Path
) -> None:
    """Beyond what an empty volume takes. The least of three runs, likewise."""
    empty = tmp_path / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(256 << 20)
    run("mkntfs", "--quiet", "--fast", "--force", empty)
    few, many = (build_guest(f"windows-{count}-files").image for count in FILES)
    start, small, large = (
        min(inspect(image, tmp_path).cpu_s for _ in range(3)) for image in (empty, few, many)
    )
    assert small > start
    assert (large - start) / (small - start) <= 13, (start, small, large)
