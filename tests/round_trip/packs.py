"""Packs of the fixture guests, made once for each state of the code and kept in build/."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixtures.boot import Firmware
from fixtures.guests import build
from fixtures.guests.workshop import CHECKOUT, locked, scratch
from tests.round_trip.command import Vmpack

PACKS_VARIABLE = "VMPACK_TEST_PACKS"
STALE_S = 3 * 3600
SHARED_LEVEL = 3
"""zstd level of the shared contents: a low one saves half a minute and changes no content."""

CODE = ("formats", "packer/artifact", "packer/guest", "packer/pack", "packer/survey")
"""What decides the bytes of a pack."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A fixture guest and the description beside it."""

    name: str
    image: Path
    facts: dict[str, Any]

    @property
    def firmware(self) -> Firmware:
        return "uefi" if self.facts["firmware"] == "uefi" else "bios"

    @property
    def root_offset(self) -> int:
        return int(self.facts["root_offset_bytes"])

    def partition(self, role: str) -> tuple[int, int]:
        """Where a partition lies on the disk, [start, end) in bytes."""
        part = self.facts["partitions"][role]
        return part["offset_bytes"], part["offset_bytes"] + part["size_bytes"]


@dataclass(frozen=True, slots=True)
class Packed:
    """A guest's signed pack in three copies. `full` is a folder, the others are files."""

    guest: Guest
    full: Path
    thin: Path
    boot: Path


def guest(name: str) -> Guest:
    image = build(name)
    return Guest(name, image, json.loads(image.with_suffix(".json").read_text()))


def packs_folder() -> Path:
    folder = Path(os.environ.get(PACKS_VARIABLE) or CHECKOUT / "build" / "test-packs").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def author() -> Vmpack:
    """Who makes and signs the packs; trusts himself."""
    folder = packs_folder()
    with locked(folder, "author"):
        vmpack = Vmpack(folder / "author")
        if not (vmpack.home / "config" / "id_ed25519.pub").exists():
            shutil.rmtree(vmpack.home, ignore_errors=True)
            vmpack.good("key", "generate")
    return vmpack


def author_key() -> Path:
    """The author's public key."""
    return author().home / "config" / "id_ed25519.pub"


def trusting_host(home: Path) -> Vmpack:
    """A host that trusts the author and has used nothing yet."""
    trusted = author_key().parent / "trust.json"
    (home / "config").mkdir(parents=True)
    shutil.copyfile(trusted, home / "config" / trusted.name)
    return Vmpack(home)


def packed(name: str) -> Packed:
    """The packs of a guest, made now or found from before."""
    packer, one, folder = author(), guest(name), packs_folder()
    place = folder / f"{name}-{_stamp(one)}"
    with locked(folder, name):
        if not place.exists():
            _remove_stale(folder, name)
            with scratch(folder, name) as work:
                made = work / "packs"
                made.mkdir()
                _make(packer, one, made)
                made.rename(place)
        os.utime(place)
    return Packed(one, place / "full", place / "thin.vmpack", place / "boot.vmpack")


def _make(packer: Vmpack, one: Guest, place: Path) -> None:
    options = ("--name", one.name, "--level", str(SHARED_LEVEL), "--quiet")
    packer.good("pack", one.image, "--output", f"{place}/full/", *options)
    for extent in ("thin", "boot"):
        packer.good("copy", f"{place}/full", f"--{extent}", place / f"{extent}.vmpack", "--quiet")


def _stamp(one: Guest) -> str:
    digest = hashlib.sha256()
    digest.update(f"{one.facts['recipe']} {one.facts['nonce']} {author_key().read_text()}".encode())
    for folder in CODE:
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def _remove_stale(folder: Path, name: str) -> None:
    """Remove packs of this guest that no run has used for a while; another may be running now."""
    for place in folder.glob(f"{name}-{'?' * 16}"):
        if time.time() - place.stat().st_mtime > STALE_S:
            shutil.rmtree(place, ignore_errors=True)
