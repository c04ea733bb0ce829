"""The command as one executable file, made by PyInstaller: how it starts its own children.

There is no interpreter beside it, so the file itself runs a child's code. It has unpacked its
libraries to a temporary folder: they are for itself and its children, which must not unpack them
again, and not for programs of the system, which have their own.

Source: PyInstaller's manual, "Run-time Information" and "Independent Subprocesses".
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

RUN_CODE = "--vmpack-child"
"""Before the code and the arguments of a child, as `-c` is for an interpreter."""

_LIBRARY_PATH = "LD_LIBRARY_PATH"
_LIBRARY_PATH_BEFORE = "LD_LIBRARY_PATH_ORIG"
"""Where PyInstaller keeps what the variable was before; not set if it was not."""

_WHERE_UNPACKED = "_PYI_"
"""With what the names of PyInstaller's own variables begin."""


def is_frozen() -> bool:
    """Return whether this is the one file, not a Python with vmpack installed."""
    return bool(getattr(sys, "frozen", False)) and hasattr(sys, "_MEIPASS")


def command_running(code: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line for this file to run code; see child.interpreter_running."""
    return [sys.executable, RUN_CODE, code, *arguments]


def child_variables() -> dict[str, str]:
    """Return the variables by which a child finds what this process has unpacked."""
    found = {name: text for name, text in os.environ.items() if name.startswith(_WHERE_UNPACKED)}
    found[_LIBRARY_PATH] = str(vars(sys)["_MEIPASS"])
    if before := os.environ.get(_LIBRARY_PATH):
        found[_LIBRARY_PATH] += f":{before}"
        found[_LIBRARY_PATH_BEFORE] = before
    return found


def begin() -> None:
    """Become a child if this process is one; let programs of the system find their libraries.

    Called once, before anything is started. Does nothing where vmpack is installed.
    """
    if not is_frozen():
        return
    before = os.environ.pop(_LIBRARY_PATH_BEFORE, None)
    os.environ.pop(_LIBRARY_PATH, None)
    if before is not None:
        os.environ[_LIBRARY_PATH] = before
    if sys.argv[1:2] == [RUN_CODE]:
        _run(sys.argv[2], sys.argv[3:])


def _run(code: str, arguments: Sequence[str]) -> None:
    """Do what `python -c CODE ARGUMENTS…` does, and end."""
    sys.argv[:] = ["-c", *arguments]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except Exception:  # noqa: BLE001 - as an interpreter does; PyInstaller would add a line of its own
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)
