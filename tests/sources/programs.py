"""Windows programs as a pack's hints know them, and stores that hold them."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from formats.windows.symbols import compressed_path, symbol_path
from packer.artifact.contents import Class
from packer.artifact.programs import Programs
from packer.sources.base import Wanted
from tests.artifact.make import contents_of
from tests.sources.asking import as_hints


@dataclass(frozen=True)
class Program:
    """A file at a guest path with what its headers would say."""

    path: str
    data: bytes
    timestamp: int = 0x4A5BDB3B
    size_of_image: int = 0x1AA000
    kept: Class = Class.SHARED

    @property
    def place(self) -> str:
        name = self.path.rpartition("/")[2].lower()
        return symbol_path(name, self.timestamp, self.size_of_image)


def programs_wanted(*programs: Program) -> Wanted:
    """Ask for all of them; one content each."""
    contents = contents_of([one.data for one in programs], [one.kept for one in programs])
    hints = as_hints([(row, one.path, len(one.data), 0) for row, one in enumerate(programs)])
    table = Programs(
        np.arange(len(programs)),
        np.array([one.timestamp for one in programs], dtype=np.int64),
        np.array([one.size_of_image for one in programs], dtype=np.int64),
    )
    rows = np.arange(len(programs))
    return Wanted(contents, rows, replace(hints, programs=table))


def keep(store: Path, program: Program, *, place: str = "", data: bytes | None = None) -> Path:
    """Put a program into a store that everybody can read."""
    file = store / (place or program.place)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(program.data if data is None else data)
    file.chmod(0o644)
    for folder in file.parents:
        folder.chmod(0o755)
        if folder == store:
            return file
    raise AssertionError(f"{file} does not lie in {store}")


def keep_cabinet(store: Path, program: Program) -> Path:
    """Put a program into a store in a cabinet, as gcab makes it (MSZIP)."""
    return keep(store, program, place=compressed_path(program.place), data=cabinet(program))


def cabinet(program: Program) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / program.place.rpartition("/")[2]
        file.write_bytes(program.data)
        made = file.with_name("made.cab")
        subprocess.run(["gcab", "-c", "-n", "-z", made, file], check=True, capture_output=True)
        return made.read_bytes()
