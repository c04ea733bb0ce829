"""Bring the rest of a pack's contents while nobody waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from packer.unpack.gather import is_worth_a_search
from packer.unpack.plan import Plan, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packer.run.resolve import Resolver
    from packer.run.supplier import Supplier

Rows = NDArray[np.int64]
STEP_BYTES = 4 << 20
STEP_ROWS = 128
"""What is brought between two looks whether somebody waits."""


async def complete(resolver: Resolver) -> None:
    """Bring what is not at hand: from this host, then from near, then from afar."""
    local, near, far = resolver.tiers
    await resolver.ask(local)
    await _from_local(resolver)
    for tier in (near, far):
        if not tier or len(resolver.lacking()) == 0:
            continue
        await resolver.ask(tier)
        if tier is far and is_worth_a_search(_plan(resolver, tier)):
            await resolver.search()
            await _from_local(resolver)
        plan = _plan(resolver, tier)
        for supplier, chosen in zip(tier, plan.chosen, strict=True):
            await _bring(resolver, supplier, chosen)
    await _bring(resolver, None, resolver.lacking())


async def _from_local(resolver: Resolver) -> None:
    for supplier in resolver.tiers[0]:
        lacking = resolver.lacking()
        await _bring(resolver, supplier, lacking[supplier.offered()[lacking]])


def _plan(resolver: Resolver, tier: Sequence[Supplier]) -> Plan:
    rows = resolver.lacking()
    return choose(rows, resolver.content_sizes, [one.offers_of(rows) for one in tier])


async def _bring(resolver: Resolver, supplier: Supplier | None, rows: Rows) -> None:
    for step in _steps(rows, resolver.content_sizes):
        await resolver.bring_quietly(np.intersect1d(step, resolver.lacking()), supplier)


def _steps(rows: Rows, size: Rows) -> Iterator[Rows]:
    """Yield rows a few at a time."""
    if len(rows) == 0:
        return
    group = np.cumsum(size[rows]) // STEP_BYTES + np.arange(len(rows)) // STEP_ROWS
    yield from np.split(rows, np.flatnonzero(np.diff(group)) + 1)
