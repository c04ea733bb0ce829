"""Which drivers Windows has to find before it can read a disk by its own means.

Ten rules. Here are those that the registry answers: (2) of every
control set that may start, (3) services that the loader starts, (4) wherever their file lies,
(5) the file system of the boot volume, (6) whatever their group, (7) whatever StartOverride says
about the present hardware, and those that other hardware would have started, (8) drivers of
critical devices, critical driver packages, filters of disks and buses. Replaying the hive (1) is
done by who reads it; imports (9) and missing files (10) need the files.

Sources: Microsoft, "Specifying Driver Load Order", "Driver Load Groups", "System-Defined Device
Setup Classes Available to Vendors"; Geoff Chappell, "BootFlags"; counts against real hives: tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from formats.windows.names import fold
from packer.guest.windows.registry import (
    CLASSES,
    CRITICAL_DEVICES,
    Service,
    SystemHive,
)

BOOT_SERVICE = "starts with Windows"
FILE_SYSTEM = "reads the boot volume"
BOOT_FLAGS = "starts with Windows if it boots from such a device"
CRITICAL_DEVICE = "drives a critical device"
FILTER = "filters disks and buses"

FILE_SYSTEMS = {"ntfs": "Ntfs", "vfat": "Fastfat"}
"""Kind of a volume -> the service of its driver; real hives start neither at boot by themselves."""

FILTERED_CLASSES = frozenset(
    (
        "{4d36e967-e325-11ce-bfc1-08002be10318}",  # DiskDrive
        "{71a27cdd-812a-11d0-bec7-08002be2092f}",  # Volume
        "{4d36e97b-e325-11ce-bfc1-08002be10318}",  # SCSIAdapter
        "{4d36e96a-e325-11ce-bfc1-08002be10318}",  # HDC: IDE and AHCI controllers
        "{4d36e97d-e325-11ce-bfc1-08002be10318}",  # System: buses
    )
)


@dataclass(frozen=True, slots=True)
class Driver:
    """A service whose driver belongs to the boot set, and the rule that says so.

    must_exist: the loader looks for its file at every start, so that a missing one is told.
    """

    service: Service
    rule: str

    @property
    def must_exist(self) -> bool:
        """Whether the loader looks for its file at every start."""
        return self.service.is_boot_driver

    @property
    def image_path(self) -> str:
        r"""Where its file lies, as the registry would write it.

        Without an ImagePath (Fs_Rec, spldr and Wof have none) it is named like its service.
        """
        return self.service.image_path or rf"System32\drivers\{self.service.name}.sys"


def find_drivers(system: SystemHive, volume_kind: str) -> tuple[Driver, ...]:
    """Return the drivers of the boot set, one row for each file that a control set names.

    volume_kind: file system of the boot volume. The first rule that fits is given.
    """
    services = tuple(system.services())
    by_name: dict[str, list[Service]] = {}
    for one in services:
        by_name.setdefault(fold(one.name), []).append(one)
    found: dict[tuple[str, str], Driver] = {}
    for name, rule in _named(system, services, volume_kind):
        for service in by_name.get(fold(name), ()):
            driver = Driver(service, rule)
            key = (fold(service.name), fold(driver.image_path))
            known = found.get(key)
            # What the current control set says about a missing file is what counts.
            if known is None or (service.stops_the_start and not known.service.stops_the_start):
                found[key] = Driver(service, known.rule if known else rule)
    return tuple(found.values())


def _named(
    system: SystemHive, services: tuple[Service, ...], volume_kind: str
) -> Iterator[tuple[str, str]]:
    """Yield (service, rule)."""
    yield from ((one.name, BOOT_SERVICE) for one in services if one.is_boot_driver)
    if volume_kind in FILE_SYSTEMS:
        yield FILE_SYSTEMS[volume_kind], FILE_SYSTEM
    yield from ((one.name, BOOT_FLAGS) for one in services if one.boot_flags > 0)
    for _, path in system.keys(CRITICAL_DEVICES):
        yield system.text_at(path, "Service"), CRITICAL_DEVICE
    for name, path in system.keys(CLASSES):
        if name.casefold() in FILTERED_CLASSES:
            for value in ("UpperFilters", "LowerFilters"):
                yield from ((service, FILTER) for service in system.texts_at(path, value))
