"""Is somebody using this disk? Every finding is one sentence that says who.

Nothing here proves that a disk is idle (a program on another host writes unseen); what can be
seen is refused. Sources: qemu `block/file-posix.c` (lock bytes), libvirt `src/util/virlockspace.c`
(byte 0), fcntl(2) "Leases", proc(5), Linux `Documentation/ABI/testing/sysfs-block` and
`fs/locks.c` (`check_conflicting_open`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packer.errors import InUseError
from packer.survey.block_devices import (
    backing_file,
    kernel_text,
    mounts_of,
    overlapping_devices,
    related_devices,
    swaps_of,
)
from packer.survey.child import clean_text

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, len, pid

# RAW_LOCK_PERM_BASE + bit: somebody holds the permission; RAW_LOCK_SHARED_BASE + bit: somebody
# does not share it. Bits: include/block/block-common.h, BLK_PERM_CONSISTENT_READ 0, WRITE 1,
# WRITE_UNCHANGED 2 (changes no byte), RESIZE 3.
_QEMU_WRITES = (101, 103)
_QEMU_DENIES_READING = (200,)
_QEMU_DENIES_WRITING = (201, 203)
_QEMU_BYTES = (100, 300)
_QEMU_PERMISSIONS = (100, 100)  # start, length: every permission that anybody holds
_WHOLE_REST = 0  # as a length: up to the end of the file

_VMWARE_PART = re.compile(r"(-flat|-s\d+|-f\d+|-delta|-sesparse)?\.vmdk$", re.IGNORECASE)
_HINT = "shut the guest down, or close the program that has the disk open, and try again"


def refuse_if_in_use(paths: Iterable[Path]) -> None:
    """Raise InUseError when one of the files or block devices seems to be used."""
    for path in paths:
        sentences = findings(path)
        if sentences:
            raise InUseError(f"{path} is in use: {clean_text('; '.join(sentences))}", hint=_HINT)


def refuse_if_replaced_under_somebody(path: Path) -> None:
    """Raise InUseError when a file must not be replaced by another: used, or only read, by QEMU.

    Who reads it as the backing file of an overlay would find another disk below the next time.
    """
    refuse_if_in_use([path])
    with _opened(path) as fd:
        if _holder(fd, fcntl.F_WRLCK, *_QEMU_PERMISSIONS) is not None:
            who = clean_text(_who(os.fstat(fd), "a QEMU process"))
            raise InUseError(f"{path} is in use: {who} reads it", hint=_HINT)


@contextmanager
def kept_from_qemu(path: Path) -> Iterator[None]:
    """Let no QEMU begin to write to a file meanwhile; others are not kept from it.

    Where the file system has no locks nothing is kept from anybody.
    """
    with _opened(path) as fd:
        for byte in _QEMU_DENIES_WRITING:
            with suppress(OSError):
                lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        yield


@contextmanager
def kept_from_everybody(path: Path, fd: int) -> Iterator[None]:
    """Let nobody open a file meanwhile: whoever tries waits, so be brief.

    fd: open to write; path: what it is called in an error. Raises InUseError when somebody else
    has it open, be it to read. Where no lease can be had (another owner's file, a network file
    system) nobody is kept from anything.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # who wants to open it: no harmful signal
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            who = clean_text(_who(os.fstat(fd), "something that cannot be seen from here"))
            raise InUseError(f"{path} is in use: {who} has it open", hint=_HINT) from error
        yield
        return
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def findings(path: Path) -> list[str]:
    """Return what uses a file or block device, one clause each; empty when nothing is seen.

    Raises OSError when it cannot be opened.
    """
    with _opened(path) as fd:
        status = os.fstat(fd)
        locks = _lock_findings(fd)
        if stat.S_ISBLK(status.st_mode):
            return [
                *locks,
                *_device_findings(path, status),
                *(_writers(status) if not locks else ()),
            ]
        loops = _loop_findings(status)
        known = [*locks, *loops, *_vmware_findings(path), *swaps_of(status)]
        if known or not _open_for_writing(fd):
            return known
        return _writers(status) or ["something that cannot be seen from here has it open to write"]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _lock_findings(fd: int) -> list[str]:
    """Look for locks of qemu on its bytes, and for exclusive ones of anybody elsewhere."""
    status = os.fstat(fd)
    if any(_holder(fd, fcntl.F_WRLCK, byte, 1) is not None for byte in _QEMU_WRITES):
        return [f"{_who(status, 'a QEMU process')} has locked it to write"]
    if any(_holder(fd, fcntl.F_WRLCK, byte, 1) is not None for byte in _QEMU_DENIES_READING):
        return [f"{_who(status, 'a QEMU process')} has locked it against reading"]
    first, last = _QEMU_BYTES
    for start, length in ((0, first), (last, _WHOLE_REST)):
        # A shared lock (of libvirt, for a disk that several guests read) does not conflict.
        pid = _holder(fd, fcntl.F_RDLCK, start, length)
        if pid is not None:
            who = f"process {pid} ({_name(pid)})" if pid > 0 else _who(status, "a process")
            return [f"{who} has locked it"]
    return []


def _holder(fd: int, kind: int, start: int, length: int) -> int | None:
    """Return who holds a lock that conflicts: a pid, -1 for an open-file lock, None for nobody."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):  # no locks over there
            return None
        raise
    found, _, _, _, pid = _FLOCK.unpack(answer)
    return None if found == fcntl.F_UNLCK else pid


def _open_for_writing(fd: int) -> bool:
    """Say whether anybody, seen or not, has the file open to write; by asking for a read lease.

    The kernel grants it only while the file has no writer. Where it cannot be asked (another
    owner's file, a network file system) the answer comes from the processes that can be seen.
    """
    try:
        # Should somebody open the file in this very moment, the signal must be a harmless one.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN or bool(_writers(os.fstat(fd)))
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _who(status: os.stat_result, otherwise: str) -> str:
    """Return who has the file open, as far as it can be seen."""
    pids = [pid for pid, _, _ in _openers(status)]
    if not pids:
        return otherwise
    return " and ".join(f"process {pid} ({_name(pid)})" for pid in sorted(set(pids)))


def _writers(status: os.stat_result) -> list[str]:
    found = {(pid, what) for pid, what, writes in _openers(status) if writes}
    return [f"process {pid} ({_name(pid)}) has {what} open to write" for pid, what in sorted(found)]


def _openers(status: os.stat_result) -> Iterator[tuple[int, str, bool]]:
    """Yield (pid, what, whether it may write) of other processes with the file open.

    what: "it", or "/dev/sdb1", which shares bytes with the device that is asked about.
    """
    devices = overlapping_devices(status.st_rdev) if stat.S_ISBLK(status.st_mode) else {}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        pid = int(folder.parent.name)
        if pid == os.getpid():
            continue
        for entry in _listed(folder):
            try:
                one = entry.stat()
                if _is_same(one, status):
                    what = "it"
                elif stat.S_ISBLK(one.st_mode) and one.st_rdev in devices:
                    what = f"/dev/{devices[one.st_rdev]}"
                else:
                    continue
                writes = _may_write(pid, entry.name)
            except OSError:  # closed meanwhile
                continue
            yield pid, what, writes


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # the process ended, or is none of our business
        return []


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    if stat.S_ISBLK(other.st_mode):  # a device may have several nodes
        return stat.S_ISBLK(one.st_mode) and one.st_rdev == other.st_rdev
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _may_write(pid: int, number: str) -> bool:
    for line in kernel_text(f"/proc/{pid}/fdinfo/{number}").splitlines():
        name, _, value = line.partition(":")
        if name == "flags":
            return int(value, 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _name(pid: int) -> str:
    try:
        return kernel_text(f"/proc/{pid}/comm").strip()
    except OSError:
        return "ended"


def _loop_findings(status: os.stat_result) -> list[str]:
    found = []
    for device in Path("/sys/block").glob("loop*"):
        try:
            backing = Path(backing_file(device)).stat()
            read_only = kernel_text(device / "ro").strip() == "1"
        except OSError:  # detached meanwhile, or deleted
            continue
        if _is_same(backing, status) and not read_only:
            mounts = mounts_of(related_devices(device.name))
            where = f", which is mounted at {', '.join(mounts)}" if mounts else ""
            found.append(f"it is behind the loop device /dev/{device.name}{where}")
    return found


def _device_findings(path: Path, status: os.stat_result) -> list[str]:
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    name = Path(f"/sys/dev/block/{number}").resolve().name
    devices = related_devices(name)
    found = [f"it is mounted at {place}" for place in mounts_of(devices)]
    found += swaps_of(status, devices)
    found = found or _loop_findings(status)
    if found:
        return found
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        holders = sorted(devices - {name})
        return [f"the kernel uses it ({', '.join(holders) or 'by whom is unknown'})"]
    return []


def _vmware_findings(path: Path) -> list[str]:
    """VMware keeps a folder NAME.lck with a file in it beside a disk that is open."""
    base = _VMWARE_PART.sub(".vmdk", path.name)
    for folder in {path.with_name(f"{name}.lck") for name in (path.name, base)}:
        if folder.is_dir() and any(folder.iterdir()):
            return [f"VMware's lock folder {folder.name} lies beside it (delete it if no VM runs)"]
    return []
