"""A next version in a registry: only what is new travels up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.guests import build
from fixtures.registry import Running
from packer.artifact.layout.open import open_layout
from packer.artifact.opened import OpenedPack
from tests.media.test_fit import difference
from tests.registry.conftest import Address
from tests.registry.proxy import proxy
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import SHARED_LEVEL, Packed, author_key


@pytest.mark.guest
@pytest.mark.slow
def test_a_next_version_uploads_its_differences(
    author: Vmpack,
    pack_guest: Callable[[str], Packed],
    docker_registry: Running,
    address: Address,
    room: Path,
) -> None:
    """One package upgraded: bytes of request bodies, counted before the registry."""
    first = pack_guest("debian-bios").full
    second = room / "second.vmpack"
    author.good(
        "pack", build("debian-bios-upgraded"), "--base", first, "-o", second, "--no-packages",
        "--key", author_key().with_suffix(""), "--level", str(SHARED_LEVEL),
    )  # fmt: skip
    with proxy(docker_registry.host) as before:
        author.good("push", first, address(before.host, "1"))
        weight = before.received
        author.good("push", second, address(before.host, "2"))
        sent = before.received - weight
        reports = [author.json("inspect", address(before.host, tag)) for tag in ("1", "2")]
    assert [one["config"]["version"] for one in reports] == [1, 2]
    with OpenedPack(open_layout(first)) as old, OpenedPack(open_layout(second)) as new:
        changed = difference(new, old)
    print("uploaded, changed", sent, changed)
    assert sent <= 1.25 * changed, (sent, changed)
