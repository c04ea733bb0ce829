"""A key is replaced: told on the command line, or learnt from a pack that was used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.running import Run, image, run

__all__ = ["image", "run"]


@dataclass(frozen=True)
class Author:
    """Two keys, a statement that the second replaces the first, a pack by each."""

    old: str
    new: str


@pytest.fixture
def author(run: Run, image: Path) -> Author:
    prints = []
    for name in ("old", "new"):
        assert run("key", "generate", "-o", name).code == 0
        prints.append(run("key", "show", f"{name}.pub").out.splitlines()[1])
    said = run("key", "rotate", "--old", "old", "new.pub", "-o", "rotation.json")
    assert said.code == 0, said.err
    assert "signed by  both" in said.out
    pack = ("pack", image, "--no-packages", "-q", "--name", "demo")
    assert run(*pack, "-o", "1.vmpack", "--key", "old").code == 0
    carried = ("--pack-version", "2", "--key", "new", "--rotation", "rotation.json")
    assert run(*pack, "-o", "2.vmpack", *carried).code == 0
    bare = ("--pack-version", "3", "--key", "new")
    assert run(*pack, "-o", "3.vmpack", *bare).code == 0
    assert run("trust", "add", "old.pub", "--name", "demo*").code == 0
    return Author(*prints)


def unpack(run: Run, pack: str, *more: str) -> int:
    return run("unpack", pack, "-o", f"{pack}.raw", "--offline", "--force", "-q", *more).code


def test_a_pack_that_carries_the_statement_teaches_the_host(run: Run, author: Author) -> None:
    assert unpack(run, "1.vmpack") == 0
    run("unpack", "3.vmpack", "-o", "disk", "--offline").refused(4, author.new)
    used = run("unpack", "2.vmpack", "-o", "disk", "--offline", "-q")
    assert used.code == 0
    assert f"note: {author.old} is replaced by {author.new} for every name" in used.err
    assert unpack(run, "3.vmpack") == 0
    run("unpack", "1.vmpack", "-o", "old", "--offline", "--allow-older").refused(
        4, "was replaced", author.new, f"--signer {author.old}"
    )
    named = ("--allow-older", "--signer", author.old)
    assert unpack(run, "1.vmpack", *named) == 0


def test_looking_teaches_nothing(run: Run, author: Author) -> None:
    assert run("inspect", "2.vmpack").code == 0
    assert unpack(run, "2.vmpack", "--dry-run") == 0
    assert unpack(run, "1.vmpack") == 0
    assert run("verify", "1.vmpack.raw", "2.vmpack", "-q").code == 0
    run("unpack", "3.vmpack", "-o", "disk", "--offline").refused(4)


def test_copies_carry_the_statement_too(run: Run, author: Author) -> None:
    assert run("copy", "2.vmpack", "folder/", "-q").code == 0
    assert run("copy", "folder", "--thin", "thin.vmpack", "-q").code == 0
    for place in ("folder", "thin.vmpack"):
        says = f"says that {author.old} is replaced by {author.new} for every name"
        assert says in run("inspect", place).out
        (Path(os.environ["VMPACK_HOME"]) / "config" / "trust.json").unlink()
        assert run("trust", "add", "old.pub", "--name", "demo*").code == 0
        assert unpack(run, place) == 0


def test_a_host_is_told_by_hand(run: Run, author: Author) -> None:
    asked = run("trust", "rotate", "rotation.json")
    assert (asked.code, asked.out) == (2, "")
    assert "there is nobody to ask" in asked.err
    assert "--yes" in asked.err
    assert run("trust", "list", "--json").json["replaced"] == []
    said = run("trust", "rotate", "rotation.json", "--yes")
    assert said.code == 0, said.err
    assert said.out == f"from now on {author.old} is replaced by {author.new} for every name\n"
    assert "demo*, by this key" in said.err  # shown before
    assert unpack(run, "3.vmpack") == 0
    run("unpack", "1.vmpack", "-o", "disk", "--offline").refused(4, "was replaced")
    assert run("trust", "rotate", "rotation.json", "--yes").code == 0  # again changes nothing


def test_both_keys_are_accepted_for_a_while_when_asked(run: Run, author: Author) -> None:
    assert run("trust", "rotate", "rotation.json", "--yes", "--keep-old").code == 0
    assert unpack(run, "1.vmpack") == 0
    assert unpack(run, "3.vmpack") == 0
    listed = run("trust").out
    assert author.old in listed
    assert author.new in listed


def test_a_statement_about_an_unknown_key_is_refused(run: Run, author: Author) -> None:
    assert run("trust", "remove", author.old).code == 0
    run("trust", "rotate", "rotation.json", "--yes").refused(4, "no rule trusts", author.old)


def with_signatures(text: str, change: Callable[[list[dict[str, str]]], object]) -> str:
    whole = json.loads(text)
    change(whole["signatures"])
    return json.dumps(whole)


HOSTILE: dict[str, tuple[int, str, Callable[[str], str]]] = {
    "cut off": (3, "rotation.json: expected JSON", lambda text: text[:-40]),
    "empty": (3, "rotation.json: expected JSON", lambda text: ""),
    "huge": (3, "at most 65536 bytes", lambda text: text + " " * 70_000),
    "of another type": (3, "payloadType", lambda text: text.replace("key-rotation", "config")),
    "with two more signatures": (
        3, "at most two", lambda text: with_signatures(text, lambda all: all.extend(all)),
    ),
    "with false signatures": (
        4, "not signed by the old key",
        lambda text: with_signatures(text, lambda all: [one.update(sig="AAAA") for one in all]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_statement_is_one_clear_error(run: Run, author: Author, kind: str) -> None:
    code, words, change = HOSTILE[kind]
    path = Path("rotation.json")
    path.write_text(change(path.read_text()))
    run("trust", "rotate", "rotation.json", "--yes").refused(code, words)
    assert run("trust", "--json").json["replaced"] == []
    assert unpack(run, "1.vmpack") == 0


def test_the_new_key_may_lie_elsewhere_and_sign_later(run: Run, author: Author) -> None:
    Path("apart").mkdir()
    Path("new.pub").rename("apart/new.pub")
    rotate = ("key", "rotate", "--old", "old", "apart/new.pub", "-o")
    half = run(*rotate, "half.json")
    assert half.code == 0
    assert "vmpack sign half.json" in half.err
    run("trust", "rotate", "half.json", "--yes").refused(4, "not signed by the new key")
    run(*rotate, "half.json").refused(2, "exists already")
    signed = run("sign", "half.json", "--key", "new", "--force")
    assert signed.code == 0, signed.err
    assert Path("half.json").read_bytes() == Path("rotation.json").read_bytes()
    run("sign", "half.json", "--key", "new", "--force").refused(2, "already")


def test_an_unfinished_statement_does_not_travel(run: Run, author: Author, image: Path) -> None:
    Path("apart").mkdir()
    Path("new.pub").rename("apart/new.pub")
    assert run("key", "rotate", "--old", "old", "apart/new.pub", "-o", "half.json").code == 0
    pack = ("pack", image, "--no-packages", "-q", "-o", "x.vmpack")
    run(*pack, "--key", "new", "--rotation", "half.json").refused(2, "not signed by")
    run(*pack, "--key", "old", "--rotation", "rotation.json").refused(2, "lead to a key")
    run(*pack, "--unsigned", "--rotation", "rotation.json").refused(2, "lead to a key")
    assert not Path("x.vmpack").exists()


def test_an_old_pack_is_signed_anew(run: Run, author: Author) -> None:
    """The author's remedy for hosts that no longer accept the old key."""
    assert run("trust", "rotate", "rotation.json", "--yes").code == 0
    done = run("sign", "1.vmpack", "--key", "new", "--rotation", "rotation.json", "--force")
    assert done.code == 0, done.err
    assert unpack(run, "1.vmpack") == 0


def test_versions_are_not_forgotten(run: Run, author: Author, image: Path) -> None:
    pack = ("pack", image, "--no-packages", "-q", "--name", "demo")
    assert run(*pack, "-o", "9.vmpack", "--key", "old", "--pack-version", "9").code == 0
    assert unpack(run, "9.vmpack") == 0
    run("unpack", "2.vmpack", "-o", "disk", "--offline").refused(4, "version 2", "has used 9")


def test_a_statement_for_some_names(run: Run, author: Author, image: Path) -> None:
    named = ("--name", "other", "--name", "lab*")
    rotate = ("key", "rotate", "--old", "old", "new.pub", "-o", "other.json", *named)
    assert "other lab*" in run(*rotate).out
    run("trust", "rotate", "other.json", "--yes").refused(4, "no rule trusts")
    pack = ("pack", image, "--no-packages", "-q", "-o", "x.vmpack", "--name", "demo")
    assert run(*pack, "--key", "new", "--rotation", "other.json").code == 0
    run("unpack", "x.vmpack", "-o", "disk", "--offline").refused(4, "not trusted for packs")


# What is shown


def test_nothing_is_shown_as_such_and_how_to_begin(run: Run) -> None:
    assert run("trust").out == run("trust", "list").out
    assert "no key is trusted" in run("trust").out
    assert "vmpack trust add" in run("trust").out
    assert run("trust", "--json").json == {"rules": [], "replaced": [], "used": []}


def test_what_is_accepted_is_shown_with_where_it_comes_from(run: Run, author: Author) -> None:
    assert run("key", "generate").code == 0
    assert unpack(run, "2.vmpack") == 0
    shown = run("trust").out
    assert "demo*, signed by this key" in shown
    assert "every name, signed by this key" in shown
    assert f"in place of {author.old} for every name since 20" in shown
    identity = run("inspect", "2.vmpack", "--json").json["identity"]
    assert f"demo:2  {identity}" in shown
    assert f"signed by {author.new}" in shown
    listed = run("trust", "list", "--json").json
    assert run("trust", "--json").json == listed == run("trust", "--json", "list").json
    rule = listed["rules"][0]
    assert (rule["patterns"], rule["threshold"], rule["places"]) == (["demo*"], 1, 1)
    (key,) = rule["keys"]
    assert (key["fingerprint"], key["in_place_of"]) == (author.new, author.old)
    assert listed["used"] == [
        {
            "name": "demo",
            "version": 2,
            "config": identity,
            "rules": ["demo*"],
            "signers": [author.new],
        }
    ]


def test_a_rule_of_several_says_how_many(run: Run, author: Author) -> None:
    assert run("trust", "add", "new.pub", "--name", "lab", "--threshold", "2").code == 0
    assert "lab, signed by 2 of 1 keys, which are not there yet" in run("trust").out
    assert run("trust", "add", "old.pub", "--name", "lab").code == 0
    assert "lab, signed by 2 of 2 keys" in run("trust").out


def test_a_comment_cannot_steer_the_terminal(run: Run, author: Author) -> None:
    evil = Path("old.pub").read_text().split()[:2]
    Path("evil.pub").write_text(" ".join([*evil, "\x1b[31mevil\x07"]) + "\n")
    assert run("trust", "add", "evil.pub", "--name", "lab").code == 0
    shown = run("trust").out
    assert "evil" in shown
    assert "\x1b" not in shown


def test_removing_a_key_removes_its_heirs(run: Run, author: Author) -> None:
    assert unpack(run, "2.vmpack") == 0
    said = run("trust", "remove", author.new)
    assert author.old in said.out
    assert "to which this key leads" in said.out
    assert json.loads(run("trust", "--json").out)["rules"] == []
    run("trust", "add", "old.pub").refused(2, "is replaced by", "--again")
    assert run("trust", "add", "old.pub", "--again").code == 0
    run("trust", "remove", "nonsense").refused(2, "fingerprint")


def test_a_person_at_a_terminal_is_asked(run: Run, author: Author) -> None:
    """Through a pseudo-terminal: what is typed decides."""
    program = [sys.executable, "-m", "packer.cli.main", "trust", "rotate", "rotation.json"]
    for typed, accepted in (("n\n", False), ("\n", False), ("yes\n", True)):
        leader, follower = os.openpty()
        with os.fdopen(leader, "wb", buffering=0) as terminal:
            terminal.write(typed.encode())
            done = subprocess.run(
                program, stdin=follower, capture_output=True, text=True, timeout=60, check=False,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
        os.close(follower)
        assert "Accept it? [y/N]" in done.stderr
        assert f"new key    {author.new}" in done.stderr
        assert done.returncode == (0 if accepted else 1)
        assert bool(run("trust", "--json").json["replaced"]) is accepted


def test_a_host_whose_folders_cannot_be_written_has_its_disk_and_is_told_what_follows(
    run: Run, author: Author
) -> None:
    """Such as a rescue system, or one whose settings are managed: the disk is proven by then."""
    home = Path(os.environ["VMPACK_HOME"])
    for place in ("state/used.json.lock", "config/trust.json.lock"):
        (home / place).unlink(missing_ok=True)
        (home / place).mkdir(parents=True)
    done = run("unpack", "2.vmpack", "-o", "disk.raw", "--offline", "-q")
    assert done.code == 0, done.err
    assert run("verify", "disk.raw", "2.vmpack", "-q").code == 0
    assert "older versions of 'demo' than 2 will not be refused: cannot write" in done.err
    assert f"{author.old} will go on to be accepted: cannot write" in done.err
    (home / "state/used.json.lock").rmdir()
    again = run("unpack", "2.vmpack", "-o", "disk.raw", "--offline", "-q", "--force")
    assert again.code == 0
    assert "older versions" not in again.err
    assert "will go on to be accepted" in again.err
    assert json.loads((home / "state/used.json").read_bytes())["used"]
    Path(home / "state/used.json").write_text("{")
    done = run("unpack", "2.vmpack", "-o", "other.raw", "--offline", "-q")
    done.refused(3, "used.json")  # what is damaged is refused, and before the work
    assert not Path("other.raw").exists()
