"""Disks partitioned by sfdisk and sgdisk."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

MIB = 1 << 20


def blank(path: Path, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def sfdisk(disk: Path, script: str) -> Path:
    _run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk)], script)
    return disk


def sfdisk_delete(disk: Path, number: int) -> None:
    _run(["sfdisk", "--quiet", "--delete", str(disk), str(number)])


def sgdisk(disk: Path, *options: str) -> Path:
    _run(["sgdisk", *options, str(disk)])
    return disk


def sfdisk_says(disk: Path) -> dict[str, Any]:
    """Return sfdisk's own reading of the table."""
    table = json.loads(_run(["sfdisk", "--json", str(disk)]))["partitiontable"]
    assert isinstance(table, dict)
    return table


def patch(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _run(command: list[str], script: str = "") -> str:
    done = subprocess.run(command, input=script, check=True, capture_output=True, text=True)
    return done.stdout
