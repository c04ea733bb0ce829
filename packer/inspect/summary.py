"""A pack in a few figures, as Markdown: what a CI job shows of the image it has made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Class
from packer.artifact.opened import OpenedPack
from packer.errors import InputError, PolicyError
from packer.inspect.pack import PackSummary, inspect_pack
from packer.pack.against import Against
from packer.text import format_bytes, printable

_CARRIED_BY = {"boot": "every copy", "private": "thin and full copies", "shared": "full copies"}


@dataclass(frozen=True, slots=True)
class Summary:
    """Sizes in bytes: of a thin and a full copy; fetch: for each named host what an unpack of a
    thin copy fetches there out of a full one; nothing: what a host fetches that has nothing.
    """

    pack: PackSummary
    thin_bytes: int
    full_bytes: int
    nothing_bytes: int
    fetch: tuple[tuple[str, int], ...]


def summarise(pack: OpenedPack, hosts: Sequence[tuple[str, Against]]) -> Summary:
    """Return the figures of a full copy of a pack.

    hosts: (name, what it has). Raises InputError for a copy that is not full: nobody can tell then
    what a host fetches.
    """
    found = inspect_pack(pack)
    contents = pack.map.contents
    shared = np.flatnonzero(contents.classes == Class.SHARED)
    if found.carried["shared"][0] < len(shared):
        raise InputError(
            f"{pack.layout.location}: expected a full copy, found one that lacks shared contents"
        )
    bundles = pack.manifest.bundles()
    left_out = sum(one.size for title, one in bundles.items() if title.startswith("shared"))
    left_out += sum(one.size for one in pack.manifest.deltas() or ())
    fetch = []
    for name, held_by in hosts:
        lacking = np.setdiff1d(shared, held_by(contents, pack.hints, shared))
        fetch.append((name, _fetched_bytes(pack, lacking)))
    return Summary(
        found,
        found.stored_bytes - left_out,
        found.stored_bytes,
        _fetched_bytes(pack, shared),
        tuple(fetch),
    )


def check_gates(summary: Summary, gates: Sequence[tuple[str, int, int]]) -> None:
    """Raise PolicyError if a figure is above its limit.

    gates: (what it is, bytes, limit in bytes); each figure is one of the summary's.
    """
    broken = [(what, size, limit) for what, size, limit in gates if size > limit]
    if broken:
        name = summary.pack.config.ref_name
        lines = [
            f"{name}: {what}: expected at most {format_bytes(limit)}, found {format_bytes(size)}"
            for what, size, limit in broken
        ]
        raise PolicyError(
            "\n".join(lines),
            hint="'vmpack diff' with the version before says what has grown",
        )


def markdown(summary: Summary) -> str:
    """Return the figures as a Markdown page; what comes from the pack is quoted."""
    found, config = summary.pack, summary.pack.config
    totals = config.totals
    of_class = {"boot": totals.boot, "private": totals.private, "shared": totals.shared}
    stored = {
        name: sum(s for title, s in found.bundles.items() if title.startswith(name))
        for name in of_class
    }
    guest = config.guest.name or config.guest.family
    lines = [
        f"## {_quoted(config.ref_name)}",
        "",
        f"{_quoted(guest)}, {_quoted(config.guest.architecture or 'unknown architecture')}, "
        f"disk of {format_bytes(config.disks[0].size)}  ",
        f"`{found.identity}`  ",
        *(f"signed by `{signer}`  " for signer in found.signers),
        "",
        "| copy | size |",
        "|---|--:|",
        f"| thin | {format_bytes(summary.thin_bytes)} |",
        f"| full | {format_bytes(summary.full_bytes)} |",
        "",
        "| class | contents | bytes | stored | carried by |",
        "|---|--:|--:|--:|---|",
        *(
            f"| {name} | {total.count:,} | {format_bytes(total.bytes)} | "
            f"{format_bytes(stored[name])} | {_CARRIED_BY[name]} |"
            for name, total in of_class.items()
        ),
        *(
            f"| dropped | | {format_bytes(one.bytes)} | | {_quoted(one.what)} |"
            for one in config.dropped
        ),
        "",
        "| a host with a thin copy | fetches |",
        "|---|--:|",
        f"| that has nothing of it | {format_bytes(summary.nothing_bytes)} |",
        *(f"| {_quoted(name)} | {format_bytes(size)} |" for name, size in summary.fetch),
    ]
    lines += ["", *(f"> {_quoted(warning)}" for warning in config.warnings)]
    return "\n".join(lines).rstrip() + "\n"


def _fetched_bytes(pack: OpenedPack, rows: NDArray[np.int64]) -> int:
    """Return the bytes of the frames that hold these contents and that no thin copy carries."""
    index, bundles = pack.index, pack.manifest.bundles()
    thin = [one.digest for title, one in bundles.items() if not title.startswith("shared")]
    left_out = ~np.isin(index.bundles, thin)[index.bundle]
    used = index.of_contents(rows).used_frames(pack.map.contents)
    return int(index.stored_bytes[used & left_out].sum())


def _quoted(text: str) -> str:
    """Return text from a pack that Markdown and HTML take for nothing but text."""
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + one if one in "\\`*_[]|!#" else one for one in plain)
