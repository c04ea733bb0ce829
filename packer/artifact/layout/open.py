"""From what the user names to a layout: a file is a tar, a folder is a directory layout."""

from __future__ import annotations

import stat
from pathlib import Path

from packer.artifact.layout.base import Layout, LayoutWriter
from packer.artifact.layout.directory import DirectoryLayout, DirectoryWriter
from packer.artifact.layout.tar import TarWriter, open_tar
from packer.errors import InputError, UsageError
from packer.transport.registry_reference import is_reference

LAYOUT_NAMES = (b"oci-layout", b"index.json", b"blobs/", b"./")
"""With what a layout's tar begins, whoever wrote it."""


def open_layout(path: str | Path) -> Layout:
    """Return the layout at a local path, open for reading.

    Raises InputError when there is none, or when it is no OCI layout.
    """
    place = Path(path)
    try:
        mode = place.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{place}: expected a pack, a file or a folder: {reason}") from error
    if stat.S_ISDIR(mode):
        return DirectoryLayout(place)
    if not stat.S_ISREG(mode):  # a pipe would block, a device never end
        raise InputError(f"{place}: expected a pack, a file or a folder, found something else")
    return open_tar(place)


def create_layout(path: str | Path, *, replace: bool = False) -> LayoutWriter:
    """Return a writer: of a directory where the path ends in "/" or is one, else of a tar file.

    An address oci://… gives a writer into a registry. replace: whether a layout that has this name
    may be replaced. Raises UsageError when the name is taken or cannot be one.
    """
    if is_reference(str(path)):
        # Here, because the HTTP libraries take as long to load as all the rest.
        from packer.artifact.layout.registry import RegistryWriter

        return RegistryWriter(str(path), replace=replace)
    place = Path(path)
    try:
        is_folder = str(path).endswith("/") or place.is_dir()
    except OSError as error:  # a name that is too long
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    if is_folder:
        return DirectoryWriter(place, replace=replace)
    return TarWriter(place, replace=replace)


def is_layout(path: str | Path) -> bool:
    """Return whether a local path looks like a pack: a folder, or a tar that begins like one."""
    place = Path(path)
    if place.is_dir():
        return True
    try:
        with place.open("rb") as file:
            start = file.read(512)
    except OSError:
        return False
    return start[257:262] == b"ustar" and start.startswith(LAYOUT_NAMES)
