"""isoinfo, xorriso and Linux see in our ISO images what we put there, by each kind of name."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packer.artifact.layout.extras import Extra
from packer.artifact.layout.iso_writer import IsoWriter
from tests.artifact.fake_packs import write_pack
from tests.peers.mounting import mounted
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.packs import Packed, author, trusting_host
from tests.round_trip.small import pack_small

BESIDE = {"oci-layout", "index.json", "index.html"}


@pytest.fixture(scope="module")
def room_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("iso")


@pytest.fixture(scope="module")
def small(room_of_all: Path) -> Path:
    """A pack, a folder, of a disk of 16 MiB."""
    return pack_small(author(), room_of_all / "packs")


@pytest.fixture(scope="module")
def iso(room_of_all: Path, small: Path) -> Path:
    host = trusting_host(room_of_all / "home")
    host.good("copy", small, room_of_all / "small.iso")
    return room_of_all / "small.iso"


@pytest.fixture(scope="module")
def expected(small: Path) -> dict[str, str]:
    """SHA-256 of each file that the image must hold, but for those of the layout itself."""
    return {f"blobs/sha256/{one.name}": one.name for one in (small / "blobs/sha256").iterdir()}


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                name = str(path.relative_to(folder))
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check(found: dict[str, str], expected: dict[str, str]) -> None:
    assert found.keys() == expected.keys() | BESIDE
    assert {name: found[name] for name in expected} == expected


def test_xorriso_extracts_every_file(iso: Path, expected: dict[str, str], room: Path) -> None:
    tool("xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", room / "all")
    tool("chmod", "-R", "u+w", room / "all")
    check(digests(room / "all"), expected)


def test_xorriso_finds_nothing_to_complain_about(iso: Path) -> None:
    done = subprocess.run(
        ["xorriso", "-abort_on", "NEVER", "-report_about", "NOTE", "-indev", iso, "-check_media",
         "--", "-toc"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert not re.search(r"WARNING|SORRY|FAILURE|FATAL", said), said
    assert "SMALL_1" in said


@pytest.mark.parametrize("names", ["-R", "-J", ""], ids=["rock-ridge", "joliet", "plain"])
def test_isoinfo_reads_every_file_by_every_kind_of_name(
    iso: Path, expected: dict[str, str], names: str
) -> None:
    flags = [names] if names else []
    listed = tool("isoinfo", *flags, "-f", "-i", iso).split()
    assert {"/blobs", "/blobs/sha256", *(f"/{name}" for name in expected.keys() | BESIDE)} == set(
        listed
    )
    for name, digest in expected.items():
        data = subprocess.run(
            ["isoinfo", *flags, "-i", iso, "-x", f"/{name}"], check=True, capture_output=True
        ).stdout
        assert hashlib.sha256(data).hexdigest() == digest


def test_the_volume_is_called_as_the_pack(iso: Path) -> None:
    said = tool("isoinfo", "-d", "-i", iso)
    assert "Volume id: SMALL_1\n" in said
    assert "Joliet with UCS level 3 found" in said
    assert "Rock Ridge signatures version 1 found" in said
    blocks = re.search(r"Volume size is: (\d+)", said)
    assert blocks is not None
    assert int(blocks[1]) * 2048 == iso.stat().st_size


def test_a_program_beside_the_pack_can_be_run(room: Path) -> None:
    program = Extra("unpacker/vmpack-linux-x86_64", b"#!/bin/sh\necho ran\n", executable=True)
    text = Extra("unpacker/readme.txt", b"text")
    with IsoWriter(room / "a.iso", extras=[program, text]) as writer:
        write_pack(writer)
    tool("xorriso", "-osirrox", "on", "-indev", room / "a.iso", "-extract", "/", room / "all")
    assert tool(room / "all" / program.name) == "ran\n"
    assert not (room / "all" / text.name).stat().st_mode & 0o111


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize(
    "options",
    ["", "norock", "norock,nojoliet", "norock,nojoliet,map=off"],
    ids=["rock-ridge", "joliet", "plain", "plain-unmapped"],
)
def test_linux_shows_the_same_files_and_the_pack_is_read_there(
    run_vmpack: Vmpack, iso: Path, small: Path, expected: dict[str, str], room: Path, options: str
) -> None:
    with mounted(iso, "iso9660", room / "medium", options=options) as medium:
        check(digests(medium), expected)
        identity = run_vmpack.json("inspect", small)["identity"]
        assert run_vmpack.json("inspect", medium)["identity"] == identity
        command = ("unpack", medium, "-o", room / "disk.raw", "--from", "store:", "--no-store")
        run_vmpack.good(*command)
        assert run_vmpack.json("verify", room / "disk.raw", medium, "--exact")["right"]


def test_every_form_of_a_pack_is_unpacked_verified_and_copied(
    run_vmpack: Vmpack, iso: Path, small: Path, room: Path
) -> None:
    """The image, what was copied out of it, and the copy in a folder: alike."""
    tool("xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", room / "extracted")
    run_vmpack.good("copy", iso, f"{room}/folder/")
    (room / "stick").mkdir()
    run_vmpack.good("copy", iso, f"{room}/stick/")
    run_vmpack.good("copy", iso, room / "back.vmpack")
    run_vmpack.good("copy", room / "back.vmpack", room / "again.iso")
    tool("cmp", iso, room / "again.iso")
    tool("diff", "-r", room / "folder", room / "stick")
    tool("diff", "-r", room / "folder", room / "extracted")
    identity = run_vmpack.json("inspect", small)["identity"]
    for number, form in enumerate((iso, room / "extracted", room / "folder", room / "stick")):
        assert run_vmpack.json("inspect", form)["identity"] == identity
        disk = room / f"disk-{number}.raw"
        run_vmpack.good("unpack", form, "-o", disk, "--from", "store:", "--no-store")
        assert run_vmpack.json("verify", disk, form, "--exact")["right"]
    run_vmpack.good("copy", small, "--boot", room / "boot.vmpack")
    report = run_vmpack.json(
        "unpack", room / "boot.vmpack", "-o", room / "from.raw", "--from", f"pack:{iso}",
        "--no-store",
    )  # fmt: skip
    assert any(one["source"] == f"pack:{iso}" for one in report["supplied"])
    run_vmpack.good("unpack", f"{iso}#small:1", "-o", room / "named.raw", "--from", "store:")


def test_a_pack_can_be_made_as_an_image_at_once(author: Vmpack, small: Path, room: Path) -> None:
    image = small.parent / "small-1.raw"
    options = ("--no-packages", "--name", "small", "--pack-version", "1")
    author.good("pack", image, "-o", room / "at-once.iso", *options)
    author.good("copy", small, room / "copied.iso")
    tool("cmp", room / "at-once.iso", room / "copied.iso")


ELSEWHERE = {"LC_ALL": "C", "LANG": "C", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7"}
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
          "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # fmt: skip


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this host may reach."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.mark.root
def test_another_user_elsewhere_makes_the_same_image(
    iso: Path, small: Path, open_folder: Path
) -> None:
    """Another user, zone, locale, umask, folder and host name; and some time later."""
    before = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; umask 077; exec "$0" "$@"']
    trial = [*before, *NOBODY, sys.executable, "-c", "import packer.cli.main"]
    done = subprocess.run(trial, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nobody can be another user here: {done.stderr}")
    host = trusting_host(open_folder / "home")
    tool("chown", "-R", "65534:65534", open_folder / "home")
    host.good(
        "copy", small, open_folder / "named-otherwise.iso", environment=ELSEWHERE,
        before=[*before, *NOBODY], folder=open_folder,
    )  # fmt: skip
    tool("cmp", iso, open_folder / "named-otherwise.iso")
    assert (open_folder / "named-otherwise.iso").stat().st_uid == 65534


@pytest.mark.slow
@pytest.mark.guest
def test_debian_goes_by_image_without_network(
    run_vmpack: Vmpack, pack_guest: Callable[[str], Packed], room: Path
) -> None:
    debian = pack_guest("debian-bios")
    run_vmpack.good("copy", debian.full, room / "debian.iso")
    before = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "-rn")
    run_vmpack.good(
        "unpack", room / "debian.iso", "-o", room / "disk.raw", "--from", "store:", "--no-store",
        before=before,
    )  # fmt: skip
    assert run_vmpack.json("verify", room / "disk.raw", room / "debian.iso")["right"]
