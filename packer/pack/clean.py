"""Take temporary files, caches and logs out of a guest, in an overlay and never in its image.

libguestfs changes the file systems, in an appliance of its own with the Linux kernel's drivers.
It is told path by path (guestfish), not by virt-sysprep: that neither says what went nor how much,
skips guests it does not know, and its "logfiles" take certificates and fingerprints along.

Two runs differ in times that mounting and removing write, so they give two packs.
"""

from __future__ import annotations

import os
import re
import secrets
import select as io_select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from packer.errors import Error, InputError, InUseError, UsageError
from packer.guest.droppable import find_droppable
from packer.guest.identify import identify
from packer.guest.mounts import volume_name
from packer.guest.tree import Tree
from packer.pack.clean_rules import Group, Selection, Stat, parse_request, select
from packer.progress import Progress
from packer.survey.child import clean_text
from packer.survey.disk import NBD_SCHEMES, Disk, open_disk
from packer.survey.qemu_nbd import DRIVERS
from packer.survey.recognise import QUIET_TYPES
from packer.survey.survey import survey

KVM_LAUNCH_SECONDS = 60.0
"""After which the appliance is started again without KVM: /dev/kvm proves nothing, some hosts'
starts a guest that then stands still."""
LAUNCH_SECONDS = 900.0
COMMAND_SECONDS = 900.0
STOP_SECONDS = 5.0

_INSTALL = "apt install libguestfs-tools qemu-utils (Debian, Ubuntu), dnf install guestfs-tools"
_HINT = (
    "libguestfs-test-tool shows whether it works here; LIBGUESTFS_BACKEND_SETTINGS=force_tcg does "
    "without KVM"
)
_SETTINGS = "LIBGUESTFS_BACKEND_SETTINGS"
_INSTEAD = "clean the guest from inside, or pack it without --clean"
_STATS_AT_ONCE = 200
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/+:@=,-")
_PREFIX = re.compile(r"^(\*stdin\*:\d+: )?(libguestfs: error: )?")
_READ_BYTES = 1 << 16


@contextmanager
def open_cleaned(
    image: str | Path, what: str | None, *, backing: Path | None, progress: Progress
) -> Iterator[tuple[Disk, tuple[str, ...]]]:
    """Open a disk without the files that `what` names, and say what went, a line each.

    what: see `parse_request`; None opens the disk as it is. The overlay lies in a private folder
    in TMPDIR and is gone afterwards.

    Raises UsageError for what cannot be asked, InUseError for a hibernated guest, InputError for
    one that is no Linux or encrypted, Error when libguestfs is missing or fails, and what
    `open_disk` raises.
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
            known = _look(original)
            _create_overlay(tools[0], original, overlay)
            with progress.stage("cleaning", 0):
                lines = _clean(tools[1], original.path, overlay, groups, known)
            original.check_unchanged()
        with open_disk(overlay, backing=Path(image)) as disk:
            disk.path = original.path  # for people: they know no other
            yield disk, lines


def _demand_plain(image: str | Path, backing: Path | None) -> None:
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
    """

    mounts: Mapping[str, tuple[str, str]]
    encrypted: tuple[str, ...]


def _look(disk: Disk) -> _Known:
    """Return what is known of a guest.

    Raises InUseError if it is hibernated: what it has in memory would contradict the disk.
    """
    surveyed = survey(disk)
    tree = Tree(surveyed, disk.source)
    refusals = find_droppable(tree).refusals
    if refusals:
        raise InUseError(f"{disk.path}: {refusals[0]}")
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


def _clean(
    program: str,
    image: str,
    overlay: Path,
    groups: Sequence[Group],
    known: _Known,
) -> tuple[str, ...]:
    """Take the groups out of the overlay; return a line for each."""
    with _launched(program, overlay) as shell:
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
            f"{image}: the guest is no Linux ({clean_text(kind)}), and --clean knows only Linux",
            hint=_INSTEAD,
        )
    lines = shell.run("inspect-get-mountpoints", roots[0]).splitlines()
    return dict(line.split(": ", 1) for line in lines)


def _take(shell: Guestfish, group: Group) -> str:
    selection: Selection = select(_GuestFiles(shell), group)
    for path in selection.emptied:
        shell.run("truncate", path)
    for path in selection.files:
        shell.run("rm-f", path)
    for path in selection.trees:
        shell.run("rm-rf", path)
    return selection.line()


class _GuestFiles:
    """The files of a guest that is mounted in the appliance; see clean_rules.Files."""

    def __init__(self, shell: Guestfish) -> None:
        self._shell = shell
        self._names: dict[str, list[str]] = {}
        self._folders: dict[str, str | None] = {}

    def real_folder(self, path: str) -> str | None:
        """Return the path of a folder without links in it, or None."""
        if path not in self._folders:
            found = None
            if self._shell.run("is-dir", path, "followsymlinks:true").strip() == "true":
                found = self._shell.run("realpath", path).removesuffix("\n")
            self._folders[path] = found
        return self._folders[path]

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder."""
        if folder not in self._names:
            self._names[folder] = self._shell.listed("ls0", folder)
        return self._names[folder]

    def below(self, folder: str) -> list[str]:
        """Return the paths of all entries below a folder, relative to it."""
        return [name.lstrip("/") for name in self._shell.listed("find0", folder)]

    def stats(self, folder: str, names: Sequence[str]) -> list[Stat]:
        """Return what lstat says about paths relative to a folder."""
        found: list[Stat] = []
        batch: list[str] = []
        for name in names:
            if not _PLAIN.issuperset(os.fsencode(name)):  # guestfish's lists cannot quote it
                found += self._batch(folder, batch)
                batch = []
                found += _parse_stats(self._shell.run("lstatns", f"{folder}/{name}"))
                continue
            batch.append(name)
            if len(batch) == _STATS_AT_ONCE:
                found += self._batch(folder, batch)
                batch = []
        return found + self._batch(folder, batch)

    def _batch(self, folder: str, names: Sequence[str]) -> list[Stat]:
        if not names:
            return []
        return _parse_stats(self._shell.run("lstatnslist", folder, " ".join(names)))


def _parse_stats(text: str) -> list[Stat]:
    """Return the statns structures (guestfs(3)) that guestfish has printed, a field a line."""
    columns: dict[str, list[int]] = {}
    for line in text.splitlines():
        name, colon, value = line.strip().partition(": ")
        if colon:
            columns.setdefault(name, []).append(int(value))
    wanted = ("st_dev", "st_ino", "st_mode", "st_uid", "st_gid", "st_size", "st_blocks")
    return [Stat(*row) for row in zip(*(columns[name] for name in wanted), strict=True)]


@contextmanager
def _launched(program: str, overlay: Path) -> Iterator[Guestfish]:
    """Start the appliance: as the user's environment says, else with KVM, else without it."""
    # All that is temporary lies beside the overlay and goes with it; the appliance, which takes
    # long to make and serves the next time, stays where libguestfs would keep it anyway.
    kept = os.environ.get("LIBGUESTFS_CACHEDIR") or os.environ.get("TMPDIR") or "/var/tmp"
    environment = {
        **os.environ,
        "TMPDIR": str(overlay.parent),
        "LIBGUESTFS_TMPDIR": str(overlay.parent),
        "LIBGUESTFS_CACHEDIR": kept,
    }
    # The other backend, libvirt, runs qemu as a user who may not read these files.
    environment.setdefault("LIBGUESTFS_BACKEND", "direct")
    free = environment["LIBGUESTFS_BACKEND"] == "direct" and _SETTINGS not in environment
    if free and os.access("/dev/kvm", os.R_OK | os.W_OK):
        with Guestfish(program, overlay, environment) as shell:
            if shell.launches(KVM_LAUNCH_SECONDS):
                yield shell
                return
        environment[_SETTINGS] = "force_tcg"
    with Guestfish(program, overlay, environment) as shell:
        shell.launch(LAUNCH_SECONDS)
        yield shell


class Guestfish:
    """A guestfish that is told one command after the other; its appliance ends with it.

    Every command that fails raises Error with what libguestfs says about it.
    """

    def __init__(self, program: str, overlay: Path, environment: Mapping[str, str]) -> None:
        self._listing = overlay.with_name("listing")
        self._messages = tempfile.TemporaryFile(dir=overlay.parent)  # noqa: SIM115
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=environment,
            bufsize=0,
            start_new_session=True,  # an interrupt is ours to handle, and all of it ends at once
        )
        self._add = ("add-drive", str(overlay), "format:qcow2", "cachemode:unsafe")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def launches(self, seconds: float) -> bool:
        """Start the appliance; say whether it came up in time."""
        try:
            self.launch(seconds)
        except Error:
            return False
        return True

    def launch(self, seconds: float) -> None:
        """Start the appliance with the overlay as its disk."""
        self.run(*self._add)
        self.run("launch", seconds=seconds)

    def listed(self, command: str, folder: str) -> list[str]:
        """Return the names that a command of the kind `ls0 FOLDER FILE` writes to a file."""
        self.run(command, folder, str(self._listing))
        return [os.fsdecode(name) for name in self._listing.read_bytes().split(b"\0") if name]

    def run(self, command: str, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command; return what it prints."""
        assert self._process.stdin is not None
        end = secrets.token_hex().encode()
        line = b" ".join([command.encode(), *map(_quoted, arguments)])
        with suppress(BrokenPipeError):  # it has ended: reading tells why
            self._process.stdin.write(line + b"\necho " + end + b"\n")
        return os.fsdecode(self._answer(command, end + b"\n", time.monotonic() + seconds))

    def close(self) -> None:
        """End guestfish, which ends the appliance."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        # Without its appliance guestfish gives up, and removes what it has in /tmp.
        for how in (None, self._end_children, self._end_all):
            if how is not None:
                how()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                break
        self._process.stdout.close()
        self._messages.close()

    def _answer(self, command: str, end: bytes, deadline: float) -> bytes:
        assert self._process.stdout is not None
        said = b""
        while not said.endswith(end):
            left = deadline - time.monotonic()
            if left <= 0 or not io_select.select([self._process.stdout], [], [], left)[0]:
                raise Error(f"libguestfs does not finish {command!r}", hint=_HINT)
            chunk = self._process.stdout.read(_READ_BYTES)
            if not chunk:
                raise Error(f"libguestfs failed: {self._complaint() or command}", hint=_HINT)
            said += chunk
        return said[: -len(end)]

    def _end_children(self) -> None:
        pid = self._process.pid
        with suppress(OSError):  # ended meanwhile, or a kernel without CONFIG_PROC_CHILDREN
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)

    def _end_all(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)

    def _complaint(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read(_READ_BYTES).decode("utf-8", "replace").splitlines()
        return clean_text(" ".join(_PREFIX.sub("", line) for line in lines if line.strip()))


def _quoted(argument: str) -> bytes:
    """Return a word of guestfish's language; guestfish(1), "ESCAPE SEQUENCES"."""
    octets = os.fsencode(argument)
    plain = _PLAIN | {0x20}
    return b'"' + b"".join(bytes([o]) if o in plain else b"\\x%02x" % o for o in octets) + b'"'
