"""Packing: sizes and times against zstd, qemu-img and casync."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench import Bench, timed
from benchmarks.measure import run, side_by_side, words_of
from packer.text import format_bytes

ROUNDS = 3


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
        mine, other, ratio = side_by_side(timed(ours, work), timed(fast, work), ROUNDS)
        bench.add(
            what,
            f"{mine:.1f} s",
            words_of(ours),
            ratio=ratio,
            against=f"zstd -3 --long=27 -T2 ({other:.1f} s)",
            aim=aim,
        )
    seconds = run(slow, sync=work) if bench.slow else 0.0
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
    seconds = run(convert, sync=work)
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
    seconds = run(casync, sync=work)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    bench.add("casync make", f"{format_bytes(size)}, {seconds:.1f} s", words_of(casync))
