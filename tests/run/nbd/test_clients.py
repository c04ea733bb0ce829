"""Other people's clients read what we serve, and ours does, and all agree with the file."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.transport.nbd import NbdSource
from tests.run.nbd.exports import FileExport, LateExport
from tests.run.serving import serving, serving_unix, wait_until

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
SIZE = 80 * MIB + 512
BLOCK = 64 << 10
RANDOM_READ_SECONDS = float(os.environ.get("VMPACK_NBD_SECONDS", "5"))
DATA = [(0, 3 * MIB), (7 * MIB, 8 * MIB), (20 * MIB, 70 * MIB), (SIZE - 512 - MIB, SIZE)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data between holes; each block of data is filled with a number of its own."""
    path = tmp_path_factory.mktemp("nbd") / "image.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start, end in DATA:
            for at in range(start // BLOCK * BLOCK, end, BLOCK):
                begin, stop = max(at, start), min(at + BLOCK, end)
                file.seek(begin)
                file.write(bytes([value(at)]) * (stop - begin))
    return path


def value(offset: int) -> int:
    return offset // BLOCK % 255 + 1


@pytest.fixture(scope="module")
def uri(image: Path) -> Iterator[str]:
    with FileExport(image) as export, serving_unix(export, image.with_name("socket")) as (_, uri):
        yield uri


@pytest.fixture(scope="module")
def late_uri(image: Path) -> Iterator[str]:
    """The same disk, of which nothing is at hand and everything comes out of order."""
    with (
        FileExport(image) as export,
        serving_unix(LateExport(export, 0.003), image.with_name("late")) as (_, uri),
    ):
        yield uri


def run(*command: str | Path, text: str = "") -> str:
    """What a host's program says; the environment of our interpreter is not its."""
    done = subprocess.run(
        [str(word) for word in command],
        input=text,
        capture_output=True,
        text=True,
        timeout=RANDOM_READ_SECONDS + 120,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_qemu_img_finds_the_disk_identical(image: Path, uri: str, late_uri: str) -> None:
    for one in (uri, late_uri):
        assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, one)


def test_qemu_img_sees_size_and_holes(image: Path, uri: str) -> None:
    info = json.loads(run("qemu-img", "info", "-f", "raw", "--output=json", uri))
    assert info["virtual-size"] == SIZE
    extents = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", uri))
    data = [(one["start"], one["start"] + one["length"]) for one in extents if not one["zero"]]
    assert data == DATA


def test_nbdinfo_reports_what_is_offered(uri: str) -> None:
    found = json.loads(run("nbdinfo", "--json", uri))
    [export] = found["exports"]
    assert (found["protocol"], found["structured"]) == ("newstyle-fixed", True)
    assert export["export-size"] == SIZE
    assert export["contexts"] == ["base:allocation"]
    assert export["is_read_only"]
    assert export["can_multi_conn"]
    assert export["can_df"]
    assert export["can_cache"]
    assert not export["can_trim"]
    sizes = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 * MIB]


def test_nbdinfo_maps_the_holes(uri: str) -> None:
    extents = json.loads(run("nbdinfo", "--map", "--json", uri))
    data = [(one["offset"], one["offset"] + one["length"]) for one in extents if one["type"] == 0]
    assert data == DATA
    assert {one["description"] for one in extents} == {"data", "hole,zero"}
    assert sum(one["length"] for one in extents) == SIZE


def test_nbdinfo_lists_exports_by_name(image: Path) -> None:
    path = image.with_name("several")
    with FileExport(image) as export, serving({"": export, "käse": export}) as one:
        one.run(one.server.start_unix(path))
        found = json.loads(run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={path}"))
        assert [export["export-name"] for export in found["exports"]] == ["", "käse"]
        assert int(run("nbdinfo", "--size", f"nbd+unix:///k%C3%A4se?socket={path}")) == SIZE


@pytest.mark.parametrize("options", [[], ["--request-size=33554432"], ["--no-extents"]])
def test_nbdcopy_copies_it(image: Path, uri: str, tmp_path: Path, options: list[str]) -> None:
    run("nbdcopy", *options, uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()


def test_nbdcopy_copies_what_comes_out_of_order(image: Path, late_uri: str, tmp_path: Path) -> None:
    run("nbdcopy", "--request-size=65536", late_uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()


def test_qemu_io_reads_what_each_block_holds(uri: str) -> None:
    chance = random.Random(1)
    commands = []
    for number in range(300):
        at = chance.randrange(20 * MIB, 70 * MIB) // BLOCK * BLOCK
        begin, length = chance.randrange(BLOCK // 2), chance.randrange(1, BLOCK // 2)
        if number % 2:
            begin, length = begin // 512 * 512, -(-length // 512) * 512
        commands += ["-c", f"read -P {value(at)} {at + begin} {length}"]
    commands += ["-c", f"read -P 0 {3 * MIB} {4 * MIB}"]
    out = run("qemu-io", "-r", "-f", "raw", *commands, uri)
    assert out.count("ops; ") == 301
    assert "failed" not in out


def test_qemu_io_cannot_write(uri: str) -> None:
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", uri],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


READ_AT_RANDOM = """
import random, threading, time

def reads(number):
    one = nbd.NBD()
    one.connect_uri(uri)
    chance = random.Random(number)
    waiting = {}
    while time.monotonic() < end and not wrong:
        while len(waiting) < 12:
            length = chance.choice([1, 511, 512, 4096, 4097, 65536, 300001])
            offset = chance.randrange(size - length)
            if chance.random() < 0.5:
                offset = offset // 4096 * 4096
            buffer = nbd.Buffer(length)
            waiting[one.aio_pread(buffer, offset)] = (buffer, offset, length)
        one.poll(1000)
        for cookie in list(waiting):
            if one.aio_command_completed(cookie):
                buffer, offset, length = waiting.pop(cookie)
                if buffer.to_bytearray() != disk[offset:offset + length]:
                    wrong.append((number, offset, length))
                done[number] += 1
    while waiting:
        one.poll(1000)
        for cookie in list(waiting):
            if one.aio_command_completed(cookie):
                del waiting[cookie]
    one.shutdown()

disk = open(path, "rb").read()
size = len(disk)
end = time.monotonic() + seconds
done, wrong = [0] * 8, []
threads = [threading.Thread(target=reads, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(min(done), sum(done), len(wrong))
"""


@pytest.mark.parametrize("which", ["uri", "late_uri"])
def test_nbdsh_reads_at_random_over_eight_connections(
    image: Path, which: str, request: pytest.FixtureRequest
) -> None:
    settings = {
        "uri": request.getfixturevalue(which),
        "path": str(image),
        "seconds": RANDOM_READ_SECONDS,
    }
    script = "".join(f"{name} = {value!r}\n" for name, value in settings.items()) + READ_AT_RANDOM
    least, reads, wrong = map(int, run("nbdsh", "-c", "-", text=script).split())
    print(f"{which}: {reads} reads in {RANDOM_READ_SECONDS:g} s, {wrong} of them wrong")
    assert wrong == 0
    assert least > 20


def test_our_own_client_agrees(image: Path, uri: str, late_uri: str) -> None:
    expected = image.read_bytes()
    chance = random.Random(3)
    for one in (uri, late_uri):
        with NbdSource(one) as source:
            assert source.size == SIZE
            assert source.pread(0, SIZE) == expected
            for _ in range(50):
                offset, length = chance.randrange(SIZE - MIB), chance.randrange(MIB)
                assert source.pread(offset, length) == expected[offset : offset + length]
            assert source.data_ranges(0, SIZE).tolist() == [list(one) for one in DATA]


def test_a_client_that_is_killed_leaves_nothing_behind(image: Path, tmp_path: Path) -> None:
    with FileExport(image) as export:
        late = LateExport(export, 0.0)
        late.held.update(range(100))
        with serving_unix(late, tmp_path / "socket") as (one, uri):
            client = subprocess.Popen(["nbdcopy", uri, "null:"])
            wait_until(lambda: late.waiting > 4)
            client.kill()
            client.wait()
            wait_until(lambda: late.waiting == 0 and one.server.connections == 0)


@pytest.mark.slow
def test_half_the_throughput_of_nbdkit_at_least(tmp_path: Path) -> None:
    """The same file, the same client, in turns; the best of each is what others disturbed least."""
    path, size = tmp_path / "large.raw", 1 << 30
    block = random.Random(1).randbytes(16 * MIB)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    theirs, ours = tmp_path / "nbdkit", tmp_path / "ours"
    nbdkit = subprocess.Popen(["nbdkit", "-f", "-r", "-U", theirs, "file", path])
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.run.nbd.serve_file", path, ours], cwd=ROOT
    )
    try:
        wait_until(lambda: theirs.exists() and ours.exists())
        pairs = [(copy_seconds(theirs), copy_seconds(ours)) for _ in range(9)]
    finally:
        for process in (nbdkit, server):
            process.terminate()
            process.wait()
    their, our = (size / min(seconds) / 1e9 for seconds in zip(*pairs, strict=True))
    print(f"nbdkit {their:.2f} GB/s, ours {our:.2f} GB/s, ratio {our / their:.2f}")
    assert our >= 0.5 * their


def copy_seconds(path: Path) -> float:
    begin = time.perf_counter()
    run("nbdcopy", f"nbd+unix:///?socket={path}", "null:")
    return time.perf_counter() - begin


def test_the_tools_are_there() -> None:
    for tool in ("qemu-img", "qemu-io", "nbdinfo", "nbdcopy", "nbdsh", "nbdkit"):
        assert shutil.which(tool), tool
