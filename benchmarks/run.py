"""make bench: the table of sizes and times, measured in one run against what the field uses.

    python -m benchmarks.run                    # the minimal guest
    python -m benchmarks.run debian-big         # the big one (zstd -19 alone takes half an hour)
    python -m benchmarks.run --scale            # 1 TiB sparse against 10 GiB; a million files

Writes build/bench/NAME.md and NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import Row, as_markdown, run, side_by_side, words_of
from benchmarks.rebuild import measure_rebuild
from benchmarks.scale import measure_scale
from fixtures.guests import build
from packer.text import format_bytes

FOLDER = Path("build/bench")
ROUNDS = 3


class Bench:
    """One guest, one working folder, rows that collect."""

    def __init__(self, name: str, *, slow: bool) -> None:
        self.name = name
        self.slow = slow
        self.image = build(name)
        self.work = (FOLDER / name).absolute()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        os.environ["VMPACK_HOME"] = str(self.work / "home")
        self.rows: list[Row] = []
        self.pack = self.work / "full.vmpack"
        self.thin = self.work / "thin.vmpack"

    def add(
        self,
        what: str,
        value: str,
        command: str,
        *,
        ratio: float | None = None,
        against: str = "",
        aim: float | None = None,
    ) -> None:
        """Keep a row and show it at once."""
        row = Row(what, value, ratio, against, aim, command)
        self.rows.append(row)
        shown = "" if ratio is None else f"  {ratio:.3f} × {against}"
        print(f"{what}: {value}{shown} {row.met}", flush=True)

    def vmpack(self, *arguments: str | Path) -> list[str]:
        """Return the command line of a verb."""
        return [sys.executable, "-m", "packer.cli.main", *map(str, arguments)]


def measure_packing(bench: Bench) -> None:
    """Sizes and times of packing against zstd, qemu-img and casync."""
    small, work = "zstd -19 --long=27", bench.work
    run(bench.vmpack("key", "generate"))
    thin = bench.vmpack(
        "pack", bench.image, "-o", bench.thin, "--name", "bench", "--thin", "--force", "--quiet"
    )
    full = bench.vmpack(
        "pack", bench.image, "-o", bench.pack, "--name", "bench", "--force", "--quiet"
    )
    fast: list[str | Path] = [
        "zstd",
        "-q",
        "-f",
        "-3",
        "--long=27",
        "-T2",
        bench.image,
        "-o",
        work / "3.zst",
    ]
    slow: list[str | Path] = [
        "zstd",
        "-q",
        "-f",
        "-19",
        "--long=27",
        "-T2",
        bench.image,
        "-o",
        work / "19.zst",
    ]

    for what, ours, aim in (("pack --thin, time", thin, 0.5), ("pack, time", full, 1.0)):
        mine, other, ratio = side_by_side(_timed(ours, work), _timed(fast, work), ROUNDS)
        bench.add(
            what,
            f"{mine:.1f} s",
            words_of(ours),
            ratio=ratio,
            against=f"zstd -3 --long=27 -T2 ({other:.1f} s)",
            aim=aim,
        )
    seconds = run(slow, sync=work).seconds if bench.slow else 0.0
    best = (work / "19.zst").stat().st_size if bench.slow else None
    for what, path, aim in (
        ("thin pack", bench.thin, 0.27 if bench.name == "debian-bios" else 0.08),
        ("full pack", bench.pack, 1.25),
    ):
        size = path.stat().st_size
        bench.add(
            what,
            format_bytes(size),
            "",
            ratio=size / best if best else None,
            against=f"{small} ({format_bytes(best)})" if best else "",
            aim=aim,
        )
    if best:
        bench.add(small, f"{format_bytes(best)}, {seconds:.0f} s", words_of(slow))
    bench.add(
        "zstd -3 --long=27 -T2", format_bytes((work / "3.zst").stat().st_size), words_of(fast)
    )
    convert: list[str | Path] = [
        "qemu-img",
        "convert",
        "-c",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
        bench.image,
        work / "c.qcow2",
    ]
    seconds = run(convert, sync=work).seconds
    size = (work / "c.qcow2").stat().st_size
    bench.add("qemu-img convert -c", f"{format_bytes(size)}, {seconds:.1f} s", words_of(convert))
    store = work / "casync.castr"
    casync: list[str | Path] = [
        "casync",
        "make",
        f"--store={store}",
        work / "disk.caibx",
        bench.image,
    ]
    seconds = run(casync, sync=work).seconds
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    bench.add("casync make", f"{format_bytes(size)}, {seconds:.1f} s", words_of(casync))


def _timed(command: Sequence[str | Path], work: Path) -> Callable[[], float]:
    return lambda: run(command, sync=work).seconds


def main() -> int:
    """Measure; return 0 whatever the figures are: they are for people to judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("guests", nargs="*", default=["debian-bios"])
    parser.add_argument("--scale", action="store_true", help="sparse disks and a million files")
    parser.add_argument("--no-slow", action="store_true", help="leave zstd -19 out")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the rebuilds are measured on loop-mounted file systems: run it as root")
    for name in options.guests:
        bench = Bench(name, slow=not options.no_slow)
        measure_packing(bench)
        measure_rebuild(bench)
        _write(name, f"{name}, {_machine()}", bench.rows)
    if options.scale:
        _write("scale", f"scale, {_machine()}", measure_scale(FOLDER / "scale"))
    return 0


def _write(name: str, title: str, rows: list[Row]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.md").write_text(as_markdown(title, rows))
    (FOLDER / f"{name}.json").write_text(
        json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=2) + "\n"
    )
    print(f"\n{as_markdown(title, rows)}\nwritten to {FOLDER}/{name}.md and .json")


def _machine() -> str:
    zstd = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True)
    version = zstd.stdout.split(",")[0].split()[-1]
    return f"{os.cpu_count()} cores, zstd {version}"


if __name__ == "__main__":
    sys.exit(main())
