"""The reference implementation at work: qemu-img and qemu-io."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

KIB = 1 << 10
MIB = 1 << 20


def qemu_img(*arguments: str | Path) -> str:
    return _run("qemu-img", *arguments)


def qemu_io(image: Path, *commands: str, image_format: str = "qcow2") -> None:
    options = [word for command in commands for word in ("-c", command)]
    output = _run("qemu-io", "-f", image_format, *options, image)
    for complaint in ("failed", "rror"):
        assert complaint not in output, output


def create(image: Path, size: int, *options: str, base: tuple[Path, str] | None = None) -> Path:
    arguments: list[str | Path] = ["create", "-q", "-f", "qcow2"]
    if options:
        arguments += ["-o", ",".join(options)]
    if base is not None:
        arguments += ["-b", base[0], "-F", base[1]]
    qemu_img(*arguments, image, str(size))
    return image


def guest_bytes(image: Path, image_format: str = "qcow2") -> bytes:
    """Return the whole disk as qemu reads it."""
    raw = image.with_suffix(".oracle")
    qemu_img("convert", "-f", image_format, "-O", "raw", image, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def guest_map(image: Path) -> list[dict[str, Any]]:
    found = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", image))
    assert isinstance(found, list)
    return found


def _run(*arguments: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout
