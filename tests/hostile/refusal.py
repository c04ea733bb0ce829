"""What every refusal looks like."""

from __future__ import annotations

import subprocess
from pathlib import Path

FAILED, USAGE, INPUT, TRUST, MISSING, IN_USE, MISMATCH, INTERRUPTED = 1, 2, 3, 4, 5, 6, 7, 130


def refused(
    done: subprocess.CompletedProcess[str], code: int, *words: str, output: Path | None = None
) -> None:
    """The documented exit code, one line that names what and where, at most one hint, nothing
    else; nothing under the final name.
    """
    assert done.returncode == code, f"status {done.returncode}, expected {code}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("vmpack: note: ")]
    assert lines[0].startswith("vmpack: "), done.stderr
    if code != MISSING:  # which lists what is missing
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), lines
    for word in words:
        assert word in done.stderr, f"{word!r} is not said:\n{done.stderr}"
    if output is not None:
        assert not output.exists(), f"{output} was left behind"
        assert not output.is_symlink()
