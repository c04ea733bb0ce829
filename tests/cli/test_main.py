"""What every use of the command keeps to: exit codes, one line of error, help with an example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from packer.cli.main import VERBS
from tests.cli.running import Run, image, run, signed

__all__ = ["image", "run", "signed"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example_of_it(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert f"example:\n  vmpack {verb} " in done.out
    assert done.err == ""


def test_the_help_lists_every_verb_and_every_exit_code(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for verb in VERBS:
        assert f"\n    {verb}" in done.out
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 130):
        assert f"  {code} " in done.out


def test_the_version_is_printed(run: Run) -> None:
    done = run("--version")
    assert done.code == 0
    assert done.out.startswith("vmpack ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("pack",),
        ("pack", "a", "-o", "b", "--jobs", "0"),
        ("pack", "a", "-o", "b", "--jobs", "many"),
        ("pack", "a", "-o", "b", "--jobs", "100000"),
        ("copy", "a", "b", "--jobs", "2"),
        ("inventory", "a", "-o", "b", "--jobs", "2"),
        ("unpack", "a.vmpack"),
        ("unpack", "a.vmpack", "-o", "b", "--format", "floppy"),
        ("copy", "a", "b", "--thin", "--full"),
        ("verify", "a"),
        ("key",),
        ("store", "gc", "--older-than", "yesterday"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_says_how_it_goes(
    run: Run, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("usage: vmpack")
    assert "Traceback" not in done.err
    assert "_jobs" not in done.err
    assert done.out == ""


BAD_USES: dict[str, tuple[int, tuple[str, ...]]] = {
    "no such image": (3, ("pack", "none.raw", "-o", "x.vmpack", "--unsigned")),
    "an empty image": (3, ("pack", "empty", "-o", "x.vmpack", "--unsigned")),
    "a folder as image": (3, ("pack", "folder", "-o", "x.vmpack", "--unsigned")),
    "no key": (2, ("pack", "image", "-o", "x.vmpack")),
    "no such key": (3, ("pack", "image", "-o", "x.vmpack", "--key", "none")),
    "a key and unsigned": (2, ("pack", "image", "-o", "x", "--key", "k", "--unsigned")),
    "a level too high": (2, ("pack", "image", "-o", "x", "--level", "23", "--unsigned")),
    "no name to be made": (2, ("pack", "image", "-o", "___", "--unsigned")),
    "an illegal name": (2, ("pack", "image", "-o", "x", "--name", "A b", "--unsigned")),
    "version 0": (2, ("pack", "image", "-o", "x", "--pack-version", "0", "--unsigned")),
    "an empty name": (2, ("pack", "image", "-o", "x", "--name", "", "--unsigned")),
    "deltas against nothing": (2, ("pack", "image", "-o", "x", "--delta", "--unsigned")),
    "deltas in a thin pack": (2, ("pack", "image", "-o", "x", "--delta", "--base", "b", "--thin")),
    "a base of junk": (3, ("pack", "image", "-o", "x", "--base", "junk", "--unsigned")),
    "an illegal source": (2, ("pack", "image", "-o", "x", "--source", "a b", "--unsigned")),
    "against nothing": (2, ("pack", "image", "-o", "x", "--against", "none.inv", "--unsigned")),
    "against junk": (3, ("pack", "image", "-o", "x", "--against", "junk", "--unsigned")),
    "an output that exists": (2, ("pack", "image", "-o", "junk", "--unsigned")),
    "an output nowhere": (1, ("pack", "image", "-o", "none/x", "--unsigned")),
    "a registry as output": (2, ("pack", "image", "-o", "oci://127.0.0.1:1/x", "--unsigned")),
    "an address as output": (2, ("pack", "image", "-o", "https://x.example/x", "--unsigned")),
    "unpack nothing": (3, ("unpack", "none.vmpack", "-o", "disk")),
    "unpack junk": (3, ("unpack", "junk", "-o", "disk")),
    "unpack a folder": (3, ("unpack", "folder", "-o", "disk")),
    "copy nothing": (3, ("copy", "none.vmpack", "copy.vmpack")),
    "copy junk": (3, ("copy", "junk", "copy.vmpack")),
    "copy a pack of no name": (2, ("copy", "junk#", "copy.vmpack")),
    "a medium of no size": (2, ("copy", "junk", "copy.vmpack", "--fit", "")),
    "a medium of any size": (2, ("copy", "junk", "copy.vmpack", "--fit", "large")),
    "an audience of no medium": (2, ("copy", "junk", "copy.vmpack", "--against", "junk")),
    "a gate of no size": (2, ("summary", "junk", "--max-thin", "")),
    "a gate for no host": (2, ("summary", "junk", "--max-fetch", "1M")),
    "verify against junk": (3, ("verify", "image", "junk")),
    "inspect nothing": (3, ("inspect", "none")),
    "inspect a folder": (3, ("inspect", "folder")),
    "stubs of an image": (2, ("inspect", "image", "--stubs")),
    "trust nothing": (3, ("trust", "add", "none.pub")),
    "trust junk": (3, ("trust", "add", "junk")),
    "forget a stranger": (2, ("trust", "remove", "SHA256:" + "A" * 43)),
    "forget no fingerprint": (2, ("trust", "remove", "me")),
    "show no key": (3, ("key", "show")),
    "a key nowhere": (2, ("key", "generate", "-o", "junk/key")),
    "a size of store": (2, ("store", "gc", "--max-size", "lots")),
    "an inventory of nothing": (1, ("inventory", "none", "-o", "x.inv")),
    "an inventory nowhere": (1, ("inventory", "folder", "-o", "none/x.inv")),
    "an inventory that exists": (2, ("inventory", "folder", "-o", "junk")),
}


@pytest.mark.parametrize("use", BAD_USES)
def test_a_bad_use_is_one_clear_error(run: Run, image: Path, use: str) -> None:
    Path("folder").mkdir()
    Path("empty").touch()
    Path("junk").write_bytes(b"junk" * 300)
    Path("image").symlink_to(image)
    code, arguments = BAD_USES[use]
    before = sorted(Path().rglob("*"))
    run(*arguments).refused(code)
    assert sorted(Path().rglob("*")) == before  # nothing half-made is left


UNPACKING: dict[str, tuple[int, tuple[str, ...]]] = {
    "no such source": (1, ("--from", "dir:/none")),
    "no kind of source": (2, ("--from", "floppy:a")),
    "no such folder to write to": (1, ("-o", "none/disk")),
    "a folder to write": (2, ("-o", "folder")),
    "a file that exists": (2, ("-o", "taken")),
    "an unknown signer": (4, ("--signer", "SHA256:" + "A" * 43)),
    "no fingerprint": (2, ("--signer", "me")),
    "a store that is a file": (1, ("--store", "taken")),
}


@pytest.mark.parametrize("use", UNPACKING)
def test_a_bad_unpack_is_one_clear_error(run: Run, signed: Path, use: str) -> None:
    Path("folder").mkdir()
    Path("taken").write_bytes(b"precious")
    code, more = UNPACKING[use]
    if use == "an unknown signer":
        (Path(os.environ["VMPACK_HOME"]) / "config" / "trust.json").unlink()
    done = run("unpack", signed, "-o", "disk", "--offline", "-q", *more)
    if use == "a store that is a file":  # a store that cannot be used is no reason to give up
        assert done.code in (0, code)
        assert "Traceback" not in done.err
    else:
        done.refused(code)
        assert not Path("disk").exists()
    assert Path("taken").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "more",
    [
        ("--clean", "image"),
        ("image", "--clean"),
        ("--clean", "--", "image"),
        ("--clean=logs,/opt/*", "image"),
    ],
    ids=" ".join,
)
def test_clean_takes_no_value_but_after_an_equals_sign(
    run: Run, image: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """What was asked for is looked at first, then the tools, of which there is none."""
    Path("image").symlink_to(image)
    monkeypatch.setenv("PATH", "/nowhere")
    pack = ("pack", "-o", "x.vmpack", "--unsigned", "--no-packages", "-q")
    run(*pack, *more).refused(1, "--clean needs qemu-img")
    run(*pack, "--clean=image", "image").refused(2, "'image' is no group")


def test_a_terminal_that_cannot_show_a_letter_gets_it_spelled_out(run: Run, image: Path) -> None:
    odd = image.with_name("b\u00fccher \udcff.raw")
    image.rename(odd)
    for encoding in ("ascii:strict", "utf-8:strict"):
        done = subprocess.run(
            [sys.executable, "-m", "packer.cli.main", "inspect", odd],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            check=False,
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\udcff.raw" in done.stdout


def test_a_reader_that_has_enough_is_no_error_worth_words(run: Run, signed: Path) -> None:
    command = [sys.executable, "-m", "packer.cli.main", "inspect", str(signed), "--json"]
    root = Path(__file__).parents[2]
    shell = subprocess.run(
        ["bash", "-c", '"$@" | head -c 1; exit ${PIPESTATUS[0]}', "-", *command],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
    )
    assert shell.stdout == "{"
    assert shell.stderr == ""
