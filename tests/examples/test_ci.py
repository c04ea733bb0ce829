"""The nightly job: both files say the same, the services accept them, and its steps run here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fixtures.demo_image import FOLDER, JOB, steps
from fixtures.guests.workshop import CHECKOUT

GITLAB = JOB.with_name("gitlab.yml")


@pytest.mark.parametrize(("schema", "path"), [("github-workflows", JOB), ("gitlab-ci", GITLAB)])
def test_the_file_obeys_the_services_schema(schema: str, path: Path, tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    check = [program, "--builtin-schema", f"vendor.{schema}"]
    subprocess.run([*check, str(path)], check=True, capture_output=True)
    broken = tmp_path / "broken.yml"
    broken.write_text(re.sub(r"(?m)^( +)(run|script):", r"\1rum:", path.read_text()))
    done = subprocess.run([*check, str(broken)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, "the schema says nothing"
    assert "rum" in done.stdout


def test_both_services_run_the_same_commands() -> None:
    job = yaml.safe_load(GITLAB.read_text())["demo-image"]
    assert [line.strip() for line in job["script"]] == [run.strip() for _, run in steps()]


def test_every_variable_of_the_commands_is_set_in_both_files() -> None:
    used = set(re.findall(r"\$\{?([A-Z_]+)", " ".join(run for _, run in steps())))
    github = yaml.safe_load(JOB.read_text())["jobs"]["demo-image"]["env"]
    gitlab = yaml.safe_load(GITLAB.read_text())["demo-image"]["variables"]
    assert used
    assert used <= set(github)
    assert used <= set(gitlab)
    # GitLab hands the project's variables to every job, so that a secret is not named in the file.
    assert set(github) - set(gitlab) == {"VMPACK_SIGNING_KEY"}


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1500)
def test_the_job_runs_to_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fixtures.demo_image"],
        cwd=CHECKOUT, env={**os.environ, "VMPACK_HOME": "/nonexistent"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    out = CHECKOUT / FOLDER / "checkout" / "out"
    summary = (out / "summary.md").read_text()
    assert summary.startswith("## demo:1\n")
    assert "| thin |" in summary
    assert summary in done.stdout
    assert {"thin.vmpack", "demo.iso", "full"} <= {path.name for path in out.iterdir()}
    assert "said 'VMPACK-FIXTURE'" in done.stdout
