"""Signatures that people add in several places, and packs that grow old."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.running import Run, image, run, signed

__all__ = ["image", "run", "signed"]


def made(run: Run, name: str) -> str:
    """A key that nobody trusts yet; its fingerprint."""
    assert run("key", "generate", "-o", name).code == 0
    return run("key", "show", f"{name}.pub").out.splitlines()[1]


def forget() -> None:
    (Path(os.environ["VMPACK_HOME"]) / "config" / "trust.json").unlink()


@pytest.mark.parametrize("form", ["demo.vmpack", "folder/"])
def test_two_of_three_people_sign_one_after_the_other(run: Run, signed: Path, form: str) -> None:
    assert run("copy", signed, form, "--force", "-q").code == 0
    own = run("key", "show").out.splitlines()[1]
    second = made(run, "second")
    forget()
    default = Path(os.environ["VMPACK_HOME"]) / "config" / "id_ed25519.pub"
    made(run, "third")
    for name in (default, "second.pub", "third.pub"):
        assert run("trust", "add", name, "--name", "demo*", "--threshold", "2").code == 0
    run("unpack", form, "-o", "disk", "--offline").refused(4, "must be signed by 2", "vmpack sign")
    run("sign", form, "--key", "second").refused(2, "exists already", "--force")
    done = run("sign", form, "--key", "second", "--force", "--json")
    assert done.json["signers"] == sorted([own, second])
    assert done.json["signed_now"] == [second]
    unpacked = run("unpack", form, "-o", "disk", "--offline", "-q")
    assert unpacked.code == 0, unpacked.err
    run("sign", form, "--key", "second", "--force").refused(2, "already")


def test_a_signed_copy_goes_elsewhere_when_asked(run: Run, signed: Path) -> None:
    before = signed.read_bytes()
    second = made(run, "second")
    said = run("sign", signed, "--key", "second", "-o", "both/")
    assert said.code == 0, said.err
    assert f"signed by  {second}" in said.out
    assert signed.read_bytes() == before
    assert second in run("inspect", "both").out


def test_what_is_neither_pack_nor_statement_is_refused(run: Run) -> None:
    Path("file").write_text("{}")
    assert run("key", "generate").code == 0
    run("sign", "file").refused(3, "file: payload: missing")
    run("sign", "none", "-o", "x").refused(3, "none")
    run("sign", "none").refused(2, "-o")
    run("sign", "file", "--rotation", "file").refused(2, "--rotation is for packs")


def test_without_a_key_there_is_one_clear_error(run: Run, image: Path) -> None:
    assert run("pack", image, "-o", "u.vmpack", "--unsigned", "--no-packages", "-q").code == 0
    done = run("sign", "u.vmpack", "--force")
    done.refused(2, "no signing key", "vmpack key generate")
    assert "--unsigned" not in done.err


def test_an_unsigned_pack_is_signed_later(run: Run, image: Path) -> None:
    assert run("pack", image, "-o", "u.vmpack", "--unsigned", "--no-packages", "-q").code == 0
    assert run("key", "generate").code == 0
    assert run("sign", "u.vmpack", "--force").code == 0
    assert run("unpack", "u.vmpack", "-o", "disk", "--offline", "-q").code == 0


# Expiry


@pytest.fixture
def aged(run: Run, image: Path) -> Path:
    """A pack whose last day is long over."""
    assert run("key", "generate").code == 0
    done = run("pack", image, "-o", "old.vmpack", "--no-packages", "--expires", "2001-02-03")
    assert done.code == 0, done.err
    return Path("old.vmpack")


def test_an_expired_pack_is_used_all_the_same_with_one_note(run: Run, aged: Path) -> None:
    words = "vmpack: note: old:1 expired on 2001-02-03; ask its author for a newer one\n"
    for verb in (
        ("unpack", aged, "-o", "disk", "--offline", "-q"),
        ("verify", "disk", aged, "-q"),
        ("copy", aged, "copy.vmpack", "-q"),
    ):
        done = run(*verb)
        assert done.code == 0, done.err
        assert done.err == words
    shown = run("inspect", "copy.vmpack")
    assert "expired on 2001-02-03" in shown.out
    assert run("inspect", "copy.vmpack", "--json").json["config"]["expires"] == "2001-02-03"


def test_a_pack_that_is_good_for_long_says_nothing(run: Run, image: Path) -> None:
    assert run("key", "generate").code == 0
    pack = ("pack", image, "-o", "new.vmpack", "--no-packages", "-q", "--expires", "9999-12-31")
    assert run(*pack).code == 0
    done = run("unpack", "new.vmpack", "-o", "disk", "--offline", "-q")
    assert (done.code, done.err) == (0, "")
    assert "good until 9999-12-31" in run("inspect", "new.vmpack").out


def test_without_a_last_day_nothing_is_said(run: Run, signed: Path) -> None:
    said = run("inspect", signed).out
    assert "expired" not in said
    assert "good until" not in said


@pytest.mark.parametrize(
    "day", ["tomorrow", "2027-6-30", "20270630", "2027-02-30", "1999-12-31", "2027-06-30T00:00Z"]
)
def test_a_day_that_is_none_is_refused_before_anything_is_read(run: Run, day: str) -> None:
    run("pack", "no-such-image", "-o", "x.vmpack", "--unsigned", "--expires", day).refused(
        2, "expires"
    )
