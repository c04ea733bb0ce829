"""Disks partitioned by sfdisk and sgdisk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.host import run

MIB = 1 << 20


def blank(path: Path, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def sfdisk(disk: Path, script: str) -> Path:
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, stdin=script)
    return disk


def sfdisk_delete(disk: Path, number: int) -> None:
    run("sfdisk", "--quiet", "--delete", disk, str(number))


def sgdisk(disk: Path, *options: str) -> Path:
    run("sgdisk", *options, disk)
    return disk


def sfdisk_says(disk: Path) -> dict[str, Any]:
    """Return sfdisk's own reading of the table."""
    table = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    assert isinstance(table, dict)
    return table


def patch(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)
