"""What tests of running disks share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets in folders of it."""
    folder = Path(tempfile.mkdtemp(prefix="vm-"))
    yield folder
    shutil.rmtree(folder)
