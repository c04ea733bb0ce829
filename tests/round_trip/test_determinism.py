"""The same disk, options and versions give the same bytes, whoever packs, where and how."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.disks import copy_sparse, tool
from tests.round_trip.layouts import config_digest, layer
from tests.round_trip.packs import Packed
from tests.round_trip.surroundings import missing_capabilities, needs_mirrors

pytestmark = pytest.mark.guest
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
          "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # fmt: skip
"""May read everything, since this checkout and its Python may lie in a closed home."""

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
    host = host_of(other_user, author, open_folder)
    first = pack(author, busybox.guest.image, room / "first.vmpack")
    image = open_folder / "disk.raw"
    shutil.copyfile(busybox.guest.image, image)
    second = pack(host, image, open_folder / "second.vmpack", before=other_user, folder=open_folder)
    tool("cmp", first, second)


def host_of(other_user: tuple[str, ...], author: Vmpack, folder: Path) -> Vmpack:
    """Another user's home with the author's key; the test is skipped where there is no such
    user.
    """
    trial = [*other_user, sys.executable, "-c", "import packer.cli.main"]
    done = subprocess.run(trial, check=False, capture_output=True, text=True)
    if done.returncode:
        missing = missing_capabilities()
        assert missing, done.stderr
        pytest.skip(f"nobody can be another user without {', '.join(missing)}: {done.stderr}")
    who = subprocess.run([*other_user, "id", "-u"], check=True, capture_output=True, text=True)
    assert who.stdout.strip() != str(os.getuid())
    shutil.copytree(author.home / "config", folder / "home" / "config")
    if other_user[-len(NOBODY) :] == NOBODY:
        subprocess.run(["chown", "-R", "65534:65534", folder / "home"], check=True)
    return Vmpack(folder / "home")


OTHER_HOST = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere; umask 027; exec "$0" "$@"')
ELSEWHERE = (
    (*OTHER_HOST, *NOBODY)
    if os.geteuid() == 0
    else ("unshare", "--user", "--map-root-user", *OTHER_HOST, *NAMESPACE)
)
OTHER_HABITS = {"LC_ALL": "C", "LANG": "C", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [["--no-packages"], pytest.param(["--thin"], marks=pytest.mark.network)],
    ids=["full", "thin-with-packages"],
)
def test_debian_packed_by_another_user_on_another_host_is_the_same_file(
    author: Vmpack,
    pack_guest: Callable[[str], Packed],
    room: Path,
    open_folder: Path,
    more: list[str],
) -> None:
    """Another folder, locale, time zone, umask, host name and number of threads as well. With
    packages, what apt says of them must be the same, too; both ask it anew.
    """
    packages = "--no-packages" not in more
    if packages:
        needs_mirrors(room)
    host = host_of(ELSEWHERE, author, open_folder)
    node = subprocess.run([*ELSEWHERE, "uname", "-n"], check=True, capture_output=True, text=True)
    assert node.stdout == "elsewhere\n" != f"{os.uname().nodename}\n"
    original = pack_guest("debian-bios").guest.image
    common = ["--name", "demo", "--level", "1", *more]
    author.good("pack", original, "-o", room / "first.vmpack", *common, "--jobs", "2")
    assert ("pool/" in author.good("inspect", "--stubs", room / "first.vmpack")) == packages
    image = copy_sparse(original, open_folder / "disk.img")
    image.chmod(0o644)
    host.good(
        "pack", image, "-o", open_folder / "second.vmpack", *common, "--jobs", "3",
        before=ELSEWHERE, environment=OTHER_HABITS, folder=open_folder,
    )  # fmt: skip
    tool("cmp", room / "first.vmpack", open_folder / "second.vmpack")
    assert (open_folder / "second.vmpack").stat().st_mode & 0o777 == 0o640, "the umask held"
    for name, extent in (
        ("demo.iso", "--full"),
        ("thin.vmpack", "--thin"),
        ("fit.iso", "--fit=80M"),
    ):
        if packages and extent != "--thin":
            continue  # the pack is thin
        author.good("copy", room / "first.vmpack", room / name, extent)
        host.good(
            "copy", open_folder / "second.vmpack", open_folder / name, extent,
            before=ELSEWHERE, environment=OTHER_HABITS, folder=open_folder,
        )  # fmt: skip
        tool("cmp", room / name, open_folder / name)


def test_windows_packed_by_another_user_on_another_host_is_the_same_file(
    author: Vmpack, pack_guest: Callable[[str], Packed], room: Path, open_folder: Path
) -> None:
    """Whose hives and programs were read by children, from a folder that is called otherwise."""
    host = host_of(ELSEWHERE, author, open_folder)
    original = pack_guest("windows-xp").guest.image
    first = pack(author, original, room / "first.vmpack", "--level", "1", "--jobs", "2")
    image = copy_sparse(original, open_folder / "C drive.img")
    image.chmod(0o644)
    second = pack(
        host, image, open_folder / "second.vmpack", "--level", "1", "--jobs", "3",
        before=ELSEWHERE, environment=OTHER_HABITS, folder=open_folder,
    )  # fmt: skip
    tool("cmp", first, second)
    found = author.good("inspect", first)
    assert "Microsoft Windows XP" in found
    assert "agp440" in found, "the registry was read"


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
