"""Tokens: what a host must know to be told what a neighbour's store holds.

Whoever serves keeps one in `store-token` in the config folder. Whoever asks has it in the variable
VMPACK_STORE_TOKEN, for every neighbour, or in `neighbours.toml` in the config folder:

    ["192.168.1.20:7436"]
    token = "…"
    certificate = "/home/ann/neighbour.pem"   # optional: accepted for this address, and no other

Both are files of secrets: others must not be able to read them.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from packer import host
from packer.environment import STORE_TOKEN
from packer.errors import UsageError
from packer.sources.store_files import write_all

TOKEN_BYTES = 32
MAX_FILE_BYTES = 1 << 20
_TOKEN = re.compile(r"[!-~]{16,512}")
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Access:
    """How to get at a neighbour's store. certificate: whom to believe to be it; None: as usual."""

    token: str
    certificate: Path | None = None


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    token: str
    certificate: str = ""


def default_token_path() -> Path:
    """Return where the token of this host's store lies."""
    return host.config_dir() / "store-token"


def neighbours_path() -> Path:
    """Return where the tokens of other hosts' stores lie."""
    return host.config_dir() / "neighbours.toml"


def make_token(path: Path, *, replace: bool) -> str:
    """Write a new token, readable by this user only, and return it.

    Raises UsageError when there is one already and it is not to be replaced, or when it cannot be
    written.
    """
    token = secrets.token_urlsafe(TOKEN_BYTES)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(temporary, _CREATE_FLAGS, 0o600)
        try:
            write_all(fd, f"{token}\n".encode("ascii"))
            os.fsync(fd)
            if replace:
                temporary.rename(path)
            else:
                path.hardlink_to(temporary)  # fails if the name is taken
        finally:
            os.close(fd)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    return token


def read_token(path: Path) -> str:
    """Return the token in a file. Raises UsageError when it is no file of a secret."""
    token = _read_secret(path).strip()
    return _checked(token, str(path))


def access_to(address: str) -> Access:
    """Return how to get at the store at "host:port". Raises UsageError when nobody said how."""
    path = neighbours_path()
    if path.exists():
        try:
            entries = msgspec.convert(tomllib.loads(_read_secret(path)), dict[str, _Entry])
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise UsageError(f"{path}: {error}") from error
        if address in entries:
            entry = entries[address]
            certificate = Path(entry.certificate) if entry.certificate else None
            return Access(_checked(entry.token, f"{path}: {address}"), certificate)
    token = os.environ.get(STORE_TOKEN, "")
    if token:
        return Access(_checked(token, STORE_TOKEN))
    raise UsageError(
        f"store://{address}/: its token is not known here",
        hint=f"'vmpack store token' shows it there; put it into {path} or {STORE_TOKEN}",
    )


def _checked(token: str, where: str) -> str:
    if not _TOKEN.fullmatch(token):  # and never shown
        raise UsageError(f"{where}: expected a token of 16 to 512 printable characters")
    return token


def _read_secret(path: Path) -> str:
    """Return the text of a file that only its owner can read. Raises UsageError for any other."""
    try:
        fd = os.open(path, _READ_FLAGS)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                raise UsageError(f"{path}: expected a short file, found something else")
            if status.st_mode & 0o077:
                raise UsageError(
                    f"{path}: other users may read it, and it holds a token",
                    hint=f"chmod 600 {path}",
                )
            return os.read(fd, MAX_FILE_BYTES).decode("utf-8")
        finally:
            os.close(fd)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "make one with 'vmpack store token'" if isinstance(error, FileNotFoundError) else ""
        raise UsageError(f"{path}: cannot be read: {reason}", hint=hint) from error
