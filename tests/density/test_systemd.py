"""The systemd units of examples: systemd takes them, and the command in them is one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fixtures.guests.workshop import CHECKOUT
from packer.cli.main import build_parser

UNITS = CHECKOUT / "examples" / "systemd"
SERVICE, TIMER = UNITS / "vmpack-dedupe.service", UNITS / "vmpack-dedupe.timer"


def test_the_command_of_the_service_is_one() -> None:
    [line] = re.findall(r"^ExecStart=(.+)$", SERVICE.read_text(), re.MULTILINE)
    program, *words = shlex.split(line)
    assert Path(program).name == "vmpack"
    assert build_parser().parse_args(words).verb == "dedupe"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this host has no systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    program = tmp_path / "vmpack"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in (SERVICE, TIMER):
        text = unit.read_text().replace("/usr/local/bin/vmpack", str(program))
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / unit.name) for unit in (SERVICE, TIMER)]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (0, "")
