"""A guest that boots from its thin pack and this host's own files, against its raw disk here."""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.measure import run, words_of
from benchmarks.vms import (
    VmHost,
    ended_on_error,
    new_nonce,
    sources_of_this_host,
    staying,
    vm_host,
    wait_for_nonce,
    with_local_disk,
)
from fixtures.web import nginx
from packer.artifact.contents import BLOCK_BYTES
from packer.artifact.map import Map
from packer.artifact.opened import OpenedPack
from packer.run.server.control_protocol import SourceStatus
from packer.sources.base import Wanted
from packer.sources.directory import DirectorySource, package_owned_roots
from packer.sources.open import open_pack
from packer.text import format_bytes

MOST_RATIO, MOST_MORE_SECONDS = 1.05, 2.0
MOST_FETCHED_RATIO = 1.3
MEMORY_MIB, CPUS = "512", "2"
NAME = "lazy"
LINE = "qemu-line"
"""File with the command line of the last VM's QEMU, changed to boot from the raw disk."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boot:
    """One lazy boot. touched: int64[k, 2], ranges of the disk that were read, bytes."""

    seconds: float
    sources: tuple[SourceStatus, ...]
    touched: Rows

    @property
    def fetched_bytes(self) -> int:
        """Return what travelled."""
        return sum(one.fetched_bytes for one in self.sources)


@dataclass(frozen=True, slots=True)
class Round:
    """Three boots in turn: from an empty store, from the local disk, from the store as it is."""

    first: Boot
    local_seconds: float
    second: Boot


def measure_lazy_boot(bench: Bench, boots: int) -> None:
    """Boot `boots` times in turn: from an empty store, from the raw disk, from the warm store."""
    mirror = bench.work / "mirror"
    mirror.mkdir()
    run(bench.vmpack("copy", bench.pack, "--full", f"{mirror}/demo/", "--force", "--quiet"))
    with nginx(mirror, bench.work / "nginx") as url:
        sources = [*sources_of_this_host(), f"{url}/demo/"]
        rounds = [_round(bench, sources, number) for number in range(boots)]
        _add_times(bench, rounds, sources)
        _add_bytes(bench, rounds, _sent_bytes(bench) // boots)


def _round(bench: Bench, sources: list[str], number: int) -> Round:
    with vm_host(bench, f"home-{number}") as host:
        first = _boot(host, sources)
        local = _boot_locally(bench)
        second = _boot(host, sources)
    found = Round(first, local, second)
    print(
        f"boot {number + 1}: {first.seconds:.1f} s, local {local:.1f} s, "
        f"second {second.seconds:.1f} s; {format_bytes(first.fetched_bytes)} fetched",
        flush=True,
    )
    return found


def _boot(host: VmHost, sources: list[str]) -> Boot:
    """Start a new VM as a user does, and stop it at its nonce."""
    nonce, seen = new_nonce(), host.home / "seen"
    machine = ("--memory", MEMORY_MIB, "--cpus", CPUS)
    options = ("--new", *machine, *_named(sources), "--", *staying(nonce))
    began = time.monotonic()
    with (
        seen.open("wb") as sink,
        ended_on_error(host.run(host.bench.thin, NAME, *options), sink) as process,
    ):
        seconds = wait_for_nonce(seen, nonce, process) - began
        (vm,) = [one for one in host.vms() if one.running() is not None]
        local = with_local_disk(vm, host.bench.image.absolute(), host.bench.work)
        (host.bench.work / LINE).write_text("\0".join(local))
        with host.control(vm) as control:
            boot = Boot(seconds, control.status().sources, control.touched())
        host.stop(vm.name)
    host.end_server(vm)
    return boot


def _boot_locally(bench: Bench) -> float:
    """Return the seconds to the nonce of the last VM's QEMU with the raw disk."""
    nonce, console = new_nonce(), bench.work / "console"
    words = [*(bench.work / LINE).read_text().split("\0"), *staying(nonce)]
    console.unlink(missing_ok=True)
    began = time.monotonic()
    with subprocess.Popen(words) as qemu:
        try:
            return wait_for_nonce(console, nonce, qemu) - began
        finally:
            qemu.kill()


def _add_times(bench: Bench, rounds: list[Round], sources: list[str]) -> None:
    local = statistics.median(one.local_seconds for one in rounds)
    machine = ("--accel", "tcg", "--memory", MEMORY_MIB, "--cpus", CPUS, "--net", "none")
    command = ["vmpack", "run", str(bench.thin), *machine, *_named(sources)]
    against = [
        *("qemu-system-x86_64", "-accel", "tcg", "…"),
        *("-drive", f"if=none,id=overlay,file={bench.image},format=raw,snapshot=on"),
    ]
    for what, seconds in (
        ("lazy boot, empty store", [one.first.seconds for one in rounds]),
        ("lazy boot, second time", [one.second.seconds for one in rounds]),
    ):
        ratios = [mine / one.local_seconds for mine, one in zip(seconds, rounds, strict=True)]
        more = [mine - one.local_seconds for mine, one in zip(seconds, rounds, strict=True)]
        bench.add(
            f"{what}, median of {len(rounds)}",
            f"{statistics.median(seconds):.1f} s, {statistics.median(more):+.1f} s",
            words_of(command),
            ratio=statistics.median(ratios),
            against=f"the raw disk here ({local:.1f} s)",
            aim=max(MOST_RATIO, 1 + MOST_MORE_SECONDS / local),
        )
    bench.add("boot from the raw disk", f"{local:.1f} s", words_of(against))


def _add_bytes(bench: Bench, rounds: list[Round], sent_bytes: int) -> None:
    with open_pack(str(bench.pack)) as full, open_pack(str(bench.thin)) as thin:
        local = _on_this_host(full)
        carried = thin.index.content
        needed = [lacking_bytes(full, one.first.touched, carried, local) for one in rounds]
        touched = int(statistics.median(_length(one.first.touched) for one in rounds))
    fetched = [one.first.fetched_bytes for one in rounds]
    solid = int(statistics.median(needed))
    bench.add(
        "lazy boot, bytes fetched",
        f"{format_bytes(int(statistics.median(fetched)))} of {format_bytes(touched)} read",
        "",
        ratio=statistics.median(
            one / other if other else float(bool(one))
            for one, other in zip(fetched, needed, strict=True)
        ),
        against=f"touched 1 MiB blocks that this host lacks, compressed ({format_bytes(solid)})",
        aim=MOST_FETCHED_RATIO,
    )
    bench.add("lazy boot, sent by the mirror, both boots", format_bytes(sent_bytes), "")
    for what, boot in (("empty store", rounds[-1].first), ("second time", rounds[-1].second)):
        for one in boot.sources:
            if one.content_bytes or one.fetched_bytes:
                proven, travelled = format_bytes(one.content_bytes), format_bytes(one.fetched_bytes)
                name = one.source.replace(str(bench.work), "")
                bench.add(f"lazy boot, {what}: {name}", f"{proven}, {travelled} fetched", "")
        for complaint in (text for one in boot.sources for text in one.complaints):
            print(f"complaint: {complaint}")


def _on_this_host(pack: OpenedPack) -> Rows:
    """Return the contents that are in the trees that packages own on this host."""
    wanted = Wanted(pack.map.contents, np.arange(len(pack.map.contents)), pack.hints)
    sources = [DirectorySource(root) for root, _ in package_owned_roots()]
    found = [source.prove(source.find(wanted, deep=True).rows) for source in sources]
    for source in sources:
        source.close()
    return np.unique(np.concatenate(found))


def lacking_bytes(full: OpenedPack, touched: Rows, carried: Rows, local: Rows) -> int:
    """Return the stored size of the frames that hold the touched blocks that are not here."""
    row, block = touched_blocks(full.map, touched).T
    lacking = ~np.isin(row, carried) & ~np.isin(row, local)
    entry = np.searchsorted(full.index.content, row[lacking])
    frames = np.unique(full.index.first_frame[entry] + block[lacking])
    return int(full.index.stored_bytes[frames].sum())


def touched_blocks(disk: Map, touched: Rows) -> Rows:
    """Return the 1 MiB blocks of contents in ranges of a disk: int64[k, 2], rows and blocks."""
    start, end, found = disk.start, disk.end, []
    for first, last in touched.tolist():
        low = int(np.searchsorted(end, first, side="right"))
        high = int(np.searchsorted(start, last, side="left"))
        for one in range(low, high):
            if disk.content[one] < 0:
                continue
            begin = int(disk.offset[one]) + max(0, first - int(start[one]))
            until = int(disk.offset[one]) + min(last, int(end[one])) - int(start[one])
            blocks = range(begin // BLOCK_BYTES, (until - 1) // BLOCK_BYTES + 1)
            found += [(int(disk.content[one]), block) for block in blocks]
    return np.unique(np.array(found, dtype=np.int64).reshape(-1, 2), axis=0)


def _named(sources: list[str]) -> list[str]:
    return [word for one in sources for word in ("--from", one)]


def _length(ranges: Rows) -> int:
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def _sent_bytes(bench: Bench) -> int:
    log = (bench.work / "nginx" / "access.log").read_text().splitlines()
    return sum(int(line.split('"')[2].split()[1]) for line in log)
