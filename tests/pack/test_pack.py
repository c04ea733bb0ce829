"""What an author learns of a pack that leaves contents to others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from packer.artifact.contents import Contents
from packer.artifact.hints import Hints, Package
from packer.pack.pack import PackOptions, PackReport, pack
from tests.guest.dpkg_guest import HAS_DPKG, Deb, DpkgRoot
from tests.guest.material import ext4

LISTED, FOREIGN = os.urandom(50_000), os.urandom(70_000)

pytestmark = pytest.mark.skipif(not HAS_DPKG, reason="needs dpkg-deb and dpkg")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest with a package that a mirror lists and one that it does not."""
    folder = tmp_path_factory.mktemp("guest")
    root = DpkgRoot(folder)
    root.install(
        Deb("listed", {"/usr/share/listed": LISTED}),
        Deb("foreign", {"/usr/share/foreign": FOREIGN}),
    )
    return ext4(folder / "disk.raw", root.root)


def resolve(packages: Sequence[Package]) -> Sequence[Package]:
    """Say of one package where the mirror keeps it."""
    return [
        replace(one, filename="pool/listed.deb", size_bytes=1) if one.name == "listed" else one
        for one in packages
    ]


def packed(image: Path, folder: Path, options: PackOptions) -> PackReport:
    return pack(image, folder / "demo.vmpack", options, [])


def test_what_no_mirror_lists_is_counted_and_said(image: Path, tmp_path: Path) -> None:
    report = packed(image, tmp_path, PackOptions("demo", thin=True, resolve=resolve))
    assert report.config.sources == ("apt:",)
    assert report.unlisted_bytes - len(FOREIGN) in range(1000)  # and the members of its control
    assert report.nobody_named


@pytest.mark.parametrize(
    "options",
    [
        PackOptions("demo", resolve=resolve),
        PackOptions("demo", thin=True, resolve=resolve, sources=["https://mirror.example/demo/"]),
    ],
    ids=["a full pack", "a mirror of the author's"],
)
def test_who_has_it_all_is_told_nothing(image: Path, tmp_path: Path, options: PackOptions) -> None:
    assert not packed(image, tmp_path, options).nobody_named


def test_without_any_source_nobody_is_named(image: Path, tmp_path: Path) -> None:
    report = packed(image, tmp_path, PackOptions("demo", thin=True))
    assert report.config.sources == ()
    assert report.nobody_named


def test_what_only_a_named_host_has_is_counted_too(image: Path, tmp_path: Path) -> None:
    def holds_everything(contents: Contents, hints: Hints, rows: np.ndarray) -> np.ndarray:
        return rows

    plain = packed(image, tmp_path, PackOptions("demo", thin=True, resolve=resolve))
    report = pack(
        image,
        tmp_path / "against.vmpack",
        PackOptions("demo", thin=True, resolve=resolve, against=[holds_everything]),
        [],
    )
    left_out = plain.config.totals.private.bytes
    assert left_out > 0
    assert report.unlisted_bytes == plain.unlisted_bytes + left_out
