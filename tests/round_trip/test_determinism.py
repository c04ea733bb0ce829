"""The same disk, options and versions give the same bytes, whoever packs, where and how."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.disks import needs_root, tool
from tests.round_trip.layouts import config_digest, layer
from tests.round_trip.packs import Packed

pytestmark = pytest.mark.guest
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def pack(
    vmpack: Vmpack, image: Path, output: Path, *more: str | Path, **options: object
) -> Path:
    vmpack.good("pack", image, "-o", output, "--no-packages", "--name", "demo", *more, **options)
    return output


@pytest.mark.parametrize(
    ("more", "environment", "before"),
    [
        ([], {}, []),
        (["--jobs", "1"], {}, []),
        (["--jobs", "4"], {}, []),
        ([], {"LC_ALL": "C", "LANG": "C", "TZ": "Pacific/Kiritimati"}, []),
        ([], {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "1"}, []),
        ([], {"PYTHONHASHSEED": "4294967295", "SOURCE_DATE_EPOCH": "1"}, []),
        ([], {}, ["sh", "-c", 'umask 077; exec "$0" "$@"']),
    ],
    ids=["again", "one-job", "four-jobs", "elsewhere", "hash-seed", "other-hash-seed", "umask"],
)
def test_the_same_disk_gives_the_same_file(
    author: Vmpack,
    busybox: Packed,
    room: Path,
    more: list[str],
    environment: dict[str, str],
    before: list[str],
) -> None:
    first = pack(author, busybox.guest.image, room / "first.vmpack")
    image = room / "elsewhere" / "named-otherwise.img"
    image.parent.mkdir()
    shutil.copyfile(busybox.guest.image, image)
    second = pack(
        author, image, room / "elsewhere" / "second.vmpack", *more,
        environment=environment, before=before, folder=image.parent,
    )  # fmt: skip
    tool("cmp", first, second)


def test_shared_contents_do_not_change_that(
    author: Vmpack, busybox: Packed, room: Path
) -> None:
    image = room / "other.raw"
    shutil.copyfile(busybox.guest.image, image)
    against = ["--against", f"disk:{image}"]
    first = pack(author, busybox.guest.image, room / "first.vmpack", *against, "--jobs", "1")
    second = pack(author, busybox.guest.image, room / "second.vmpack", *against, "--jobs", "4")
    tool("cmp", first, second)
    author.good("copy", first, f"{room}/folder/")
    assert layer(room / "folder", "shared-000")["size"] > 1_000_000


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this host may reach."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.mark.root
@needs_root
def test_another_user_makes_the_same_file(
    author: Vmpack, busybox: Packed, room: Path, open_folder: Path
) -> None:
    can = subprocess.run([*NOBODY, sys.executable, "-c", "import packer.cli.main"], check=False)
    if can.returncode:
        pytest.skip("an ordinary user may not read this checkout or its Python")
    first = pack(author, busybox.guest.image, room / "first.vmpack")
    image = open_folder / "disk.raw"
    shutil.copyfile(busybox.guest.image, image)
    shutil.copytree(author.home, open_folder / "home")
    subprocess.run(["chown", "-R", "65534:65534", open_folder / "home"], check=True)
    second = pack(
        Vmpack(open_folder / "home"), image, open_folder / "second.vmpack",
        before=NOBODY, folder=open_folder,
    )  # fmt: skip
    assert second.stat().st_uid == 65534
    tool("cmp", first, second)


def test_another_compression_is_the_same_pack(
    author: Vmpack, busybox: Packed, room: Path
) -> None:
    image = room / "other.raw"
    shutil.copyfile(busybox.guest.image, image)
    found = {}
    for level in ("1", "19"):
        place = room / f"level-{level}"
        author.good("pack", busybox.guest.image, "-o", f"{place}/", "--no-packages", "--name",
                    "demo", "--level", level, "--against", f"disk:{image}")  # fmt: skip
        found[level] = (
            config_digest(place), layer(place, "map")["digest"], layer(place, "shared-000")["digest"]
        )  # fmt: skip
    assert found["1"][:2] == found["19"][:2]
    assert found["1"][2] != found["19"][2]
