"""hivex: another project's reader and writer of hives."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

_VALUE = re.compile(r'(?P<name>@|".*")=(?P<type>dword|hex\([0-9a-f]+\)):(?P<data>[0-9a-f,]*)')


def run(*command: str | Path, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def subkeys(hive: bytes, path: str) -> list[str]:
    """The names below a key, as hivexsh lists them."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(hive)
        return run("hivexsh", file.name, stdin=f"cd {path}\nls\n").splitlines()


def merged(hive: bytes, registry_text: str) -> bytes:
    """The hive after hivexregedit has merged a .reg file into it, in place as Windows writes."""
    with tempfile.TemporaryDirectory() as folder:
        path, text = Path(folder) / "hive", Path(folder) / "text.reg"
        path.write_bytes(hive)
        text.write_text(f"Windows Registry Editor Version 5.00\n\n{registry_text}\n")
        run("hivexregedit", "--merge", path, text)
        return path.read_bytes()


def values(hive: bytes) -> dict[tuple[str, str], tuple[int, bytes]]:
    """Every value of a hive, by the path of its key and its name; (path, "[]") is a key."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(hive)
        text = run("hivexregedit", "--export", file.name, "\\")
    found: dict[tuple[str, str], tuple[int, bytes]] = {}
    path = ""
    for line in text.splitlines()[1:]:
        if line.startswith("["):
            path = line[1:-1].strip("\\")
            found[path, "[]"] = (0, b"")
        elif match := _VALUE.fullmatch(line):
            name = "" if match["name"] == "@" else re.sub(r"\\(.)", r"\1", match["name"][1:-1])
            found[path, name] = _parsed(match["type"], match["data"])
    return found


def _parsed(kind: str, data: str) -> tuple[int, bytes]:
    if kind == "dword":
        return 4, int(data, 16).to_bytes(4, "little")
    return int(kind[4:-1], 16), bytes.fromhex(data.replace(",", ""))
