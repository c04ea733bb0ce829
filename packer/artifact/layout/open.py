"""From what the user names to a layout: a file is a tar or an ISO image, a folder is a folder."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from packer.artifact.layout.base import Layout, LayoutWriter
from packer.artifact.layout.directory import DirectoryLayout, DirectoryWriter
from packer.artifact.layout.extras import Extra
from packer.artifact.layout.in_place import InPlaceWriter
from packer.artifact.layout.iso import holds_layout, is_iso, open_iso
from packer.artifact.layout.tar import TarWriter, open_tar
from packer.artifact.page import PAGE
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
    return open_iso(place) if is_iso(place) else open_tar(place)


def create_layout(
    path: str | Path, *, replace: bool = False, extras: Sequence[Extra] = ()
) -> LayoutWriter:
    """Return a writer: of an ISO image for *.iso, of a folder where the path ends in "/", of a tar.

    An address oci://… gives a writer into a registry. A folder that exists is written into.
    replace: whether a layout that has this name may be replaced. extras: files beside the layout;
    an ISO image or a folder has a page for people, too. Raises UsageError when the name is taken or
    cannot be one, or when there can be no extra files.
    """
    if is_reference(str(path)):
        # Here, because the HTTP libraries take as long to load as all the rest.
        from packer.artifact.layout.registry import RegistryWriter

        _refuse_extras(path, extras)
        return RegistryWriter(str(path), replace=replace)
    if not str(path):
        raise UsageError("the output has no name")
    if "://" in str(path):
        raise UsageError(
            f"{path}: expected a path of this host or oci://…, found another address",
            hint="write the pack to a folder (its name ends in /) and have that served",
        )
    place = Path(path)
    try:
        there = place.is_dir()
        own = there and (place / "oci-layout").exists()
    except OSError as error:  # a name that is too long
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    if there and (str(path).endswith("/") or place.absolute().is_mount() or (replace and own)):
        return InPlaceWriter(place, replace=replace, extras=extras, page=PAGE)
    if there:
        raise UsageError(
            f"{path} is a folder that exists", hint=f"to write the pack into it, name it {path}/"
        )
    if str(path).endswith("/"):
        return DirectoryWriter(place, extras=extras, page=PAGE)
    if place.suffix.lower() == ".iso":
        # Here, because pycdlib takes long to load.
        from packer.artifact.layout.iso_writer import IsoWriter

        return IsoWriter(place, replace=replace, extras=extras, page=PAGE)
    _refuse_extras(path, extras)
    return TarWriter(place, replace=replace)


def is_layout(path: str | Path) -> bool:
    """Return whether a local path looks like a pack: a folder, a tar or an ISO image of one."""
    place = Path(path)
    if place.is_dir():
        return True
    try:
        with place.open("rb") as file:
            start = file.read(512)
    except OSError:
        return False
    if _is_tar(start):
        return start.startswith(LAYOUT_NAMES)
    return place.is_file() and holds_layout(place)


def check_takes_extras(path: str | Path) -> None:
    """Raise UsageError unless what `create_layout` would write there takes files beside it."""
    place = Path(path)
    taken = place.suffix.lower() == ".iso" or str(path).endswith("/") or place.is_dir()
    if is_reference(str(path)) or not taken:
        raise UsageError(
            f"{path}: only an ISO image (.iso) or a folder (ends in /) takes files beside the pack"
        )


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar"


def _refuse_extras(path: str | Path, extras: Sequence[Extra]) -> None:
    if extras:
        check_takes_extras(path)
