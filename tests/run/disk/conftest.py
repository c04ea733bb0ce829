"""The pack that most tests of a running disk start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.artifact.opened import OpenedPack
from tests.run.disk.lazy import thin_pack


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[OpenedPack]:
    with thin_pack(tmp_path / "thin.vmpack") as pack:
        yield pack
