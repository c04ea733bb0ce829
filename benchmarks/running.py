"""Running a VM straight from its pack: the figures of a boot, of the served disk, of many VMs.

    python -m benchmarks.running                     # all of it, with seven boots of each kind
    python -m benchmarks.running --boots 2 boot      # one part: boot, throughput, density or many
    python -m benchmarks.running density --ksm       # with the kernel's merging of pages, too

Writes build/bench/running.md and running.json. Guests run without any virtualisation, so that the
figures can be had everywhere; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from benchmarks.bench import Bench
from benchmarks.lazy_boot import measure_lazy_boot
from benchmarks.many_vms import measure_density, measure_many
from benchmarks.measure import run
from benchmarks.run import machine, write_table
from benchmarks.throughput import measure_throughput
from fixtures.guests import build

PARTS = ("boot", "throughput", "density", "many")


def main() -> int:
    """Measure; return 0 whatever the figures are: they are for people to judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.running",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--boots", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--vms", type=int, default=6, metavar="N", help="default: %(default)s")
    parser.add_argument("--small", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument("--ksm", action="store_true", help="let the kernel merge pages (root)")
    options = parser.parse_args()
    parts = options.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"expected {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the VMs end with it, too
    name = "-".join(["running", *options.parts])
    bench = Bench("debian-bios", slow=False, folder=name)
    run(bench.vmpack("key", "generate"))
    if set(parts) != {"many"}:
        full = ("-o", bench.pack, "--name", "bench", "--quiet")
        run(bench.vmpack("pack", bench.image, *full))
        run(bench.vmpack("copy", bench.pack, "--thin", bench.thin, "--quiet"))
    if "throughput" in parts:
        measure_throughput(bench)
    if "boot" in parts:
        measure_lazy_boot(bench, options.boots)
    if "density" in parts:
        measure_density(bench, options.vms, ksm=options.ksm)
    if "many" in parts:
        small = bench.work / "small.vmpack"
        run(bench.vmpack("pack", build("busybox"), "-o", small, "--name", "small", "--quiet"))
        measure_many(bench, small, options.small)
    write_table(name, f"running a VM from its pack, {machine()}", bench.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
