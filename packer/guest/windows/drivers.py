"""Where the drivers of the boot set lie, and what it means that one is not there: rule 10."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from packer.guest.windows.guest import Windows
from packer.guest.windows.services import Driver, find_drivers

STORE = "/System32/DriverStore/FileRepository"
CRITICAL_PACKAGE = "driver package without which it may not start"


@dataclass(frozen=True, slots=True)
class Located:
    """A file of a driver. stream: None if it is not there; path: where it was looked for."""

    driver: Driver
    path: str
    stream: int | None

    @property
    def rule(self) -> str:
        """Why it belongs to the boot set."""
        return f"{self.driver.rule}: service {self.driver.service.name}"


def locate_drivers(windows: Windows) -> Iterator[Located]:
    """Yield the file of each driver that the registry puts into the boot set."""
    if windows.system is None:
        return
    tree = windows.tree
    kind = tree.survey.volumes[windows.volume].kind
    for driver in find_drivers(windows.system, kind):
        place = windows.drives.locate(driver.image_path)
        if place is None:
            yield Located(driver, driver.image_path, None)
            continue
        stream = tree.stream_in(place.volume, place.path)
        if stream is None and place.volume == windows.volume:
            stream = tree.stream_of(place.path)  # by way of a junction
        yield Located(driver, place.path, stream)


def critical_package_files(windows: Windows) -> Iterator[tuple[int, str]]:
    """Yield (stream, rule) of every file of the driver packages that may not be missing."""
    for name in windows.critical_packages:
        if "/" in name or "\\" in name:
            continue
        rule = f"{CRITICAL_PACKAGE}: {name}"
        for _, stream in windows.tree.below_in(windows.volume, f"{windows.folder}{STORE}/{name}"):
            yield stream, rule
