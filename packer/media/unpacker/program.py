"""vmpack as one executable file: the interpreter, the libraries and the code, by PyInstaller.

It runs on Linux hosts with the same processor whose C library is not older than what its parts
were built for. The same code, libraries and interpreter give the same bytes.

Source: PyInstaller's manual, "Bundling to One File" and "Creating a Reproducible Build".
"""

from __future__ import annotations

import hashlib
import platform
import re
import ssl
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packer.environment import inherited
from packer.errors import Error, UsageError
from packer.media.unpacker.licences import licences
from packer.media.unpacker.parts import INSTALL_HINT, NAME, code_files, dependencies, this_host
from packer.progress import Progress
from packer.survey import frozen

NEEDS_NAME = "needs.txt"
LICENCES_NAME = "LICENSES.txt"
_RECIPE = Path(__file__).with_name("program.spec")
_BUILDERS = ("pyinstaller", "pyinstaller-hooks-contrib")
_EPOCH = "315532800"
"""1 January 1980, as everywhere on our media."""

_GLIBC = re.compile(rb"GLIBC_(2(?:\.[0-9]+)+)")
_LINES_SHOWN = 5


def program_name() -> str:
    """Return what the program of this host is called."""
    return f"vmpack-linux-{platform.machine()}"


def check_builder() -> None:
    """Raise an Error unless a program can be made here."""
    if frozen.is_frozen():
        raise UsageError(
            "a carried vmpack cannot make an unpacker",
            hint="name the folder it came in: --with-unpacker=/media/stick/unpacker",
        )
    if sys.platform != "linux":
        raise UsageError("an unpacker is made on Linux only")
    if find_spec("PyInstaller") is None:
        raise Error(
            "an unpacker is made with PyInstaller, which is not installed", hint=INSTALL_HINT
        )


def program_key() -> str:
    """Return a digest of what decides the program's bytes."""
    digest = hashlib.sha256()
    for name, path in code_files():
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    libraries = [f"{name}{which}" for name, which in dependencies(this_host()).items()]
    builders = [f"{name}=={version(name)}" for name in _BUILDERS]
    interpreter = [sys.version, platform.machine(), *platform.libc_ver(), ssl.OPENSSL_VERSION]
    digest.update("\n".join([*libraries, *builders, *interpreter]).encode())
    return digest.hexdigest()


def make_program(folder: Path, work: Path, progress: Progress) -> None:
    """Write the program, what it needs and its licences into a folder.

    work: an empty folder for what lies about meanwhile. Raises Error when PyInstaller fails.
    """
    with progress.stage("making the unpacker", 0):
        _run_pyinstaller(folder, work)
        program = folder / program_name()
        parts = _compiled_parts(program)
    glibc = max(map(_newest_glibc, [program.read_bytes(), *parts.values()]))
    needs = f"Linux on {platform.machine()} with glibc {'.'.join(map(str, glibc))} or later"
    (folder / NEEDS_NAME).write_text(f"{needs}\n", "utf-8")
    libraries = sorted(name for name in parts if "/" not in name and name.startswith("lib"))
    names = [NAME, *dependencies(this_host()), _BUILDERS[0]]
    (folder / LICENCES_NAME).write_text(licences(names, libraries), "utf-8")


def _run_pyinstaller(folder: Path, work: Path) -> None:
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN"]
    command += [f"--distpath={folder}", f"--workpath={work / 'build'}", str(_RECIPE)]
    kept = {name: text for name, text in inherited().items() if not name.startswith("PYTHON")}
    settings = {
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": _EPOCH,
        "PYINSTALLER_CONFIG_DIR": str(work / "config"),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        command,
        cwd=work,
        env=kept | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = done.stdout.strip().splitlines()[-_LINES_SHOWN:] or ["it gave no reason"]
        raise Error("PyInstaller could not make the unpacker:\n" + "\n".join(last))


def _compiled_parts(program: Path) -> Mapping[str, bytes]:
    """Return the compiled files that a program unpacks, by name."""
    from PyInstaller.archive.readers import CArchiveReader

    archive: Any = CArchiveReader(str(program))
    names = [name for name, (*_, kind) in archive.toc.items() if kind == "b"]
    return {name: archive.extract(name) for name in names}


def _newest_glibc(data: bytes) -> tuple[int, ...]:
    """Return the newest version of the C library whose symbols a compiled file asks for."""
    found = (tuple(map(int, text.split(b"."))) for text in _GLIBC.findall(data))
    return max(found, default=(0,))
