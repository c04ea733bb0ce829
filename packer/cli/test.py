"""vmpack test: whether a pack boots, for programs that build packs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from packer.cli.interrupts import hear_termination
from packer.cli.options import accept, add_common, add_trust, add_verb, print_json, remember_use
from packer.cli.profile import add_timeout, marker, served_of, trial_as_json
from packer.cli.rebuild import add_origins
from packer.cli.run import add_wishes, wishes_of
from packer.errors import Error
from packer.progress import note
from packer.run.manage.trial import Goal, GoalMissedError, Trial, bench
from packer.sources.open import open_pack
from packer.text import format_bytes, format_table, printable


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "test",
        "boot a pack until its guest says something, and keep nothing of it",
        "vmpack test demo.vmpack --marker 'login:' --log console.txt",
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument(
        "--marker",
        type=marker,
        required=True,
        metavar="TEXT",
        help="what is to stand on the serial console",
    )
    add_timeout(parser)
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="keep what the guest said on its console"
    )
    add_wishes(parser)
    add_origins(parser)
    add_trust(parser)
    add_common(parser, jobs=False)
    parser.set_defaults(run=run, parser=parser, passed=())


def run(options: argparse.Namespace) -> int:
    """Test."""
    hear_termination()
    goal = Goal(options.marker, timeout_seconds=options.timeout)
    with open_pack(options.pack) as pack:
        verdict = accept(pack, options)
        with bench(
            pack,
            served_of(options),
            wishes_of(options),
            tuple(options.passed),
            directory=str(Path.cwd()),
            told=note,
        ) as watched:
            trial = watched.boot(goal)
        name = pack.config.ref_name
    if options.log is not None:
        _keep(options.log, trial.console)
    if trial.reached:
        remember_use(verdict)
    if options.json:
        print_json({"name": name, **trial_as_json(trial)})
    else:
        _print(name, goal, trial)
    if trial.reached:
        return 0
    sys.stdout.flush()
    raise GoalMissedError(goal, trial)


def _keep(path: Path, console: bytes) -> None:
    try:
        path.write_bytes(console)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror}") from error


def _print(name: str, goal: Goal, trial: Trial) -> None:
    if trial.reached:
        print(f"{name} said {goal} after {trial.seconds:.1f} s")
    read = [one for one in trial.status.sources if one.content_bytes]
    rows = [
        (
            one.source,
            format_bytes(one.content_bytes),
            f"fetched {format_bytes(one.fetched_bytes)}" if one.fetched_bytes else "",
        )
        for one in read
    ]
    if rows:
        print(format_table(rows, "<><"))
    for one in trial.missing:
        print(f"  missing: {one.content}  {one.size_bytes:,}  {printable(one.path)}")
