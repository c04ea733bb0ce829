from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.errors import InputError, PolicyError
from packer.inspect.summary import check_gates, markdown, summarise
from packer.pack.against import inventory_holds
from packer.sources.inventory import Inventory
from tests.artifact.make import contents_of
from tests.artifact.real_packs import noise, write_pack
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import Packed

DATA = [noise(5000, 0), noise(7000, 1), *(noise(300_000, n) for n in range(2, 6))]
CLASSES = [Class.BOOT, Class.PRIVATE, *[Class.SHARED] * 4]


def inventory(place: Path, rows: list[int]) -> Path:
    contents = contents_of(DATA)
    rows = sorted(rows, key=lambda row: bytes(contents.digest[row]))
    Inventory(contents.digest[rows], contents.size[rows]).save(place)
    return place


def test_the_figures_are_those_of_the_bundles(tmp_path: Path) -> None:
    host = inventory(tmp_path / "host.inv", [2, 3, 5])
    with write_pack(tmp_path / "full.vmpack", DATA, CLASSES) as pack:
        found = summarise(pack, [("host.inv", inventory_holds(host))])
        sizes = {title: layer.size for title, layer in pack.manifest.bundles().items()}
    assert found.full_bytes - found.thin_bytes == sizes["shared-000"] == found.nothing_bytes
    ((name, fetched),) = found.fetch
    assert name == "host.inv"
    assert 300_000 < fetched < 300_200, "one frame of noise"


def test_what_a_thin_copy_carries_in_its_own_bundles_is_not_fetched(tmp_path: Path) -> None:
    """A next version leaves a content that is shared by now in the private bundle of its base."""
    old = [Class.BOOT, *[Class.PRIVATE] * 5]
    with write_pack(tmp_path / "full.vmpack", DATA, old) as pack:
        relabelled = replace(pack.map.contents, classes=np.array(CLASSES, dtype=np.uint8))
        pack.__dict__["map"] = replace(pack.map, contents=relabelled)
        found = summarise(pack, [("nobody", lambda *_: _[2][:0])])
    assert (found.nothing_bytes, found.fetch) == (0, (("nobody", 0),))
    assert found.thin_bytes == found.full_bytes


def test_a_gate_that_is_passed_fails_and_says_by_how_much(tmp_path: Path) -> None:
    with write_pack(tmp_path / "full.vmpack", DATA, CLASSES) as pack:
        found = summarise(pack, [])
    check_gates(found, [("a thin copy", found.thin_bytes, found.thin_bytes)])
    with pytest.raises(PolicyError, match=r"demo:1: a thin copy: expected at most 1.0 kB, found "):
        check_gates(found, [("a thin copy", found.thin_bytes, 1000)])


def test_a_copy_that_lacks_shared_contents_has_no_summary(tmp_path: Path) -> None:
    kept = (Class.BOOT, Class.PRIVATE)
    with (
        write_pack(tmp_path / "thin.vmpack", DATA, CLASSES, carried=kept) as pack,
        pytest.raises(InputError, match="expected a full copy"),
    ):
        summarise(pack, [])


def test_what_a_pack_says_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "x | <script>`*[a](b)"
    with write_pack(tmp_path / "full.vmpack", DATA, CLASSES) as pack:
        page = markdown(summarise(pack, [(evil, lambda *_: _[2])]))
    (line,) = [line for line in page.splitlines() if "script" in line]
    assert line == "| x \\| &lt;script&gt;\\`\\*\\[a\\](b) | 0 B |"


@pytest.mark.guest
def test_the_verb_prints_the_page_before_it_fails(
    run_vmpack: Vmpack, busybox: Packed, tmp_path: Path
) -> None:
    page = run_vmpack.good("summary", busybox.full, "--max-thin", "1G")
    assert page.startswith("## busybox:1\n")
    failed = run_vmpack("summary", busybox.full, "--max-thin", "1k", "--max-full", "2k")
    assert (failed.returncode, failed.stdout) == (8, page)
    assert failed.stderr.count("expected at most") == 2
    assert run_vmpack("summary", busybox.full, "--max-thin", "much").returncode == 2
