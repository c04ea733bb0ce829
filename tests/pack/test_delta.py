"""Two builds of a real guest: what the author's patches save whoever has the first."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.guests import build
from fixtures.web import nginx
from packer.artifact.layout.open import open_layout
from packer.artifact.opened import OpenedPack
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import author_key, packed


@pytest.mark.guest
@pytest.mark.slow
def test_a_second_build_is_fetched_as_patches(author: Vmpack, tmp_path: Path) -> None:
    old = packed("debian-bios")
    new = build("debian-bios-upgraded")
    signed = ("--key", author_key().with_suffix(""), "--no-packages", "--level", "3")
    made = {
        kind: author.json(
            "pack", new, "--base", old.full, "-o", f"{tmp_path}/{kind}/", *signed, *more
        )
        for kind, more in (("plain", []), ("delta", ["--delta"]))
    }
    assert made["plain"]["identity"] == made["delta"]["identity"]
    gain = made["delta"]["deltas"]
    assert made["plain"]["deltas"]["contents"] == 0 < gain["contents"]
    assert 0 < gain["delta_bytes"] < gain["stored_bytes"] / 3
    with OpenedPack(open_layout(tmp_path / "delta")) as pack:
        layers = pack.manifest.deltas()
        assert layers is not None
        assert layers[1].size == gain["delta_bytes"]

    fetched = {}
    with nginx(tmp_path, tmp_path / "nginx") as url:
        for kind in made:
            disk = tmp_path / f"{kind}.raw"
            whole = ("--from", f"pack:{old.full}", "--no-store", "--allow-older")
            author.good("unpack", old.full, "-o", disk, *whole)
            report = author.json(
                "update", disk, f"{url}/{kind}/", "--from", f"pack:{old.boot}", "--no-store"
            )
            fetched[kind] = sum(one["fetched_bytes"] for one in report["supplied"])
            author.good("verify", disk, tmp_path / "plain")
    assert fetched["delta"] < 0.5 * fetched["plain"]
