"""vmpack and what it needs as wheels, to be installed by pip without a network.

The wheels of others are those of the package index, with its bytes: whoever doubts them can
compare their digests there. Only their names are shortened to one platform tag each, because
Joliet ends names at 64 characters; pip reads the tags from the name alone (PEP 427, PEP 425).
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib.metadata import distribution
from pathlib import Path

from packer.environment import inherited
from packer.errors import Error
from packer.media.unpacker.parts import (
    INSTALL_HINT,
    NAME,
    Target,
    code_files,
    dependencies,
)
from packer.progress import Advance, Progress, ignore
from packer.text import printable

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
NEEDS_NAME = "needs.txt"

_OLDEST, _NEWEST = 17, 28
"""The C libraries whose wheels are taken: manylinux_2_17 to manylinux_2_28 (PEP 600)."""

_TIME = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o100644 << 16
_METADATA = ("METADATA", "entry_points.txt")
_WHEEL = "Wheel-Version: 1.0\nGenerator: vmpack\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_DOWNLOADING = re.compile(r"\s*Downloading ([^-\s]+)-\S+\.whl")
_PROGRESS = re.compile(r"Progress ([0-9]+) of ([0-9]+)")
_LINES_SHOWN = 3


def all_targets() -> list[Target]:
    """Return every kind of host that is supported."""
    return [Target(python, machine) for machine in MACHINES for python in PYTHONS]


def wheels_key(targets: Sequence[Target]) -> str:
    """Return a digest of what decides the wheels for some kinds of hosts."""
    digest = hashlib.sha256()
    for name, path in code_files():
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for target in targets:
        digest.update(f"{target} {dependencies(target)}\n".encode())
    return digest.hexdigest()


def make_wheels(folder: Path, targets: Sequence[Target], progress: Progress) -> None:
    """Write the wheels for some kinds of hosts into a folder, and what they need.

    Raises Error when pip cannot fetch one of them.
    """
    write_own_wheel(folder)
    for target in targets:
        _fetch(dependencies(target), target, folder, progress)
    for path in sorted(folder.glob("*.whl")):
        path.rename(path.with_name(short_name(path.name)))
    (folder / NEEDS_NAME).write_text(f"{_needs(targets)}\n", "utf-8")


def _needs(targets: Sequence[Target]) -> str:
    pythons = ", ".join(sorted({one.python for one in targets}))
    machines = ", ".join(sorted({one.machine for one in targets}, reverse=True))
    return f"Linux on {machines} with glibc 2.{_NEWEST} or later and Python {pythons}"


def short_name(name: str) -> str:
    """Return the name of a wheel with the shortest of its platform tags alone."""
    front, _, platforms = name.removesuffix(".whl").rpartition("-")
    return f"{front}-{min(platforms.split('.'), key=lambda tag: (len(tag), tag))}.whl"


def write_own_wheel(folder: Path) -> Path:
    """Write the wheel of vmpack as it is installed here, from a checkout or not.

    The same files give the same bytes.
    """
    own = distribution(NAME)
    about = f"{NAME}-{own.version}.dist-info"
    files = [(name, path.read_bytes()) for name, path in code_files()]
    texts = {name: own.read_text(name) for name in _METADATA} | {"WHEEL": _WHEEL}
    files += [(f"{about}/{name}", text.encode()) for name, text in texts.items() if text]
    files += [
        (f"{about}/licenses/{file.name}", file.read_binary())
        for file in own.files or ()
        if file.parent.name == "licenses"
    ]
    rows = [f"{name},sha256={_record_digest(data)},{len(data)}\n" for name, data in files]
    files.append((f"{about}/RECORD", "".join([*rows, f"{about}/RECORD,,\n"]).encode()))
    path = folder / f"{NAME}-{own.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = _FILE_MODE
            wheel.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def _record_digest(data: bytes) -> str:
    """Return a digest as RECORD has it (PEP 376, PEP 427)."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def _fetch(wanted: dict[str, str], target: Target, folder: Path, progress: Progress) -> None:
    tags = [f"manylinux_2_{minor}" for minor in range(_NEWEST, _OLDEST - 1, -1)]
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar=raw"),
        *("--implementation=cp", f"--python-version={target.python}", f"--dest={folder}"),
        *(f"--platform={tag}_{target.machine}" for tag in (*tags, "manylinux2014")),
        *(name + which for name, which in wanted.items()),
    ]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=inherited(),
    ) as process:
        assert process.stdout is not None
        try:
            complaints = show_downloads(process.stdout, f"for Python {target.python}", progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = "\n".join(complaints[:_LINES_SHOWN]) or f"pip ended with code {process.returncode}"
        raise Error(
            f"the wheels for Python {target.python} on {target.machine} cannot be had:\n{said}",
            hint="--with-unpacker=program carries none; pip older than 24.1 cannot do this: "
            + INSTALL_HINT,
        )


def show_downloads(lines: Iterable[str], purpose: str, progress: Progress) -> list[str]:
    """Show what pip fetches, file by file; return what it complains about."""
    complaints: list[str] = []
    name, done = "wheels", 0
    advance: Advance = ignore
    with ExitStack() as bar:
        for line in lines:
            if found := _DOWNLOADING.match(line):
                name = printable(found[1])
            elif found := _PROGRESS.match(line):
                now, total = int(found[1]), int(found[2])
                if now <= done or advance is ignore:
                    bar.close()
                    done, advance = 0, bar.enter_context(progress.stage(f"{name} {purpose}", total))
                advance(now - done)
                done = now
            elif line.startswith("ERROR"):
                complaints.append(line.strip())
    return complaints
