"""`pack` and `inspect` say what looks private, `--strict` refuses it, `--allow` lets it pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from packer.errors import PolicyError
from packer.text import printable
from tests.cli.running import Run, run
from tests.guest.material import ext4, write_tree
from tests.guest.planted import LOCKED_OPENSSH_KEY

__all__ = ["run"]

EVIL = "/srv/\x1b]0;evil\x07\nvmpack: all is well/.bash_history"
FILES = {
    "/etc/os-release": b"ID=debian\n",
    "/root/.bash_history": b"ls\n",
    "/root/.ssh/id_ed25519": LOCKED_OPENSSH_KEY,
    EVIL: b"ls\n",
}
PACK = ("-o", "demo.vmpack", "--unsigned", "--no-packages", "-q")


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    return ext4(tmp_path / "guest.raw", write_tree(tmp_path / "tree", FILES, {}))


def test_pack_lists_by_rule_what_will_be_published(run: Run, guest: Path) -> None:
    done = run("pack", guest, *PACK)
    assert done.code == 0
    first, key, history, cure = done.err.splitlines()
    assert first == "vmpack: note: 3 things look private and will be published:"
    assert key.split()[0] == "private-key"
    assert key.endswith("/root/.ssh/id_ed25519")
    assert history.split()[0] == "history"
    assert "--clean=history" in cure
    assert done.err.replace("\n", "") == printable(done.err.replace("\n", ""))
    assert "private-key" not in done.out


def test_json_has_every_finding_and_what_was_allowed(run: Run, guest: Path) -> None:
    told = run("pack", guest, *PACK, "--json", "--allow", "private-key").json["privacy"]
    assert sorted(one["path"] for one in told["findings"]) == sorted(["/root/.bash_history", EVIL])
    (allowed,) = told["allowed"]
    assert allowed == {
        "rule": "private-key",
        "path": "/root/.ssh/id_ed25519",
        "bytes": len(LOCKED_OPENSSH_KEY),
        "what": "private keys: TLS, SSH, signing",
        "detail": "encrypted",
    }


def test_strict_refuses_and_writes_nothing(run: Run, guest: Path) -> None:
    done = run("pack", guest, *PACK, "--strict", "--allow", "histroy")
    done.refused(PolicyError.exit_code, "3 things look private", "history", "--allow histroy")
    assert list(Path().iterdir()) == []


def test_strict_passes_when_all_is_meant(run: Run, guest: Path) -> None:
    done = run("pack", guest, *PACK, "--strict", "--allow", "history", "--allow", "/root/.ssh/*")
    assert (done.code, done.err) == (0, "")
    assert Path("demo.vmpack").exists()


def test_a_pattern_that_fits_nothing_is_noted(run: Run, guest: Path) -> None:
    done = run("pack", guest, *PACK, "--allow", "*", "--allow", "/rot/*", "--allow", "mail")
    assert done.code == 0
    assert done.err == "vmpack: note: --allow /rot/*: nothing that is about to be published fits\n"


def test_inspect_sums_up_and_lists(run: Run, guest: Path) -> None:
    title = "what looks private and would be published\n"
    summed = run("inspect", guest).out.partition(title)[2]
    assert [line.split()[0] for line in summed.splitlines()[:2]] == ["private-key", "history"]
    listed = run("inspect", guest, "--privacy").out.partition(title)[2].splitlines()[:3]
    assert listed[0].endswith("/root/.ssh/id_ed25519  (encrypted)")
    assert listed[1].endswith("/root/.bash_history")
    assert listed[2].endswith(printable(EVIL))
    found = run("inspect", guest, "--json").json["privacy"]
    assert [one["path"] for one in found] == ["/root/.ssh/id_ed25519", "/root/.bash_history", EVIL]


def test_inspect_says_that_there_is_nothing(run: Run, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"/etc/os-release": b"ID=debian\n"}, {})
    assert "nothing that a rule knows" in run("inspect", ext4(tmp_path / "disk.raw", tree)).out


def test_a_pack_is_no_image(run: Run, guest: Path) -> None:
    assert run("pack", guest, *PACK).code == 0
    run("inspect", "demo.vmpack", "--privacy").refused(2, "--privacy")
