"""How fast a disk is read that is wholly on this host, against a server of the plain file."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Self

from benchmarks.bench import Bench
from benchmarks.measure import run, words_of
from benchmarks.vms import sources_of_this_host, vm_host
from packer.run.server.control import Control

ROUNDS = 5
MOST_TIMES = 2.0
COMPLETE_SECONDS = 600.0


def measure_throughput(bench: Bench) -> None:
    """Copy the disk away with nbdcopy, from `vmpack serve` and from nbdkit in turn; best of all."""
    from_host = [word for one in sources_of_this_host() for word in ("--from", one)]
    serve = bench.vmpack("serve", bench.thin, *from_host, "--from", f"pack:{bench.pack}")
    with vm_host(bench, "home-served"):
        # The first run brings all into the store; what is measured starts anew from there.
        with _Serving([*serve, "--complete"]) as one:
            one.wait_until_complete()
        with _Serving(serve) as one:
            ours = ["nbdcopy", one.uri, "null:"]
            theirs = ["nbdkit", "-U", "-", "file", str(bench.image), "--run", "nbdcopy $uri null:"]
            first = run(ours)
            pairs = [(run(ours), run(theirs)) for _ in range(ROUNDS)]
    mine, other = min(one for one, _ in pairs), min(one for _, one in pairs)
    bench.add(
        f"nbdcopy of a disk that is wholly here, best of {ROUNDS}",
        f"{mine:.2f} s; the first time, which proves every byte, {first:.2f} s",
        words_of(ours),
        ratio=mine / other,
        against=f"nbdkit file ({other:.2f} s)",
        aim=MOST_TIMES,
    )
    bench.add("nbdkit file", f"{other:.2f} s", words_of(theirs))


class _Serving:
    """`vmpack serve`, until the block ends."""

    def __init__(self, command: list[str]) -> None:
        self._command = command

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*self._command, "--json"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._said = json.loads(self._process.stdout.readline())
        self.uri = str(self._said["addresses"][0])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def wait_until_complete(self) -> None:
        """Return when nothing is left to fetch. Raises RuntimeError when that cannot be."""
        deadline = time.monotonic() + COMPLETE_SECONDS
        with Control(Path(self._said["control"])) as control:
            while (status := control.status()).completing:
                if time.monotonic() > deadline:
                    raise RuntimeError("the disk does not become complete")
                time.sleep(0.1)
        if status.at_hand_bytes != status.content_bytes:
            raise RuntimeError(f"{status.complaint or 'not all of the disk can be had'}")
