"""A worker that does what no worker should: run in place of the real one, under the real limits.

The request's text names the misdeed.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

import msgspec

from packer.survey.child import EXIT_OUT_OF_MEMORY
from packer.survey.limits import Limits, limit_this_process


class Misdeed(msgspec.Struct):
    name: str
    limits: Limits
    value: str = ""


def main(parent: int) -> None:
    assert parent == os.getppid()
    misdeed = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Misdeed)
    limit_this_process(misdeed.limits)
    try:
        globals()[misdeed.name](misdeed.value)
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)


def kill_itself(value: str) -> None:
    os.kill(os.getpid(), signal.Signals[value])


def follow_a_null_pointer(value: str) -> None:
    import ctypes

    ctypes.string_at(0)


def allocate_without_end(value: str) -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 24))


def spin(value: str) -> None:
    while True:
        pass


def sleep(value: str) -> None:
    time.sleep(3600)


def close_the_pipes_and_sleep(value: str) -> None:
    for fd in (0, 1, 2):
        os.close(fd)
    time.sleep(3600)


def talk_without_end(value: str) -> None:
    while True:
        os.write(1, bytes(1 << 16))


def complain_without_end_then_answer(value: str) -> None:
    for _ in range(200):
        os.write(2, b"x" * (1 << 16))
    os.write(1, b"answer")


def raise_an_error(value: str) -> None:
    raise ValueError("something \x1b[2J odd")


def write_a_file(value: str) -> None:
    Path(value).write_bytes(b"x" * 100)


def open_many_files(value: str) -> None:
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(1000)]
    os.write(1, str(len(kept)).encode())


def tell_limits(value: str) -> None:
    core = resource.getrlimit(resource.RLIMIT_CORE)
    no_new_privileges = "NoNewPrivs:\t1" in Path("/proc/self/status").read_text()
    os.write(1, f"{core} {no_new_privileges} {sorted(os.environ)}".encode())
