"""Take temporary files, caches and logs out of a guest, in an overlay and never in its image.

libguestfs changes the file systems, in an appliance of its own with the Linux kernel's drivers.
It is told path by path (guestfish), not by virt-sysprep: that neither says what went nor how much,
skips guests it does not know, and its "logfiles" take certificates and fingerprints along.

Two runs differ in times that mounting and removing write, so they give two packs.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packer.environment import inherited
from packer.errors import Error, InputError, InUseError, UsageError
from packer.guest.droppable import CURE_FOR_DIRTY, find_droppable
from packer.guest.identify import identify
from packer.guest.judge import is_linux
from packer.guest.mounts import volume_name
from packer.guest.tree import Tree
from packer.guest.windows.guest import Windows, find_windows
from packer.guest.windows.state import find_state
from packer.pack.clean_rules import Group, Selection, for_windows, parse_request, select
from packer.pack.guestfish import GuestFiles, Guestfish, launched
from packer.progress import Progress
from packer.survey.child import clean_text
from packer.survey.disk import NBD_SCHEMES, Disk, open_disk
from packer.survey.examine import ChildExaminer
from packer.survey.model import Survey
from packer.survey.qemu_nbd import DRIVERS
from packer.survey.recognise import QUIET_TYPES
from packer.survey.survey import survey

_INSTALL = "apt install libguestfs-tools qemu-utils (Debian, Ubuntu), dnf install guestfs-tools"
_INSTEAD = "clean the guest from inside, or pack it without --clean"


@contextmanager
def open_cleaned(
    image: str | Path,
    what: str | None,
    *,
    backing: str | Path | None,
    drop_snapshots: bool = False,
    progress: Progress,
) -> Iterator[tuple[Disk, tuple[str, ...]]]:
    """Open a disk without the files that `what` names, and say what went, a line each.

    what: see `parse_request`; None opens the disk as it is. drop_snapshots: whether volume shadow
    copies go, which do not survive that files are removed without them. The overlay lies in a
    private folder in TMPDIR and is gone afterwards.

    Raises UsageError for what cannot be asked, InUseError for a hibernated guest, InputError for
    one that is neither Linux nor Windows, encrypted, or not clean, Error when libguestfs is missing
    or fails, and what `open_disk` raises.
    """
    if what is None:
        with open_disk(image, backing=backing) as disk:
            yield disk, ()
        return
    groups = parse_request(what)
    _demand_plain(image, backing)
    tools = [_tool(name) for name in ("qemu-img", "guestfish")]
    with tempfile.TemporaryDirectory(prefix="vmpack-clean-") as name:
        overlay = Path(name, "overlay.qcow2")
        with open_disk(image) as original:
            known = _look(original, drop_snapshots=drop_snapshots)
            if known.windows_folder:
                groups = for_windows(groups, known.windows_folder)
            _create_overlay(tools[0], original, overlay)
            with progress.stage("cleaning", 0):
                lines = _clean(tools[1], original.path, overlay, groups, known)
            original.check_unchanged()
        with open_disk(overlay, backing=Path(image)) as disk:
            disk.path = original.path  # for people: they know no other
            yield disk, lines


def _demand_plain(image: str | Path, backing: str | Path | None) -> None:
    if str(image).startswith(NBD_SCHEMES):
        raise UsageError("--clean works on an image file or a block device, not on an NBD export")
    if backing is not None:
        raise UsageError(
            "--clean does not work on an image with a backing file",
            hint="make one file of the two first: qemu-img convert -O qcow2 …",
        )


def _tool(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        raise Error(f"--clean needs {name}, which is not installed", hint=_INSTALL)
    return program


def _create_overlay(program: str, original: Disk, overlay: Path) -> None:
    """Write a qcow2 on top of an image that `open_disk` has found to name no file of its own."""
    driver = DRIVERS.get(original.container, original.container)
    backing = Path(original.path).absolute()
    done = subprocess.run(
        [program, "create", "-q", "-f", "qcow2", "-F", driver, "-b", str(backing), str(overlay)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=inherited(),
        check=False,
    )
    if done.returncode:
        said = clean_text(" ".join(done.stderr.split()))
        raise Error(f"qemu-img cannot make an overlay of {original.path}: {said}")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the survey of an image says about the guest.

    mounts: {guest path: (libguestfs's device, UUID)} of a Linux that is known to the last volume;
    {} when libguestfs has to look itself (5 to 25 s without KVM). encrypted: volumes, in words.
    windows_folder: of a Windows ("/Windows"), whose own volume is all that is mounted.
    """

    mounts: Mapping[str, tuple[str, str]]
    encrypted: tuple[str, ...]
    windows_folder: str = ""


def _look(disk: Disk, *, drop_snapshots: bool) -> _Known:
    """Return what is known of a guest.

    Raises InUseError if it is hibernated: what it has in memory would contradict the disk.
    """
    surveyed = survey(disk)
    tree = Tree(surveyed, disk.source)
    windows = None
    if not is_linux(tree, identify(tree)):
        windows = find_windows(surveyed, disk.source, ChildExaminer(disk, surveyed))
    refusals = (*find_droppable(tree).refusals, *find_state(tree, windows).refusals)
    if refusals:
        raise InUseError(f"{disk.path}: {refusals[0]}")
    if windows is not None:
        return _look_at_windows(disk, surveyed, windows, drop_snapshots=drop_snapshots)
    volumes = surveyed.volumes
    encrypted = tuple(
        f"{volume_name(one)}, {one.note}" for one in volumes if one.note.endswith(": encrypted")
    )
    unknown = any(one.kind == "raw" and one.partition_type not in QUIET_TYPES for one in volumes)
    if unknown or tree.root is None or identify(tree).family != "linux":
        return _Known({}, encrypted)
    mounts = {
        mount.path: (f"/dev/sda{volumes[mount.volume].number or ''}", volumes[mount.volume].uuid)
        for mount in tree.mounts
    }
    return _Known(mounts, encrypted)


def _look_at_windows(
    disk: Disk, surveyed: Survey, windows: Windows, *, drop_snapshots: bool
) -> _Known:
    volume = surveyed.volumes[windows.volume]
    where = f"{disk.path}: {volume.kind} on {volume_name(volume)}"
    if volume.state != "clean":
        raise InputError(
            f"{where} is not clean ({volume.state_reason}), and nothing is removed from it then",
            hint=CURE_FOR_DIRTY,
        )
    if windows.volume in surveyed.with_snapshots and not drop_snapshots:
        raise InputError(
            f"{where} has shadow copies, which would be damaged by removing files",
            hint="--drop-snapshots leaves them out, or delete them inside the guest",
        )
    device = f"/dev/sda{volume.number or ''}"
    return _Known({"/": (device, volume.uuid)}, (), windows.folder)


def _clean(
    program: str,
    image: str,
    overlay: Path,
    groups: Sequence[Group],
    known: _Known,
) -> tuple[str, ...]:
    """Take the groups out of the overlay; return a line for each."""
    with launched(program, overlay) as shell:
        devices = _checked(shell, known.mounts) or _inspected(shell, image, known.encrypted)
        # The loader's own volumes are mounted only to be cleaned: mounting writes.
        wanted = any(rule.pattern.startswith("/boot") for one in groups for rule in one.rules)
        for path in sorted(devices, key=len):
            if wanted or not path.startswith("/boot"):
                shell.run("mount-options", "noatime", devices[path], path)
        lines = tuple(_take(shell, group) for group in groups)
        shell.run("umount-all")
        shell.run("shutdown")
    return lines


def _checked(shell: Guestfish, mounts: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Return {guest path: device}; {} if libguestfs counts volumes in another way than we do."""
    for device, uuid in mounts.values():
        if shell.run("vfs-uuid", device).strip().casefold() != uuid.casefold():
            return {}
    return {path: device for path, (device, _) in mounts.items()}


def _inspected(shell: Guestfish, image: str, encrypted: Sequence[str]) -> dict[str, str]:
    """Return {guest path: device} of the one Linux that libguestfs finds."""
    roots = shell.run("inspect-os").split()
    if not roots:
        if encrypted:
            raise InputError(
                f"{image}: no system is found outside what is encrypted ({'; '.join(encrypted)}), "
                "and from there nothing can be removed without its key",
                hint=_INSTEAD,
            )
        raise InputError(
            f"{image}: libguestfs finds no operating system, so where to look is not known",
            hint=_INSTEAD,
        )
    if len(roots) > 1:
        raise InputError(f"{image} holds {len(roots)} systems; --clean works on a disk with one")
    kind = shell.run("inspect-get-type", roots[0]).strip()
    if kind != "linux":
        raise InputError(
            f"{image}: the guest is {clean_text(kind)}, and --clean knows Linux, and a Windows "
            "whose files can be read",
            hint=_INSTEAD,
        )
    lines = shell.run("inspect-get-mountpoints", roots[0]).splitlines()
    found = (line.partition(": ") for line in lines)  # the guest's fstab chooses the names
    return {path: device for path, colon, device in found if colon}


def _take(shell: Guestfish, group: Group) -> str:
    selection: Selection = select(GuestFiles(shell), group)
    for path in selection.emptied:
        shell.run("truncate", path)
    for path in selection.files:
        shell.run("rm-f", path)
    for path in selection.trees:
        shell.run("rm-rf", path)
    return selection.line()
