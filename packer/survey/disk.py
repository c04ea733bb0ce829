"""A guest's disk, wherever it lies: a source of its bytes, opened without believing its file.

The parent reads bytes and compares magics; whatever has structure is parsed by a child. A raw
disk is its file, a qcow2 is read from the columns that a child made of it, and every other
container is served by a qemu-nbd of our own.
"""

from __future__ import annotations

import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from formats.container.detect import detect
from formats.errors import FormatError
from formats.source import FileSource, Source
from packer.errors import InputError, InUseError, UsageError
from packer.survey import child, in_use, references, wire
from packer.survey.block_devices import sectors_written
from packer.survey.child import clean_text, lied
from packer.survey.limits import Limits
from packer.survey.opening import raw_source, unpack_flat
from packer.survey.qemu_nbd import QemuNbd, demand_complete
from packer.transport.nbd import NbdSource

NBD_SCHEMES = ("nbd://", "nbd+unix://")
CONTAINERS = ("raw", "qcow2", *references.CONTAINERS)

_EXTENT_START_BYTES = 512


class OverlayError(InputError):
    """A qcow2 overlay, and nobody has named what it lies on."""


@dataclass(frozen=True, slots=True)
class _State:
    """What changes when somebody writes to a file or block device."""

    path: Path
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sectors_written: int


class Disk:
    """An open disk. `source` may be read by several threads until the disk is closed.

    path: as the user named it, a file, a block device or an NBD URI. container: one of
    CONTAINERS, or "nbd". size: bytes of the guest's disk. files: everything that is read for it.
    """

    def __init__(
        self,
        path: str,
        container: str,
        source: Source,
        opening: wire.Opening,
        files: tuple[Path, ...],
        fds: tuple[int, ...],
        stack: ExitStack,
    ) -> None:
        self.path = path
        self.container = container
        self.source = source
        self.size = source.size
        self.files = files
        self.opening = opening
        self._fds = fds
        self._stack = stack
        self._states = tuple(_state(file) for file in files)

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a child needs for `opening`."""
        return self._fds

    def check_unchanged(self) -> None:
        """Raise InUseError when a file of the disk has changed since it was opened.

        A disk behind somebody else's NBD server cannot be checked.
        """
        for before in self._states:
            try:
                now = _state(before.path)
            except OSError as error:
                raise InUseError(f"{before.path} is gone: {error}") from error
            if now != before:
                raise InUseError(
                    f"{before.path} was changed while it was read",
                    hint="shut the guest down, make sure that nothing writes to the disk, "
                    "and start again",
                )

    def ask(
        self,
        reader: str,
        place: str,
        request: wire.Request,
        kind: type[wire.Expected],
        limits: Limits,
    ) -> wire.Expected | wire.Failure:
        """Have a child answer a request about this disk; nothing in the answer is checked yet.

        Raises ChildError.
        """
        return _ask(reader, place, limits, request, self._fds, kind)

    def close(self) -> None:
        """Close files and connections, and end a server that was started."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_disk(
    path: str | Path,
    *,
    backing: str | Path | None = None,
    allow_in_use: bool = False,
    container: str | None = None,
    limits: Limits | None = None,
) -> Disk:
    """Open a disk image, a block device, or an `nbd://` or `nbd+unix://` URI for reading.

    backing: what a qcow2 overlay lies on, a file or an NBD URI; what its header says is never
    opened.
    allow_in_use: read it even if somebody uses it; what comes out may then be no state that the
    disk was ever in. container: what the file is, instead of looking (a guest that writes a
    qcow2 header to its first sector makes a raw disk look like one).

    Raises InUseError, InputError for what cannot be read (OverlayError for an overlay without
    `backing`), UsageError for options that do not fit.
    """
    stack = ExitStack()
    try:
        if str(path).startswith(NBD_SCHEMES):
            return _open_nbd(str(path), backing, stack)
        opener = _Opener(Path(path), allow_in_use, limits or Limits(), stack)
        return opener.open(container, backing)
    except OSError as error:
        stack.close()
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except BaseException:
        stack.close()
        raise


def _open_nbd(uri: str, backing: str | Path | None, stack: ExitStack) -> Disk:
    if backing is not None:
        raise UsageError("an NBD export has no backing file")
    source = NbdSource(uri)
    stack.callback(source.close)
    return Disk(uri, "nbd", source, wire.NbdExport(uri), (), (), stack)


class _Opener:
    """Opens one file; what it opens is closed by the stack."""

    def __init__(self, path: Path, allow_in_use: bool, limits: Limits, stack: ExitStack) -> None:
        self.path = path
        self.allow_in_use = allow_in_use
        self.limits = limits
        self.stack = stack

    def open(self, container: str | None, backing: str | Path | None) -> Disk:
        self._demand_idle(self.path)
        file = self.stack.enter_context(FileSource(self.path))
        container = container or detect(file)
        if backing is not None and container != "qcow2":
            raise UsageError(f"{self.path} is a {container} image, which has no backing file")
        if container == "raw":
            source = raw_source(file)
            opening = wire.PlainFile(file.fd)
            return self._disk("raw", source, opening, (self.path,), (file.fd,))
        if container == "qcow2":
            return self._open_qcow2(file, backing)
        if container in references.CONTAINERS:
            return self._open_served(file, container)
        raise InputError(
            f"{self.path} is a {container} image, which is not supported",
            hint=f"convert it: qemu-img convert -f {container} -O qcow2 …",
        )

    def _open_qcow2(self, file: FileSource, backing: str | Path | None) -> Disk:
        below = None
        if backing is not None:
            below = open_disk(backing, allow_in_use=self.allow_in_use, limits=self.limits)
            self.stack.callback(below.close)
        fds = (file.fd, *(below.fds if below else ()))
        request = wire.ReadContainer("qcow2", file.fd, below.opening if below else None)
        reply = self._container(request, fds)
        if reply.columns is None:
            raise OverlayError(
                f"{self.path} is an overlay; its header records {clean_text(reply.backing_name)!r} "
                "as the backing file, which is not opened on the word of an image",
                hint="name the file yourself: --backing FILE; a longer chain has to be converted "
                "to one file first (qemu-img convert)",
            )
        if below and not reply.backing_name:
            raise UsageError(f"{self.path} records no backing file, so {backing} does not belong")
        try:
            source = unpack_flat(reply.columns, file, below.source if below else None)
        except (wire.MalformedError, FormatError) as error:
            raise lied("qcow2", self.path.name, error) from error
        opening = wire.FlatFile(file.fd, reply.columns, below.opening if below else None)
        files = (self.path, *(below.files if below else ()))
        return self._disk("qcow2", source, opening, files, fds)

    def _open_served(self, file: FileSource, container: str) -> Disk:
        reply = self._container(wire.ReadContainer(container, file.fd, None), (file.fd,))
        extents = [self._extent(name) for name in reply.files]
        server = QemuNbd(self.path, container, force_share=self.allow_in_use)
        self.stack.callback(server.close)
        demand_complete(self.path, container, (self.path, *extents))
        files = (self.path, *extents)
        return self._disk(container, server.source, wire.NbdExport(server.uri), files, ())

    def _disk(
        self,
        container: str,
        source: Source,
        opening: wire.Opening,
        files: tuple[Path, ...],
        fds: tuple[int, ...],
    ) -> Disk:
        return Disk(str(self.path), container, source, opening, files, fds, self.stack)

    def _container(self, request: wire.ReadContainer, fds: tuple[int, ...]) -> wire.ContainerReply:
        reply = _ask(
            request.container, self.path.name, self.limits, request, fds, wire.ContainerReply
        )
        if isinstance(reply, wire.Failure):
            raise InputError(
                f"{self.path} cannot be read as {request.container}: {clean_text(reply.reason)}",
                hint="`qemu-img check` says more; `qemu-img convert` writes a new image",
            )
        return reply

    def _extent(self, name: str) -> Path:
        """Return a file that a VMDK names, if it is what such a file must be."""
        if not references.is_plain_name(name):
            raise InputError(
                f"{self.path} names {clean_text(name)!r} as a part of itself, which is not a file "
                "in the same folder",
                hint="convert the image where it was made: qemu-img convert -O qcow2 …",
            )
        path = self.path.resolve().with_name(name)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path}, a part of {self.path}, is no regular file")
        self._demand_idle(path)
        with FileSource(path) as part:
            start = part.pread(0, min(part.size, _EXTENT_START_BYTES))
        if references.is_indirect_extent(start):
            raise InputError(f"{path}, a part of {self.path}, names further files")
        return path

    def _demand_idle(self, path: Path) -> None:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise InputError(
                f"{path} is neither a file nor a block device",
                hint="name the disk image itself, not the folder that a hypervisor keeps it in",
            )
        if not self.allow_in_use:
            in_use.refuse_if_in_use([path])


def _ask(
    reader: str,
    place: str,
    limits: Limits,
    request: wire.Request,
    fds: tuple[int, ...],
    kind: type[wire.Expected],
) -> wire.Expected | wire.Failure:
    job = child.Job(reader, place, wire.encode(wire.Order(limits, request)), fds, limits)
    try:
        return wire.decode_reply(child.run(job), kind)
    except wire.MalformedError as error:
        raise lied(reader, place, error) from error


def _state(path: Path) -> _State:
    status = path.stat()
    is_device = stat.S_ISBLK(status.st_mode)
    return _State(
        path,
        status.st_dev,
        status.st_ino,
        0 if is_device else status.st_size,
        # reading a device node touches nothing, but udev may
        0 if is_device else status.st_mtime_ns,
        0 if is_device else status.st_ctime_ns,
        sectors_written(status.st_rdev) if is_device else 0,
    )
