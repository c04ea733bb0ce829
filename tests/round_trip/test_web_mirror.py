"""What is fetched from real web servers, counted by them: the missing, and little else."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rebuild import solid_bytes
from packer.artifact.media_types import BUNDLE
from packer.artifact.opened import OpenedPack
from packer.sources.base import Bytes, Wanted
from packer.sources.open import open_pack
from packer.unpack.unpack import carrier_of
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.layouts import manifest_of
from tests.round_trip.packs import SHARED_LEVEL, Packed
from tests.test_docs import ROOT, code_block
from tests.transport.servers import nginx

MIB = 1 << 20
MOST_RATIO = 1.25
THIN_DOCUMENTS = 4
"""oci-layout, index.json, manifest, frame index: map and hints of the same pack are here."""

ALL_DOCUMENTS = 8
"""Those, and config, signature, map, hints, when the pack itself lies on the mirror."""

Pack = Callable[[str], Packed]
Rows = np.ndarray


@dataclass(frozen=True, slots=True)
class Asked:
    """What nginx has logged: requests and bytes of bodies, of bundles and of documents."""

    bundle_requests: int
    bundle_bytes: int
    document_requests: int
    document_bytes: int


@contextmanager
def counted(pack: Packed, work: Path) -> Iterator[tuple[str, Callable[[], Asked]]]:
    """nginx as the documentation sets it up, over a full pack below /demo/; and its count."""
    root = work / "srv"
    root.mkdir(parents=True)
    (root / "demo").symlink_to(pack.full)
    block = code_block(ROOT / "docs" / "mirror.md", "nginx", "tests/round_trip/test_web_mirror.py")
    log = work / "nginx" / "access.log"
    bundles = [
        str(one["digest"]).removeprefix("sha256:")
        for one in manifest_of(pack.full)["layers"]
        if one["mediaType"] == BUNDLE
    ]

    def count() -> Asked:
        lines = [line.split() for line in log.read_text().splitlines()]
        assert all(status in ("200", "206") for status, *_ in lines), lines
        sent = [int(size) for _, size, path in lines if path.rpartition("/")[2] in bundles]
        others = [int(size) for _, size, path in lines if path.rpartition("/")[2] not in bundles]
        return Asked(len(sent), sum(sent), len(others), sum(others))

    options = {"server": "\n".join(block), "log": "$status $body_bytes_sent $uri"}
    with nginx(root, work / "nginx", **options) as url:
        yield f"{url}/demo/", count


def shared_rows(pack: OpenedPack, thin: Path) -> Rows:
    """What the thin copy leaves out."""
    with open_pack(str(thin)) as opened:
        return np.setdiff1d(np.arange(len(pack.map.contents)), opened.index.content)


def rows_of_packages(pack: OpenedPack, chosen: Callable[[int], bool]) -> Rows:
    hints = pack.hints
    wanted = [package >= 0 and chosen(package) for package in hints.package.tolist()]
    return np.unique(hints.content[np.array(wanted, dtype=bool)])


def write_tree(pack: OpenedPack, rows: Rows, root: Path) -> None:
    """Make a host's files of these contents, where the guest had them."""
    hints = pack.hints
    carrier = carrier_of(pack)
    carrier.find(Wanted(pack.map.contents, rows, hints), deep=False)
    for piece in carrier.fetch(rows):
        assert isinstance(piece, Bytes)
        for place in hints.of(piece.row):
            path = root / hints.path[place].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "wb") as file:
                file.truncate(int(hints.file_size[place]))
                file.seek(int(hints.file_offset[place]) + piece.block * MIB)
                file.write(piece.data)


@pytest.mark.slow
@pytest.mark.guest
@pytest.mark.parametrize("local", ["nothing", "half", "everything"])
def test_bytes_and_requests_are_worth_what_was_missing(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path, local: str
) -> None:
    """Half: every second package, by chance; hosts lack packages."""
    pack = pack_guest("debian-bios")
    tree, disk = room / "tree", room / "rebuilt.raw"
    tree.mkdir()
    chance = random.Random(2)
    with open_pack(str(pack.full)) as full:
        shared = shared_rows(full, pack.thin)
        chosen = {
            "nothing": set[int](),
            "half": {n for n in range(len(full.hints.packages)) if chance.random() < 0.5},
            "everything": set(range(len(full.hints.packages))),
        }[local]
        here = np.intersect1d(shared, rows_of_packages(full, chosen.__contains__))
        lacking = np.setdiff1d(shared, here)
        write_tree(full, here, tree)
        missing_bytes = int(full.map.contents.size[lacking].sum())
        solid = solid_bytes(full, lacking, SHARED_LEVEL)
    with counted(pack, room / "web") as (url, count):
        report = run_vmpack.json(
            "unpack", pack.thin, "-o", disk, "--no-store", "--from", f"dir:{tree}", "--from", url
        )
        asked = count()
    print(f"{local}: lacking {solid}, {asked}")
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]
    assert content_bytes(report, "http") == missing_bytes
    if local == "everything":
        assert missing_bytes == 0
        assert asked == Asked(0, 0, 0, 0)  # it does not even learn that somebody rebuilds this
        return
    assert missing_bytes > 50_000_000
    assert asked.bundle_bytes <= MOST_RATIO * solid
    assert asked.bundle_requests + asked.document_requests <= asked.bundle_bytes / MIB
    assert asked.document_requests == THIN_DOCUMENTS
    assert asked.document_bytes < asked.bundle_bytes / 100


@pytest.mark.slow
@pytest.mark.guest
def test_a_pack_on_a_mirror_costs_its_documents_once(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """Files scattered over all packages are here: many small ranges are missing."""
    pack = pack_guest("debian-bios")
    tree, disk = room / "tree", room / "rebuilt.raw"
    tree.mkdir()
    with open_pack(str(pack.full)) as full:
        shared = shared_rows(full, pack.thin)
        write_tree(full, shared[np.arange(len(shared)) % 10 > 0], tree)
    with counted(pack, room / "web") as (url, count):
        run_vmpack.good("unpack", url, "-o", disk, "--no-store", "--from", f"dir:{tree}")
        asked = count()
    print(asked)
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]
    assert asked.document_requests == ALL_DOCUMENTS
    assert asked.bundle_requests + asked.document_requests <= asked.bundle_bytes / MIB


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SERVERS = {
    "http.server": [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "PORT", "-d", "."],
    "busybox": ["busybox", "httpd", "-f", "-p", "127.0.0.1:PORT", "-h", "."],
}


@contextmanager
def simple_server(kind: str, root: Path) -> Iterator[str]:
    """One of the commands of the documentation."""
    port = free_port()
    words = [word.replace("PORT", str(port)) for word in SERVERS[kind]]
    with subprocess.Popen(words, cwd=root, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(500):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, f"{words} ended"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}/demo/"
        finally:
            process.terminate()


@pytest.mark.guest
@pytest.mark.parametrize("kind", SERVERS)
def test_servers_of_one_command_are_good_enough(
    run_vmpack: Vmpack, busybox: Packed, room: Path, kind: str
) -> None:
    """http.server knows no Range and sends whole bundles; busybox knows one range a request."""
    root, disk = room / "srv", room / "rebuilt.raw"
    root.mkdir()
    (root / "demo").symlink_to(busybox.full)
    with simple_server(kind, root) as url:
        run_vmpack.good("unpack", busybox.boot, "-o", disk, "--no-store", "--from", url)
        assert run_vmpack.json("verify", disk, busybox.boot, "--exact")["right"]
        disk.unlink()
        run_vmpack.good("unpack", url, "-o", disk, "--no-store", "--from", "store:")
    assert run_vmpack.json("verify", disk, busybox.boot, "--exact")["right"]
