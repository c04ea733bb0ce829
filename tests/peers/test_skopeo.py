"""skopeo reads, copies and returns every kind of copy of a pack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.layouts import manifest_of
from tests.round_trip.packs import Packed

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
]
EXTENTS = ("boot", "thin", "full")


@pytest.fixture(params=EXTENTS)
def folder(request: pytest.FixtureRequest, run_vmpack: Vmpack, busybox: Packed, room: Path) -> Path:
    """A copy of a pack as a folder."""
    run_vmpack.good("copy", busybox.full, f"--{request.param}", f"{room}/copy/")
    return room / "copy"


@pytest.fixture
def tar(run_vmpack: Vmpack, folder: Path) -> Path:
    """The same copy as one file."""
    extent = "--boot" if len(manifest_of(folder)["layers"]) == 5 else "--thin"
    run_vmpack.good("copy", folder, extent, folder.with_suffix(".tar"))
    return folder.with_suffix(".tar")


def test_inspect_prints_our_manifest(folder: Path, tar: Path) -> None:
    for place in (f"oci:{folder}", f"oci-archive:{tar}"):
        assert json.loads(tool("skopeo", "inspect", "--raw", place)) == manifest_of(folder)
        assert json.loads(tool("skopeo", "inspect", "--config", "--raw", place))["schema"] == 1


def test_what_skopeo_copied_has_the_same_blobs_and_unpacks(
    run_vmpack: Vmpack, busybox: Packed, folder: Path, tar: Path, room: Path
) -> None:
    """From file to folder to file, by skopeo alone."""
    tool("skopeo", "copy", f"oci-archive:{tar}", f"oci:{room}/back:demo")
    tool("skopeo", "copy", f"oci:{folder}", f"oci-archive:{room}/back.tar:demo")
    ours = {path.name for path in (folder / "blobs/sha256").iterdir()}
    assert {path.name for path in (room / "back/blobs/sha256").iterdir()} == ours
    for number, returned in enumerate((room / "back", room / "back.tar")):
        assert run_vmpack.json("inspect", returned)["identity"]
        disk = room / f"rebuilt-{number}.raw"
        run_vmpack.good("unpack", returned, "-o", disk, "--from", f"pack:{busybox.full}")
        assert run_vmpack.json("verify", disk, busybox.boot, "--exact")["right"]


def test_a_copy_of_skopeos_copy_is_ours_again(run_vmpack: Vmpack, folder: Path, room: Path) -> None:
    tool("skopeo", "copy", f"oci:{folder}", f"oci-archive:{room}/back.tar:demo")
    extent = "--boot" if len(manifest_of(folder)["layers"]) == 5 else "--thin"
    run_vmpack.good("copy", room / "back.tar", extent, f"{room}/again/")
    tool("diff", "-r", folder, room / "again")
