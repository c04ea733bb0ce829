from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from packer.artifact.hints import Package
from packer.sources.base import SourceError
from packer.sources.package_cache import PackageCache


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "packages")


def keep(cache: PackageCache, name: str, size: int, *, days: float = 0) -> Path:
    """A package that was last used so many days ago."""
    path = cache.path_of(Package("dpkg", name, "1", "all"))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


def test_packages_that_are_not_there_are_nothing_to_collect(cache: PackageCache) -> None:
    assert cache.collect(everything=True).kept == 0
    assert not cache.folder.exists()


def test_the_least_recently_used_packages_go_until_the_rest_fits(cache: PackageCache) -> None:
    old, middle, new = (
        keep(cache, "old", 100, days=9),
        keep(cache, "middle", 200, days=5),
        keep(cache, "new", 400),
    )
    removed = cache.collect(max_bytes=600)
    assert (removed.count, removed.size_bytes, removed.kept, removed.kept_bytes) == (1, 100, 2, 600)
    assert not old.exists()
    removed = cache.collect(older_than_seconds=4 * 86_400)
    assert (removed.count, removed.kept_bytes) == (1, 400)
    assert not middle.exists()
    assert new.exists()


def test_without_a_rule_only_left_overs_go(cache: PackageCache) -> None:
    package = keep(cache, "tool", 100, days=1000)
    partial = package.with_suffix(".partial")
    partial.write_bytes(bytes(50))
    strange = cache.folder / "notes.txt"
    strange.touch()
    removed = cache.collect()
    assert (removed.count, removed.size_bytes, removed.kept) == (0, 50, 1)
    assert package.exists()
    assert strange.exists()
    assert not partial.exists()


def test_everything_means_the_lists_too(cache: PackageCache) -> None:
    keep(cache, "tool", 100)
    (cache.lists / "lists").mkdir(parents=True)
    (cache.lists / "lists" / "Packages").write_bytes(bytes(1000))
    assert cache.collect(max_bytes=0).size_bytes == 100
    assert cache.collect(everything=True).size_bytes == 1000
    assert not cache.lists.exists()


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "packages")
    cache.folder.mkdir()
    (cache.folder / "reading").mkdir()
    with pytest.raises(SourceError, match=str(cache.folder)):
        cache.collect()
