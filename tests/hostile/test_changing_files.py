"""Files of this host that change while a disk is rebuilt from them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.mirror import mirror
from tests.round_trip.small import make_disk, write_files

WRITER = """
import os, random, sys, time
chance = random.Random(int(sys.argv[1]))
files = [os.open(name, os.O_RDWR) for name in sys.argv[2:]]
good = [os.pread(fd, 1 << 30, 0) for fd in files]
times = [(os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns) for fd in files]
print("writing", flush=True)
while True:
    number = chance.randrange(len(files))
    size = len(good[number])
    offset = chance.randrange(size)
    data = chance.randbytes(min(4096, size - offset))
    os.pwrite(files[number], data, offset)
    os.utime(files[number], ns=times[number])
    if chance.random() < 0.7:
        os.pwrite(files[number], good[number][offset:offset + len(data)], offset)
        os.utime(files[number], ns=times[number])
"""


@contextmanager
def changing(files: list[Path], seed: int) -> Iterator[None]:
    """Another process that overwrites parts of files in place, mostly repairs them, and keeps
    their times.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(seed), *map(str, files)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield
        assert process.poll() is None, "the writer ended early"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("seed", range(4))
def test_files_that_change_meanwhile_never_make_a_wrong_disk(
    run_vmpack: Vmpack, author: Vmpack, room: Path, seed: int
) -> None:
    """Half of the files are left alone, so that the folder is worth asking."""
    tree = write_files(room / "tree", seed=seed, big=16, small=40)
    image = make_disk(room / "disk.raw", tree, size_mib=64)
    author.good("pack", image, "-o", f"{room}/full/", "--no-packages")
    author.good("copy", room / "full", "--boot", room / "boot.vmpack")
    disk = room / "rebuilt.raw"
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    room.chmod(0o755)
    with mirror(room / "full") as full, changing(files[::2], seed):
        report = run_vmpack.json("unpack", room / "boot.vmpack", "-o", disk,
                                 "--from", f"dir:{tree}", "--from", full.url)  # fmt: skip
    assert content_bytes(report, "dir:") > 10_000_000, report
    assert content_bytes(report, "http") > 0, "nothing changed in time"
    assert run_vmpack.json("verify", disk, room / "full", "--exact")["right"]
    changed = run_vmpack("verify", image, room / "full")
    assert changed.returncode == 0, "the original itself must not have changed"


@pytest.mark.parametrize("seed", range(2))
def test_a_pack_of_an_image_that_changes_is_refused(author: Vmpack, room: Path, seed: int) -> None:
    tree = write_files(room / "tree", seed=seed, big=16, small=40)
    image = make_disk(room / "disk.raw", tree, size_mib=64)
    writer = subprocess.Popen(
        ["sh", "-c", 'while :; do printf x | dd of="$1" bs=1 seek=30000000 conv=notrunc '
         "2>/dev/null; sleep 0.05; done", "sh", image],
    )  # fmt: skip
    try:
        done = author("pack", image, "-o", room / "new.vmpack", "--no-packages")
    finally:
        writer.kill()
        writer.wait()
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert str(image) in done.stderr
    assert not [path.name for path in room.iterdir() if path.name.startswith("new")]
