"""Run the command in this process, with a home of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packer.cli.main import main

MIB = 1 << 20


@dataclass(frozen=True)
class Ran:
    """What came of a run."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What was printed, which is one JSON document and nothing else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def refused(self, code: int, *words: str) -> None:
        """It ended with this code, a message of one line, perhaps a hint, and no result."""
        assert self.code == code, self
        first, *rest = self.err.strip().split("\n")
        assert first.startswith("vmpack: "), self.err
        assert all(line.startswith("  ") for line in rest), self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        for word in words:
            assert word in self.err


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("verb", …)` on a host that has seen nothing yet, in an empty folder."""
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VMPACK_KEY_PASSPHRASE", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
        printed = capfd.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk that nobody can parse: all of it is private."""
    path = tmp_path / "guest.raw"
    noise = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(MIB) + noise + bytes(2 * MIB - len(noise)))
    return path


@pytest.fixture
def signed(run: Run, image: Path) -> Path:
    """A pack of it, signed by a key that this host trusts."""
    assert run("key", "generate").code == 0
    done = run("pack", image, "-o", "demo.vmpack", "--no-packages", "-q")
    assert done.code == 0, done.err
    return Path("demo.vmpack").absolute()
