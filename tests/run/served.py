"""A disk that `vmpack serve` offers in a process of its own, and programs that read it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packer.run.qemu.processes import identify
from packer.run.server.control import Control
from tests.round_trip.command import Vmpack
from tests.run.serving import wait_until

START_S = 60.0
END_S = 30.0


@dataclass(slots=True)
class Served:
    """What the server said when it listened; `ended` is what it said last."""

    process: subprocess.Popen[str]
    start: dict[str, Any]
    ended: dict[str, Any] = field(default_factory=dict)
    notes: str = ""

    @property
    def uri(self) -> str:
        return str(self.start["addresses"][0])

    def control(self) -> Control:
        return Control(Path(self.start["control"]))

    def end(self, number: int = signal.SIGINT) -> None:
        """End it in good order and keep what it says."""
        self.process.send_signal(number)
        said, self.notes = self.process.communicate(timeout=END_S)
        assert self.process.returncode == 0, self.notes
        self.ended = json.loads(said.splitlines()[-1])


@contextmanager
def served(
    vmpack: Vmpack,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    verb: str = "serve",
) -> Iterator[Served]:
    """`vmpack serve ARGUMENTS`, until the block ends. verb: another one that serves a disk."""
    process = vmpack.start(verb, *arguments, "--json", environment=environment)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], START_S)[0], "it does not listen"
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate(timeout=END_S)[1])
        one = Served(process, json.loads(line))
        yield one
        if process.poll() is None:
            one.end()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=END_S)


def reading(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A client, ended."""
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def read(*command: str | Path) -> str:
    """What a client printed; it must succeed."""
    done = reading(*command)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


def same(left: str | Path, right: str | Path) -> bool:
    """Whether qemu-img finds two raw disks equal."""
    done = reading("qemu-img", "compare", "-f", "raw", "-F", "raw", left, right)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    return identify(pid) is not None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
