"""A Windows guest: where it lies, what starts it, and what its hives say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from formats.source import Source
from formats.windows.hive_log import STALE
from formats.windows.hive_query import View, Wanted
from packer.errors import InputError
from packer.guest.mounts import volume_name
from packer.guest.tree import Tree
from packer.guest.windows.drives import Drives, read_volumes
from packer.guest.windows.file_lists import NT5, NT6, NT10
from packer.guest.windows.installation import Installation, find_installations
from packer.guest.windows.loaders import Loaders, find_loaders, hive_logs
from packer.guest.windows.products import UNINSTALL_WANTED
from packer.guest.windows.registry import (
    DRIVERS_WANTED,
    SOFTWARE_WANTED,
    SYSTEM_WANTED,
    VERSION,
    SystemHive,
    boot_critical_packages,
)
from packer.survey.examine import Examiner
from packer.survey.model import Survey

CONFIG = "/System32/config"


@dataclass(frozen=True, slots=True)
class Windows:
    """The Windows that a disk starts; "/" of its tree is the root of its own volume.

    system, software: None for a hive that cannot be read. critical_packages: driver packages that
    it may not start without. generation: NT5, NT6 or NT10.
    """

    tree: Tree
    examiner: Examiner
    installation: Installation
    loaders: Loaders
    drives: Drives
    system: SystemHive | None
    software: View | None
    critical_packages: tuple[str, ...]
    generation: int

    @property
    def volume(self) -> int:
        """Row of its volume."""
        return self.installation.volume

    @property
    def folder(self) -> str:
        """Its folder, "/Windows"."""
        return self.installation.folder

    def stream(self, path: str) -> int | None:
        """Return the stream of a file below its folder ("/System32/hal.dll")."""
        return self.tree.stream_in(self.volume, self.folder + path)


def find_windows(survey: Survey, source: Source, examiner: Examiner) -> Windows | None:
    """Return the Windows that the disk starts, or None if there is none.

    Boot managers say which; without any, it is the first one. What cannot be read, and every
    further Windows, is warned of in the tree.
    """
    installations = find_installations(survey)
    if not installations:
        return None
    tree = Tree(survey, source, root=installations[0].volume)
    loaders = find_loaders(tree, examiner)
    chosen = _choose(installations, loaders)
    if chosen.volume != tree.root:
        said = tree.warnings
        tree = Tree(survey, source, root=chosen.volume)
        tree.warnings += said
    for other in installations:
        if other != chosen and (other.is_usual or _is_offered(other, loaders)):
            tree.warn(
                f"{_name(survey, other)} holds another Windows, which is not looked into:"
                f" only the one in {_name(survey, chosen)} is"
            )
    view = _read_hive(tree, examiner, chosen, "SYSTEM", SYSTEM_WANTED)
    system = None if view is None else SystemHive(view)
    wanted = (*SOFTWARE_WANTED, *UNINSTALL_WANTED)
    software = _read_hive(tree, examiner, chosen, "SOFTWARE", wanted)
    packages = boot_critical_packages(view) if view else ()
    if tree.stream_in(chosen.volume, f"{chosen.folder}{CONFIG}/DRIVERS") is not None:
        drivers = _read_hive(tree, examiner, chosen, "DRIVERS", DRIVERS_WANTED)
        packages += boot_critical_packages(drivers) if drivers else ()
    letters = read_volumes(system.mounted_devices, survey) if system else {}
    return Windows(
        tree,
        examiner,
        chosen,
        loaders,
        Drives(chosen.volume, chosen.folder, letters),
        system,
        software,
        tuple(dict.fromkeys(packages)),
        _generation(tree, chosen, software),
    )


def _choose(installations: Sequence[Installation], loaders: Loaders) -> Installation:
    """Return what starts by itself, or else what can be started, or else the most usual one."""
    offers = sorted(loaders.offers, key=lambda one: not one.is_default)
    for offer in offers:
        for one in installations:
            if offer.volume is not None and one.lies_at(offer.volume, offer.folder):
                return one
    # A store may name the disk by identifiers that it no longer has.
    for offer in offers:
        for one in installations:
            if offer.volume is None and one.folder.casefold() == offer.folder.casefold():
                return one
    return next((one for one in installations if one.is_usual), installations[0])


def _is_offered(one: Installation, loaders: Loaders) -> bool:
    return any(
        offer.volume is not None and one.lies_at(offer.volume, offer.folder)
        for offer in loaders.offers
    )


def _name(survey: Survey, one: Installation) -> str:
    return f"{one.folder} on {volume_name(survey.volumes[one.volume])}"


def _read_hive(
    tree: Tree, examiner: Examiner, one: Installation, name: str, wanted: Sequence[Wanted]
) -> View | None:
    path = f"{one.folder}{CONFIG}/{name}"
    stream = tree.stream_in(one.volume, path)
    if stream is None:
        tree.warn(f"{path} is not there")
        return None
    try:
        view = examiner.hive(stream, hive_logs(tree, one.volume, path), wanted)
    except InputError as error:
        tree.warn(f"{path} cannot be read: {error}")
        return None
    if view.state == STALE:
        tree.warn(
            f"{path} was being written, and no log of it helps: what it says may be out of date;"
            " start the guest and shut it down cleanly"
        )
    for warning in view.warnings:
        tree.warn(f"{path}: {warning}")
    return view


def _generation(tree: Tree, one: Installation, software: View | None) -> int:
    major = software.value(VERSION, "CurrentMajorVersionNumber") if software else None
    if major is not None and (major.number or 0) >= NT10:
        return NT10
    version = software.value(VERSION, "CurrentVersion") if software else None
    number = ((version.text or "") if version else "").partition(".")[0]
    if number in ("5", "6"):
        return NT5 if number == "5" else NT6
    has = {
        path: tree.stream_in(one.volume, one.folder + path) is not None
        for path in ("/System32/winload.exe", "/System32/winload.efi", f"{CONFIG}/BBI")
    }
    if has[f"{CONFIG}/BBI"]:  # a hive that Windows 8 introduced
        return NT10
    return NT6 if any(has.values()) else NT5
