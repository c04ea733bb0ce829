"""vmpack summary: a pack in a few figures, and gates for them."""

from __future__ import annotations

import argparse

from packer.cli.options import add_common, add_verb, own_store, print_json, progress_of
from packer.errors import UsageError
from packer.inspect.summary import Summary, check_gates, markdown, summarise
from packer.media.capacity import capacity_bytes
from packer.pack.against import open_against
from packer.sources.open import SourceOpener, open_pack


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "summary",
        "print a full pack's sizes as Markdown, and fail above a limit",
        "vmpack summary demo.vmpack --against trainee.inv --max-thin 200M",
    )
    parser.add_argument("pack", help="file, folder or URL of a full pack")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SOURCE",
        help="say what a host fetches that has what this source holds: a .inv file, or a source's "
        "URI; repeatable",
    )
    for name, what in (
        ("thin", "a thin copy"),
        ("full", "a full copy"),
        ("fetch", "a host's fetch"),
    ):
        parser.add_argument(
            f"--max-{name}", metavar="SIZE", help=f"fail (8) if {what} is larger, such as 200M"
        )
    add_common(parser, jobs=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Summarise; what breaks a limit comes last, so that the figures are seen."""
    limits = {
        name: capacity_bytes(limit)
        for name, limit in (
            ("thin", options.max_thin),
            ("full", options.max_full),
            ("fetch", options.max_fetch),
        )
        if limit is not None
    }
    if "fetch" in limits and not options.against:
        raise UsageError("--max-fetch limits what hosts fetch: name them with --against")
    with open_pack(options.pack) as pack, SourceOpener(own_store(None)) as opener:
        progress = progress_of(options)
        hosts = [(one, open_against(one, opener, progress=progress)) for one in options.against]
        summary = summarise(pack, hosts)
    if options.json:
        print_json(_as_json(summary))
    else:
        print(markdown(summary), end="", flush=True)
    figures = [
        ("thin", "a thin copy", summary.thin_bytes),
        ("full", "a full copy", summary.full_bytes),
        *(("fetch", f"fetched by {name}", size) for name, size in summary.fetch),
    ]
    check_gates(
        summary,
        [(what, size, limits[name]) for name, what, size in figures if name in limits],
    )
    return 0


def _as_json(summary: Summary) -> dict[str, object]:
    return {
        "name": summary.pack.config.ref_name,
        "identity": summary.pack.identity,
        "thin_bytes": summary.thin_bytes,
        "full_bytes": summary.full_bytes,
        "nothing_bytes": summary.nothing_bytes,
        "fetch_bytes": dict(summary.fetch),
        "bundles": summary.pack.bundles,
        "signers": list(summary.pack.signers),
    }
