"""A Unix socket that only this user can connect to, under a name that nobody living holds."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from packer.errors import Error, InUseError
from packer.run.sockets import MAX_SOCKET_BYTES

_PROBE_SECONDS = 1.0
_ATTEMPTS = 8
"""To take the name from dead servers while others try the same."""


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A listening socket and the name it has, until `remove`."""

    path: Path
    listener: socket.socket
    device_and_inode: tuple[int, int]

    @classmethod
    def open(cls, path: Path, backlog: int) -> Self:
        """Listen at `path`, mode 0600 from its first moment on.

        The socket gets its name only when it listens, so a name without a listener is a dead
        server's, and is taken over. Raises InUseError when somebody listens there or the name is
        not a socket's; Error when it cannot be made.
        """
        length = len(os.fsencode(path))
        if length > MAX_SOCKET_BYTES:
            raise Error(
                f"{path}: the path of a socket has at most {MAX_SOCKET_BYTES} bytes, found {length}"
            )
        listener = socket.socket(socket.AF_UNIX)
        try:
            return cls._open(path, listener, backlog)
        except OSError as error:
            listener.close()
            raise Error(f"{path}: cannot listen there: {error.strerror or error}") from error
        except BaseException:
            listener.close()
            raise

    @classmethod
    def _open(cls, path: Path, listener: socket.socket, backlog: int) -> Self:
        listener.setblocking(False)
        os.fchmod(listener.fileno(), 0o600)  # the name takes this mode over (unix(7))
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        name = f".{os.getpid():x}-{listener.fileno():x}"
        try:
            listener.bind(f"/proc/self/fd/{folder}/{name}")  # short, however deep the folder lies
            try:
                listener.listen(backlog)
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                _publish(folder, name, path)
            finally:
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)
        return cls(path, listener, (status.st_dev, status.st_ino))

    def remove(self) -> None:
        """Listen no more, and remove the name unless it belongs to somebody else by now."""
        with suppress(FileNotFoundError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self.device_and_inode:
                self.path.unlink()
        self.listener.close()


def _publish(folder: int, name: str, path: Path) -> None:
    """Give a listening socket its name, which a dead server may still have."""
    for _ in range(_ATTEMPTS):
        try:
            os.link(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        except FileExistsError:
            _take_away(folder, path, f"{name}-old")
    raise InUseError(f"{path}: others try to listen there, too")


def _take_away(folder: int, path: Path, name: str) -> None:
    """Remove a dead server's socket. Raises InUseError when it is anything else."""
    with suppress(FileNotFoundError):
        _check_dead(folder, path.name, path)
        os.rename(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
        try:
            _check_dead(folder, name, path)
        except InUseError:  # a living one came in between: back with it
            os.link(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            raise
        finally:
            os.unlink(name, dir_fd=folder)


def _check_dead(folder: int, name: str, path: Path) -> None:
    if not stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise InUseError(f"{path}: expected nothing, or a socket that nobody uses")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(f"/proc/self/fd/{folder}/{name}")
        except ConnectionRefusedError:
            return
        except OSError:
            pass  # it is busy, or not ours to ask: alive, for all we know
    raise InUseError(f"{path}: a server listens there already", hint="name another path")
