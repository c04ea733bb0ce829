"""The Windows-shaped disks of fixtures/windows, judged with children as the tool judges them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from packer.cli.main import main
from packer.guest.judge import judge
from packer.guest.model import Judgement
from packer.guest.windows.file_lists import GROUPS
from packer.survey.disk import open_disk
from packer.survey.examine import ChildExaminer
from packer.survey.model import Survey
from packer.survey.survey import survey
from tests.round_trip.packs import Guest, guest

NAMES = ("windows-xp", "windows-7", "windows-10-uefi")
# Built through ntfs-3g's mount.
pytestmark = [pytest.mark.guest, pytest.mark.root]


@dataclass(frozen=True, slots=True)
class Judged:
    guest: Guest
    survey: Survey
    judgement: Judgement

    @property
    def folder(self) -> str:
        return "/WINDOWS" if self.guest.name == "windows-xp" else "/Windows"

    def rules(self) -> dict[str, str]:
        """Folded path of every file of the boot set -> its rule."""
        rows = zip(self.survey.name_stream.tolist(), self.judgement.path, strict=True)
        return {
            path.casefold(): self.judgement.boot_rules[row]
            for row, path in rows
            if self.judgement.boot[row] >= 0
        }


@pytest.fixture(scope="module", params=NAMES)
def judged(request: pytest.FixtureRequest) -> Iterator[Judged]:
    built = guest(request.param)
    with open_disk(built.image) as disk:
        surveyed = survey(disk)
        yield Judged(built, surveyed, judge(surveyed, disk.source, ChildExaminer(disk, surveyed)))


def test_it_is_what_it_was_made_to_look_like(judged: Judged) -> None:
    found, facts = judged.judgement.guest, judged.guest.facts
    assert found.name.startswith(facts["product"]["name"])
    assert facts["product"]["build"] in found.release
    assert found.architecture in ("i686", "x86_64")
    assert found.firmware == facts["firmware"]


def needed(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (path below Windows, rule) of drivers that a person would expect in the set."""
    for one in facts["drivers"]:
        if not one["present"]:
            continue
        path = one["file"].casefold()
        if one["start"] == 0 and one["type"] in (1, 2, 8):
            yield path, f"starts with Windows: service {one['service']}"
        elif one["service"] == "Ntfs":
            yield path, "reads the boot volume: service Ntfs"
        elif one["boot_flags"]:
            yield (
                path,
                f"starts with Windows if it boots from such a device: service {one['service']}",
            )


def test_every_driver_that_the_registry_names_is_in_the_set_for_its_rule(judged: Judged) -> None:
    rules = judged.rules()
    expected = list(needed(judged.guest.facts))
    assert len(expected) > 15
    for path, rule in expected:
        assert rules[f"{judged.folder}/{path}".casefold()] == rule


def test_what_is_missing_is_told_and_stops_nobody(judged: Judged) -> None:
    missing = [
        one for one in judged.guest.facts["drivers"] if not one["present"] and one["start"] == 0
    ]
    assert missing
    assert judged.judgement.errors == judged.judgement.refusals == ()
    (said,) = [one for one in judged.judgement.warnings if "are not there" in one]
    assert all(one["service"] in said for one in missing)


def test_kernel_hives_and_code_pages_are_in_the_set(judged: Judged) -> None:
    rules = judged.rules()
    system32 = f"{judged.folder}/System32".casefold()
    for name in ("ntoskrnl.exe", "hal.dll", "kdcom.dll", "config/system", "l_intl.nls"):
        assert f"{system32}/{name}" in rules
    if judged.guest.name != "windows-xp":
        path = judged.guest.facts["bcd"]["loader_path"].replace("\\", "/").casefold()
        assert rules[path].startswith("named by the BCD on partition 1")


def test_page_and_hibernation_files_that_were_planted_are_dropped(judged: Judged) -> None:
    planted = judged.guest.facts["volumes"]["root"]["planted"]
    kinds = ("page file", "swap file", "hibernation file")
    expected = {row["path"].lstrip("/") for row in planted if row["kind"].startswith(kinds)}
    assert expected
    if any(row["kind"].startswith("shadow copy") for row in planted):
        expected = set()  # older copies may read what lay in their clusters before
    assert {one.what.partition(" on ")[0] for one in judged.judgement.dropped} == expected


def test_shadow_copies_are_told_where_there_are_some(judged: Judged) -> None:
    told = [one for one in judged.judgement.warnings if "shadow copies" in one]
    planted = judged.guest.facts["volumes"]["root"]["planted"]
    assert bool(told) == any(row["kind"].startswith("shadow copy") for row in planted)


@pytest.mark.parametrize("name", NAMES)
def test_inspect_shows_the_boot_set_in_groups_with_reasons(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(guest(name).image)
    assert main(["inspect", image, "--jobs", "1"]) == 0
    shown = capsys.readouterr().out.partition("boot set")[2].partition("\nclasses")[0]
    lines = [line.rpartition("  ") for line in shown.splitlines()]
    assert [last for first, _, last in lines if first.strip() and last in GROUPS] == list(GROUPS)
    assert "starts with Windows (" in shown
    assert re.search(r"[0-9.]+ MB +[0-9]+ files  in all$", shown.strip())


@pytest.mark.parametrize("judged", NAMES[:1], indirect=True)
def test_what_boot_ini_names_is_found_though_it_lies_in_the_file_table(judged: Judged) -> None:
    assert "/boot.ini" not in judged.judgement.path
    rules = judged.rules()
    for name in ("halmacpi.dll", "ntkrnlmp.exe"):
        assert rules[f"/windows/system32/{name}"] == "named by boot.ini on partition 1"


@pytest.mark.parametrize("name", NAMES[:1])
def test_inspect_lists_every_file_with_its_rule_for_machines(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(guest(name).image), "--jobs", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["reason"] for one in report["boot"]] == list(GROUPS)
    for group in report["boot"]:
        assert len(group["paths"]) == group["files"]
        assert all(one["rule"] and one["size_bytes"] >= 0 for one in group["paths"])
    boot = report["totals"]["boot"][1]
    assert abs(sum(one["size_bytes"] for one in report["boot"]) - boot) <= boot // 50
    assert main(["inspect", str(guest(name).image), "--jobs", "1", "--files"]) == 0
    assert (
        "/WINDOWS/system32/drivers/ACPI.sys  <- starts with Windows: service ACPI".casefold()
        in (capsys.readouterr().out.casefold())
    )
