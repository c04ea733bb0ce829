"""Rebuilding: from files of a host by sharing blocks and by copying, and what is fetched."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import FREE_SECONDS, Bench, timed
from benchmarks.measure import Command, run, side_by_side, words_of
from benchmarks.mounts import guest_tree, used_bytes, xfs
from fixtures.web import nginx
from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.pack.pack import LEVELS
from packer.sources.base import Bytes, Wanted
from packer.sources.directory import DirectorySource
from packer.sources.open import open_pack
from packer.text import format_bytes
from packer.unpack.unpack import carrier_of

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
    """Copy a guest's tree without what only this guest has: its initramfs was made inside it."""
    subprocess.run(["cp", "-a", f"{tree}/.", str(target)], check=True)
    for initramfs in (target / "boot").glob("initrd*"):
        initramfs.unlink()


def _shared_blocks(bench: Bench, shared: Path) -> None:
    disk, theirs, packed = shared / "ours.raw", shared / "theirs.raw", shared / "disk.zst"
    run(["cp", bench.work / "3.zst", packed], sync=shared)
    unpack = _unpack(bench, disk, shared / "host")
    decompress: Command = ["zstd", "-q", "-d", "-f", "--long=27", packed, "-o", theirs]
    mine, reference, ratio = side_by_side(
        timed(unpack, shared, disk), timed(decompress, shared, theirs), ROUNDS
    )
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
    time.sleep(FREE_SECONDS)
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
    unpack = _unpack(bench, disk, tree)
    copy: Command = ["cp", "--sparse=always", bench.image, theirs]
    mine, reference, ratio = side_by_side(
        timed(unpack, bench.work, disk), timed(copy, bench.work, theirs), ROUNDS
    )
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


def _unpack(bench: Bench, disk: Path, host: Path) -> list[str]:
    """Return the command that rebuilds from the thin pack and a tree that stands for the host.

    The full pack has what only root may read there, which a host does not offer.
    """
    return bench.vmpack(
        "unpack",
        bench.thin,
        "-o",
        disk,
        "--force",
        "--quiet",
        "--no-store",
        "--allow-older",
        "--from",
        f"dir:{host}",
        "--from",
        f"pack:{bench.pack}",
    )


def _fetched(bench: Bench) -> None:
    """What an unpack with this host's own files fetches, against what it truly lacks."""
    mirror = bench.work / "mirror"
    mirror.mkdir()
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
        run(unpack)
    log = (bench.work / "nginx" / "access.log").read_text().splitlines()
    bundles = [line.split('"') for line in log if "/blobs/" in line and " 206 " in line]
    sent = sum(int(parts[2].split()[1]) for parts in bundles)
    lacking = _solid_bytes(bench)
    bench.add(
        "bytes fetched",
        format_bytes(sent),
        words_of(unpack),
        ratio=sent / lacking if lacking else None,
        against=f"what this host lacks, in solid 1 MiB frames ({format_bytes(lacking)})",
        aim=1.25,
    )
    disk.unlink()


def _solid_bytes(bench: Bench) -> int:
    """Return the compressed size of what the thin pack leaves out and this host does not have."""
    with open_pack(str(bench.pack)) as pack, open_pack(str(bench.thin)) as thin:
        contents = pack.map.contents
        wanted = np.setdiff1d(np.arange(len(contents)), thin.index.content)
        host = DirectorySource(Path("/"))
        offered = host.find(Wanted(contents, wanted, pack.hints), deep=True)
        lacking = np.setdiff1d(wanted, host.prove(offered.rows))
        return solid_bytes(pack, lacking, LEVELS[Class.SHARED])


def solid_bytes(pack: OpenedPack, rows: NDArray[np.int64], level: int) -> int:
    """Return the compressed size of contents of a full pack, which are fetched for that.

    In the way that is best for a mirror: as one stream in frames of 1 MiB, at this zstd level.
    """
    carrier = carrier_of(pack)
    carrier.find(Wanted(pack.map.contents, rows, pack.hints), deep=False)
    pieces = sorted(carrier.fetch(rows), key=lambda one: (one.row, getattr(one, "block", 0)))
    data = b"".join(bytes(one.data) for one in pieces if isinstance(one, Bytes))
    return sum(
        len(compress(data[start : start + BLOCK_BYTES], level))
        for start in range(0, len(data), BLOCK_BYTES)
    )


def _content_bytes(path: Path) -> int:
    with open_pack(str(path)) as pack:
        return int(pack.map.contents.size.sum())
