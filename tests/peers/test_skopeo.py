"""skopeo reads, copies and returns every kind of copy of a pack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.layouts import manifest_of
from tests.round_trip.packs import Packed, author

pytestmark = pytest.mark.guest
BUNDLES = {"boot": 1, "thin": 2, "full": 3}
OTHER_LAYERS = 4
"""Map, hints, index, envelope."""


@pytest.fixture(scope="module")
def everything(busybox: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full pack, a folder, with a bundle of each class: another disk lacks but one file."""
    room = tmp_path_factory.mktemp("everything")
    other = room / "other.raw"
    shutil.copyfile(busybox.guest.image, other)
    for name in ("own-data", "hard-link-to-own-data"):
        where = f"{other}?offset={busybox.guest.root_offset}"
        tool("debugfs", "-w", "-R", f"rm /srv/vmpack/{name}", where)
    author().good("pack", busybox.guest.image, "-o", f"{room}/full/", "--no-packages", "--level",
                  "1", "--against", f"disk:{other}")  # fmt: skip
    other.unlink()
    return room / "full"


@pytest.fixture(params=BUNDLES)
def extent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(run_vmpack: Vmpack, everything: Path, extent: str, room: Path) -> Path:
    """A copy of a pack as a folder."""
    run_vmpack.good("copy", everything, f"--{extent}", f"{room}/copy/")
    assert len(manifest_of(room / "copy")["layers"]) == OTHER_LAYERS + BUNDLES[extent]
    return room / "copy"


@pytest.fixture
def tar(run_vmpack: Vmpack, folder: Path, extent: str) -> Path:
    """The same copy as one file."""
    run_vmpack.good("copy", folder, f"--{extent}", folder.with_suffix(".tar"))
    return folder.with_suffix(".tar")


def test_inspect_prints_our_manifest(folder: Path, tar: Path) -> None:
    for place in (f"oci:{folder}", f"oci-archive:{tar}"):
        assert json.loads(tool("skopeo", "inspect", "--raw", place)) == manifest_of(folder)
        assert json.loads(tool("skopeo", "inspect", "--config", "--raw", place))["schema"] == 1


def test_what_skopeo_copied_has_the_same_blobs_and_unpacks(
    run_vmpack: Vmpack, everything: Path, folder: Path, tar: Path, room: Path
) -> None:
    """From file to folder to file, by skopeo alone."""
    tool("skopeo", "copy", f"oci-archive:{tar}", f"oci:{room}/back:demo")
    tool("skopeo", "copy", f"oci:{folder}", f"oci-archive:{room}/back.tar:demo")
    ours = {path.name for path in (folder / "blobs/sha256").iterdir()}
    assert {path.name for path in (room / "back/blobs/sha256").iterdir()} == ours
    identity = run_vmpack.json("inspect", everything)["identity"]
    for number, returned in enumerate((room / "back", room / "back.tar")):
        assert run_vmpack.json("inspect", returned)["identity"] == identity
        disk = room / f"rebuilt-{number}.raw"
        run_vmpack.good("unpack", returned, "-o", disk, "--from", f"pack:{everything}")
        assert run_vmpack.json("verify", disk, everything, "--exact")["right"]


def test_a_copy_of_skopeos_copy_is_ours_again(
    run_vmpack: Vmpack, folder: Path, extent: str, room: Path
) -> None:
    tool("skopeo", "copy", f"oci:{folder}", f"oci-archive:{room}/back.tar:demo")
    run_vmpack.good("copy", room / "back.tar", f"--{extent}", f"{room}/again/")
    tool("diff", "-r", folder, room / "again")
