"""The boot set of a Windows guest: what firmware, boot manager, loader and kernel read by
themselves, before the driver of the boot volume's file system runs.

What lies at absolute addresses (boot code, partition tables) and NTFS' own files are in no stream,
and always kept. Every file carries the first rule that put it into the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import PLAIN
from packer.errors import InputError
from packer.guest.mounts import is_esp
from packer.guest.windows.closure import Lost, find_imported
from packer.guest.windows.drivers import Located, critical_package_files, locate_drivers
from packer.guest.windows.file_lists import (
    ALL_DRIVERS,
    ANY_CODE_PAGE,
    BOOT_SECTOR,
    BOOTMGR_FILES,
    BOOTMGR_FOLDER,
    CODE_PAGES,
    DRIVERS,
    GROUPS,
    HAL,
    IN_WINDOWS,
    KERNEL,
    LOADER,
    NTLDR_FILES,
    REGISTRY,
    WITHOUT_REGISTRY,
    Row,
)
from packer.guest.windows.guest import Windows
from packer.guest.windows.loaders import BOOTMGR, NTLDR
from packer.guest.windows.patterns import one_of
from packer.guest.windows.prepopulate import find_prepopulated
from packer.guest.windows.registry import NLS
from packer.survey.model import Survey
from packer.text import printable

PROGRAMS = (".sys", ".dll", ".exe")
NAMED_TABLES = (("CodePage", ("ACP", "OEMCP", "MACCP", "OEMHAL")), ("Language", ("Default",)))
MAX_NAMED = 8
"""Services or modules that one warning names."""

_MANAGERS = {NTLDR: NTLDR_FILES, BOOTMGR: BOOTMGR_FILES}


@dataclass(frozen=True, slots=True)
class BootSet:
    """group: int64[n], for each stream its row in GROUPS, or -1. rules: stream -> why it is there,
    "KIND" or "KIND: of what". errors: why the guest will not start as it is.
    """

    group: NDArray[np.int64]
    rules: Mapping[int, str]
    errors: tuple[str, ...]


def find_boot_set(windows: Windows) -> BootSet:
    """Return the boot set; what is not there and does not stop the start is warned of."""
    found = _Found(windows.tree.survey)
    _add_managers(windows, found)
    _add_offered(windows, found)
    _add_rows(windows, found, IN_WINDOWS[windows.generation])
    _add_code_pages(windows, found)
    missing = _add_drivers(windows, found)
    _add_imports(windows, found)
    _add_rows(windows, found, _further_drivers(windows))
    for path, stream in find_prepopulated(windows.tree, windows.volume, windows.folder):
        found.add(stream, _group_of(path), "named by WimBootCompress.ini")
    is_whole = _say_what_is_missing(windows, found)
    # Where there is no kernel there is no whole Windows: nothing is wrong with single drivers.
    errors = _say_which_drivers_are_missing(windows, missing) if is_whole else ()
    return BootSet(found.group, found.rules, errors)


@dataclass(slots=True)
class _Found:
    """The set as it grows: whole files, with all their streams and names."""

    survey: Survey
    group: NDArray[np.int64] = field(init=False)
    rules: dict[int, str] = field(default_factory=dict)
    _file: NDArray[np.int64] = field(init=False)
    _by_file: NDArray[np.int64] = field(init=False)
    _files: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        survey = self.survey
        self.group = np.full(len(survey.inode), -1, dtype=np.int64)
        inodes, number = np.unique(survey.inode, return_inverse=True)
        self._file = survey.volume * max(1, len(inodes)) + number
        self._by_file = np.argsort(self._file, kind="stable")
        self._files = self._file[self._by_file]

    def add(self, stream: int | None, group: str, rule: str) -> bool:
        """Put all streams of a stream's file into the set; return whether there is one.

        What is in the set stays as it is.
        """
        if stream is None:
            return False
        file = int(self._file[stream])
        low, high = np.searchsorted(self._files, [file, file + 1])
        for one in self._by_file[low:high].tolist():
            if self.group[one] < 0:
                self.group[one] = GROUPS.index(group)
                self.rules[one] = rule
        return True

    def has(self, group: str) -> bool:
        """Return whether any file is in the group."""
        return bool((self.group == GROUPS.index(group)).any())

    def programs(self) -> Iterator[tuple[str, int]]:
        """Yield (path, stream) of what may import something: kernel, HAL, drivers."""
        wanted = [GROUPS.index(group) for group in (KERNEL, HAL, DRIVERS)]
        chosen = np.isin(self.group[self.survey.name_stream], wanted)
        for row in np.flatnonzero(chosen).tolist():
            path = self.survey.name[row]
            if path.casefold().endswith(PROGRAMS):
                yield path, int(self.survey.name_stream[row])


def _add_managers(windows: Windows, found: _Found) -> None:
    tree = windows.tree
    for row, path in windows.loaders.boot_sectors:
        found.add(tree.stream_in(row, path), BOOT_SECTOR, f"offered by boot.ini: {path}")
    for row in range(len(tree.survey.volumes)):
        if is_esp(tree.survey, row):
            for stream in np.flatnonzero(tree.survey.volume == row).tolist():
                found.add(stream, LOADER, "EFI system partition")
    for row, kind in windows.loaders.managers:
        for name in _MANAGERS.get(kind, ()):
            found.add(tree.stream_in(row, f"/{name}"), LOADER, "boot manager")
        if kind == BOOTMGR:
            for _, stream in tree.below_in(row, BOOTMGR_FOLDER):
                found.add(stream, LOADER, "folder of the boot manager")


def _add_rows(windows: Windows, found: _Found, rows: Iterable[Row]) -> None:
    inside: dict[str, list[tuple[str, int]]] = {}  # folder -> what is below it
    for row in rows:
        if row.folder not in inside:
            folder = windows.folder + row.folder
            inside[row.folder] = [
                (path[len(folder) + 1 :].casefold(), stream)
                for path, stream in windows.tree.below_in(windows.volume, folder)
            ]
        fits = one_of(row.patterns).fullmatch
        for path, stream in inside[row.folder]:
            if fits(path):
                found.add(stream, row.group, row.rule)


def _add_offered(windows: Windows, found: _Found) -> None:
    """Add what boot.ini and the BCD name for this Windows, in whatever line of their menus."""
    for offer in windows.loaders.offers:
        elsewhere = offer.volume not in (None, windows.volume)
        if elsewhere or offer.folder.casefold() != windows.folder.casefold():
            continue
        rule = f"named by {offer.source}"
        for path in offer.files:
            stream = windows.tree.stream_in(windows.volume, path)
            if not found.add(stream, LOADER, rule):
                windows.tree.warn(f"{path}, {rule}, is not there: this disk would not boot")
        for group, names in (
            (KERNEL, offer.kernels),
            (HAL, offer.hals),
            (KERNEL, offer.transports),
        ):
            for name in names:
                found.add(windows.stream(f"/System32/{name}"), group, rule)


def _add_code_pages(windows: Windows, found: _Found) -> None:
    """Add the tables that the hive names: the loader reads these, whatever else there is.

    Source: values of Control\\Nls: CodePage maps ACP, OEMCP and MACCP to a number, and that to
    a file; Language maps Default to the file with upper and lower case.
    """
    if windows.system is None:
        _add_rows(windows, found, (ANY_CODE_PAGE,))
        return
    for key, values in NAMED_TABLES:
        path = rf"{NLS}\{key}"
        for value in values:
            for number in windows.system.texts(path, value):
                files = windows.system.texts(path, number) or (number,)
                for name in files:
                    _add_table(windows, found, name, f"named by the registry: {key} {value}")


def _add_table(windows: Windows, found: _Found, name: str, rule: str) -> None:
    if "/" not in name and "\\" not in name:
        for folder in ("/System32", "/Fonts"):  # vgaoem.fon: NT 5 keeps it with other fonts
            found.add(windows.stream(f"{folder}/{name}"), CODE_PAGES, rule)


def _group_of(path: str) -> str:
    """Return the group of a file that only the guest's own list names."""
    folded = path.casefold()
    if "/config/" in folded:
        return REGISTRY
    if folded.endswith(".sys"):
        return DRIVERS
    is_loader = any(word in folded for word in ("winload", "winresume", "bootstat", "bootmgr"))
    return LOADER if is_loader else KERNEL


def _add_drivers(windows: Windows, found: _Found) -> list[Located]:
    """Add what the registry names; return the drivers that the loader looks for in vain."""
    missing = []
    for one in locate_drivers(windows):
        if not found.add(one.stream, DRIVERS, one.rule) and one.driver.must_exist:
            missing.append(one)
    for stream, rule in critical_package_files(windows):
        found.add(stream, DRIVERS, rule)
    return missing


def _further_drivers(windows: Windows) -> tuple[Row, ...]:
    return ALL_DRIVERS[windows.generation] if windows.system else WITHOUT_REGISTRY


def _add_imports(windows: Windows, found: _Found) -> None:
    """Add what the set imports (rule 9)."""
    programs = list(found.programs())
    compressed = sum(windows.tree.survey.form[stream] != PLAIN for _, stream in programs)
    if compressed:
        windows.tree.warn(
            f"{compressed} programs of the boot set are stored compressed: what they import is"
            " not known, and only in the set if something else puts it there"
        )
    lost: dict[str, str] = {}
    try:
        for one in find_imported(
            windows.tree, windows.examiner, windows.volume, windows.folder, programs
        ):
            if isinstance(one, Lost):
                lost[one.module] = one.by
            else:
                group = DRIVERS if one.path.casefold().endswith(".sys") else KERNEL
                found.add(one.stream, group, f"imported: by {one.by}")
    except InputError as error:
        windows.tree.warn(f"what drivers import is not known: {error}")
    if lost:
        named = [f"{module} (by {by})" for module, by in lost.items()]
        windows.tree.warn(f"the boot set imports what is not there: {_some(named)}")


def _say_what_is_missing(windows: Windows, found: _Found) -> bool:
    """Warn of what no Windows starts without; return whether it is a Windows at all.

    None of it keeps anybody from packing the disk: its boot manager may lie on another one.
    """
    missing = [group for group in (LOADER, HAL, REGISTRY) if not found.has(group)]
    kernel = any(
        windows.stream(f"/System32/{name}") is not None for name in ("ntoskrnl.exe", "ntkrnlpa.exe")
    )
    if not kernel:
        missing.insert(0, KERNEL)
    if not windows.loaders.managers:
        missing.insert(0, "boot manager")
    if missing:
        windows.tree.warn(
            f"this disk would not boot by itself: no {', no '.join(missing)} of Windows was found;"
            " if the machine has another disk, it may be there"
        )
    return kernel


def _say_which_drivers_are_missing(windows: Windows, missing: list[Located]) -> tuple[str, ...]:
    """Return those without which Windows stops (rule 10), and warn of the others."""
    fatal = [one for one in missing if one.driver.service.stops_the_start]
    harmless = [
        f"{one.driver.service.name} ({one.path})"
        for one in missing
        if not one.driver.service.stops_the_start
    ]
    if harmless:
        windows.tree.warn(f"drivers that Windows starts without are not there: {_some(harmless)}")
    return tuple(
        f"this guest would not start: {printable(one.path)} is not there, the driver of the service"
        f" {printable(one.driver.service.name)}, which starts at boot with ErrorControl"
        f" {one.driver.service.error_control}"
        for one in fatal[:MAX_NAMED]
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
