"""Where servers and VMs of this user meet: a runtime folder that nobody else may enter.

    FOLDER/servers/KEY/nbd, control, log     a server that VMs share; locked while it lives
    FOLDER/servers/KEY-PID/…                 one that a person started

FOLDER is XDG_RUNTIME_DIR/vmpack, or vmpack-UID in the folder of temporary files. What lies there is
gone after a reboot.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packer.errors import Error

MAX_SOCKET_BYTES = 107
"""Of the path of a Unix socket (unix(7): sun_path is 108 bytes with the zero at its end)."""

SERVERS = "servers"

STALE_SECONDS = 86_400.0
"""How long the log of a server that was killed stays."""

_LOCK_TRY_SECONDS = 0.05
_SHORTER = "name a folder with a shorter path with XDG_RUNTIME_DIR"


class RuntimeFolderError(Error):
    """There is no folder where processes of this user could meet."""


def runtime_folder(*parts: str) -> Path:
    """Return a folder of this user's below the runtime folder, made if need be, with mode 0700.

    Raises RuntimeFolderError when it cannot be made, or somebody else could enter it.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(given, "vmpack") if Path(given).is_absolute() and Path(given).is_dir() else None
    folder = folder or Path(tempfile.gettempdir(), f"vmpack-{os.getuid()}")
    for part in ("", *parts):
        folder = folder / part if part else folder
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _check_own(folder)
        except OSError as error:
            raise RuntimeFolderError(
                f"{folder}: {error.strerror or error}",
                hint="name a folder of your own with XDG_RUNTIME_DIR",
            ) from error
    return folder


def _check_own(folder: Path) -> None:
    """Anybody may make a name in the folder of temporary files: it must be ours and closed."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise RuntimeFolderError(
            f"{folder}: expected a folder of user {os.getuid()}, found something of user "
            f"{status.st_uid}",
            hint="remove it, or name a folder of your own with XDG_RUNTIME_DIR",
        )
    if status.st_mode & 0o077:
        raise RuntimeFolderError(
            f"{folder}: expected mode 0700, found {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chmod 700 {folder}",
        )


def socket_path(folder: Path, name: str) -> Path:
    """Return the path of a Unix socket. Raises RuntimeFolderError for one that is too long."""
    path = folder / name
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_BYTES:
        raise RuntimeFolderError(
            f"{path}: the path of a socket has at most {MAX_SOCKET_BYTES} bytes, found {length}",
            hint=_SHORTER,
        )
    return path


def lock_folder(folder: Path, *, seconds: float = 0.0) -> int | None:
    """Return a descriptor that holds a folder's lock, or None when another process keeps it.

    The lock ends with the process, however that ends. It also keeps systemd-tmpfiles away.
    seconds: how long to wait for it. Raises OSError.
    """
    deadline = time.monotonic() + seconds
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(folder, fd):
                return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(_LOCK_TRY_SECONDS)


def _is_still(folder: Path, fd: int) -> bool:
    """Return whether a folder is the one that was opened: somebody may have tidied it away."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextmanager
def own_folder(name: str) -> Iterator[Path]:
    """Give a folder among those of servers that is this process's alone, and remove it then."""
    folder = runtime_folder(SERVERS) / name
    fd = lock_folder(folder)
    if fd is None:
        raise RuntimeFolderError(f"{folder}: another process uses it")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def remove_stale(folder: Path, *, older_than_seconds: float = STALE_SECONDS) -> None:
    """Remove the folders in a folder that no living process has locked for a while."""
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < older_than_seconds:
                continue
            fd = lock_folder(path)
            if fd is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(fd)
