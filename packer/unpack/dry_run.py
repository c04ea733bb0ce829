"""unpack --dry-run: what would come from where, without writing a disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from packer.artifact.opened import OpenedPack
from packer.sources.against import prove
from packer.sources.base import Offers, Provable, Source, SourceError, Wanted
from packer.sources.delta import delta_sources
from packer.unpack.gather import is_dear, is_worth_a_search, tiers
from packer.unpack.plan import Plan, choose
from packer.unpack.unpack import carrier_of, path_of

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DryRun:
    """steps: (uri, contents, bytes of them, bytes to fetch) by source. missing: (content, bytes,
    guest path) of what nobody offers; missing_rows: int64[k], the same as rows of the contents.
    complaints: of sources that could not be asked.
    """

    disk_bytes: int
    steps: tuple[tuple[str, int, int, int], ...]
    missing: tuple[tuple[str, int, str], ...]
    missing_rows: Rows = field(compare=False)
    complaints: tuple[str, ...] = ()


def dry_run(pack: OpenedPack, sources: Sequence[Source], *, wanted: Rows | None = None) -> DryRun:
    """Return what an unpack with these sources would do.

    What is here is read and hashed: an offer is not a promise. What would be fetched is not.
    wanted: int64[k], sorted: look for these contents alone.
    """
    return _DryRun(pack, sources, wanted).run()


class _DryRun:
    def __init__(self, pack: OpenedPack, sources: Sequence[Source], wanted: Rows | None) -> None:
        self._pack = pack
        self._contents = pack.map.contents
        everything = np.arange(len(self._contents), dtype=np.int64)
        self._missing: Rows = everything if wanted is None else wanted
        self._steps: dict[str, tuple[int, int, int]] = {}
        self._complaints: list[str] = []
        carrier = carrier_of(pack)
        self._searched = False
        sources = [*sources, *delta_sources(pack, sources)]
        self._named_local, self._near, self._far = tiers(sources)
        self._local = [*self._named_local, *([carrier] if carrier.local else [])]
        if not carrier.local:
            self._far.insert(0, carrier)

    def run(self) -> DryRun:
        for source in self._local:
            self._take(source, deep=False)
        self._count_on(self._near, worth=is_dear)
        self._count_on(self._far, worth=is_worth_a_search)
        self._search()
        for remote in (self._near, self._far):
            self._count_on(remote, deep=True)
        return DryRun(
            self._pack.map.size,
            tuple((uri, *step) for uri, step in self._steps.items()),
            tuple(
                (
                    self._contents.name(row),
                    int(self._contents.size[row]),
                    path_of(self._pack.hints, row),
                )
                for row in self._missing.tolist()
            ),
            self._missing,
            tuple(self._complaints),
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

    def _search(self) -> None:
        """Have local trees indexed for what is missing, once."""
        for source in () if self._searched else self._named_local:
            self._take(source, deep=True)
        self._searched = True

    def _count_on(
        self,
        sources: Sequence[Source],
        *,
        deep: bool = False,
        worth: Callable[[Plan], bool] | None = None,
    ) -> None:
        """Cross off what sources on the network promise; see gather for `worth`."""
        if not sources:
            return
        plan = self._plan(sources, deep=deep)
        if worth is not None and worth(plan):
            self._search()
            plan = self._plan(sources, deep=deep)
        for source, rows, cost in zip(sources, plan.chosen, plan.cost_bytes, strict=True):
            self._add(source, rows, cost)
            self._missing = np.setdiff1d(self._missing, rows)

    def _plan(self, sources: Sequence[Source], *, deep: bool) -> Plan:
        offers = [self._ask(source, deep=deep) for source in sources]
        return choose(self._missing, self._contents.size, offers)

    def _ask(self, source: Source, *, deep: bool) -> Offers:
        none = np.empty(0, dtype=np.int64)
        if len(self._missing) == 0:
            return Offers(none, none, none, none)
        try:
            wanted = Wanted(self._contents, self._missing, lambda: self._pack.hints)
            return source.find(wanted, deep=deep)
        except SourceError as error:
            if str(error) not in self._complaints:
                self._complaints.append(str(error))
            return Offers(none, none, none, none)

    def _add(self, source: Source, rows: Rows, cost_bytes: int) -> None:
        if len(rows) == 0:
            return
        count, size, cost = self._steps.get(source.uri, (0, 0, 0))
        size += int(self._contents.size[rows].sum())
        self._steps[source.uri] = (count + len(rows), size, cost + cost_bytes)
