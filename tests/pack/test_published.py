"""What of a real disk is about to be published and looks private."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Contents
from packer.artifact.hints import Hints
from packer.errors import PolicyError
from packer.guest.privacy import Finding, Review
from packer.guest.privacy_rules import RULES, Rule
from packer.pack.clean_rules import GROUPS, select
from packer.pack.pack import PackOptions, PackReport, pack
from packer.pack.prepare import Prepared, prepare
from packer.pack.published import demand_nothing_private, find_published
from packer.progress import Silent
from packer.survey.disk import open_disk
from tests.guest.dpkg_guest import HAS_DPKG, Deb, DpkgRoot
from tests.guest.material import (
    LINUX,
    SWAP,
    Part,
    ext4,
    gpt_disk,
    swap,
    write_tree,
)
from tests.guest.planted import HARMLESS, PEM_KEY, SECRETS
from tests.host import run
from tests.pack.test_clean import Local
from tests.round_trip.packs import Guest

NOISE = os.urandom(200_000)
ALL_SECRETS = {path: data for files in SECRETS.values() for path, data in files.items()}
RULE_OF = {path: rule for rule, files in SECRETS.items() for path in files}
CHECK_SECONDS = 0.2


@contextmanager
def prepared(image: Path, *, keep_free: bool = False) -> Iterator[Prepared]:
    with open_disk(image) as disk:
        yield prepare(disk, keep_free=keep_free, jobs=2, progress=Silent())


def found_in(image: Path, *, keep_free: bool = False) -> list[Finding]:
    with prepared(image, keep_free=keep_free) as ready:
        return look_at(ready, keep_free=keep_free)


def look_at(ready: Prepared, *, keep_free: bool = False) -> list[Finding]:
    """What of a full pack looks private; it must cost next to nothing."""
    carried = np.ones(len(ready.map.contents), dtype=bool)
    started = time.perf_counter()
    found = find_published(ready, carried, keep_free=keep_free)
    assert time.perf_counter() - started < CHECK_SECONDS
    return list(found)


def rules_in(image: Path, *, keep_free: bool = False) -> list[tuple[str, str]]:
    return [(one.rule, one.path) for one in found_in(image, keep_free=keep_free)]


def linux(folder: Path, files: Mapping[str, bytes]) -> Path:
    tree = write_tree(folder / "tree", {"/etc/os-release": b"ID=debian\n", **files}, {})
    return ext4(folder / "disk.raw", tree)


# --- small disks ---


def test_every_planted_secret_is_found_with_its_bytes(tmp_path: Path) -> None:
    found = found_in(linux(tmp_path, ALL_SECRETS))
    assert {(one.path, one.rule, one.size_bytes) for one in found} == {
        (path, RULE_OF[path], len(data)) for path, data in ALL_SECRETS.items()
    }


def test_nothing_is_found_where_there_is_nothing_to_hide(tmp_path: Path) -> None:
    empty = dict.fromkeys(("/root/.bash_history", "/var/log/wtmp", "/etc/krb5.keytab"), b"")
    assert found_in(linux(tmp_path, HARMLESS | empty)) == []


@pytest.mark.skipif(not HAS_DPKG, reason="needs dpkg-deb and dpkg")
def test_what_a_package_ships_unchanged_is_not_private(tmp_path: Path) -> None:
    root = DpkgRoot(tmp_path)
    shipped = {"/usr/share/tests/a.pem": PEM_KEY, "/usr/share/tests/b.pem": PEM_KEY + b"\n"}
    root.install(Deb("tests", shipped, conffiles={"/etc/demo.key": PEM_KEY + b"\n\n"}))
    assert found_in(ext4(tmp_path / "as-shipped.raw", root.root)) == []
    (root.root / "usr/share/tests/b.pem").write_bytes(PEM_KEY + b"mine")
    (root.root / "etc/demo.key").write_bytes(PEM_KEY + b"mine, too")
    assert rules_in(ext4(tmp_path / "changed.raw", root.root)) == [
        ("private-key", "/etc/demo.key"),
        ("private-key", "/usr/share/tests/b.pem"),
    ]


def test_every_name_of_a_file_is_listed(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"/etc/os-release": b"", "/root/.netrc": b"x"}, {})
    os.link(tree / "root/.netrc", tree / "root/.netrc.old")
    os.link(tree / "root/.netrc", tree / "_netrc")
    image = ext4(tmp_path / "disk.raw", tree)
    assert rules_in(image) == [("token", "/_netrc"), ("token", "/root/.netrc")]


def test_of_a_sparse_file_only_what_is_stored_counts(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"/etc/os-release": b""}, {})
    for name in ("var/log/lastlog", "srv/hole.pem"):
        (tree / name).parent.mkdir(parents=True)
        with (tree / name).open("wb") as file:
            file.truncate(1 << 30)
            file.seek(1 << 29)
            file.write(b"x" * 5000)
    (found,) = found_in(ext4(tmp_path / "disk.raw", tree))
    assert found.path == "/var/log/lastlog"
    assert 5000 <= found.size_bytes <= 8192


def test_hostile_names_are_listed_as_they_are(tmp_path: Path) -> None:
    names = ["/\x1b[31m\nvmpack:/.bash_history", "/" + "/".join(["d" * 200] * 15) + "/.zsh_history"]
    found = rules_in(linux(tmp_path, dict.fromkeys(names, b"ls\n")))
    assert found == [("history", name) for name in sorted(names)]


# --- volumes ---


def test_a_volume_that_nobody_can_parse_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(NOISE)
    (tmp_path / "nothing").write_bytes(bytes(len(NOISE)))
    parts = [Part(LINUX, tmp_path / "noise"), Part(LINUX, tmp_path / "nothing")]
    parts.append(Part("21686148-6449-6e6f-744e-656564454649", tmp_path / "noise"))  # BIOS boot
    parts.append(Part(SWAP, swap(tmp_path / "swap")))
    (found,) = found_in(gpt_disk(tmp_path / "disk.raw", parts))
    assert (found.rule, found.path) == ("unread-volume", "partition 1")
    assert abs(found.size_bytes - len(NOISE)) < 4096


def test_free_space_that_travels_is_named(tmp_path: Path) -> None:
    image = linux(tmp_path, {"/srv/file": NOISE})
    assert found_in(image) == []
    (kept,) = found_in(image, keep_free=True)
    assert (kept.rule, kept.path, kept.detail) == ("free-space", "the disk", "")
    run("debugfs", "-w", "-R", "feature needs_recovery", image)
    (dirty,) = found_in(image)
    assert (dirty.rule, dirty.path) == ("free-space", "the disk")
    assert dirty.detail


def test_files_that_the_reader_could_not_list_are_named(tmp_path: Path) -> None:
    with prepared(linux(tmp_path, {})) as ready:
        (volume,) = ready.survey.volumes
        odd = replace(volume, unread=("2 files share blocks with another file: /a\n/b",))
        (found,) = look_at(replace(ready, survey=replace(ready.survey, volumes=(odd,))))
    assert (found.rule, found.path, found.size_bytes) == ("unread-volume", "the disk", 0)
    assert found.detail.startswith("2 files share blocks")
    assert "\n" not in found.detail


# --- in a pack ---


def packed(image: Path, folder: Path, options: PackOptions) -> PackReport:
    return pack(image, folder / "demo.vmpack", options, [])


def holds_everything(contents: Contents, hints: Hints, rows: np.ndarray) -> np.ndarray:
    return rows


def test_what_only_another_host_has_is_published_by_a_full_pack_alone(tmp_path: Path) -> None:
    image = linux(tmp_path, {"/etc/krb5.keytab": NOISE})
    options = PackOptions("demo", against=[holds_everything], replace=True)
    full = packed(image, tmp_path, options)
    assert full.config.totals.shared.count > 0
    assert [one.rule for one in full.privacy.findings] == ["kerberos"]
    thin = packed(image, tmp_path, replace(options, thin=True))
    assert thin.privacy.findings == ()


def test_strict_writes_nothing_and_says_what_and_why(tmp_path: Path) -> None:
    image = linux(tmp_path, {"/etc/krb5.keytab": NOISE, "/root/.bash_history": b"ls\n"})
    before = sorted(tmp_path.iterdir())
    told: list[Review] = []
    options = PackOptions("demo", strict=True, allow=["kerbros"], review=told.append)
    with pytest.raises(PolicyError) as caught:
        packed(image, tmp_path, options)
    assert sorted(tmp_path.iterdir()) == before
    assert told == []  # the error says all there is to say
    assert "/etc/krb5.keytab" in caught.value.message
    assert "--clean=history" in caught.value.hint
    assert "--allow kerbros" in caught.value.hint
    allowed = packed(image, tmp_path, replace(options, allow=["kerberos", "/root/*"]))
    assert [one.rule for one in allowed.privacy.allowed] == ["kerberos", "history"]
    assert told == [allowed.privacy]


def test_who_reviews_is_told_before_anything_is_there(tmp_path: Path) -> None:
    image = linux(tmp_path, {"/etc/krb5.keytab": NOISE})
    told: list[Review] = []

    def look(review: Review) -> None:
        assert not (tmp_path / "demo.vmpack").exists()
        told.append(review)

    report = packed(image, tmp_path, PackOptions("demo", review=look))
    assert told == [report.privacy]
    demand_nothing_private(Review())


# --- what the rules say of --clean ---


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.clean], ids=lambda rule: rule.id)
def test_the_group_that_a_rule_names_takes_some_of_it_out(tmp_path: Path, rule: Rule) -> None:
    write_tree(tmp_path, SECRETS[rule.id], {})
    taken = select(Local(tmp_path), GROUPS[rule.clean])
    chosen = (*taken.files, *taken.trees, *taken.emptied)
    assert any(path.startswith(chosen) for path in SECRETS[rule.id]), chosen


# --- real guests ---


@pytest.mark.guest
@pytest.mark.parametrize("name", ["busybox", "debian-bios", "debian-uefi"])
def test_a_guest_that_was_never_started_holds_nothing_private(
    build_guest: Callable[[str], Guest], name: str
) -> None:
    """dpkg and apt leave nothing; the accounts have no passwords; machine-id is empty."""
    with prepared(build_guest(name).image) as ready:
        assert look_at(ready) == []
        # Nor does anything that packages ship look private to the rules.
        nobodys = replace(ready, unshipped=np.ones(len(ready.map.contents), dtype=bool))
        assert look_at(nobodys) == []


@pytest.mark.guest
def test_what_is_planted_in_a_real_guest_is_found_and_nothing_else(
    build_guest: Callable[[str], Guest], room: Path
) -> None:
    guest = build_guest("debian-bios")
    image = room / "disk.raw"
    run("cp", "--sparse=always", guest.image, image)
    tree = write_tree(room / "planted", ALL_SECRETS, {})
    commands = []
    for path in ALL_SECRETS:
        above = Path(path).parents
        commands += [f'mkdir "{folder}"' for folder in reversed(above) if str(folder) != "/"]
        commands += [f'rm "{path}"', f'write "{tree / path.lstrip("/")}" "{path}"']
    script = room / "commands"
    script.write_text("\n".join(commands) + "\n")
    run("debugfs", "-w", "-f", script, f"{image}?offset={guest.root_offset}")
    shutil.rmtree(tree)

    with prepared(image) as ready:
        assert [one.state for one in ready.survey.volumes] == ["clean", "clean"]
        found = look_at(ready)
    assert {(one.rule, one.path) for one in found} == {
        (rule, path) for path, rule in RULE_OF.items()
    }
