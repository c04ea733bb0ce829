"""The Windows-shaped guests from disk to classes, as `pack` goes: children, hashes, hints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pefile
import pytest

from fixtures.guests.register import build
from formats.source import Runs
from packer.artifact.contents import Class
from packer.artifact.hints import Package, decode_hints, encode_hints
from packer.pack.prepare import Prepared, prepare
from packer.progress import Silent
from packer.survey.disk import open_disk
from packer.survey.runs import runs_of
from tests.host import ROOT

pytestmark = [*ROOT, pytest.mark.guest]


@dataclass(frozen=True, slots=True)
class Guest:
    prepared: Prepared
    planted: list[dict[str, Any]]
    programs: dict[str, tuple[int, int]]

    def classes(self, path: str) -> set[Class]:
        """The classes of the contents of a file."""
        hints = self.prepared.hints
        rows = [hints.content[row] for row, one in enumerate(hints.path) if one == path]
        return {Class(int(self.prepared.map.contents.classes[row])) for row in rows}

    def paths(self, beginning: str) -> set[str]:
        folded = beginning.casefold()
        return {one for one in self.prepared.hints.path if one.casefold().startswith(folded)}


def ask_nobody(packages: Sequence[Package]) -> Sequence[Package]:
    raise AssertionError(f"no mirror of a distribution knows {packages}")


@cache
def guest(name: str) -> Guest:
    image: Path = build(name)
    with open_disk(image) as disk:
        prepared = prepare(disk, resolve=ask_nobody, jobs=2, progress=Silent())
        hints, survey = prepared.hints, prepared.survey
        programs: dict[str, tuple[int, int]] = {}
        for stream, path in zip(survey.name_stream.tolist(), survey.name, strict=True):
            runs = runs_of(survey, stream, int(survey.file_size[stream]))
            if path.casefold().endswith((".exe", ".dll", ".sys")) and runs is not None:
                data = Runs(disk.source, runs).pread(0, int(survey.file_size[stream]))
                if data[:2] == b"MZ" and path in hints.path:
                    found = pefile.PE(data=data, fast_load=True)
                    header, optional = found.FILE_HEADER, found.OPTIONAL_HEADER
                    programs[path] = (header.TimeDateStamp, optional.SizeOfImage)
    facts = json.loads(image.with_suffix(".json").read_text())
    return Guest(prepared, facts["volumes"]["root"]["planted"], programs)


@pytest.mark.parametrize("name", ["windows-7", "windows-10-uefi"])
def test_all_of_the_component_store_is_shared_or_boot(name: str) -> None:
    found = guest(name)
    stored = found.paths("/Windows/WinSxS/amd64_")
    assert len(stored) > 250
    for path in stored:
        assert found.classes(path) <= {Class.SHARED, Class.BOOT}, path
    manifests = found.paths("/Windows/WinSxS/Manifests/amd64_microsoft")
    assert len(manifests) > 50
    assert all(found.classes(path) == {Class.SHARED} for path in manifests)


@pytest.mark.parametrize("name", ["windows-7", "windows-10-uefi"])
def test_files_of_the_store_have_been_compared_with_its_manifests(name: str) -> None:
    judgement = guest(name).prepared.judgement
    survey = guest(name).prepared.survey
    names = zip(survey.name_stream.tolist(), survey.name, strict=True)
    inside = {row for row, path in names if path.startswith("/Windows/WinSxS/amd64_")}
    expected = [judgement.expected[row] for row in inside]
    assert len([one for one in expected if isinstance(one, bytes) and len(one) == 32]) > 250
    assert None not in expected


def test_of_xp_every_program_that_the_catalog_lists_is_shared_or_boot() -> None:
    found = guest("windows-xp")
    programs = {path for path in found.programs if path.startswith("/WINDOWS/system32/")}
    assert len(programs) > 150
    private = {path for path in programs if Class.PRIVATE in found.classes(path)}
    assert private == set()


@pytest.mark.parametrize("name", ["windows-xp", "windows-7", "windows-10-uefi"])
def test_what_is_a_users_or_a_vendors_is_private(name: str) -> None:
    found = guest(name)
    folders = ("/Users/", "/Documents and Settings/", "/Program Files/Harbour CAD/harbour.")
    own = set().union(*map(found.paths, (*folders, "/Windows/System32/config/SOFTWARE")))
    assert len(own) > 20
    # What a user has a copy of, the component store has, too.
    wrong = {path for path in own if found.classes(path) != {Class.PRIVATE}}
    assert {path.rpartition("/")[2] for path in wrong} <= {"setup.exe"}


def test_a_program_of_windows_in_a_vendors_folder_is_shared_by_its_bytes() -> None:
    assert guest("windows-7").classes("/Program Files/Harbour CAD/ucrtbase.dll") == {Class.SHARED}


def test_compressed_files_beside_the_store_are_private() -> None:
    found = guest("windows-10-uefi")
    wof = [one["path"] for one in found.planted if one["kind"] == "wof"]
    lznt1 = [one["path"] for one in found.planted if one["kind"] == "lznt1"]
    assert len(wof) > 3
    assert len(lznt1) > 10
    paths = [*(f"{path}:WofCompressedData" for path in wof), *lznt1]
    assert {one for path in paths for one in found.classes(path)} == {Class.PRIVATE}


@pytest.mark.parametrize("name", ["windows-xp", "windows-7", "windows-10-uefi"])
def test_the_hints_have_the_keys_that_pefile_finds(name: str) -> None:
    found = guest(name)
    hints = decode_hints(encode_hints(found.prepared.hints), len(found.prepared.map.contents))
    keys = {
        path: hints.programs.of(int(row))
        for path, row in zip(hints.path, hints.content, strict=True)
    }
    assert len(found.programs) > 150
    assert {path: keys[path] for path in found.programs} == found.programs
