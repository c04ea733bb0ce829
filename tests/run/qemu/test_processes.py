"""Which process is meant, and whether it has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from packer.run.qemu.processes import identify, is_alive
from tests.run.serving import wait_until

ONLY_A_THREAD_IS_LEFT = """
import ctypes, os, sys, threading
threading.Thread(target=sys.stdin.read).start()
SYS_exit = {"x86_64": 60}.get(os.uname().machine, 93)
ctypes.CDLL(None).syscall(SYS_exit, 0)  # ends the thread that calls it
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_a_process_lives_as_long_as_any_thread_of_it() -> None:
    """Its main thread is gone, and looks like the remains of a process: it keeps its files."""
    command = [sys.executable, "-c", ONLY_A_THREAD_IS_LEFT]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_until(lambda: state_of(process.pid) == "Z")
        found = identify(process.pid)
        assert found is not None
        assert is_alive(found)
        assert process.stdin is not None
        process.stdin.close()
        wait_until(lambda: not is_alive(found))
        assert identify(process.pid) is None
        assert state_of(process.pid) == "Z"  # nobody has waited for it yet
