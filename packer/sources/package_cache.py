"""Package files that apt fetched, kept for the next unpack of this host.

FOLDER/KEY.deb       a package, KEY a digest of what it is; its mtime is when it was last used
FOLDER/KEY.partial   one that is being fetched, or was when its fetcher was killed
FOLDER/lists/        the mirrors' lists, where this host has none of its own
FOLDER/lock          held by who fetches
FOLDER/reading       held shared by who relies on packages, exclusively to collect
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from packer.artifact.hints import Package
from packer.sources.base import SourceError
from packer.sources.store_files import named_by_rules, names

_PACKAGE = re.compile(r"[0-9a-f]{64}\.deb")
_LEFT_OVER = re.compile(r"[0-9a-f]{64}\.partial.*")


@dataclass(frozen=True, slots=True)
class KeptPackage:
    """One package file. size: bytes; used_ns: when it was last used, nanoseconds since 1970."""

    path: Path
    size: int
    used_ns: int


@dataclass(frozen=True, slots=True)
class RemovedPackages:
    """What was taken out, left-over partial files and lists included, and what is still there.

    in_use: an unpack works with the packages, so that all of them were kept.
    """

    count: int
    size_bytes: int
    kept: int
    kept_bytes: int
    in_use: bool = False


class PackageCache:
    """The package files in one folder, which is made when it is first used.

    Methods raise SourceError when the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def lists(self) -> Path:
        """Return the folder of the mirrors' lists."""
        return self.folder / "lists"

    def path_of(self, package: Package) -> Path:
        """Return where a package's file lies or would lie; nothing of a stranger's is in it."""
        parts = (package.name, package.version, package.architecture, package.sha256)
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.folder / f"{key}.deb"

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the operating system says against the folder into a SourceError."""
        try:
            yield
        except OSError as error:
            raise SourceError(
                f"packages in {self.folder}: {error.strerror or error}",
                hint="apt: keeps what it fetches there; make room with: vmpack store gc",
            ) from error

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Keep other processes from fetching to the same names; they find the files here then."""
        with self._locked("lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the packages from being collected."""
        with self._locked("reading", fcntl.LOCK_SH):
            yield

    def collect(
        self,
        *,
        max_bytes: int | None = None,
        older_than_seconds: float | None = None,
        everything: bool = False,
    ) -> RemovedPackages:
        """Remove the packages that a rule of `Store.collect` names, and left-over partial files.

        everything: the lists, too. Packages that somebody relies on just now are all kept.
        """
        if not self.folder.is_dir():
            return RemovedPackages(0, 0, 0, 0)
        with self.errors():
            try:
                with self._locked("reading", fcntl.LOCK_EX | fcntl.LOCK_NB):
                    return self._collect(max_bytes, older_than_seconds, everything=everything)
            except BlockingIOError:
                kept = list(self._packages())
                return RemovedPackages(0, 0, len(kept), sum(one.size for one in kept), in_use=True)

    def _collect(
        self, max_bytes: int | None, older_than_seconds: float | None, *, everything: bool
    ) -> RemovedPackages:
        kept = sorted(self._packages(), key=lambda one: (one.used_ns, one.path))
        total = sum(one.size for one in kept)
        gone = kept if everything else named_by_rules(kept, total, max_bytes, older_than_seconds)
        for one in gone:
            one.path.unlink(missing_ok=True)
        removed = sum(one.size for one in gone)
        more = self._remove_left_overs() + (self._remove_lists() if everything else 0)
        return RemovedPackages(len(gone), removed + more, len(kept) - len(gone), total - removed)

    def _packages(self) -> Iterator[KeptPackage]:
        for name in names(self.folder, _PACKAGE):
            path = self.folder / name
            with suppress(FileNotFoundError):  # damaged, and removed by who read it
                status = path.lstat()
                yield KeptPackage(path, status.st_size, status.st_mtime_ns)

    def _remove_left_overs(self) -> int:
        """Remove what is half fetched, which nobody continues just now; return its bytes."""
        size = 0
        for name in names(self.folder, _LEFT_OVER):
            size += (self.folder / name).lstat().st_size
            (self.folder / name).unlink()
        return size

    def _remove_lists(self) -> int:
        files = (path for path in self.lists.rglob("*") if path.is_file())
        size = sum(path.lstat().st_size for path in files)
        if self.lists.is_dir():
            shutil.rmtree(self.lists)
        return size

    @contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)
