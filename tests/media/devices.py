"""Devices to write to: with noise, as a person at a terminal meets them, and one that cheats."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.host import run
from tests.round_trip.command import Vmpack
from tests.survey.disks import MIB


def noisy(path: Path, size: int) -> Path:
    """An image full of noise."""
    chance = random.Random(size)
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(chance.randbytes(MIB))
        file.truncate(size)
    return path


def same_start(one: Path, other: Path, size: int) -> bool:
    """Whether two disks begin with the same bytes."""
    with one.open("rb") as left, other.open("rb") as right:
        for offset in range(0, size, MIB):
            length = min(MIB, size - offset)
            if left.read(length) != right.read(length):
                return False
    return True


def at_a_terminal(
    vmpack: Vmpack, answer: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run the command for a person who reads the question and types an answer."""
    with asked(vmpack, *arguments) as (process, shown, keyboard):
        os.write(keyboard, os.fsencode(answer))
        printed, said = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, printed, shown + said)


@contextmanager
def asked(
    vmpack: Vmpack, *arguments: str | Path
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Run the command until it asks or ends: (the process, what it has said, the keyboard)."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*vmpack.program, *map(str, arguments)],
            # What most people's locales say; that of a test host is more lenient.
            env=vmpack.environment({"PYTHONIOENCODING": "utf-8:strict"}),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        shown = ""
        while "to overwrite it: " not in shown and (letter := process.stderr.read(1)):
            shown += letter
        yield process, shown, ours
    finally:
        os.close(ours)
        os.close(theirs)


_READ = "iflag=count_bytes,skip_bytes status=none"
_WRITE = "oflag=seek_bytes conv=notrunc status=none"
FLASH = {
    "get_size": "echo {claimed}",
    "can_write": "exit 0",
    "can_flush": "exit 0",
    "flush": "exit 0",
    "pread": "dd if={file} skip=$(( $4 % {real} )) count=$3 " + _READ,
    "pwrite": "dd of={file} seek=$(( $4 % {real} )) " + _WRITE,
}
"""Commands of nbdkit's eval plugin: a stick that takes every byte, and has room for few."""


@contextmanager
def cheating_stick(folder: Path, *, claimed: int, real: int) -> Iterator[tuple[Path, Path]]:
    """A disk, as a file, that claims a size and writes from its beginning again after `real`.

    Yields (the disk, the memory that it really has).
    """
    memory, socket, point = folder / "flash", folder / "socket", folder / "stick"
    memory.write_bytes(bytes(real))
    point.mkdir()
    commands = [
        f"{name}={text.format(file=memory, real=real, claimed=claimed)}"
        for name, text in FLASH.items()
    ]
    server = subprocess.Popen(["nbdkit", "-f", "-U", str(socket), "eval", *commands])
    try:
        _wait_for(socket.exists, server)
        uri = f"nbd+unix:///?socket={socket}"
        driver = subprocess.Popen(["nbdfuse", str(point), uri])
        try:
            _wait_for((point / "nbd").exists, driver)
            yield point / "nbd", memory
        finally:
            run("umount", point)
            driver.wait(30)
    finally:
        server.kill()
        server.wait()


def _wait_for(true: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def as_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a run printed with --json."""
    found: dict[str, Any] = json.loads(done.stdout)
    return found
