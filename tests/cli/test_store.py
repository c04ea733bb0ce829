from __future__ import annotations

import os
from pathlib import Path

import pytest

from packer.artifact.hints import Package
from packer.sources.package_cache import PackageCache
from packer.sources.store import Store
from tests.cli.running import Run, run
from tests.sources.stores import put

__all__ = ["run"]


@pytest.fixture
def home(run: Run) -> Path:
    return Path(os.environ["VMPACK_HOME"])


def keep_package(home: Path, size: int) -> Path:
    path = PackageCache(home / "cache" / "packages").path_of(Package("dpkg", "tool", "1", "all"))
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(size))
    return path


def test_gc_also_collects_the_packages_that_apt_fetched(run: Run, home: Path) -> None:
    package = keep_package(home, 5000)
    put(Store(home / "data" / "store"), b"content")
    kept = run("store", "gc", "--max-size", "1M", "--json").json
    assert (kept["kept"], kept["packages"]["kept_bytes"]) == (1, 5000)
    assert package.exists()
    done = run("store", "gc", "--all")
    assert done.code == 0
    assert "removed 1 contents, 7 B" in done.out
    assert "removed 1 packages, 5.0 kB" in done.out
    assert not package.exists()


def test_gc_of_another_store_leaves_this_hosts_packages_alone(run: Run, home: Path) -> None:
    package = keep_package(home, 5000)
    done = run("store", "gc", "--all", "--store", "other", "--json")
    assert "packages" not in done.json
    assert package.exists()


@pytest.mark.parametrize("action", ["list", "verify", "gc"])
def test_a_file_is_no_store(run: Run, action: str) -> None:
    Path("file").write_bytes(b"precious")
    run("store", action, "--store", "file").refused(1, "file: expected a folder", "--store")
    assert Path("file").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "rule",
    [("--older-than", days) for days in ("nan", "inf", "-1", "1e300", "soon")]
    + [("--max-size", size) for size in ("", "-1", "1" * 5000, "5 G", "٣")],
)
def test_rules_without_sense_are_refused(run: Run, rule: tuple[str, str]) -> None:
    done = run("store", "gc", *rule)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err
