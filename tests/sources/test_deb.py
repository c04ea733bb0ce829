from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class, Contents, block_starts
from packer.artifact.hints import Hints, Package
from packer.sources.base import Bytes, SourceError, Wanted
from packer.sources.deb import MAX_OPEN_WINDOWS, DebSource, Search, file_names
from tests.sources.guest import Guest, build_deb, read_deb

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")

MIB = 1 << 20
CHANCE = random.Random(4)
SMALL = b"a small file\n"
TWIN = b"same length!\n"
BIG = CHANCE.randbytes(2 * MIB + 12345)
SPARSE = CHANCE.randbytes(8192) + bytes(MIB) + CHANCE.randbytes(MIB + 1)
POSTINST = b"#!/bin/sh\nexit 0\n"
DEMO = Package("dpkg", "demo", "1:1.0", "all")


def demo_guest() -> Guest:
    """What a guest has of the package: with merged /usr, a diverted path, a hole cut out."""
    guest = Guest()
    demo = guest.package(DEMO)
    guest.file("/usr/lib/demo/small", SMALL, demo)
    guest.file("/usr/bin/twin.distrib", TWIN, demo)
    guest.file("/usr/share/demo/big", BIG, demo)
    guest.file("/usr/share/demo/sparse", SPARSE, demo, [(0, 8192), (8192 + MIB, len(SPARSE))])
    guest.file("/var/lib/dpkg/info/demo.postinst", POSTINST, demo)
    return guest


def build_demo(folder: Path, **options: str) -> Path:
    files = {
        "/lib/demo/small": SMALL,
        "/usr/bin/twin": TWIN,
        "/usr/bin/other": b"SAME LENGTH!\n",
        "/usr/share/demo/big": BIG,
        "/usr/share/demo/sparse": SPARSE,
        "/usr/share/demo/unwanted": BIG[::-1],
    }
    return build_deb(folder, files, version="1:1.0", scripts={"postinst": POSTINST}, **options)


@pytest.mark.parametrize("compressor", ["xz", "gzip", "zstd", "none"])
def test_all_contents_of_a_package_are_found_wherever_they_lie(
    tmp_path: Path, compressor: str
) -> None:
    build_demo(tmp_path, compressor=compressor)
    guest = demo_guest()
    source = DebSource(tmp_path)
    wanted = guest.wanted()
    offers = source.find(wanted, deep=False)
    assert offers.rows.tolist() == wanted.rows.tolist()
    assert not offers.cost_bytes.any()
    guest.check(source.fetch(offers.rows), wanted.rows.tolist())


def test_only_what_is_asked_for_is_yielded(tmp_path: Path) -> None:
    build_demo(tmp_path)
    guest = demo_guest()
    source = DebSource(tmp_path)
    source.find(guest.wanted(), deep=False)
    guest.check(source.fetch(np.array([1, 4])), [1, 4])


def test_other_packages_are_not_offered(tmp_path: Path) -> None:
    build_demo(tmp_path)
    guest = Guest()
    for package in (
        Package("dpkg", "demo", "2.0", "all"),
        Package("dpkg", "demo", "1:1.0", "amd64"),
        Package("dpkg", "../demo", "1:1.0", "all"),
        Package("windows", "demo", "1:1.0", "all"),
    ):
        path = f"/{package.manager}{package.version}{package.architecture}"
        guest.file(path, SMALL, guest.package(package))
    guest.file("/nobody", b"owned by nobody")
    assert len(DebSource(tmp_path).find(guest.wanted(), deep=True).rows) == 0


def test_generated_lists_are_not_looked_for(tmp_path: Path) -> None:
    build_demo(tmp_path)
    guest = Guest()
    guest.file("/var/lib/dpkg/info/demo.list", b"/.\n", guest.package(DEMO))
    assert len(DebSource(tmp_path).find(guest.wanted(), deep=False).rows) == 0


def test_a_copy_of_a_mirror_is_searched_when_asked_to_look_deep(tmp_path: Path) -> None:
    pool = tmp_path / "pool" / "main" / "d"
    pool.mkdir(parents=True)
    build_demo(tmp_path).rename(pool / "demo_1.0_all.deb")  # a mirror leaves the epoch out
    guest = demo_guest()
    source = DebSource(tmp_path)
    assert len(source.find(guest.wanted(), deep=False).rows) == 0
    offers = source.find(guest.wanted(), deep=True)
    guest.check(source.fetch(offers.rows), range(len(guest.contents)))


def test_names_follow_apt_and_the_pool() -> None:
    assert file_names(DEMO)[0] == "demo_1%3a1.0_all.deb"
    assert file_names(DEMO)[-1] == "demo_1.0_all.deb"
    assert file_names(Package("dpkg", "x", "1-2", "amd64")) == ("x_1-2_amd64.deb",)


def test_of_several_files_the_right_one_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deb = build_demo(tmp_path)
    deb.rename(tmp_path / "demo_1.0_all.deb")
    (tmp_path / "demo_1%3a1.0_all.deb").write_bytes(b"!<arch>\nnot a package at all")
    guest = demo_guest()
    source = DebSource(tmp_path)
    offers = source.find(guest.wanted(), deep=False)
    with caplog.at_level(logging.WARNING):
        guest.check(source.fetch(offers.rows), range(len(guest.contents)))
    assert "demo_1%3a1.0_all.deb" in caplog.text


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.99])
def test_a_damaged_package_yields_nothing_wrong(tmp_path: Path, keep: float) -> None:
    deb = build_demo(tmp_path)
    data = deb.read_bytes()
    deb.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    guest = demo_guest()
    source = DebSource(tmp_path)
    offers = source.find(guest.wanted(), deep=False)
    pieces = list(source.fetch(offers.rows))
    assert pieces or keep < 0.99 or keep > 1, "what lies before the damage is whole"
    for piece in pieces:
        assert isinstance(piece, Bytes)
        start = piece.block << 20
        assert piece.data == guest.contents[piece.row][start : start + MIB]


def test_a_package_of_another_build_yields_only_what_is_the_same(tmp_path: Path) -> None:
    build_deb(tmp_path, {"/usr/bin/twin": TWIN, "/lib/demo/small": SMALL[::-1]}, version="1:1.0")
    guest = demo_guest()
    source = DebSource(tmp_path)
    offers = source.find(guest.wanted(), deep=False)
    guest.check(source.fetch(offers.rows), [1])


def test_pipes_and_links_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "demo_1.0_all.deb")
    (tmp_path / "demo_1%3a1.0_all.deb").symlink_to("/dev/zero")
    guest = demo_guest()
    assert len(DebSource(tmp_path).find(guest.wanted(), deep=True).rows) == 0


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"deb:.*No such file"):
        DebSource(tmp_path / "absent").find(demo_guest().wanted(), deep=False)


def test_lying_hints_do_not_fill_the_memory(tmp_path: Path) -> None:
    build_demo(tmp_path)
    guest = Guest()
    demo = guest.package(DEMO)
    guest.file("/usr/share/demo/big", BIG, demo)
    for offset in range(1, MAX_OPEN_WINDOWS + 30):  # each wants another megabyte of the same file
        data = BIG[offset:][:MIB]
        guest.contents.append(data)
        guest.places.append((len(guest.contents) - 1, "/x", len(BIG), offset, demo))
    source = DebSource(tmp_path)
    offers = source.find(guest.wanted(), deep=False)
    found = {piece.row for piece in source.fetch(offers.rows)}
    assert len(offers.rows) == MAX_OPEN_WINDOWS + 30
    assert len(found) <= MAX_OPEN_WINDOWS + 1


@pytest.mark.network
def test_a_package_from_the_mirror_is_taken_apart_as_dpkg_does(tmp_path: Path) -> None:
    got = subprocess.run(
        ["apt-get", "download", "hello"], cwd=tmp_path, capture_output=True, check=False
    )
    if got.returncode:
        pytest.skip(f"the mirror cannot be reached: {got.stderr.decode()[-200:]}")
    deb = next(tmp_path.glob("hello_*.deb"))
    name, version, architecture = deb.stem.replace("%3a", ":").split("_")
    guest = Guest()
    package = guest.package(Package("dpkg", name, version, architecture))
    for path, data in read_deb(deb, tmp_path / "tree").items():
        if data:
            guest.file(path, data, package)
    assert len(guest.contents) > 20
    source = DebSource(tmp_path)
    offers = source.find(guest.wanted(), deep=False)
    guest.check(source.fetch(offers.rows), range(len(guest.contents)))


def test_a_large_file_with_very_many_names_is_looked_for_once() -> None:
    size = np.array([20_000 << 20])
    starts = block_starts(size)
    blocks = np.zeros((int(starts[-1]), 32), dtype=np.uint8)
    row = np.zeros((1, 32), dtype=np.uint8)
    contents = Contents(row, size, np.array([Class.SHARED], dtype=np.uint8), blocks, starts)
    names = 3000
    none = np.zeros(names, dtype=np.int64)
    hints = Hints(none, ["/usr/x"] * names, none + size[0], none, none, ())
    rows = np.zeros(1, dtype=np.int64)
    started = time.monotonic()
    assert Search(Wanted(contents, rows, hints), rows).wants(int(size[0]))
    assert time.monotonic() - started < 20  # a minute and more, piece by piece for each name
