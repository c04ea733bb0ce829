"""Boot configuration data: what the Windows boot manager and the loaders read, as a view of a hive.

`Boot/BCD` (BIOS) and `EFI/Microsoft/Boot/BCD` are registry hives with the keys
`Objects/{GUID}/Description`, value Type, and `Objects/{GUID}/Elements/XXXXXXXX`, value Element.

Sources: Microsoft, "Boot Configuration Data" (BcdElementType, BcdLibraryElementTypes,
BcdBootMgrElementTypes, BcdOSLoaderElementTypes, BcdResumeElementTypes); Geoff Chappell, "BCD
Objects" and "BCD Elements"; for device elements ReactOS, boot/environ/include/bl.h
(BL_DEVICE_DESCRIPTOR, BL_DEVICE_TYPE, BL_LOCAL_DEVICE_TYPE, BL_PARTITION_TYPE), and DiscUtils,
Library/DiscUtils.BootConfig/PartitionRecord.cs.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from formats.windows.hive import Value
from formats.windows.hive_query import View, Wanted

WANTED = (
    Wanted(r"Objects\*", values=()),
    Wanted(r"Objects\*\Description", values=("Type",)),
    Wanted(r"Objects\*\Elements\*", values=("Element",)),
)
"""What `read_bcd` has to be given of the hive."""

BOOT_MANAGER = "{9dea862c-5cdd-4e70-acc1-f32b344d4795}"

# Types of objects
OS_LOADER = 0x10200003
RESUME_LOADER = 0x10200004

# Elements that all of them may have
APPLICATION_DEVICE = 0x11000001
APPLICATION_PATH = 0x12000002
# of the boot manager
DISPLAY_ORDER = 0x24000001
DEFAULT_OBJECT = 0x23000003
TIMEOUT_SECONDS = 0x25000004
# of a loader
OS_DEVICE = 0x21000001
SYSTEM_ROOT = 0x22000002
RESUME_OBJECT = 0x23000003
KERNEL_PATH = 0x22000011
HAL_PATH = 0x22000012
DEBUG_TRANSPORT_PATH = 0x22000013
# of a resume loader
HIBERNATION_PATH = 0x22000002

_HEAD = struct.Struct("<16xI12xI")
# 0 GUID of an object with options; 16 type; 20 flags; 24 size, bytes from 16 on; 28 unknown;
# 32 what kind of disk, for a disk
_PARTITION = struct.Struct("<32x16s4xI16s")
# 32 partition: GUID, or offset in bytes (u64); 48 kind of the disk; 52 partition table; 56 disk:
# GUID, or signature (u32)
_DISK_DEVICE, _PARTITION_DEVICE = 0, 6
_DEVICES = {2: "legacy partition", 3: "serial", 4: "network", 5: "boot", 8: "locate"}
_LOCAL_DEVICES = {0: "disk", 1: "floppy", 2: "cdrom", 3: "ramdisk", 5: "file", 6: "virtual disk"}
_GPT, _MBR = 0, 1
_INTEGER = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Device:
    """Where something lies, in the terms in which the boot manager looks for it.

    kind: "partition", "boot" (where the boot manager itself came from), "ramdisk", "locate", …
    For a partition: table: "gpt", "mbr", or "" if unknown; disk: its GUID, or its signature as
    eight hexadecimal digits; partition: its GUID, "" in an MBR; offset: its start in an MBR, bytes.
    """

    kind: str
    table: str = ""
    disk: str = ""
    partition: str = ""
    offset: int = 0


Element = Device | str | int | bool | tuple[str, ...] | tuple[int, ...]
"""Objects are their GUIDs in braces, in lower case; a list of them is a tuple."""


@dataclass(frozen=True, slots=True)
class BcdObject:
    """A boot manager, a loader, a set of options. identifier: GUID in braces, lower case.

    type: OS_LOADER and so on. elements: by type; those that cannot be understood are missing.
    """

    identifier: str
    type: int
    elements: dict[int, Element]

    def text(self, element: int) -> str:
        """Return a string or the GUID of an object; "" if there is none."""
        found = self.elements.get(element)
        return found if isinstance(found, str) else ""

    def number(self, element: int) -> int | None:
        """Return an integer or boolean."""
        found = self.elements.get(element)
        return found if isinstance(found, int) else None

    def device(self, element: int) -> Device | None:
        """Return a device."""
        found = self.elements.get(element)
        return found if isinstance(found, Device) else None

    def objects(self, element: int) -> tuple[str, ...]:
        """Return the GUIDs of a list of objects."""
        found = self.elements.get(element)
        names = found if isinstance(found, tuple) else ()
        return tuple(name for name in names if isinstance(name, str))


@dataclass(frozen=True, slots=True)
class Bcd:
    """The store: its objects by identifier, in the order of the hive."""

    objects: dict[str, BcdObject]

    @property
    def boot_manager(self) -> BcdObject | None:
        """The object that says what is started."""
        return self.objects.get(BOOT_MANAGER)

    @property
    def default(self) -> BcdObject | None:
        """What the boot manager starts by itself."""
        return self._named_by(self.boot_manager, DEFAULT_OBJECT)

    @property
    def displayed(self) -> tuple[BcdObject, ...]:
        """What the boot manager offers, in its order."""
        manager = self.boot_manager
        names = manager.objects(DISPLAY_ORDER) if manager else ()
        return tuple(self.objects[name] for name in names if name in self.objects)

    def resume_of(self, loader: BcdObject) -> BcdObject | None:
        """Return the object that wakes a loader's system up."""
        return self._named_by(loader, RESUME_OBJECT)

    def _named_by(self, holder: BcdObject | None, element: int) -> BcdObject | None:
        return self.objects.get(holder.text(element)) if holder else None


def read_bcd(view: View) -> Bcd:
    """Return the store; view: what a query for WANTED has found in its hive."""
    objects: dict[str, BcdObject] = {}
    for name in view.subkeys("Objects"):
        kind = view.value(rf"Objects\{name}\Description", "Type")
        number = kind.number if kind is not None else None
        elements = _elements(view, rf"Objects\{name}\Elements")
        objects[name.lower()] = BcdObject(name.lower(), number or 0, elements)
    return Bcd(objects)


def read_device(data: bytes) -> Device | None:
    """Return what a device element says; None if it is too short to say anything."""
    if len(data) < _HEAD.size:
        return None
    kind, local = _HEAD.unpack_from(data)
    if kind == _DISK_DEVICE:
        return Device(_LOCAL_DEVICES.get(local, f"local type {local}"))
    if kind != _PARTITION_DEVICE:
        return Device(_DEVICES.get(kind, f"type {kind}"))
    if len(data) < _PARTITION.size:
        return None
    partition, table, disk = _PARTITION.unpack_from(data)
    if table == _GPT:
        return Device("partition", "gpt", _guid(disk), _guid(partition))
    if table == _MBR:
        signature = int.from_bytes(disk[:4], "little")
        offset = int.from_bytes(partition[:8], "little")
        return Device("partition", "mbr", f"{signature:08x}", offset=offset)
    return Device("partition")


def _elements(view: View, path: str) -> dict[int, Element]:
    elements: dict[int, Element] = {}
    for name in view.subkeys(path):
        value = view.value(rf"{path}\{name}", "Element")
        kind = _number(name)
        element = _element(kind, value) if value is not None else None
        if element is not None:
            elements[kind] = element
    return elements


def _number(name: str) -> int:
    try:
        return int(name, 16)
    except ValueError:
        return 0


def _element(kind: int, value: Value) -> Element | None:
    read = _FORMATS.get(kind >> _FORMAT_SHIFT & _FORMAT_MASK)
    return read(value) if read is not None else None


def _object(value: Value) -> str | None:
    return value.text.lower() if value.text is not None else None


def _objects(value: Value) -> tuple[str, ...]:
    return tuple(text.lower() for text in value.texts)


def _integer(value: Value) -> int | None:
    return int.from_bytes(value.data, "little") if len(value.data) == _INTEGER.size else None


def _boolean(value: Value) -> bool | None:
    return any(value.data) if value.data else None


def _integers(value: Value) -> tuple[int, ...] | None:
    if len(value.data) % _INTEGER.size:
        return None
    return tuple(number for (number,) in _INTEGER.iter_unpack(value.data))


_FORMAT_SHIFT, _FORMAT_MASK = 24, 0xF  # of an element's type
_FORMATS: dict[int, Callable[[Value], Element | None]] = {
    1: lambda value: read_device(value.data),
    2: lambda value: value.text,
    3: _object,
    4: _objects,
    5: _integer,
    6: _boolean,
    7: _integers,
}


def _guid(data: bytes) -> str:
    return str(uuid.UUID(bytes_le=data))
