"""Rebuilding: from files of a host by sharing blocks and by copying, and what is fetched."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.measure import run, side_by_side, words_of
from benchmarks.mounts import guest_tree, used_bytes, xfs
from fixtures.web import nginx
from packer.artifact.contents import BLOCK_BYTES
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.pack.pack import LEVELS
from packer.sources.open import open_pack
from packer.text import format_bytes
from packer.unpack.unpack import carrier_of

if TYPE_CHECKING:
    from benchmarks.run import Bench

ROUNDS = 5
XFS_BYTES = 24 << 30


def measure_rebuild(bench: Bench) -> None:
    """Rebuild on XFS with shared blocks, on the host's file system by copying, over HTTP."""
    offset = json.loads(bench.image.with_suffix(".json").read_text())["root_offset_bytes"]
    work = bench.work
    with (
        xfs(work / "xfs.img", XFS_BYTES, work / "xfs") as shared,
        guest_tree(bench.image, offset, work / "tree") as tree,
    ):
        _copy_tree(tree, shared / "host")
        _shared_blocks(bench, shared)
        _copied(bench, tree)
    _fetched(bench)


def _copy_tree(tree: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", f"{tree}/.", str(target)], check=True)


def _shared_blocks(bench: Bench, shared: Path) -> None:
    disk, packed = shared / "ours.raw", shared / "disk.zst"
    run(["cp", bench.work / "3.zst", packed], sync=shared)
    unpack = bench.vmpack(
        "unpack",
        bench.thin,
        "-o",
        disk,
        "--force",
        "--quiet",
        "--no-store",
        "--from",
        f"dir:{shared / 'host'}",
    )
    theirs = shared / "theirs.raw"
    decompress: list[str | Path] = ["zstd", "-q", "-d", "-f", "--long=27", packed, "-o", theirs]

    def ours() -> float:
        disk.unlink(missing_ok=True)
        return run(unpack, sync=shared).seconds

    def other() -> float:
        theirs.unlink(missing_ok=True)
        return run(decompress, sync=shared).seconds

    mine, reference, ratio = side_by_side(ours, other, ROUNDS)
    bench.add(
        "rebuild, shared blocks",
        f"{mine:.2f} s",
        words_of(unpack),
        ratio=ratio,
        against=f"zstd -d ({reference:.2f} s)",
        aim=0.6,
    )
    theirs.unlink()
    disk.unlink()
    before = used_bytes(shared)
    run(unpack, sync=shared)
    grown = used_bytes(shared) - before
    used = _content_bytes(bench.thin)
    bench.add(
        "rebuild, shared blocks, new disk space",
        format_bytes(grown),
        "",
        ratio=grown / used,
        against=f"bytes in use ({format_bytes(used)})",
        aim=0.15,
    )


def _copied(bench: Bench, tree: Path) -> None:
    disk, theirs = bench.work / "ours.raw", bench.work / "theirs.raw"
    unpack = bench.vmpack(
        "unpack",
        bench.thin,
        "-o",
        disk,
        "--force",
        "--quiet",
        "--no-store",
        "--from",
        f"dir:{tree}",
    )
    copy: list[str | Path] = ["cp", "--sparse=always", bench.image, theirs]

    def ours() -> float:
        disk.unlink(missing_ok=True)
        return run(unpack, sync=bench.work).seconds

    def other() -> float:
        theirs.unlink(missing_ok=True)
        return run(copy, sync=bench.work).seconds

    mine, reference, ratio = side_by_side(ours, other, ROUNDS)
    bench.add(
        "rebuild by copying",
        f"{mine:.2f} s",
        words_of(unpack),
        ratio=ratio,
        against=f"cp --sparse=always ({reference:.2f} s)",
        aim=1.5,
    )
    disk.unlink()
    theirs.unlink()


def _fetched(bench: Bench) -> None:
    """What an unpack with this host's own files fetches, against what it truly lacks."""
    mirror = bench.work / "mirror"
    run(bench.vmpack("copy", bench.pack, "--full", f"{mirror}/demo/", "--force", "--quiet"))
    disk = bench.work / "fetched.raw"
    with nginx(mirror, bench.work / "nginx") as url:
        unpack = bench.vmpack(
            "unpack",
            bench.thin,
            "-o",
            disk,
            "--force",
            "--no-store",
            "--json",
            "--from",
            "dir:/",
            "--from",
            f"{url}/demo/",
        )
        done = subprocess.run([str(word) for word in unpack], capture_output=True, check=True)
    supplied = {one["source"]: one for one in json.loads(done.stdout)["supplied"]}
    log = (bench.work / "nginx" / "access.log").read_text().splitlines()
    bundles = [line.split('"') for line in log if "/blobs/" in line and " 206 " in line]
    sent = sum(int(parts[2].split()[1]) for parts in bundles)
    lacking = _solid_bytes(bench, disk, supplied)
    bench.add(
        "bytes fetched",
        format_bytes(sent),
        words_of(unpack),
        ratio=sent / lacking if lacking else None,
        against=f"what this host lacks, in solid 1 MiB frames ({format_bytes(lacking)})",
        aim=1.25,
    )
    disk.unlink()


def _solid_bytes(bench: Bench, disk: Path, supplied: dict[str, dict[str, object]]) -> int:
    """Return the compressed size of the contents that the host did not have."""
    from packer.sources.base import Wanted
    from packer.sources.directory import DirectorySource

    pack = open_pack(str(bench.pack))
    contents = pack.map.contents
    thin = open_pack(str(bench.thin))
    source = DirectorySource(Path("/"))
    wanted = np.setdiff1d(np.arange(len(contents)), thin.index.content)
    found = source.prove(source.find(Wanted(contents, wanted, pack.hints), deep=True).rows)
    lacking = np.setdiff1d(wanted, found)
    del disk, supplied
    data = b"".join(_read(pack, row) for row in lacking.tolist())
    level = LEVELS[max(LEVELS)]
    return sum(
        len(compress(data[start : start + BLOCK_BYTES], level))
        for start in range(0, len(data), BLOCK_BYTES)
    )


def _read(pack: OpenedPack, row: int) -> bytes:
    source = carrier_of(pack)
    from packer.sources.base import Bytes, Wanted

    rows = np.array([row], dtype=np.int64)
    source.find(Wanted(pack.map.contents, rows, pack.hints), deep=False)
    pieces = [piece for piece in source.fetch(rows) if isinstance(piece, Bytes)]
    return b"".join(bytes(piece.data) for piece in sorted(pieces, key=lambda one: one.block))


def _content_bytes(path: Path) -> int:
    pack = open_pack(str(path))
    try:
        return int(pack.map.contents.size.sum())
    finally:
        pack.close()
