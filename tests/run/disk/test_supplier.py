"""What is known about one source of a running disk."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np

from packer.run.disk.kept import Count
from packer.run.disk.supplier import Rows, Supplier
from packer.sources.base import Offers, Wanted
from tests.artifact.real_packs import no_hints
from tests.run.disk.lazy import DISK_MAP
from tests.unpack.simulated import DATA, InOneFrame, Simulated

ALL = np.arange(len(DATA))
PARCEL_BYTES = 5000
TIMES = 1000
MOST_KEPT_BYTES = 20_000
"""Of what TIMES answers said; one number of each would be more."""


class InParcels(Simulated):
    """All that it has comes in one parcel."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        found = super().find(wanted, deep=deep)
        return replace(
            found,
            group=np.zeros_like(found.rows),
            group_bytes=np.array([PARCEL_BYTES], dtype=np.int64),
        )


def look_again_and_again(supplier: Supplier, parcels: InParcels, rows: Rows) -> int:
    """Return how many bytes of memory are kept of it."""
    supplier.look(rows, deep=False)  # the first time, NumPy loads modules
    tracemalloc.start()
    try:
        for _ in range(TIMES):
            supplier.look(rows, deep=False)
            parcels.asked.clear()  # which the simulated source itself keeps
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_what_is_offered_again_and_again_is_not_kept_as_often() -> None:
    """Each answer has a parcel, of what is wanted or not."""
    parcels = InParcels("parcels:", {row: DATA[row] for row in (2, 3)}, local=False)
    came: dict[tuple[int, int], bytes] = {}

    def take(row: int, block: int, data: bytes | memoryview, count: Count) -> None:
        came[row, block] = bytes(data)
        count(len(data))

    supplier = Supplier(parcels, DISK_MAP.contents, no_hints(), take, take, lambda *_: False)
    missing = np.array([4, 5])
    for rows in (ALL, missing):
        assert look_again_and_again(supplier, parcels, rows) < MOST_KEPT_BYTES
    parcels.held[4] = DATA[4]
    supplier.look(missing, deep=False)
    offers = supplier.offers_of(ALL)
    assert offers.rows.tolist() == [2, 3, 4]
    assert offers.group.tolist() == [0, 0, 1]
    assert offers.group_bytes.tolist() == [PARCEL_BYTES] * 2
    supplier.fetch([(4, 0)], np.empty(0, dtype=np.int64))
    assert came == {(4, 0): DATA[4]}
    assert supplier.record().fetched_bytes == PARCEL_BYTES
    supplier.stop()


def test_what_was_asked_for_is_handed_over_before_what_comes_along() -> None:
    source, came = InOneFrame(local=False), list[tuple[str, int]]()
    source.held = {row: DATA[row] for row in (3, 4)}

    def take(row: int, _block: int, _data: bytes | memoryview, _count: Count) -> None:
        came.append(("asked for", row))

    def take_besides(row: int, _block: int, _data: bytes | memoryview, _count: Count) -> None:
        came.append(("besides", row))

    contents = DISK_MAP.contents
    supplier = Supplier(source, contents, no_hints(), take, take_besides, lambda *_: False)
    supplier.look(ALL, deep=False)
    supplier.fetch([(3, 0)], np.empty(0, dtype=np.int64))
    assert came == [("asked for", 3), ("besides", 4)]
    supplier.stop()
