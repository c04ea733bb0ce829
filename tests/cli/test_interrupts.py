"""Ctrl-C, once or twice: one line, exit code 130, no traceback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.refusal import INTERRUPTED
from tests.round_trip.command import Vmpack

LIMIT_S = 30


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """Whoever asks it for a pack waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)
        yield server


@pytest.mark.parametrize("gap_ms", [0, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 50])
def test_two_interrupts_in_quick_succession_are_one(
    tmp_path: Path, silent_server: socket.socket, gap_ms: float
) -> None:
    """The second one comes while what the first has ended is tidied up, or the process ends."""
    url = f"http://127.0.0.1:{silent_server.getsockname()[1]}/demo/"
    process = Vmpack(tmp_path).start("unpack", url, "-o", tmp_path / "disk.raw")
    try:
        connection, _ = silent_server.accept()
        with connection:
            assert connection.recv(1)
            os.kill(process.pid, signal.SIGINT)
            time.sleep(gap_ms / 1000)
            os.kill(process.pid, signal.SIGINT)  # it is not waited for: the id is still its own
            _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert said == "vmpack: interrupted\n"
    assert process.returncode == INTERRUPTED


TIDY_FOR_LONG = """
import time
from packer.cli.interrupts import hear_interrupts

hear_interrupts()
try:
    print("at work", flush=True)
    time.sleep(60)
finally:
    print("tidying", flush=True)
    time.sleep(60)
"""


def test_a_second_interrupt_while_it_is_tidied_up_ends_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TIDY_FOR_LONG],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "tidying\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):  # the echo of the first
            process.wait(0.6)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert said == "\nvmpack: interrupted\n"
    assert process.returncode == INTERRUPTED


def test_below_nohup_interrupts_stay_ignored() -> None:
    code = (
        "import signal; from packer.cli.interrupts import hear_interrupts; "
        "signal.signal(signal.SIGINT, signal.SIG_IGN); hear_interrupts(); "
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
