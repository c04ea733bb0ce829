"""The command `vmpack`: finds the verb, runs it, turns errors into one clear line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from packer.cli import copy, inspect, inventory, key, pack, store, trust, unpack, verify
from packer.errors import Error

INTERRUPTED = 130
VERBS = (pack, inspect, copy, unpack, verify, key, trust, store, inventory)

EXIT_CODES = """\
exit codes:
  0 done   1 failed   2 usage   3 bad or unsupported input   4 refused by trust
  5 contents missing   6 in use, hibernated or changed meanwhile   7 does not match
  130 interrupted
"""

EXAMPLE = """\
example:
  vmpack key generate
  vmpack pack guest.qcow2 -o demo.vmpack
  vmpack copy demo.vmpack --thin stick/demo.vmpack
  vmpack unpack stick/demo.vmpack -o demo.raw

"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="vmpack",
        description="Pack an installed virtual machine into what nobody else has, "
        "and rebuild it bit for bit elsewhere.",
        epilog=EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vmpack {version('vmpack')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except Error as error:
        print(f"vmpack: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vmpack: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
