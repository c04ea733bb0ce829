"""A Windows on FAT32, as XP may have it, through the whole command with its children."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from packer.cli.main import main
from packer.survey.disk import open_disk
from packer.survey.small_files import read_small_files
from packer.survey.survey import survey
from tests.guest.material import MIB, fat, write_tree
from tests.guest.windows.material import DRIVERS, Key, driver, xp
from tests.host import run

PAGE_FILE = b"pages" * 100_000


def disk(folder: Path, services: dict[str, Key], files: dict[str, bytes]) -> Path:
    tree = write_tree(folder / "tree", xp(services, files).volumes[0].files, {})
    return fat(folder / "disk.raw", tree)


def pack(image: Path, *options: str) -> int:
    output = str(image.with_suffix(".vmpack"))
    return main(
        ["pack", str(image), "-o", output, "--unsigned", "--no-packages", "--jobs", "1", *options]
    )


def config_of(image: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["inspect", str(image.with_suffix(".vmpack")), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["config"]
    return found


def test_a_windows_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{DRIVERS}/disk.sys": b"driver" * 200, "/pagefile.sys": PAGE_FILE}
    image = disk(tmp_path, {"disk": driver(error=3)}, files)
    assert pack(image) == 0
    config = config_of(image, capsys)
    assert config["guest"]["id"] == "windows-xp"
    (dropped,) = config["dropped"]
    assert (dropped["what"], dropped["bytes"]) == ("pagefile.sys on the disk", len(PAGE_FILE))


def test_a_windows_that_would_not_start_is_packed_on_request_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = disk(tmp_path, {"gone": driver(error=3)}, {})
    assert pack(image) == 3
    said = capsys.readouterr().err
    assert "drivers/gone.sys is not there, the driver of the service gone" in said
    assert "--incomplete" in said
    assert not image.with_suffix(".vmpack").exists()
    assert main(["inspect", str(image), "--jobs", "1"]) == 0
    assert "\nerror: this guest would not start: " in capsys.readouterr().out
    assert pack(image, "--incomplete") == 0
    assert config_of(image, capsys)["warnings"][0].startswith("this guest would not start")


def test_a_sleeping_windows_is_not_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = disk(tmp_path, {}, {"/hiberfil.sys": b"hibr" + bytes(9000)})
    assert pack(image) == 6
    assert "powercfg /h off" in capsys.readouterr().err


def test_options_that_contradict_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(tmp_path / "x.raw", "--keep-free", "--drop-snapshots") == 2
    assert "contradict" in capsys.readouterr().err


def ntfs(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(8 * MIB)
    run("mkntfs", "-F", "-Q", "-q", "-p", "0", "-H", "255", "-S", "63", path)
    for name, data in files.items():
        source = path.with_suffix(".file")
        source.write_bytes(data)
        run("ntfscp", "-q", "-f", path, source, name)
    return path


def test_files_that_lie_in_the_file_table_are_read_by_a_child(tmp_path: Path) -> None:
    small, large = b"[boot loader]\r\n" * 20, b"x" * 9000
    image = ntfs(tmp_path / "disk.raw", {"Boot.ini": small, "large.ini": large, "other": b"o"})
    with open_disk(image) as disk:
        paths = ("/boot.INI", "/large.ini", "/absent.ini", "/folder/boot.ini")
        assert read_small_files(disk, 0, disk.size, paths) == {"/boot.INI": small}
        assert "/Boot.ini" not in survey(disk).name


@pytest.mark.parametrize(
    ("type_id", "note"),
    [("7", ""), ("42", "dynamic disk (LDM): no reader for it")],
)
def test_what_a_dynamic_disk_holds_is_carried_raw(tmp_path: Path, type_id: str, note: str) -> None:
    """One that looks like NTFS may be a stripe of it."""
    volume = ntfs(tmp_path / "volume.raw", {"x": b"x" * 9000})
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(10 * MIB)
    run("sfdisk", "-q", image, stdin=f"label: dos\nstart=2048, size=16384, type={type_id}\n")
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(volume.read_bytes())
    with open_disk(image) as disk:
        found = survey(disk)
    assert found.volumes[0].kind == ("raw" if note else "ntfs")
    assert found.volumes[0].note == note
    assert [note in one for one in found.warnings] == ([True] if note else [])


@pytest.mark.parametrize(
    "type_id",
    [
        "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
        "AF9B60A0-1431-4F62-BC68-3311714A69AD",
        "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D",
    ],
)
def test_spread_volumes_of_a_gpt_are_named(tmp_path: Path, type_id: str) -> None:
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(10 * MIB)
    run("sfdisk", "-q", image, stdin=f"label: gpt\nstart=2048, size=8192, type={type_id}\n")
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(b"\x11" * MIB)
    with open_disk(image) as disk:
        found = survey(disk)
    assert "no reader for it" in found.volumes[0].note
    assert found.volumes[0].note in found.warnings[0]
