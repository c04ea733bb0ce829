"""A small disk through all verbs: what is printed for machines, for people, and the exit codes."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from packer.text import printable
from tests.cli.running import MIB, Run, image, run, signed
from tests.guest.material import ext4, write_tree

__all__ = ["image", "run", "signed"]


def test_every_verb_that_works_prints_json_and_nothing_else(run: Run, image: Path) -> None:
    assert run("key", "generate").code == 0
    packed = run("pack", image, "-o", "demo.vmpack", "--no-packages", "--json")
    assert packed.json["contents"]["private"]["bytes"] > 300_000
    assert packed.json["bundles"].keys() == {"private"}
    assert packed.json["bytes"] <= Path("demo.vmpack").stat().st_size
    identity = packed.json["identity"]

    looked = run("inspect", "demo.vmpack", "--json", "--stubs")
    assert (looked.json["identity"], looked.json["stubs"]) == (identity, [])
    assert run("inspect", image, "--json").json["size"] == 3 * MIB

    other = run("pack", image, "-o", "other.iso", "--no-packages", "--json")
    assert (other.json["name"], other.json["output"]) == ("other", "other.iso")
    Path("other.iso").rename("other.vmpack")

    copied = run("copy", "demo.vmpack", "--boot", "boot.vmpack", "--json")
    assert (copied.json["identity"], list(copied.json["lacking"])) == (identity, ["private"])
    (one,) = copied.json["packs"]
    assert one.items() <= copied.json.items()
    both = run("copy", "demo.vmpack", "other.vmpack", "both.vmpack", "--json").json
    assert [one["name"] for one in both["packs"]] == ["demo:1", "other:1"]
    assert "identity" not in both
    assert run("inspect", "boot.vmpack", "--json", "--stubs").json["stubs"]

    planned = run("unpack", "demo.vmpack", "--dry-run", "--offline", "--json")
    assert planned.json["missing"] == []
    unpacked = run("unpack", "demo.vmpack", "-o", "disk", "--offline", "--json")
    assert unpacked.json["disk_bytes"] == 3 * MIB
    assert Path("disk").read_bytes() == image.read_bytes()

    verified = run("verify", "disk", "demo.vmpack", "--exact", "--json")
    assert (verified.json["right"], verified.json["wrong"]) == (True, [])

    Path("tree").mkdir()
    Path("tree/file").write_bytes(b"x" * 5000)
    listed = run("inventory", "tree", "-o", "host.inv", "--json")
    assert (listed.json["contents"], listed.json["bytes"]) == (1, 5000)
    assert run("store", "list", "--json").json == {"bytes": 0, "contents": []}
    assert run("store", "verify", "--json").json == {"contents": 0, "removed": []}
    collected = run("store", "gc", "--all", "--json").json
    none = {"removed": 0, "removed_bytes": 0, "kept": 0, "kept_bytes": 0}
    assert collected == {**none, "packages": {**none, "in_use": False}}


def test_every_verb_that_works_speaks_to_people(run: Run, signed: Path, image: Path) -> None:
    assert "signed by SHA256:" in run("inspect", signed).out
    assert "a thin pack would weigh" in run("inspect", image, "--files").out
    assert "complete" in run("copy", signed, "copy.vmpack").out
    assert "every content proven" in run("unpack", signed, "-o", "disk", "--offline").out
    assert "disk is what" in run("verify", "disk", signed, "--ranges").out
    assert "0 contents" in run("store", "list").out


def test_nothing_that_a_guest_calls_its_own_steers_the_terminal(run: Run, tmp_path: Path) -> None:
    """Names of files, a label, os-release: with escape sequences, line ends, bytes of no text."""
    evil = "\x1b]0;evil\x07\x9b2J\udcff\u202e"
    files = {
        "/etc/os-release": b'ID=debian\nPRETTY_NAME="evil \x1b[31m"\n',
        "/etc/fstab": b"/swap\\033\\012vmpack: none swap sw 0 0\n",
        "/swap\x1b\nvmpack:": b"no swap" * 5000,
        f"/boot/vmlinuz-{evil}": b"kernel" * 1000,
        f"/boot/grub/{evil}.cfg": bytes((1 << 20) + 1),
        f"/srv/{evil}/\n{evil}": os.urandom(100_000),
    }
    disk = ext4(tmp_path / "disk", write_tree(tmp_path / "tree", files, {}), label="\x1b[7mevil")
    printed = [
        run("inspect", disk, "--files"),
        run("pack", disk, "-o", "evil.vmpack", "--unsigned", "--no-packages"),
        run("copy", "evil.vmpack", "--boot", "boot.vmpack"),
        run("inspect", "boot.vmpack"),
        run("inspect", "boot.vmpack", "--stubs"),
        run("unpack", "boot.vmpack", "--dry-run", "--from", "store:", "--allow-unsigned"),
    ]
    assert [one.code for one in printed] == [0, 0, 0, 0, 0, 5]
    for one in printed:
        said = (one.out + one.err).replace("\n", "")
        assert said == printable(said)
        assert "\nvmpack:" not in one.out
    assert "evil" in printed[0].out


def test_a_disk_that_does_not_match_ends_with_7_and_names_the_ranges(
    run: Run, signed: Path, image: Path
) -> None:
    data = bytearray(image.read_bytes())
    data[MIB + 5] ^= 1
    Path("wrong").write_bytes(data)
    done = run("verify", "wrong", signed)
    assert done.code == 7
    assert "is NOT what" in done.out
    assert "  wrong [1048576, " in done.out
    as_json = run("verify", "wrong", signed, "--json")
    assert (as_json.code, as_json.json["right"]) == (7, False)
    Path("short").write_bytes(data[:MIB])
    run("verify", "short", signed).refused(7, "expected a disk of")


def test_a_copy_that_lacks_what_nobody_has_ends_with_5_and_a_list(run: Run, signed: Path) -> None:
    assert run("copy", signed, "--boot", "boot.vmpack").code == 0
    planned = run("unpack", "boot.vmpack", "--dry-run", "--from", "store:")
    assert planned.code == 5
    assert "nobody has 1 contents" in planned.out
    assert "sha256:" in planned.out
    done = run("unpack", "boot.vmpack", "-o", "disk", "--from", "store:", "-q")
    done.refused(5, "nobody has", "sha256:", "--from")
    assert not Path("disk").exists()
    # What was found is kept, and the full copy completes it.
    again = run("unpack", "boot.vmpack", "-o", "disk", "--from", f"pack:{signed}", "-q")
    assert again.code == 0, again.err
    assert not Path("disk.partial").exists()


def test_a_pack_of_a_stranger_ends_with_4(run: Run, image: Path, signed: Path) -> None:
    (Path(os.environ["VMPACK_HOME"]) / "config" / "trust.json").unlink()
    run("unpack", signed, "-o", "disk").refused(4)
    run("verify", image, signed).refused(4)
    assert run("inspect", signed).code == 0  # to look is allowed
    unsigned = run("pack", image, "-o", "u.vmpack", "--unsigned", "--no-packages", "-q")
    assert unsigned.code == 0
    run("unpack", "u.vmpack", "-o", "disk").refused(4)
    allowed = run("unpack", "u.vmpack", "-o", "disk", "--allow-unsigned", "--offline", "-q")
    assert allowed.code == 0, allowed.err


def test_an_older_version_than_this_host_has_used_ends_with_4(
    run: Run, image: Path, signed: Path
) -> None:
    two = ("pack", image, "-o", "2.vmpack", "--name", "demo", "--pack-version", "2")
    assert run(*two, "--no-packages", "-q").code == 0
    assert run("unpack", "2.vmpack", "-o", "two", "--offline", "-q").code == 0
    run("unpack", signed, "-o", "one", "--offline").refused(4, "older")
    assert run("unpack", signed, "-o", "one", "--offline", "--allow-older", "-q").code == 0


def test_a_disk_in_use_ends_with_6(run: Run, image: Path) -> None:
    """As long as somebody has it open for writing under QEMU's lock."""
    with image.open("r+b") as file:
        # qemu block/file-posix.c: RAW_LOCK_PERM_BASE 100, BLK_PERM_WRITE is bit 1; F_OFD_SETLK 37
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
        fcntl.fcntl(file, 37, lock)
        run("pack", image, "-o", "x.vmpack", "--unsigned", "--no-packages").refused(6)
    assert not Path("x.vmpack").exists()


@pytest.mark.parametrize("form", ["qcow2", "vmdk"])
def test_a_disk_can_be_written_as_another_container(run: Run, signed: Path, form: str) -> None:
    done = run("unpack", signed, "-o", f"disk.{form}", "--format", form, "--offline", "-q")
    assert done.code == 0, done.err
    assert run("verify", f"disk.{form}", signed, "--exact").code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["demo.vmpack", f"disk.{form}"]


def test_the_source_of_every_byte_is_named(run: Run, signed: Path, image: Path) -> None:
    old = run("unpack", signed, "-o", "disk", "--from", f"pack:{signed}", "-q", "--json")
    assert old.code == 0, old.err
    supplied = old.json["supplied"]
    assert sum(one["content_bytes"] for one in supplied) == old.json["content_bytes"]
    assert {one["source"] for one in supplied if one["content_bytes"]} == {f"pack:{signed}"}


def test_warnings_of_the_parts_are_notes_that_no_name_can_break(
    signed: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home\x1b[31m\nvmpack: all is well"
    (home / "cache" / "files.sqlite").mkdir(parents=True)  # where a file should be
    command = [sys.executable, "-m", "packer.cli.main", "unpack", str(signed), "-o", "disk"]
    told = subprocess.run(
        [*command, "--offline", "--allow-unsigned"],
        env=os.environ | {"VMPACK_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    notes = [line for line in told.splitlines() if "digests are not remembered" in line]
    assert notes
    assert all(line.startswith("vmpack: note: ") for line in notes)
    assert "\x1b" not in told
    assert "\nvmpack: all is well" not in told
