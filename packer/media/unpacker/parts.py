"""What vmpack is made of on this host: its own files, and the distributions that it needs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import formats
import packer
from packer.errors import Error

NAME = "vmpack"
PACKAGES = (packer, formats)
INSTALL_HINT = "pip install 'vmpack[unpacker]'"


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of host. python: "3.11". machine: as `uname -m` says, "x86_64"."""

    python: str
    machine: str


def this_host() -> Target:
    """Return the kind of this host."""
    return Target(f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())


def code_files() -> Iterator[tuple[str, Path]]:
    """Yield the files of vmpack's own packages by name: "packer/errors.py"."""
    for package in PACKAGES:
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{folder.name}/{path.relative_to(folder).as_posix()}", path


def dependencies(target: Target) -> dict[str, str]:
    """Return what vmpack needs on a kind of host: {"numpy": "==2.4.6"}.

    Of the version that is installed here; of any that fits, if only other hosts need it. Raises
    Error where that cannot be told.
    """
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError as error:
        raise Error("the package 'packaging' is not installed", hint=INSTALL_HINT) from error
    there = {
        "python_version": target.python,
        "python_full_version": f"{target.python}.0",
        "platform_machine": target.machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "extra": "",
    }
    found: dict[str, str] = {}
    open_ends = [NAME]
    while open_ends:
        for text in distribution(open_ends.pop()).requires or ():
            wanted = Requirement(text)
            name = canonicalize_name(wanted.name)
            if name in found or (wanted.marker and not wanted.marker.evaluate(there)):
                continue
            try:
                found[name] = f"=={distribution(name).version}"
                open_ends.append(name)
            except PackageNotFoundError:
                found[name] = str(wanted.specifier)
    return dict(sorted(found.items()))
