"""A disk that is written over a block device or an image file, in place.

There is no name to give at the end, so the beginning of the device takes its part. Everything by
which firmware, kernels and people take a device for a disk lies in its first bytes: boot code,
partition table, the signs of a file system that fills it all. While the disk is being written they
say that it is half written; the right ones are put there last, when the rest is on the medium and
has been read back. A device that was pulled out, or that failed, is mistaken for nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Self

from formats.ranges import Ranges, as_ranges
from formats.source import file_data_ranges
from packer.errors import Error, InUseError
from packer.media.device import Device
from packer.media.medium import is_zero, read_medium
from packer.punch import punch_hole
from packer.unpack.output import write_at, write_back

HEAD_BYTES = 1 << 20
"""What is written last. Tables and the signs of file systems end well before."""

MARK = b"vmpack: half written, not usable yet. "
_LAST_BYTES = 4096
"""The very last: with the first sector everything else becomes visible."""

_PUNCH_BYTES = 1 << 20
"""A shorter range is cheaper to overwrite than to have the device forget it."""
_UNIT_BYTES = 4096
_ZEROS = bytes(_PUNCH_BYTES)

WRITE_BACK_BYTES = 32 << 20
"""Twice this waits to be written at most, so that a bar tells the pace of the medium."""

_BLKRRPART = 0x125F  # linux/fs.h: read the partition table again


class DeviceOutput:
    """See packer.unpack.output.Target; the first HEAD_BYTES stay in memory until `commit`.

    Held for this process alone: no mount and no other vmpack gets it meanwhile.
    """

    keeps_times = False
    shared_fd: int | None = None

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.size = size
        self._unwritten_bytes = 0
        self._punches = True
        self.fd = _open_alone(device)
        try:
            # What an earlier run wrote and the medium did not keep must not come from the cache.
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.head = bytearray(read_medium(self.fd, 0, min(HEAD_BYTES, size)))
            end = max(0, device.size - HEAD_BYTES)
            self.resumed = any(self.head) or any(read_medium(self.fd, end, device.size - end))
        except OSError as error:
            os.close(self.fd)
            raise Error(f"{device.path}: cannot be read: {error.strerror}") from error

    def begin(self, what: str) -> None:
        """Make the device one that nobody takes for a disk; `what` says what it will be."""
        mark = MARK + f"Run the same `vmpack write` again: {what}\n".encode()
        self._write_head(mark.ljust(len(self.head), b"\0")[: len(self.head)])

    def commit(self) -> None:
        """Put the beginning in place, which makes it a disk; all is on the medium afterwards."""
        self.flush()
        self._write_head(self.head)

    def announce(self) -> None:
        """Have the kernel look at the new partition table, if it looks at such things there."""
        if self.device.is_block_device:
            with suppress(OSError):  # a loop device, or udev is looking at it already
                fcntl.ioctl(self.fd, _BLKRRPART)

    def flush(self) -> None:
        """Wait until all that was written is on the medium."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise self._cannot_write(error) from error

    def pread(self, offset: int, length: int) -> bytes:
        """See Target."""
        inside = bytes(self.head[offset : offset + length])
        if len(inside) == length:
            return inside
        return inside + os.pread(self.fd, length - len(inside), offset + len(inside))

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """See Target."""
        inside = max(0, min(len(self.head) - offset, len(data)))
        if inside:
            self.head[offset : offset + inside] = data[:inside]
        if inside < len(data):
            self._write(offset + inside, memoryview(data)[inside:])

    def clone(self, fd: int, offset: int, target: int, length: int) -> bool:  # noqa: ARG002
        """See Target; a device has no blocks to share, and an image's stay its own."""
        return False

    def data_ranges(self) -> Ranges:
        """See Target."""
        if self.device.is_block_device:
            return as_ranges([(0, self.size)])
        return file_data_ranges(self.fd, 0, self.size)

    def clear(self, start: int, end: int) -> None:
        """See Target. What the device can forget at once is not written; what is zero, neither."""
        inside = min(end, len(self.head))
        if start < inside:
            self.head[start:inside] = bytes(inside - start)
            start = inside
        if end - start >= _PUNCH_BYTES and self._punches:
            low, high = -(-start // _UNIT_BYTES) * _UNIT_BYTES, end // _UNIT_BYTES * _UNIT_BYTES
            if self._punch(low, high):
                self._write_zeros(start, low)
                self._write_zeros(high, end)
                return
        self._write_zeros(start, end)

    def close(self) -> None:
        """Give the device back; what it holds stays for a later run."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _punch(self, start: int, end: int) -> bool:
        try:
            self._punches = punch_hole(self.fd, start, end)
        except OSError as error:
            raise self._cannot_write(error) from error
        return self._punches

    def _write_zeros(self, start: int, end: int) -> None:
        """Write zeros where there are none: to read is faster than to write, and wears nothing."""
        try:
            for low in range(start, end, len(_ZEROS)):
                high = min(low + len(_ZEROS), end)
                if not is_zero(os.pread(self.fd, high - low, low)):
                    self._write(low, memoryview(_ZEROS)[: high - low])
        except OSError as error:
            raise Error(f"{self.device.path}: cannot be read: {error.strerror}") from error

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        try:
            write_at(self.fd, offset, data)
            self._unwritten_bytes += len(data)
            if self._unwritten_bytes >= WRITE_BACK_BYTES:
                self._unwritten_bytes = 0
                write_back(self.fd, wait=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _write_head(self, data: bytes | bytearray) -> None:
        """Write the beginning, its first part last."""
        try:
            write_at(self.fd, _LAST_BYTES, memoryview(data)[_LAST_BYTES:])
            os.fsync(self.fd)
            write_at(self.fd, 0, memoryview(data)[:_LAST_BYTES])
            os.fsync(self.fd)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> Error:
        hints = {
            errno.EIO: "the medium fails; try another one",
            errno.ENOSPC: "free some space, or name another medium",
        }
        return Error(
            f"{self.device.path}: cannot write: {error.strerror}",
            hint=hints.get(error.errno or 0, "run the same command again: it goes on from there"),
        )


def _open_alone(device: Device) -> int:
    """Return a descriptor that nobody else has to write."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    if device.is_block_device:
        flags |= os.O_EXCL  # open(2): fails if mounted, and nobody can mount it afterwards
    try:
        fd = os.open(device.path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUseError(
                f"{device.path}: the kernel uses it: it is mounted, perhaps in a container, or a "
                "part of something else",
                hint="unmount it everywhere and try again",
            ) from error
        raise Error(f"{device.path}: cannot be opened: {error.strerror}") from error
    try:
        # What systemd asks of whoever writes a device: udev keeps away while it is locked.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise InUseError(
            f"{device.path}: another program has locked it", hint="wait for it and try again"
        ) from error
    if _is_other(fd, device):
        os.close(fd)
        raise InUseError(f"{device.path}: was replaced meanwhile", hint="look at it again")
    return fd


def _is_other(fd: int, device: Device) -> bool:
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        found = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return (found, os.lseek(fd, 0, os.SEEK_END)) != (device.number, device.size)
    return (f"{status.st_dev}:{status.st_ino}", status.st_size) != (device.identity, device.size)
