"""unpack --dry-run: what would come from where, without writing a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.artifact.opened import OpenedPack
from packer.sources.against import prove
from packer.sources.base import Offers, Provable, Source, SourceError, Wanted
from packer.unpack.gather import is_worth_a_search
from packer.unpack.plan import Plan, choose
from packer.unpack.unpack import carrier_of, path_of

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DryRun:
    """steps: (uri, contents, bytes of them, bytes to fetch) by source. missing: (content, bytes,
    guest path) of what nobody offers.
    """

    disk_bytes: int
    steps: tuple[tuple[str, int, int, int], ...]
    missing: tuple[tuple[str, int, str], ...]


def dry_run(pack: OpenedPack, sources: Sequence[Source]) -> DryRun:
    """Return what an unpack with these sources would do.

    What is here is read and hashed: an offer is not a promise. What would be fetched is not.
    """
    return _DryRun(pack, sources).run()


class _DryRun:
    def __init__(self, pack: OpenedPack, sources: Sequence[Source]) -> None:
        self._pack = pack
        self._contents = pack.map.contents
        self._hints = pack.hints
        self._missing: Rows = np.arange(len(self._contents), dtype=np.int64)
        self._steps: dict[str, tuple[int, int, int]] = {}
        carrier = carrier_of(pack)
        self._named_local = [source for source in sources if source.local]
        self._local = [*self._named_local, *([carrier] if carrier.local else [])]
        self._remote = [one for one in (carrier, *sources) if not one.local]

    def run(self) -> DryRun:
        for source in self._local:
            self._take(source, deep=False)
        plan = self._plan()
        if is_worth_a_search(plan):
            for source in self._named_local:
                self._take(source, deep=True)
            plan = self._plan()
        if len(plan.missing):
            plan = self._plan(deep=True)
        for source, rows, cost in zip(self._remote, plan.chosen, plan.cost_bytes, strict=True):
            self._add(source, rows, cost)
        return DryRun(
            self._pack.map.size,
            tuple((uri, *step) for uri, step in self._steps.items()),
            tuple(
                (
                    self._contents.name(row),
                    int(self._contents.size[row]),
                    path_of(self._hints, row),
                )
                for row in plan.missing.tolist()
            ),
        )

    def _take(self, source: Source, *, deep: bool) -> None:
        """Cross off what a local source really has."""
        offered = self._ask(source, deep=deep).rows
        if len(offered) == 0:
            return
        try:
            if isinstance(source, Provable):
                found = source.prove(offered)
            else:
                found = prove(source, self._contents, offered)
        except SourceError:  # it broke; unpack would ask the next one, too
            return
        self._add(source, found, 0)
        self._missing = np.setdiff1d(self._missing, found)

    def _plan(self, *, deep: bool = False) -> Plan:
        offers = [self._ask(source, deep=deep) for source in self._remote]
        return choose(self._missing, self._contents.size, offers)

    def _ask(self, source: Source, *, deep: bool) -> Offers:
        none = np.empty(0, dtype=np.int64)
        if len(self._missing) == 0:
            return Offers(none, none, none, none)
        try:
            return source.find(Wanted(self._contents, self._missing, self._hints), deep=deep)
        except SourceError:
            return Offers(none, none, none, none)

    def _add(self, source: Source, rows: Rows, cost_bytes: int) -> None:
        if len(rows) == 0:
            return
        count, size, cost = self._steps.get(source.uri, (0, 0, 0))
        size += int(self._contents.size[rows].sum())
        self._steps[source.uri] = (count + len(rows), size, cost + cost_bytes)
