"""What is asked of a Windows guest's hives, and the answers in the terms of the rules.

Sources: Microsoft, "HKLM\\SYSTEM\\CurrentControlSet\\Services Registry Tree" (Type, Start,
ErrorControl, ImagePath), "Specifying Driver Load Order", "HKEY_LOCAL_MACHINE\\SYSTEM\\Select".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from formats.windows.hive import Value
from formats.windows.hive_query import View, Wanted
from packer.guest.windows.drives import MOUNTED_DEVICES

SELECTED = ("Current", "Default", "LastKnownGood")
"""Values of Select: any of these control sets may be the one that starts. "Failed" is not tried."""

MAX_CONTROL_SETS = 8
"""That are looked at where Select chooses none; real hives have two to four."""

BOOT_START = 0
KERNEL_DRIVER, FILE_SYSTEM_DRIVER, RECOGNIZER = 1, 2, 8
DRIVER_TYPES = (KERNEL_DRIVER, FILE_SYSTEM_DRIVER, RECOGNIZER)
NORMAL, SEVERE = 1, 2
"""ErrorControl: 0 ignore, 1 warn and go on, 2 severe, 3 critical."""

CONTROL_SETS = "ControlSet*"
NLS = r"Control\Nls"
MEMORY = r"Control\Session Manager\Memory Management"
ENVIRONMENT = r"Control\Session Manager\Environment"
CRITICAL_DEVICES = r"Control\CriticalDeviceDatabase"
CLASSES = r"Control\Class"
DRIVER_PACKAGES = r"DriverDatabase\DriverPackages"
VERSION = r"Microsoft\Windows NT\CurrentVersion"

SYSTEM_WANTED = (
    Wanted("Select"),
    Wanted(MOUNTED_DEVICES),
    Wanted(CONTROL_SETS, values=()),
    Wanted(
        rf"{CONTROL_SETS}\Services\*",
        values=("Type", "Start", "ErrorControl", "ImagePath", "BootFlags"),
    ),
    Wanted(rf"{CONTROL_SETS}\{NLS}\CodePage"),
    Wanted(rf"{CONTROL_SETS}\{NLS}\Language"),
    Wanted(
        rf"{CONTROL_SETS}\{MEMORY}", values=("PagingFiles", "ExistingPageFiles", "SwapfileFile")
    ),
    Wanted(rf"{CONTROL_SETS}\{ENVIRONMENT}", values=("PROCESSOR_ARCHITECTURE",)),
    Wanted(rf"{CONTROL_SETS}\{CRITICAL_DEVICES}\*", values=("Service",)),
    Wanted(rf"{CONTROL_SETS}\{CLASSES}\*", values=("Class", "UpperFilters", "LowerFilters")),
    Wanted(rf"{DRIVER_PACKAGES}\*", values=("BootCritical",)),
)
DRIVERS_WANTED = (Wanted(rf"{DRIVER_PACKAGES}\*", values=("BootCritical",)),)
"""Since Windows 10 the driver database has a hive of its own."""

SOFTWARE_WANTED = (
    Wanted(
        VERSION,
        values=(
            *("ProductName", "EditionID", "InstallationType", "CurrentVersion"),
            *("CurrentMajorVersionNumber", "CurrentMinorVersionNumber"),
            *("CurrentBuild", "CurrentBuildNumber", "UBR", "CSDVersion"),
            *("DisplayVersion", "ReleaseId", "SystemRoot"),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Service:
    """A service as one control set has it; numbers are -1 where there is none.

    image_path: as it is written, None without one. is_current: the control set is the one that
    starts unless somebody asks for another.
    """

    name: str
    is_current: bool
    type: int
    start: int
    error_control: int
    image_path: str | None
    boot_flags: int

    @property
    def is_boot_driver(self) -> bool:
        """Whether the loader itself reads it into memory."""
        return self.start == BOOT_START and self.type in DRIVER_TYPES

    @property
    def stops_the_start(self) -> bool:
        """Whether Windows does not go on without it."""
        return self.is_current and self.error_control >= SEVERE


class SystemHive:
    """The SYSTEM hive as a query for SYSTEM_WANTED has found it.

    control_sets: names of those that may start, the current one first.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.control_sets = _control_sets(view)

    @property
    def mounted_devices(self) -> tuple[Value, ...]:
        """The values of MountedDevices."""
        record = self.view.key(MOUNTED_DEVICES)
        return record.values if record is not None else ()

    def services(self) -> Iterator[Service]:
        """Yield the services of all control sets that may start."""
        for number, control_set in enumerate(self.control_sets):
            path = rf"{control_set}\Services"
            for name in self.view.subkeys(path):
                key = rf"{path}\{name}"
                image = self.view.value(key, "ImagePath")
                yield Service(
                    name,
                    number == 0,
                    self._number(key, "Type"),
                    self._number(key, "Start"),
                    self._number(key, "ErrorControl"),
                    image.text if image is not None else None,
                    self._number(key, "BootFlags"),
                )

    def texts(self, path: str, name: str) -> tuple[str, ...]:
        """Return a value of every control set that may start, each string once."""
        values = (self.view.value(rf"{one}\{path}", name) for one in self.control_sets)
        return tuple(dict.fromkeys(text for one in values if one for text in one.texts if text))

    def keys(self, path: str) -> Iterator[tuple[str, str]]:
        """Yield (name, path from the root) of the keys below a path, of every control set."""
        for one in self.control_sets:
            for name in self.view.subkeys(rf"{one}\{path}"):
                yield name, rf"{one}\{path}\{name}"

    def text_at(self, path: str, name: str) -> str:
        """Return a value at a path from the root, "" if there is no such string."""
        value = self.view.value(path, name)
        return (value.text or "") if value is not None else ""

    def texts_at(self, path: str, name: str) -> tuple[str, ...]:
        """Return the strings of a value at a path from the root."""
        value = self.view.value(path, name)
        return value.texts if value is not None else ()

    def _number(self, path: str, name: str) -> int:
        value = self.view.value(path, name)
        number = value.number if value is not None else None
        return -1 if number is None else number


def boot_critical_packages(view: View) -> tuple[str, ...]:
    """Return the names of driver packages without which a machine may not start."""
    found = []
    for name in view.subkeys(DRIVER_PACKAGES):
        value = view.value(rf"{DRIVER_PACKAGES}\{name}", "BootCritical")
        if value is not None and any(value.data):
            found.append(name)
    return tuple(found)


def _control_sets(view: View) -> tuple[str, ...]:
    present = {name.casefold(): name for name in view.subkeys("")}
    names = []
    for selected in SELECTED:
        value = view.value("Select", selected)
        number = value.number if value is not None else None
        if number is not None and (name := present.get(f"controlset{number:03d}")):
            names.append(name)
    # Without a choice that can be believed any of them may be meant.
    everything = (name for key, name in present.items() if key.startswith("controlset"))
    return tuple(dict.fromkeys(names)) or tuple(everything)[:MAX_CONTROL_SETS]
