"""What an unpacker is made of, without making one: wheels, names, the cache, refusals."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, version
from pathlib import Path

import pytest

from packer.artifact.layout.extras import Extra
from packer.errors import Error, InputError
from packer.media.unpacker import KINDS, find_unpacker
from packer.media.unpacker.cached import KEPT, made_once
from packer.media.unpacker.licences import licences
from packer.media.unpacker.parts import Target, code_files, dependencies, this_host
from packer.media.unpacker.wheels import (
    all_targets,
    make_wheels,
    short_name,
    show_downloads,
    write_own_wheel,
)
from packer.progress import Advance, Silent
from tests.hostile.refusal import FAILED, INPUT, USAGE, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.packs import Packed

TAGS = "manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64"


class Told:
    """Progress that keeps what it was told: [title, total, done]."""

    def __init__(self) -> None:
        self.stages: list[list[str | int]] = []

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[Advance]:
        one: list[str | int] = [title, total_bytes, 0]
        self.stages.append(one)

        def advance(done_bytes: int) -> None:
            one[2] = int(one[2]) + done_bytes

        yield advance


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# -- wheels ----------------------------------------------------------------------------------------


def test_our_own_wheel_is_the_code_that_runs(tmp_path: Path) -> None:
    wheel = write_own_wheel(tmp_path)
    assert wheel.name == f"vmpack-{version('vmpack')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        for name, path in code_files():
            assert archive.read(name) == path.read_bytes()
        names = archive.namelist()
        about = f"vmpack-{version('vmpack')}.dist-info"
        assert {f"{about}/{one}" for one in ("METADATA", "WHEEL", "RECORD")} <= set(names)
        assert f"{about}/licenses/LICENSE" in names
        assert "vmpack = packer.cli.main:main" in archive.read(f"{about}/entry_points.txt").decode()
    assert {"packer/py.typed", "packer/media/unpacker/program.spec"} <= set(names)
    assert not any("__pycache__" in name or "direct_url" in name for name in names)


def test_our_own_wheel_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (write_own_wheel(tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_what_pip_installs_of_our_own_wheel_fits_its_record(tmp_path: Path) -> None:
    wheel = write_own_wheel(tmp_path)
    tool(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", tmp_path / "there", wheel)  # fmt: skip
    about = next((tmp_path / "there").glob("*.dist-info"))
    files = Distribution.at(about).files
    assert files is not None
    assert len(files) > 100
    for file in files:
        if file.hash is not None and ".." not in file.parts:  # the script that pip makes
            data = file.read_binary()
            digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, data).digest())
            assert digest.decode().rstrip("=") == file.hash.value, file


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (f"libfsext_python-20260821-cp311-cp311-{TAGS}.whl",
         "libfsext_python-20260821-cp311-cp311-manylinux2014_x86_64.whl"),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
         "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl"),
        ("idna-3.20-py3-none-any.whl", "idna-3.20-py3-none-any.whl"),
    ],
)  # fmt: skip
def test_a_wheel_gets_a_name_that_every_medium_holds(name: str, short: str) -> None:
    assert short_name(name) == short
    Extra(f"unpacker/wheels/{short}", b"")


def test_the_dependencies_are_those_that_are_installed() -> None:
    found = dependencies(this_host())
    assert found["numpy"] == f"=={version('numpy')}"
    assert found["idna"] == f"=={version('idna')}", "which requests needs"
    assert not {"vmpack", "pyinstaller", "pytest"} & found.keys()


def test_a_host_with_another_python_needs_what_that_lacks() -> None:
    older, newer = (dependencies(Target(python, "x86_64")) for python in ("3.11", "3.14"))
    assert "backports-zstd" in older
    assert "backports-zstd" not in newer


def test_every_supported_kind_of_host_is_named_once() -> None:
    targets = all_targets()
    assert len(set(targets)) == len(targets) == 6
    assert Target("3.12", "aarch64") in targets


def test_what_pip_fetches_is_shown_file_by_file() -> None:
    told = Told()
    lines = [
        "Collecting numpy==2.4.6\n",
        "  Downloading numpy-2.4.6-cp312-cp312-macosx_14_0_arm64.whl (5.2 MB)\n",
        "Progress 0 of 5204410\n", "Progress 262144 of 5204410\n", "Progress 5204410 of 5204410\n",
        "  Downloading certifi-2026.10.18-py3-none-any.whl (134 kB)\n",
        "Progress 0 of 134093\n", "Progress 134093 of 134093\n",
        "ERROR: No matching distribution found for nosuch==1\n",
    ]  # fmt: skip
    assert show_downloads(lines, "for Python 3.12", told) == [lines[-1].strip()]
    assert told.stages == [
        ["numpy for Python 3.12", 5204410, 5204410],
        ["certifi for Python 3.12", 134093, 134093],
    ]


def test_wheels_that_cannot_be_had_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(Error, match=r"Python 3\.12 on aarch64 cannot be had") as refusal:
        make_wheels(tmp_path, [Target("3.12", "aarch64")], Silent())
    assert "No matching distribution found" in refusal.value.message
    assert "--with-unpacker=program" in refusal.value.hint


# -- licences --------------------------------------------------------------------------------------


def test_licences_say_the_terms_and_give_the_texts() -> None:
    text = licences(["vmpack", "msgspec"], ["libssl.so.3"])
    assert f"  vmpack {version('vmpack')}: Apache-2.0\n" in text
    assert f"  msgspec {version('msgspec')}: BSD-3-Clause\n" in text
    assert "  libssl.so.3\n" in text
    assert "Redistribution and use in source and binary forms" in text


# -- the cache -------------------------------------------------------------------------------------


def fill(made: Path, work: Path) -> None:
    (work / "scratch").write_text("x")
    (made / "file").write_text("made")


def test_what_was_made_is_not_made_again(home: Path) -> None:
    first = made_once("program", "1-a", fill)
    assert (first / "file").read_text() == "made"

    def never(_made: Path, _work: Path) -> None:
        raise AssertionError("it is there")

    assert made_once("program", "1-a", never) == first
    assert {path.name for path in first.parent.iterdir()} == {"program-1-a", "lock"}


def test_what_fails_leaves_nothing(home: Path) -> None:
    def fails(made: Path, work: Path) -> None:
        fill(made, work)
        raise Error("no such thing")

    with pytest.raises(Error, match="no such thing"):
        made_once("program", "1-a", fails)
    assert [path.name for path in (home / "cache" / "unpacker").iterdir()] == ["lock"]


def test_what_a_killed_run_left_is_removed(home: Path) -> None:
    left_behind = home / "cache" / "unpacker" / ".work-killed" / "made"
    left_behind.mkdir(parents=True)
    made_once("program", "1-a", fill)
    assert not left_behind.parent.exists()


def test_only_the_last_ones_are_kept(home: Path) -> None:
    places = [made_once("program", f"1-{number}", fill) for number in range(KEPT)]
    other = made_once("wheels", "1-0", fill)
    made_once("program", "1-0", fill)  # used again
    made_once("program", "1-new", fill)
    assert places[0].is_dir()
    assert not places[1].exists()
    assert all(path.is_dir() for path in (*places[2:], other))


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    with pytest.raises(Error, match=r"cannot write .*/home/cache/unpacker"):
        made_once("program", "1-a", fill)


# -- a folder that has it already ------------------------------------------------------------------


def made_earlier(folder: Path) -> Path:
    (folder / "wheels").mkdir(parents=True)
    (folder / "vmpack-linux-x86_64").write_bytes(b"program")
    (folder / "needs.txt").write_text("Linux on x86_64 with glibc 2.17 or later\n")
    (folder / "LICENSES.txt").write_text("terms\n")
    (folder / "wheels" / "vmpack-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    (folder / "wheels" / "needs.txt").write_text("Linux\n")
    return folder


def test_a_folder_made_earlier_is_carried_as_it_is(tmp_path: Path) -> None:
    found = find_unpacker(str(made_earlier(tmp_path / "a")), Silent())
    assert sorted((one.name, one.executable) for one in found.extras) == [
        ("unpacker/LICENSES.txt", False),
        ("unpacker/needs.txt", False),
        ("unpacker/vmpack-linux-x86_64", True),
        ("unpacker/wheels/needs.txt", False),
        ("unpacker/wheels/vmpack-0.1.0-py3-none-any.whl", False),
    ]
    assert found.needs == "Linux on x86_64 with glibc 2.17 or later"
    assert found.size == sum(len(one.open().read()) for one in found.extras)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("vmpack-linux-x86_64", "expected a folder with one program"),
        ("LICENSES.txt", "expected a file LICENSES.txt"),
        ("needs.txt", "needs.txt"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(tmp_path: Path, missing: str, said: str) -> None:
    folder = made_earlier(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=said):
        find_unpacker(str(folder), Silent())


def test_a_folder_with_a_name_that_media_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = made_earlier(tmp_path / "a")
    (folder / "wheels" / f"{'x' * 70}.whl").write_bytes(b"")
    with pytest.raises(InputError, match="media cannot hold"):
        find_unpacker(str(folder), Silent())


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.guest
def test_a_destination_that_takes_no_files_is_refused_at_once(
    run_vmpack: Vmpack, busybox: Packed, room: Path
) -> None:
    for destination in (str(room / "a.vmpack"), "oci://localhost:1/a:1"):
        done = run_vmpack("copy", busybox.thin, destination, "--with-unpacker", limit_s=20)
        refused(done, USAGE, "only an ISO image (.iso) or a folder (ends in /)")


@pytest.mark.guest
def test_a_folder_without_an_unpacker_is_refused(
    run_vmpack: Vmpack, busybox: Packed, room: Path
) -> None:
    done = run_vmpack("copy", busybox.thin, f"{room}/a.iso", f"--with-unpacker={room}/nowhere")
    refused(done, INPUT, "expected a folder with one program", output=room / "a.iso")


@pytest.mark.guest
def test_a_failing_builder_leaves_no_medium(
    run_vmpack: Vmpack, busybox: Packed, room: Path
) -> None:
    """PyInstaller finds none of the tools that it works with."""
    command = ("copy", busybox.thin, f"{room}/a.iso", "--with-unpacker=program")
    done = run_vmpack(*command, environment={"PATH": str(room)})
    assert done.returncode == FAILED
    assert "PyInstaller could not make the unpacker" in done.stderr
    assert not (room / "a.iso").exists()


def test_the_kinds_are_those_of_the_help(run_vmpack: Vmpack) -> None:
    assert ", ".join(KINDS) in " ".join(run_vmpack.good("copy", "--help").split())
