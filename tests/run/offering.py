"""A verb that serves until it is interrupted, in a process of its own."""

from __future__ import annotations

import json
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.round_trip.command import Vmpack

START_S = 60.0
END_S = 30.0


@contextmanager
def offering(vmpack: Vmpack, *arguments: str | Path) -> Iterator[dict[str, Any]]:
    """`vmpack ARGUMENTS --json`, until the block ends; yields what it says when it listens.

    It must end in good order.
    """
    process = vmpack.start(*arguments, "--json")
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], START_S)[0], "it does not listen"
        line = process.stdout.readline()
        assert line, process.communicate(timeout=END_S)[1]
        yield json.loads(line)
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate(timeout=END_S)
        assert process.returncode == 0, notes
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=END_S)
