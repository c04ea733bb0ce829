"""A row of versions, each carried on from the one before: what they weigh; that all come back."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fixtures.guests import build
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import author_key, guest

VERSIONS = 6
FILES = 700
FILE_BYTES = 40_000
CHANGED = FILES * 15 // 100
"""Of 28 MB of private files so many change with each version: after a few, a third is dead."""


@pytest.fixture
def releases(room: Path) -> Iterator[Path]:
    """The disk of a real guest; with each `next`, some of its small files are others, and one byte
    of a large one."""

    def make() -> Iterator[Path]:
        disk, chance = room / "guest.raw", random.Random(1)
        shutil.copyfile(build("busybox"), disk)
        large = bytearray(chance.randbytes(3_000_000))
        changed: list[int] = list(range(FILES))
        for version in range(1, VERSIONS + 1):
            large[version * 1000] ^= 1
            files = {f"f{number}": chance.randbytes(FILE_BYTES) for number in changed}
            replace_files(disk, room / "new", {**files, "large": bytes(large)}, new=version == 1)
            yield disk
            changed = chance.sample(range(FILES), CHANGED)

    return make()


def replace_files(disk: Path, folder: Path, files: dict[str, bytes], *, new: bool) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    removed = [] if new else [f"rm /srv/{name}" for name in files]
    edit(disk, [*removed, *(f"write {folder}/{name} /srv/{name}" for name in files)])
    shutil.rmtree(folder)


def edit(disk: Path, commands: list[str]) -> None:
    """Change the guest's ext4 as its own kernel would; it must be clean afterwards."""
    volume = f"{disk}?offset={guest('busybox').root_offset}"
    script = "\n".join([*commands, ""])
    debugfs = ["debugfs", "-w", "-f", "-", volume]
    subprocess.run(debugfs, input=script, text=True, capture_output=True, check=True)
    subprocess.run(["e2fsck", "-fn", volume], capture_output=True, check=True)


@pytest.mark.guest
@pytest.mark.slow
def test_a_row_of_versions_stays_small_and_every_one_comes_back(
    author: Vmpack, room: Path, releases: Iterator[Path]
) -> None:
    signed = ("--key", author_key().with_suffix(""), "--no-packages", "--name", "guest")
    base: Path | None = None
    carried, sizes = [], []
    for version, disk in enumerate(releases, 1):
        make = ("pack", disk, "--pack-version", str(version), *signed)
        fresh = author.json(*make, "-o", room / "fresh.vmpack", "--force")
        on_base = ("--base", base, "--delta") if base else ()
        place = room / f"{version}.vmpack"
        found = author.json(*make, *on_base, "-o", place)
        assert found["identity"] == fresh["identity"]
        sizes.append(found["bytes"] / fresh["bytes"])
        carried.append(found["carried_bytes"])
        if base is not None:
            gain = found["deltas"]
            assert 0 < gain["delta_bytes"] < 100_000 < 3_000_000 < gain["stored_bytes"]
            author.good(*make, *on_base, "-o", room / "again.vmpack", "--force", "--jobs", "1")
            assert (room / "again.vmpack").read_bytes() == place.read_bytes()
        author.good("copy", place, "--thin", room / "thin.vmpack", "--force")
        author.good("unpack", room / "thin.vmpack", "-o", room / "out.raw", "--force", "-q",
                    "--from", f"pack:{place}", "--no-store", "--allow-older")  # fmt: skip
        for pack in (place, room / "fresh.vmpack"):
            assert author.json("verify", room / "out.raw", pack, "--exact")["right"]
        base = place
    assert max(sizes) < 1.5
    assert sizes[1] > 1.05, "what is dead is carried on at first"
    anew = [now < 0.5 * before for before, now in pairwise(carried)]
    assert any(anew), "and packed anew when it is too much"
    assert sizes[1 + anew.index(True)] < 1.02
