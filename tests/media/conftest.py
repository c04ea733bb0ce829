"""The unpacker that media carry, made once for each state of the code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.packs import Packed, packs_folder


@dataclass(frozen=True)
class Carried:
    """medium: a folder with the BusyBox guest and an unpacker. report: what `copy` said of it."""

    medium: Path
    report: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.medium / "unpacker"

    @property
    def program(self) -> Path:
        return self.medium / str(self.report["program"])


@pytest.fixture(scope="session")
def unpackers() -> Vmpack:
    """Who makes unpackers: a host whose cache outlives this run."""
    return Vmpack(packs_folder() / "unpackers")


@pytest.fixture(scope="session")
def carried(
    unpackers: Vmpack, busybox: Packed, tmp_path_factory: pytest.TempPathFactory
) -> Carried:
    """Made by PyInstaller, with the wheels of the package index."""
    medium = tmp_path_factory.mktemp("carried") / "stick"
    report = unpackers.json("copy", busybox.full, f"{medium}/", "--with-unpacker")
    return Carried(medium, report["unpacker"])
