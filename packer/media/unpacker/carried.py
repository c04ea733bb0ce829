"""The files of `copy --with-unpacker`: what a new host needs to unpack from the medium alone.

    unpacker/vmpack-linux-x86_64    the command as one executable file
    unpacker/needs.txt              on which hosts it runs, a line for people
    unpacker/LICENSES.txt           the terms of its parts
    unpacker/wheels/…               for other hosts: vmpack and what it needs, for pip
    unpacker/wheels/needs.txt       on which hosts those run

Nobody signs them: they are as trustworthy as who hands the medium over.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from packer.artifact.layout.extras import Extra
from packer.artifact.page import MAX_NEEDS_BYTES
from packer.artifact.small_files import read_small_file
from packer.errors import InputError
from packer.media.unpacker.cached import made_once
from packer.media.unpacker.parts import NAME, Target, this_host
from packer.media.unpacker.program import (
    LICENCES_NAME,
    NEEDS_NAME,
    check_builder,
    make_program,
    program_key,
)
from packer.media.unpacker.wheels import all_targets, make_wheels, wheels_key
from packer.progress import Progress

PROGRAM, HOST, ALL = "program", "host", "all"
KINDS = (PROGRAM, HOST, ALL)
"""What can be made: the program alone; and wheels for this kind of host; and for every kind."""

DEFAULT_KIND = HOST

FOLDER = "unpacker"
"""Where it lies on a medium."""

WHEELS = "wheels"
_PROGRAM = re.compile(r"vmpack-linux-[A-Za-z0-9_]+")
_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Unpacker:
    """Files that a medium carries. program: its name there. digest: its "sha256:…".

    needs: the hosts on which it runs, for people.
    """

    extras: list[Extra]
    program: str
    digest: str
    needs: str

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(one.size for one in self.extras)


def find_unpacker(wanted: str, progress: Progress) -> Unpacker:
    """Return what is to be carried; it is made unless that was done before.

    wanted: one of KINDS, or the folder "unpacker" of a medium made earlier. Raises InputError when
    that folder holds none, Error when none can be made here.
    """
    if wanted not in KINDS:
        folder = Path(wanted)
        return _carried(folder, folder / WHEELS)
    check_builder()
    return _carried(_program(progress), _wheels(_targets(wanted), progress))


def _targets(kind: str) -> list[Target]:
    return {PROGRAM: [], HOST: [this_host()], ALL: all_targets()}[kind]


def _program(progress: Progress) -> Path:
    return made_once(
        "program",
        f"{version(NAME)}-{program_key()[:_KEY_DIGITS]}",
        lambda made, work: make_program(made, work, progress),
    )


def _wheels(targets: list[Target], progress: Progress) -> Path | None:
    if not targets:
        return None
    return made_once(
        "wheels",
        f"{version(NAME)}-{wheels_key(targets)[:_KEY_DIGITS]}",
        lambda made, _: make_wheels(made, targets, progress),
    )


def _carried(folder: Path, wheels: Path | None) -> Unpacker:
    """Return the files of two folders as they lie on the medium."""
    programs = [path for path in _files(folder) if _PROGRAM.fullmatch(path.name)]
    if len(programs) != 1:
        raise InputError(
            f"{folder}: expected a folder with one program vmpack-linux-…, found {len(programs)}",
            hint="the folder 'unpacker' of a medium that was made with --with-unpacker",
        )
    expected = "a line about the hosts that it runs on"
    needs = read_small_file(folder / NEEDS_NAME, MAX_NEEDS_BYTES, expected).decode(
        "utf-8", "replace"
    )
    with programs[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    extras = [
        _extra(programs[0], FOLDER, executable=True),
        *(_extra(folder / name, FOLDER) for name in (NEEDS_NAME, LICENCES_NAME)),
        *(_extra(path, f"{FOLDER}/{WHEELS}") for path in (_files(wheels) if wheels else ())),
    ]
    return Unpacker(extras, extras[0].name, f"sha256:{digest}", needs.strip())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file())


def _extra(path: Path, folder: str, *, executable: bool = False) -> Extra:
    if not path.is_file():
        raise InputError(f"{path.parent}: expected a file {path.name}, found none")
    try:
        return Extra(f"{folder}/{path.name}", path, executable)
    except ValueError as error:
        raise InputError(f"{path}: media cannot hold a file of this name") from error
