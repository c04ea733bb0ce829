"""What starts Windows: boot managers, and what boot.ini or the BCD have them load.

Sources: as in formats/windows/boot_ini.py and bcd.py. Microsoft Knowledge Base 314081, "The purpose
of the Boot.ini file in Windows XP", and "BCD Boot Options Reference" say what /KERNEL=, /HAL= and
/DEBUGPORT= load.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from formats.windows import bcd
from formats.windows.boot_ini import MAX_BOOT_INI_BYTES, ArcPath, parse_boot_ini
from packer.errors import InputError
from packer.guest.mounts import is_esp, volume_name
from packer.guest.tree import Tree
from packer.guest.windows.drives import row_of_gpt, row_of_mbr
from packer.survey.examine import Examiner

NTLDR, BOOTMGR, UEFI = "ntldr", "bootmgr", "uefi"
BOOT_INI = "/boot.ini"
STORES = {BOOTMGR: "/Boot/BCD", UEFI: "/EFI/Microsoft/Boot/BCD"}
LOGS = (".LOG", ".LOG1", ".LOG2")
"""Names of a hive's logs, in the order in which they are replayed."""

MAX_OBJECTS = 256
"""Of one store that are looked at; real ones have 20."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One Windows that a boot manager can start.

    source: the file that says so. volume: row of the survey, None for one that is not on this
    disk or not known. folder: of Windows, "/Windows". is_default: started by itself.
    files: paths below the volume's root that it loads instead of, or before, the usual ones.
    modules: names below System32 of a kernel, HAL or debugger transport of its own.
    """

    source: str
    volume: int | None
    folder: str
    is_default: bool
    files: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    hals: tuple[str, ...] = ()
    transports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaders:
    """managers: (row of the survey, NTLDR, BOOTMGR or UEFI) of each boot manager on the disk.

    boot_sectors: (row, path) of files with boot sectors that boot.ini offers.
    """

    managers: tuple[tuple[int, str], ...] = ()
    offers: tuple[Offer, ...] = ()
    boot_sectors: tuple[tuple[int, str], ...] = ()


def find_loaders(tree: Tree, examiner: Examiner) -> Loaders:
    """Return the boot managers and what they offer; what cannot be read is warned of."""
    found = _Found()
    for row in range(len(tree.survey.volumes)):
        if tree.survey.volumes[row].kind == "raw":
            continue
        if tree.stream_in(row, "/ntldr") is not None:
            found.managers.append((row, NTLDR))
            _read_boot_ini(tree, examiner, row, found)
        kinds = (BOOTMGR, UEFI) if is_esp(tree.survey, row) else (BOOTMGR,)
        for kind in kinds:
            store = tree.stream_in(row, STORES[kind])
            if store is not None:
                _read_store(tree, examiner, (row, kind), store, found)
            has_manager = kind == BOOTMGR and tree.stream_in(row, "/bootmgr") is not None
            if store is not None or has_manager:
                found.managers.append((row, kind))
    return Loaders(tuple(found.managers), tuple(found.offers), tuple(found.boot_sectors))


def hive_logs(tree: Tree, volume: int, path: str) -> list[int]:
    """Return the streams of a hive's logs."""
    streams = (tree.stream_in(volume, path + ending) for ending in LOGS)
    return [one for one in streams if one is not None]


@dataclass(slots=True)
class _Found:
    managers: list[tuple[int, str]] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    boot_sectors: list[tuple[int, str]] = field(default_factory=list)


def _read_boot_ini(tree: Tree, examiner: Examiner, row: int, found: _Found) -> None:
    stream = tree.stream_in(row, BOOT_INI)
    name = f"boot.ini on {volume_name(tree.survey.volumes[row])}"
    if stream is not None:
        data = tree.read_stream(stream, MAX_BOOT_INI_BYTES, name)
    else:
        try:
            data = examiner.small_files(row, (BOOT_INI,)).get(BOOT_INI, b"")
        except InputError as error:
            tree.warn(f"{name} is not read: {error}")
            return
    menu = parse_boot_ini(data)
    default = menu.default_entry
    for entry in (*menu.entries, *([default] if default not in menu.entries else [])):
        if entry is None:
            continue
        if entry.arc is None:
            if path := _below_c(entry.target):
                found.boot_sectors.append((row, path))
            continue
        port = entry.options.get("DEBUGPORT", "")
        found.offers.append(
            Offer(
                name,
                _volume_of_arc(tree, entry.arc),
                entry.arc.path.replace("\\", "/").rstrip("/"),
                entry is default,
                kernels=_plain_names(entry.options.get("KERNEL", "")),
                hals=_plain_names(entry.options.get("HAL", "")),
                # /DEBUGPORT=1394 loads kd1394.dll; COM1 the usual kdcom.dll
                transports=_plain_names(f"kd{port}.dll" if port else ""),
            )
        )


def _volume_of_arc(tree: Tree, arc: ArcPath) -> int | None:
    """Return the volume of an ARC path: partitions count from 1, logical ones after primary ones.

    Source: Knowledge Base Q102873; only BIOS disk 0 can be this one, or the one of a signature.
    """
    survey = tree.survey
    if arc.adapter == "signature":
        if survey.table_identifier != f"{arc.number:08x}":
            return None
    elif arc.rdisk != 0:
        return None
    rows = sorted(range(len(survey.volumes)), key=lambda row: survey.volumes[row].number)
    return rows[arc.partition - 1] if 1 <= arc.partition <= len(rows) else None


def _below_c(target: str) -> str:
    r"""Return the path of a boot sector's file ("C:\CMDCONS\BOOTSECT.DAT"), or ""."""
    if target[:3].casefold() != "c:\\":
        return ""
    parts = target[3:].split("\\")
    sane = all(part not in ("", ".", "..") and "/" not in part for part in parts)
    return "/" + "/".join(parts) if sane and len(target) < 260 else ""


def _plain_names(*names: str) -> tuple[str, ...]:
    """Return those that are names of files, without folders."""
    return tuple(
        one for one in names if one and len(one) < 260 and not set(one) & set('\\/:*?"<>|\0')
    )


def _read_store(
    tree: Tree, examiner: Examiner, manager: tuple[int, str], store: int, found: _Found
) -> None:
    row, kind = manager
    name = f"the BCD on {volume_name(tree.survey.volumes[row])}"
    try:
        logs = hive_logs(tree, row, STORES[kind])
        view = examiner.hive(store, logs, bcd.WANTED)
    except InputError as error:
        tree.warn(f"{name} is not read: {error}")
        return
    for warning in view.warnings:
        tree.warn(f"{name}: {warning}")
    found.offers.extend(_offers(tree, row, name, bcd.read_bcd(view)))


def _offers(tree: Tree, own: int, name: str, store: bcd.Bcd) -> Iterator[Offer]:
    default = store.default
    for one in list(store.objects.values())[:MAX_OBJECTS]:
        if one.type != bcd.OS_LOADER:
            continue
        device = one.device(bcd.OS_DEVICE)
        files = [one.text(bcd.APPLICATION_PATH)]
        resume = store.resume_of(one)
        if resume is not None:
            files.append(resume.text(bcd.APPLICATION_PATH))
        yield Offer(
            name,
            _volume_of_device(tree, own, device),
            one.text(bcd.SYSTEM_ROOT).replace("\\", "/").rstrip("/"),
            one is default,
            tuple(path for path in map(_plain_path, files) if path),
            _plain_names(one.text(bcd.KERNEL_PATH)),
            _plain_names(one.text(bcd.HAL_PATH)),
            _plain_names(one.text(bcd.DEBUG_TRANSPORT_PATH)),
        )


def _volume_of_device(tree: Tree, own: int, device: bcd.Device | None) -> int | None:
    if device is None or device.kind != "partition":
        return own if device is not None and device.kind == "boot" else None
    if device.table == "gpt":
        return row_of_gpt(tree.survey, device.partition)
    if device.table == "mbr":
        return row_of_mbr(tree.survey, device.disk, device.offset)
    return None


def _plain_path(path: str) -> str:
    parts = path.replace("\\", "/").split("/")[1:]
    sane = path[:1] == "\\" and all(part not in ("", ".", "..") for part in parts)
    return "/" + "/".join(parts) if sane and len(path) < 1024 and "\0" not in path else ""
