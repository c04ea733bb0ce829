"""vmpack profile: the boot set of a pack found by booting, and proven by booting."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from packer.artifact.trust import Verdict
from packer.cli.interrupts import hear_termination
from packer.cli.options import (
    accept,
    add_common,
    add_rotation,
    add_signing,
    add_trust,
    add_verb,
    jobs_of,
    own_store,
    print_json,
    progress_of,
    remember_use,
    signers,
    statements_of,
)
from packer.cli.rebuild import add_origins
from packer.cli.run import add_wishes, wishes_of
from packer.cli.settings import load_settings
from packer.errors import MismatchError
from packer.progress import note
from packer.run.manage.profile import ProfileOptions, ProfileReport, profile
from packer.run.manage.trial import Goal, Trial
from packer.run.vm.create import DiskOrigin
from packer.sources.open import open_pack
from packer.text import format_bytes, printable

MOST_SECONDS = 86_400.0
MOST_BOOTS = 100
DEFAULT_BOOTS = 2
DEFAULT_TIMEOUT_SECONDS = 600.0
_MARKER_CHARACTERS = 1000


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "profile",
        "find the boot set of a pack by booting, and prove it by booting without anything else",
        "vmpack profile demo.vmpack -o demo-2.vmpack --marker 'login:'",
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        metavar="PACK",
        help="file, .iso or folder/ (ends in /), to write: the next version",
    )
    parser.add_argument(
        "--boots",
        type=_boots,
        default=DEFAULT_BOOTS,
        metavar="N",
        help="how often the guest is watched (default: %(default)s)",
    )
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--marker", type=marker, metavar="TEXT", help="until this stands on the serial console"
    )
    goal.add_argument(
        "--idle", type=seconds, metavar="SECONDS", help="until nothing new was read for so long"
    )
    add_timeout(parser)
    parser.add_argument(
        "--pack-version", type=int, metavar="N", help="default: one more than the pack's"
    )
    add_signing(parser)
    add_rotation(parser)
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_wishes(parser)
    add_origins(parser)
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run, parser=parser, passed=())


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how long a boot may take."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="how long a boot may take (default: %(default)g)",
    )


def run(options: argparse.Namespace) -> int:
    """Profile."""
    keys = signers(options)  # before any program is started
    hear_termination()
    goal = Goal(options.marker or "", options.idle or 0.0, options.timeout)
    with open_pack(options.pack) as base:
        verdict: Verdict = accept(base, options)
        report = profile(
            base,
            served_of(options),
            options.output,
            keys,
            ProfileOptions(
                goal,
                base.config.version + 1 if options.pack_version is None else options.pack_version,
                options.boots,
                wishes_of(options),
                tuple(options.passed),
                str(Path.cwd()),
                statements_of(options),
                options.force,
                jobs_of(options),
                note,
            ),
            progress_of(options),
        )
    remember_use(verdict)
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, goal)
    if report.proven:
        return 0
    sys.stdout.flush()
    note(f"its boot copy alone does not come to {goal}: {report.shortfall}")
    return MismatchError.exit_code


def served_of(options: argparse.Namespace) -> DiskOrigin:
    """Return where the disk of the pack comes from, by the options and the settings."""
    sources = options.sources or load_settings().sources
    return DiskOrigin(options.pack, own_store(options.store), sources, options.offline)


def _as_json(report: ProfileReport) -> dict[str, object]:
    issued = report.issued
    return {
        "output": str(issued.output),
        "identity": issued.identity,
        "name": issued.config.name,
        "version": issued.config.version,
        "bytes": issued.stored_bytes,
        "proven": report.proven,
        "shortfall": report.shortfall,
        "touched_bytes": report.touched_bytes,
        "boot_bytes": report.boot_bytes,
        "stored_boot_bytes": report.stored_boot_bytes,
        "boots": [trial_as_json(one) for one in report.boots],
        "proofs": [trial_as_json(one) for one in report.proofs],
        "signers": list(issued.signers),
    }


def trial_as_json(trial: Trial) -> dict[str, object]:
    """Return how a boot went, for machines."""
    status = trial.status
    return {
        "reached": trial.reached,
        "why": trial.why,
        "seconds": round(trial.seconds, 2),
        "touched_bytes": status.touched_bytes,
        "supplied": [
            {
                "source": one.source,
                "content_bytes": one.content_bytes,
                "fetched_bytes": one.fetched_bytes,
                "complaints": list(one.complaints),
            }
            for one in status.sources
        ],
        "missing": [
            {"content": one.content, "bytes": one.size_bytes, "path": one.path}
            for one in status.missing
        ],
    }


def _print(report: ProfileReport, goal: Goal) -> None:
    issued = report.issued
    boots, proof = len(report.boots), report.proofs[-1]
    print(f"{issued.output}  {format_bytes(issued.stored_bytes)}")
    print(f"  {issued.config.ref_name}  {issued.identity}")
    print(f"  {boots} boots read {format_bytes(report.touched_bytes)} until {goal}")
    print(
        f"  boot set {format_bytes(report.boot_bytes)}  ->  "
        f"{format_bytes(report.stored_boot_bytes)}"
    )
    if report.proven:
        print(f"  its boot copy alone comes to {goal} in {proof.seconds:.1f} s")
    for one in proof.missing:
        print(f"  missing: {one.content}  {printable(one.path)}")
    for signer in issued.signers:
        print(f"  signed by {signer}")


def marker(text: str) -> str:
    """Return the text that is waited for."""
    if not 0 < len(text) <= _MARKER_CHARACTERS or printable(text) != text:
        raise argparse.ArgumentTypeError(
            f"expected 1 to {_MARKER_CHARACTERS} characters of one line, found {text!r:.100}"
        )
    return text


def seconds(text: str) -> float:
    """Return a time."""
    found = re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text)
    value = float(text) if found else 0.0
    if not 0 < value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected up to {MOST_SECONDS:g} s, found {text!r}")
    return value


def _boots(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_BOOTS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MOST_BOOTS}, found {text!r}")
    return int(text)
