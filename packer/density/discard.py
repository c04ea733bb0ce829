"""Discarding ranges of a qcow2 image through QEMU, which keeps its books.

Whole clusters only: QEMU ignores what it is told of parts. It gets an open file, not a name, so
that it changes the file that was judged and no other that has taken its name since.
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
"""Ranges that one QEMU is told, and those of MAX_RANGE_BYTES: its command line holds them."""

MAX_RANGE_BYTES = 1 << 30
"""QEMU takes requests below 2 GiB."""

_SOUND = (0, 3)
"""Exit codes of `qemu-img check`: nothing found, leaked clusters only."""

_SECONDS = 600


def refuse_unsound(path: Path, fd: int) -> None:
    """Raise InputError for a qcow2 image whose books are wrong: QEMU would give away what is used.

    path: what it is called in an error. fd: of an image that was read before
    (packer.survey.disk), which names no other file.
    """
    _run("qemu-img", ["check", "-q"], path, fd, _SOUND)


def discard(path: Path, fd: int, ranges: Sequence[tuple[int, int]]) -> None:
    """Discard ranges [start, end) of the disk: whole clusters, at most BATCH_RANGES of at most
    MAX_RANGE_BYTES. path, fd: see above.

    QEMU locks the image meanwhile. Raises InputError when it will not, or finds it in use.
    """
    commands = [
        word for start, end in ranges for word in ("-c", f"discard -q {start} {end - start}")
    ]
    _run("qemu-io", commands, path, fd, (0,))


def _run(
    program: str, arguments: Sequence[str], path: Path, fd: int, codes: tuple[int, ...]
) -> None:
    found = shutil.which(program)
    if found is None:
        raise InputError(
            f"a qcow2 image is compacted with {program}",
            hint="install it (package qemu-utils on Debian and Ubuntu, qemu-img on Fedora)",
        )
    with subprocess.Popen(
        [found, *arguments, _image(fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=bare_environment(),
        start_new_session=True,  # an interrupt at the terminal would end it half way
        pass_fds=(fd,),
    ) as process:
        try:
            said = _finish(process)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise Error(f"{program} did not end within {_SECONDS} seconds") from error
    if process.returncode not in codes:
        words = " ".join(said.decode("utf-8", "replace").replace(_name(fd), path.name).split())
        raise InputError(
            f"{path}: {program} refused: {clean_text(words) or f'exit code {process.returncode}'}",
            hint="`qemu-img check` says more about the image",
        )


def _finish(process: subprocess.Popen[bytes]) -> bytes:
    """Return what it printed, once it has ended, which an interruption waits for."""
    try:
        return process.communicate(timeout=_SECONDS)[0]
    except KeyboardInterrupt:
        process.communicate(timeout=_SECONDS)
        raise


def _name(fd: int) -> str:
    """Return what a process calls a file that it got open; see proc(5)."""
    return f"/proc/self/fd/{fd}"


def _image(fd: int) -> str:
    """Return the image in qemu's JSON form, which leaves nothing for it to guess."""
    options = {
        "driver": "qcow2",
        "discard": "unmap",
        "file": {"driver": "file", "filename": _name(fd), "discard": "unmap"},
    }
    return "json:" + json.dumps(options)
