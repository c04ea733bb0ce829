"""The command as a user has it: another process, with a VMPACK_HOME of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VMPACK = str(Path(sys.executable).with_name("vmpack"))
LIMIT_S = 500


class Vmpack:
    """Runs `vmpack` with one VMPACK_HOME: `vmpack("inspect", image)` is the finished process."""

    def __init__(self, home: Path, program: Sequence[str] = (VMPACK,)) -> None:
        self.home = home
        self.program = program

    def __call__(
        self,
        *arguments: str | Path,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        limit_s: float = LIMIT_S,
    ) -> subprocess.CompletedProcess[str]:
        """`before`: a command that runs it, such as `unshare -n`."""
        return subprocess.run(
            [*before, *self.program, *map(str, arguments)],
            env=self.environment(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=limit_s,
        )

    def start(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """The running process, in a session of its own."""
        return subprocess.Popen(
            [*self.program, *map(str, arguments)],
            env=self.environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def good(self, *arguments: str | Path, **options: Any) -> str:
        """What it printed; it must succeed."""
        done = self(*arguments, **options)
        assert done.returncode == 0, f"{arguments}: status {done.returncode}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str | Path, **options: Any) -> dict[str, Any]:
        """What it printed with --json; it must succeed."""
        found: dict[str, Any] = json.loads(self.good(*arguments, "--json", **options))
        return found

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, "VMPACK_HOME": str(self.home), **(more or {})}


def content_bytes(report: Mapping[str, Any], source: str) -> int:
    """Bytes of contents that sources whose URI begins so supplied, by an unpack's report."""
    return sum(
        int(one["content_bytes"])
        for one in report["supplied"]
        if str(one["source"]).startswith(source)
    )
