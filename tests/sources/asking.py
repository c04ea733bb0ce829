"""What a source is asked for, with hints written by hand."""

from __future__ import annotations

import numpy as np

from packer.artifact.hints import Hints
from packer.sources.base import Wanted
from tests.artifact.make import contents_of


def as_hints(rows: list[tuple[int, str, int, int]]) -> Hints:
    """rows: (content, path, file size, file offset)."""
    rows = sorted(rows, key=lambda row: row[0])
    columns = np.array([(row[0], row[2], row[3]) for row in rows], dtype=np.int64).reshape(-1, 3)
    package = np.full(len(rows), -1, dtype=np.int64)
    return Hints(columns[:, 0], [row[1] for row in rows], columns[:, 1], columns[:, 2], package, ())


def whole_files(files: dict[str, bytes]) -> Wanted:
    """Ask for files by their guest paths, one content each."""
    contents = contents_of(list(files.values()))
    hints = [(row, path, len(files[path]), 0) for row, path in enumerate(files)]
    return Wanted(contents, np.arange(len(files)), as_hints(hints))
