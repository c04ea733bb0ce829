"""Ask one source after the other until every content is in place or nobody has it.

Local sources are asked first, one by one, since what they have costs nothing; then those on the
local network, then those far away, each kind weighed against each other by the bytes they would
have to send. A source that gives a wrong byte loses that content to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from packer.progress import Progress
from packer.sources.base import (
    LazyHints,
    Learning,
    Offers,
    Source,
    SourceError,
    Wanted,
    is_near,
)
from packer.unpack.assemble import Assembler
from packer.unpack.plan import Plan, choose

Rows = NDArray[np.int64]

DEEP_SEARCH_BYTES = 4 << 20
"""A source's whole tree is indexed only if at least this much would have to be fetched."""

MOST_TRIES = 8
"""How many candidates of one source are tried for a content."""


@dataclass(slots=True)
class Supplied:
    """What one source gave: bytes of contents that were proven, bytes it should have sent."""

    uri: str
    proven_bytes: int = 0
    fetched_bytes: int = 0
    complaints: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Gathering:
    """supplied: by source, in the order of asking. fetched: contents that travelled over the
    network. missing: contents that nobody has.
    """

    supplied: dict[str, Supplied]
    fetched: Rows
    missing: Rows


def gather(
    assembler: Assembler,
    hints: LazyHints,
    carrier: Source,
    sources: Sequence[Source],
    progress: Progress,
) -> Gathering:
    """Fill the assembler's output.

    carrier: the pack itself. This host's own files come before it, because their blocks can be
    shared; nobody learns anything from their being read. sources: the others, in order of
    preference; those on the network are asked only for what nobody here has.
    """
    return _Gatherer(assembler, hints, carrier, sources, progress).run()


def is_dear(plan: Plan) -> bool:
    """Return whether a plan fetches so much that whole trees should be indexed before."""
    return sum(plan.cost_bytes) >= DEEP_SEARCH_BYTES


def is_worth_a_search(plan: Plan) -> bool:
    """Return whether a plan is so dear, or so incomplete, that whole trees should be indexed."""
    return is_dear(plan) or len(plan.missing) > 0


def tiers(sources: Sequence[Source]) -> tuple[list[Source], list[Source], list[Source]]:
    """Return the sources on this host, on the local network and far away, each in their order."""
    local = [source for source in sources if source.local]
    near = [source for source in sources if not source.local and is_near(source)]
    far = [source for source in sources if not source.local and not is_near(source)]
    return local, near, far


class _Gatherer:
    def __init__(
        self,
        assembler: Assembler,
        hints: LazyHints,
        carrier: Source,
        sources: Sequence[Source],
        progress: Progress,
    ) -> None:
        self._assembler = assembler
        self._contents = assembler.map.contents
        self._hints = hints
        self._carrier = carrier
        self._sources = sources
        self._progress = progress
        self._fetched: list[Rows] = []
        self._searched = False
        self._supplied = {source.uri: Supplied(source.uri) for source in (carrier, *sources)}

    def run(self) -> Gathering:
        local, near, far = tiers(self._sources)
        carrier = self._carrier
        for source in local:
            self._take([source], self._assembler.missing(), deep=False)
        if carrier.local:
            self._take([carrier], self._assembler.missing(), deep=False)
        else:
            far.insert(0, carrier)
        # What neighbours lack may be had far away for little: only much to fetch is a reason here.
        self._take(near, self._assembler.missing(), deep=False, search_first=local, worth=is_dear)
        self._take(far, self._assembler.missing(), deep=False, search_first=local)
        # Not offered, or promised and not delivered: now everybody looks at all that there is.
        self._search(local)
        for remote in (near, far):
            self._take(remote, self._assembler.missing(), deep=True)
        fetched = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *self._fetched]))
        return Gathering(self._supplied, fetched, self._assembler.missing())

    def _search(self, local: Sequence[Source]) -> None:
        """Have local trees indexed, once."""
        for source in () if self._searched else local:
            self._take([source], self._assembler.missing(), deep=True)
        self._searched = True

    def _take(
        self,
        sources: Sequence[Source],
        rows: Rows,
        *,
        deep: bool,
        search_first: Sequence[Source] = (),
        worth: Callable[[Plan], bool] = is_worth_a_search,
    ) -> None:
        """Fetch rows from the cheapest of the sources until none of them offers any more.

        search_first: local sources whose trees are indexed before, if the plan makes it `worth` it.
        """
        if len(rows) == 0 or not sources:
            return
        offers = [self._ask(source, rows, deep=deep) for source in sources]
        plan = choose(rows, self._contents.size, offers)
        if search_first and worth(plan):
            self._search(search_first)
            rows = self._assembler.missing()
            plan = choose(rows, self._contents.size, offers)
        asked = [1] * len(sources)
        while any(len(chosen) for chosen in plan.chosen):
            for number, source in enumerate(sources):
                chosen = plan.chosen[number]
                if len(chosen) == 0:
                    continue
                failed = self._fetch(source, chosen, plan.cost_bytes[number])
                offers[number] = _without(offers[number], chosen)
                # Who did not deliver is asked again only if it has another candidate.
                if isinstance(source, Learning) and len(failed) and asked[number] < MOST_TRIES:
                    others = np.union1d(offers[number].rows, failed)
                    offers[number] = self._ask(source, others, deep=deep)
                asked[number] += 1
            rows = np.intersect1d(self._assembler.missing(), rows)
            plan = choose(rows, self._contents.size, offers)

    def _ask(self, source: Source, rows: Rows, *, deep: bool) -> Offers:
        wanted = Wanted(self._contents, rows, self._hints)
        try:
            if not deep:
                return source.find(wanted, deep=False)
            with self._progress.stage(f"searching {source.uri}", 0):
                return source.find(wanted, deep=True)
        except SourceError as error:
            complaints = self._supplied[source.uri].complaints
            if str(error) not in complaints:  # it is asked again for what nobody else has
                complaints.append(str(error))
            none = np.empty(0, dtype=np.int64)
            return Offers(none, none, none, none)

    def _fetch(self, source: Source, rows: Rows, cost_bytes: int) -> Rows:
        """Fetch rows from a source; return those that it did not deliver."""
        record = self._supplied[source.uri]
        verb = "reading" if source.local else "fetching"
        total = int(self._contents.size[rows].sum())
        with self._progress.stage(f"{verb} {source.uri}", total) as advance:
            proven, complaints = self._assembler.place_all(source, rows, advance)
        record.proven_bytes += proven
        record.fetched_bytes += cost_bytes
        record.complaints.extend(complaints)
        failed = np.intersect1d(rows, self._assembler.missing())
        if not source.local:
            self._fetched.append(np.setdiff1d(rows, failed))
        if isinstance(source, Learning):
            source.learn(np.setdiff1d(rows, failed), ok=True)
            source.learn(failed, ok=False)
        return failed


def _without(offers: Offers, rows: Rows) -> Offers:
    keep = ~np.isin(offers.rows, rows)
    return Offers(
        offers.rows[keep], offers.cost_bytes[keep], offers.group[keep], offers.group_bytes
    )
