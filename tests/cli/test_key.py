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


# Keys in the environment, as in continuous integration


@pytest.fixture
def secret(run: Run) -> str:
    """The text of a key that this host trusts, and that lies in no file."""
    assert run("key", "generate", "-o", "ci").code == 0
    assert run("trust", "add", "ci.pub").code == 0
    text = Path("ci").read_text()
    Path("ci").unlink()
    return text


def test_a_key_is_taken_from_a_variable(
    run: Run, image: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI_KEY", secret.rstrip("\n"))  # variables tend to lose it
    key = ("--key", "env:CI_KEY")
    done = run("pack", image, "-o", "demo.vmpack", "--no-packages", "-q", *key, *key)
    assert done.code == 0, done.err
    assert run("unpack", "demo.vmpack", "-o", "disk", "--offline", "-q").code == 0
    monkeypatch.delenv("CI_KEY", raising=False)
    run("sign", "demo.vmpack", *key, "-o", "b").refused(2, "no variable CI_KEY")


def test_no_program_that_is_started_later_sees_the_key(
    run: Run, image: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as guestfish, which looks into the image, or a registry's credential helper."""
    monkeypatch.setenv("CI_KEY", secret)
    monkeypatch.setenv("VMPACK_KEY_PASSPHRASE", "four words of it")
    pack = ("pack", image, "-o", "demo.vmpack", "--no-packages", "-q", "--key", "env:CI_KEY")
    assert run(*pack).code == 0
    seen = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert "PATH=" in seen
    for word in ("CI_KEY", "PRIVATE KEY", "four words"):
        assert word not in seen


def test_a_key_in_place_of_its_name_is_not_shown(run: Run, image: Path, secret: str) -> None:
    """The shell has put the variable's value there: --key env:$CI_KEY; messages end up in logs."""
    body = "".join(secret.split("\n")[1:-2])
    for wrong in (
        f"env:{secret}",
        secret,
        f"env:{body}",
        body,
        f"env:{body[:80]}",
        "env:",
        "env:-",
        "env:correct horse",
        "env:" + "h0rse" * 40,
    ):
        done = run("pack", image, "-o", "x", "--no-packages", "--key", wrong)
        done.refused(2, "--key")
        assert body[:12] not in done.err
        assert "PRIVATE" not in done.err
        assert "horse" not in done.err
        assert "h0rse" not in done.err
