"""Discarding ranges of a qcow2 image through QEMU, which keeps its books.

Whole clusters only: QEMU ignores what it is told of parts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from packer.errors import Error, InputError
from packer.survey.child import bare_environment, clean_text

BATCH_RANGES = 512
"""Ranges that one QEMU is told: its command line holds them."""

MAX_RANGE_BYTES = 1 << 30
"""QEMU takes requests below 2 GiB."""

_SOUND = (0, 3)
"""Exit codes of `qemu-img check`: nothing found, leaked clusters only."""

_SECONDS = 600


def refuse_unsound(path: Path) -> None:
    """Raise InputError for a qcow2 image whose books are wrong: QEMU would give away what is used.

    path: of an image that was opened before (packer.survey.disk), which names no other file.
    """
    _run("qemu-img", "check", "-q", _image(path), codes=_SOUND)


def discard(path: Path, ranges: Sequence[tuple[int, int]]) -> None:
    """Discard ranges [start, end) of the disk, whole clusters, at most BATCH_RANGES.

    QEMU locks the image meanwhile. Raises InputError when it will not, or finds it in use.
    """
    commands = [
        word
        for start, end in ranges
        for low in range(start, end, MAX_RANGE_BYTES)
        for word in ("-c", f"discard -q {low} {min(end - low, MAX_RANGE_BYTES)}")
    ]
    _run("qemu-io", *commands, _image(path), codes=(0,))


def _run(program: str, *arguments: str, codes: tuple[int, ...]) -> bytes:
    found = shutil.which(program)
    if found is None:
        raise InputError(
            f"a qcow2 image is compacted with {program}",
            hint="install it (package qemu-utils on Debian and Ubuntu, qemu-img on Fedora)",
        )
    try:
        # In a session of its own: an interrupt from the terminal would stop it half way.
        done = subprocess.run(
            [found, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            env=bare_environment(),
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Error(f"{program} did not end within {_SECONDS} seconds") from error
    if done.returncode not in codes:
        words = (done.stderr + b" " + done.stdout).decode("utf-8", "replace").split()
        raise InputError(
            f"{program} refused: {clean_text(' '.join(words)) or f'exit code {done.returncode}'}",
            hint="`qemu-img check` says more about the image",
        )
    return done.stdout


def _image(path: Path) -> str:
    """Return the image in qemu's JSON form, in which no part of a file name has a meaning."""
    options = {
        "driver": "qcow2",
        "discard": "unmap",
        "file": {"driver": "file", "filename": str(path), "discard": "unmap"},
    }
    return "json:" + json.dumps(options)
