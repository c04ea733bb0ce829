from __future__ import annotations

import pytest

from packer.errors import UsageError
from packer.media.capacity import KINDS, capacity_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("700M", 700 << 20),
        ("64k", 64 << 10),
        ("4G", 4 << 30),
        ("2T", 2 << 40),
        ("999999999999999T", 999_999_999_999_999 << 40),
        ("cd", 736_970_752),
        ("dvd", 4_700_372_992),
        ("bluray", 25_025_314_816),
    ],
)
def test_a_medium_is_a_number_or_a_kind(text: str, size: int) -> None:
    assert capacity_bytes(text) == size


NO_SIZES = [
    "", "0", "0G", "-1", "+1", "1.5G", "700 M", "700MB", "1_0", "1m", "CD", "G", "1e9", "\u0661",
    "1" * 16, "9" * 5000, "1\n",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_SIZES)
def test_anything_else_is_refused_with_what_it_can_be(text: str) -> None:
    with pytest.raises(UsageError, match="the size of a medium") as caught:
        capacity_bytes(text)
    assert all(kind in caught.value.message for kind in KINDS)
