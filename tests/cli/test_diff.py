"""`vmpack diff`: what is printed for people, for machines, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.web import NGINX, nginx
from packer.artifact.contents import Class
from packer.artifact.hints import Package
from packer.cli.diff import MAX_WORDS
from packer.text import printable
from tests.artifact.make import contents_of
from tests.artifact.real_packs import hints_of, noise, write_pack
from tests.cli.running import Run, run

__all__ = ["run"]

EVIL = "/srv/\x1b]0;evil\x07\nvmpack: all is well/" + "x" * 4000


def small_pack(place: Path, version: int, *, carried: tuple[Class, ...] = tuple(Class)) -> Path:
    """A package in two versions, a file of many that each version has, a name that does harm."""
    files = [(f"/srv/{version}/{row}", noise(100 + row, row + 1000 * version)) for row in range(20)]
    files += [(EVIL, noise(50 * version, version)), ("/usr/bin/bash", noise(9000 * version, 7))]
    classes = [Class.PRIVATE] * 21 + [Class.SHARED]
    data = [one for _, one in files]
    places = [
        (row, path, 0 if path == "/usr/bin/bash" else -1) for row, (path, _) in enumerate(files)
    ]
    packages = [Package("dpkg", "bash\x1b[31m", f"5.{version}", "amd64")]
    hints = hints_of(contents_of(data, classes), places, packages)
    write_pack(place, data, classes, hints=hints, carried=carried, version=version).close()
    return place


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return small_pack(tmp_path / "v1.vmpack", 1)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return small_pack(tmp_path / "v2.vmpack", 2)


def test_people_see_why_it_grew(run: Run, old: Path, new: Path) -> None:
    out = run("diff", old, new).out
    lines = out.splitlines()
    assert lines[0].startswith(f"{old}  ")
    assert lines[1].split()[0] == "demo:1"
    assert lines[3].split()[0] == "demo:2"
    assert lines[4] == "22 contents of 20.3 kB are new, 22 of 11.2 kB are gone: 9.1 kB more in all"
    (bash,) = (line for line in lines if "bash" in line and "5.1" in line)
    assert "5.1 -> 5.2" in bash
    assert bash.split()[-5:-1] == ["kB", "+9.0", "kB", "+9.0"]
    for title in ("by class", "by package", "by folder", "by file"):
        assert any(line.startswith(title) for line in lines)
    assert out.replace("\n", "") == printable(out.replace("\n", ""))
    assert max(map(len, lines)) < 2 * MAX_WORDS + 60


def test_tables_are_cut_and_the_rest_is_summed_up(run: Run, old: Path, new: Path) -> None:
    by_file = run("diff", old, new, "--top", "3").out.partition("by file")[2].splitlines()[2:]
    assert len(by_file) == 4
    assert by_file[-1].split()[:2] == ["39", "more"]
    folders = run("diff", old, new, "--depth", "1").out.partition("by folder")[2]
    assert "/srv " in folders
    assert "/srv/1" not in folders.partition("by file")[0]


def test_machines_see_every_row_to_the_byte(run: Run, old: Path, new: Path) -> None:
    found = run("diff", old, new, "--top", "1", "--json").json
    assert (found["old"]["name"], found["new"]["name"]) == ("demo:1", "demo:2")
    assert len(found["files"]) == 42
    for table in ("classes", "packages", "folders", "files"):
        whole = sum(row["difference_bytes"] for row in found[table])
        assert whole == found["difference_bytes"] == 9050
    assert EVIL in {row["what"] for row in found["files"]}
    assert found["new"]["stored_bytes"] == sum(
        (
            found["new"]["table_bytes"],
            found["new"]["idle_bytes"],
            found["new"]["delta_bytes"],
            *(row["new"]["stored_bytes"] for row in found["classes"]),
        )
    )


def test_a_thin_copy_is_said_not_to_carry(run: Run, old: Path, tmp_path: Path) -> None:
    thin = small_pack(tmp_path / "thin.vmpack", 2, carried=(Class.BOOT, Class.PRIVATE))
    out = run("diff", old, thin).out
    (shared,) = (line for line in out.splitlines() if line.split()[:1] == ["shared"])
    assert shared.endswith("not carried")
    (bash,) = (line for line in out.splitlines() if "5.1 -> 5.2" in line)
    assert bash.endswith("not carried")
    found = run("diff", old, thin, "--json").json
    assert found["classes"][2]["new"]["stored_bytes"] is None
    assert found["difference_bytes"] == 9050


@pytest.mark.skipif(NGINX is None, reason="needs nginx (package nginx-light)")
def test_a_pack_on_a_server_is_compared_too(run: Run, old: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    new.rename(tmp_path / "www" / "v2.vmpack")
    with nginx(tmp_path / "www", tmp_path / "nginx") as url:
        found = run("diff", old, f"{url}/v2.vmpack", "--json").json
    assert found["difference_bytes"] == 9050


def test_a_pack_and_itself(run: Run, old: Path) -> None:
    done = run("diff", old, old)
    assert done.code == 0
    assert "the same pack" in done.out
    assert "by package" not in done.out
    assert run("diff", old, old, "--json").json["difference_bytes"] == 0


@pytest.mark.parametrize("option", ["--top", "--depth"])
def test_tables_of_nothing_are_a_mistake(run: Run, old: Path, option: str) -> None:
    run("diff", old, old, option, "0").refused(2, option)


def test_what_is_no_pack_is_refused(run: Run, old: Path, tmp_path: Path) -> None:
    run("diff", old, tmp_path / "none.vmpack").refused(3, "none.vmpack")
    data = bytearray(old.read_bytes())
    middle = len(data) // 2
    (tmp_path / "short.vmpack").write_bytes(data[:middle])
    run("diff", tmp_path / "short.vmpack", old).refused(3, "short.vmpack")
