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
import subprocess
import sys
from dataclasses import asdict

from benchmarks.bench import FOLDER, Bench
from benchmarks.finding import measure_finding
from benchmarks.measure import Row, as_markdown
from benchmarks.packing import measure_packing
from benchmarks.rebuild import measure_rebuild
from benchmarks.scale import measure_scale


def main() -> int:
    """Measure; return 0 whatever the figures are: they are for people to judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("guests", nargs="*", help="default: debian-bios")
    parser.add_argument("--scale", action="store_true", help="sparse disks and a million files")
    parser.add_argument("--no-slow", action="store_true", help="leave zstd -19 out")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the rebuilds are measured on loop-mounted file systems: run it as root")
    # What is installed has its bytecode; a checkout that may not write any would be slower.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for name in options.guests or ([] if options.scale else ["debian-bios"]):
        bench = Bench(name, slow=not options.no_slow)
        measure_packing(bench)
        measure_rebuild(bench)
        measure_finding(bench)
        write_table(name, f"{name}, {machine()}", bench.rows)
    if options.scale:
        write_table("scale", f"scale, {machine()}", measure_scale(FOLDER / "scale"))
    return 0


def write_table(name: str, title: str, rows: list[Row]) -> None:
    """Write a table as Markdown and as JSON, and show it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.md").write_text(as_markdown(title, rows))
    (FOLDER / f"{name}.json").write_text(
        json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=2) + "\n"
    )
    print(f"\n{as_markdown(title, rows)}\nwritten to {FOLDER}/{name}.md and .json")


def machine() -> str:
    """Return what the figures depend on, in words."""
    zstd = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True)
    version = zstd.stdout.split(",")[0].split()[-1]
    return f"{os.cpu_count()} cores, zstd {version}"


if __name__ == "__main__":
    sys.exit(main())
