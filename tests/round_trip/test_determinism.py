"""The same disk, options and versions give the same bytes, whoever packs, where and how."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.layouts import config_digest, layer
from tests.round_trip.packs import Packed

pytestmark = pytest.mark.guest
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
NAMESPACE = ("unshare", "--user", "--map-user=4321", "--map-group=4321")


def pack(vmpack: Vmpack, image: Path, output: Path, *more: str | Path, **options: object) -> Path:
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


def test_shared_contents_do_not_change_that(author: Vmpack, busybox: Packed, room: Path) -> None:
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


@pytest.mark.parametrize("other_user", [NOBODY, NAMESPACE], ids=["nobody", "namespace"])
def test_another_user_makes_the_same_file(
    author: Vmpack, busybox: Packed, room: Path, open_folder: Path, other_user: tuple[str, ...]
) -> None:
    # Through a shell, since the first program after setpriv may still read what root may.
    trial = [*other_user, "sh", "-c", f"exec '{sys.executable}' -c 'import packer.cli.main'"]
    if subprocess.run(trial, check=False, capture_output=True).returncode:
        pytest.skip("such a user cannot be had here, or may not read this checkout or its Python")
    first = pack(author, busybox.guest.image, room / "first.vmpack")
    image = open_folder / "disk.raw"
    shutil.copyfile(busybox.guest.image, image)
    shutil.copytree(author.home, open_folder / "home")
    if other_user == NOBODY:
        subprocess.run(["chown", "-R", "65534:65534", open_folder / "home"], check=True)
    who = subprocess.run([*other_user, "id", "-u"], check=True, capture_output=True, text=True)
    assert who.stdout.strip() != str(os.getuid())
    second = pack(
        Vmpack(open_folder / "home"), image, open_folder / "second.vmpack",
        before=other_user, folder=open_folder,
    )  # fmt: skip
    tool("cmp", first, second)


def test_another_compression_is_the_same_pack(author: Vmpack, busybox: Packed, room: Path) -> None:
    image = room / "other.raw"
    shutil.copyfile(busybox.guest.image, image)
    found = {}
    for level in ("1", "19"):
        place = room / f"level-{level}"
        author.good("pack", busybox.guest.image, "-o", f"{place}/", "--no-packages", "--name",
                    "demo", "--level", level, "--against", f"disk:{image}")  # fmt: skip
        parts = [layer(place, part)["digest"] for part in ("map", "shared-000")]
        found[level] = [config_digest(place), *parts]
    assert found["1"][:2] == found["19"][:2]
    assert found["1"][2] != found["19"][2]
