"""Which bytes of a guest's disk nobody can read: e2fsprogs and mtools say it, not our own map."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.round_trip.disks import Range, joined
from tests.round_trip.ext4_oracle import BLOCK, Unseen, unseen
from tests.round_trip.fat_oracle import unseen_of_fat
from tests.round_trip.packs import Guest


@cache
def _root(image: Path, offset: int) -> Unseen:
    return unseen(image, offset)


def root_of(guest: Guest) -> Unseen:
    """Of its root file system."""
    return _root(guest.image, guest.root_offset)


def swap_pages(guest: Guest) -> list[Range]:
    """Its swap partition, behind the header."""
    if "swap" not in guest.facts["partitions"]:
        return []
    start, end = guest.partition("swap")
    return [(start + BLOCK, end)]


def esp_free(guest: Guest) -> list[Range]:
    """Free clusters and file tails of its EFI system partition."""
    if "esp" not in guest.facts["partitions"]:
        return []
    return unseen_of_fat(guest.image, guest.partition("esp")[0])


def nobody_sees(guest: Guest) -> list[Range]:
    """All of it."""
    return joined([*root_of(guest).all(), *esp_free(guest), *swap_pages(guest)])
