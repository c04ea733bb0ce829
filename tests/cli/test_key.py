"""Keys on the command line: made once, encrypted when asked, never overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import Run, image, run

__all__ = ["image", "run"]


def test_a_key_is_made_shown_and_trusted(run: Run) -> None:
    made = run("key", "generate")
    assert made.code == 0
    shown = run("key", "show")
    line, fingerprint = shown.out.splitlines()
    assert line.startswith("ssh-ed25519 ")
    assert fingerprint in made.out
    assert fingerprint in run("trust", "list").out
    private = Path(os.environ["VMPACK_HOME"]) / "config" / "id_ed25519"
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_overwritten(run: Run) -> None:
    assert run("key", "generate").code == 0
    before = run("key", "show").out
    run("key", "generate").refused(2, "never overwritten")
    assert run("key", "show").out == before


def test_a_key_in_another_file_is_not_trusted(run: Run) -> None:
    assert run("key", "generate", "-o", "mine").code == 0
    assert "no key is trusted" in run("trust", "list").out
    run("key", "generate", "-o", "mine").refused(2)


def test_the_passphrase_comes_from_the_environment(
    run: Run, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPACK_KEY_PASSPHRASE", "four words of it")
    assert run("key", "generate", "--passphrase").code == 0
    pack = ("pack", image, "--no-packages", "-q", "-o")
    assert run(*pack, "a.vmpack").code == 0
    monkeypatch.setenv("VMPACK_KEY_PASSPHRASE", "other words")
    run(*pack, "b.vmpack").refused(2, "wrong passphrase")
    monkeypatch.delenv("VMPACK_KEY_PASSPHRASE")
    run(*pack, "b.vmpack").refused(2, "nobody to ask", "VMPACK_KEY_PASSPHRASE")
    assert not Path("b.vmpack").exists()


def test_an_empty_passphrase_is_refused_because_it_would_encrypt_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPACK_KEY_PASSPHRASE", "")
    run("key", "generate", "--passphrase").refused(2, "empty")
    assert not (Path(os.environ["VMPACK_HOME"]) / "config" / "id_ed25519").exists()


def test_a_new_passphrase_with_nobody_to_type_it_is_one_clear_error(run: Run) -> None:
    """Without a terminal there is nobody: a script that forgot the variable."""
    done = subprocess.run(
        [sys.executable, "-m", "packer.cli.main", "key", "generate", "--passphrase"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # no terminal to ask behind our back
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "VMPACK_KEY_PASSPHRASE" in done.stderr


def test_trust_is_given_listed_and_taken(run: Run) -> None:
    assert run("key", "generate", "-o", "author").code == 0
    fingerprint = run("key", "show", "author.pub").out.splitlines()[1]
    assert fingerprint in run("trust", "add", "author.pub", "--name", "demo*").out
    listed = run("trust", "list").out
    assert "demo*" in listed
    assert fingerprint in listed
    assert run("trust", "remove", fingerprint).code == 0
    assert fingerprint not in run("trust", "list").out
    run("trust", "add", "author").refused(3, "private")
