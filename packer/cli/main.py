"""The command `vmpack`: finds the verb, runs it, turns errors into one clear line."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from packer.cli.interrupts import INTERRUPTED, hear_interrupts
from packer.cli.options import VerbParser
from packer.errors import Error
from packer.progress import note
from packer.text import printable

VERBS = (
    "pack",
    "inspect",
    "diff",
    "summary",
    "copy",
    "push",
    "pull",
    "unpack",
    "fill",
    "update",
    "write",
    "verify",
    "serve",
    "netboot",
    "boot-image",
    "sign",
    "key",
    "trust",
    "store",
    "inventory",
    "dedupe",
    "compact",
    "adopt",
    "run",
    "ps",
    "stop",
    "rm",
    "detach",
    "commit",
    "profile",
    "test",
    "define",
    "upgrade",
)
"""Each is a module beside this one, with `add_parser`; a hyphen is "_" in its name."""

BARE = {"--clean": "default", "--with-unpacker": "host", "--watch": "60"}
"""Options whose value is optional and stands only after "=", with what they mean without one."""

EXIT_CODES = """\
exit codes:
  0 done   1 failed   2 usage   3 bad or unsupported input   4 refused by trust
  5 contents missing   6 in use, hibernated or changed meanwhile   7 does not match
  8 refused by policy   130 interrupted
"""

EXAMPLE = """\
example:
  vmpack key generate
  vmpack pack guest.qcow2 -o demo.vmpack
  vmpack copy demo.vmpack --thin stick/demo.vmpack
  vmpack unpack stick/demo.vmpack -o demo.raw

"""


class _Version(argparse.Action):
    """Look the version up only when it is asked for: that reads the installed metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vmpack {version('vmpack')}")
        parser.exit()


class _Notes(logging.Handler):
    """What a part of the tool warns of, as a line that no quoted name can break."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def build_parser(verbs: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """Return the parser of the command line; `verbs`: those to load."""
    parser = argparse.ArgumentParser(
        prog="vmpack",
        description="Pack an installed virtual machine into what nobody else has, "
        "and rebuild it bit for bit elsewhere.",
        epilog=EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    actions = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=VerbParser
    )
    for verb in verbs:
        import_module(f"packer.cli.{verb.replace('-', '_')}").add_parser(actions)
    return parser


def _spell_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with bare options given their value.

    argparse would take the next argument for it: `--clean guest.raw` would clean "guest.raw".
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spelled = [f"{one}={BARE[one]}" if one in BARE else one for one in arguments[:end]]
    return [*spelled, *arguments[end:]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    arguments: None for those of this process, which is the command's own then and soon ends.
    """
    try:
        if arguments is None:
            hear_interrupts()
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("vmpack: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(given: list[str]) -> int:
    # Read when NumPy is loaded: its threads for linear algebra, of which there is none, only spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A guest's or a file's name may hold what the terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, handlers=[_Notes()])
    # A verb that is named at once is loaded alone: the others' libraries take longer than it does.
    named = given[:1] if given[:1] and given[0] in VERBS else VERBS
    options = build_parser(named).parse_args(_spell_out(given))
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except Error as error:
        # What it quotes may come from a hostile image or pack; a list has lines of its own.
        for number, line in enumerate(error.message.split("\n")):
            print(printable(line) if number else f"vmpack: {printable(line)}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {printable(error.hint)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
