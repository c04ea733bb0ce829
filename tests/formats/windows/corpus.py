"""Real hives, which are no part of the project: their folder comes from the environment."""

from __future__ import annotations

import functools
import lzma
import os
from pathlib import Path

import pytest

VARIABLE = "VMPACK_CORPUS"

needs_corpus = pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"real hives: {VARIABLE} names no folder with them"
)


@functools.cache
def corpus(name: str) -> bytes:
    """The bytes of a file of the folder."""
    return lzma.decompress((Path(os.environ[VARIABLE]) / f"{name}.xz").read_bytes())


def dirty_logs() -> list[bytes]:
    """LOG1 and LOG2 of SYSTEM_win10_dirty."""
    return [corpus(f"SYSTEM_win10_dirty.LOG{number}") for number in (1, 2)]
