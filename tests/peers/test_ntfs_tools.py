"""Windows-shaped disks that were rebuilt, as ntfsprogs and ntfs-3g see them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host import needs_root
from tests.round_trip.disks import tool
from tests.round_trip.packs import Guest, Packed, trusting_host
from tests.round_trip.windows import (
    NAMES,
    dropped_files,
    seen_through_ntfs_3g,
    take_out,
    volumes_of,
)

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@dataclass(frozen=True)
class Volumes:
    """The NTFS volumes of a guest and of the disk that was rebuilt, by role, as files."""

    guest: Guest
    original: dict[str, Path]
    rebuilt: dict[str, Path]


@pytest.fixture(scope="module", params=NAMES)
def volumes(
    request: pytest.FixtureRequest,
    pack_guest: Callable[[str], Packed],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Volumes]:
    """Rebuilt from a thin copy and the full pack."""
    pack, room = pack_guest(request.param), tmp_path_factory.mktemp("volumes")
    guest, disk = pack.guest, room / "rebuilt.raw"
    trusting_host(room / "home").good(
        "unpack", pack.thin, "-o", disk, "--from", f"pack:{pack.full}", "--no-store"
    )
    original, rebuilt = (
        {
            role: take_out(guest, image, role, room / f"{which}-{role}.ntfs")
            for role in volumes_of(guest)
        }
        for which, image in (("original", guest.image), ("rebuilt", disk))
    )
    disk.unlink()
    yield Volumes(guest, original, rebuilt)
    for volume in (*original.values(), *rebuilt.values()):
        volume.unlink()


def test_ntfsfix_and_ntfsinfo_say_the_same(volumes: Volumes) -> None:
    for role, original in volumes.original.items():
        for command in (("ntfsfix", "--no-action"), ("ntfsinfo", "--force", "--mft")):
            expected = tool(*command, original).replace(str(original), "")
            found = tool(*command, volumes.rebuilt[role]).replace(str(volumes.rebuilt[role]), "")
            assert found == expected
            assert "error" not in found.lower()
            assert ("processed successfully" in found) == (command[0] == "ntfsfix")
            assert ("Free Clusters:" in found) == (command[0] == "ntfsinfo")


def test_ntfsclone_takes_the_same_metadata(volumes: Volumes, room: Path) -> None:
    """What it writes is the volume with everything but metadata left out."""
    for role, original in volumes.original.items():
        for name, volume in (("original", original), ("rebuilt", volumes.rebuilt[role])):
            (room / name).unlink(missing_ok=True)
            tool("ntfsclone", "--metadata", "--force", "--output", room / name, volume)
        assert (room / "original").stat().st_blocks * 512 > 100_000
        tool("cmp", room / "original", room / "rebuilt")


@needs_root
def test_a_mount_shows_the_same_files(volumes: Volumes, room: Path) -> None:
    """Contents, sizes, times, access lists, links, reparse data, named streams."""
    for role, original in volumes.original.items():
        expected = seen_through_ntfs_3g(original, room / "mounted")
        found = seen_through_ntfs_3g(volumes.rebuilt[role], room / "mounted")
        described = volumes.guest.facts["volumes"][role]["files"]
        assert {path.lstrip("/") for path in described} <= expected.keys()
        changed = {f"/{path}" for path in expected if found.pop(path) != expected[path]}
        assert found == {}
        assert changed <= (set(dropped_files(volumes.guest)) if role == "root" else set())


def test_what_a_reparse_point_hides_is_the_same(volumes: Volumes) -> None:
    """Files of CompactOS, which ntfs-3g shows as broken links."""
    rows = volumes.guest.facts["volumes"]["root"]["planted"]
    hidden = [row for row in rows if row["kind"] == "wof"]
    assert len(hidden) == (5 if volumes.guest.name == "windows-10-uefi" else 0)
    for row in hidden:
        stream = subprocess.run(
            ["ntfscat", "--force", "--attribute-name", "WofCompressedData",
             volumes.rebuilt["root"], row["path"]],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        assert hashlib.sha256(stream).hexdigest() == row["stored_sha256"]
