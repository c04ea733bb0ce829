"""The package manager of a Debian-like host, asked through its own commands.

apt knows what nobody else does: the mirrors and their order, proxies, passwords, certificates,
the mirror: and file: methods. So its programs fetch, and nothing is read out of its settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from packer.environment import inherited
from packer.sources.base import SourceError

HELPERS = ("/usr/lib/apt/apt-helper", "/usr/libexec/apt/apt-helper")

MAX_PACKAGE_BYTES = 8 << 30
"""Larger than any package that a Debian mirror takes; bounds what has no known size."""

MAX_INDEX_BYTES = 1 << 30
"""Of one decompressed Packages file; Debian's main has 50 MB."""

MAX_MIRROR_LIST_BYTES = 1 << 20
MAX_MIRRORS = 16
"""Of a list of mirrors; as many are asked for a package, one after the other."""

ASK_SECONDS = 60.0
UPDATE_SECONDS = 600.0
POLL_SECONDS = 0.1

STALL_SECONDS = 300.0
STALL_BYTES = 1 << 14
"""apt's own timeout ends silence; a mirror that drips would keep it for ever. Several dead
mirrors in a row, each with apt's timeouts and retries, stay below this time."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9+.~:_%@=,-]+", re.ASCII)
_PRINTED = re.compile(r"'([^']+)' \S+ \d+")
_FAILED = re.compile(r"^[EW]: Failed to fetch (\S+)  (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One Packages file that apt has fetched, and the address its file names are relative to."""

    base_uri: str
    path: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Download:
    """One package file to fetch. sha256: lower-case hex or ""; size_bytes: 0 when unknown."""

    uri: str
    target: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Apt:
    """apt's programs on this host. Methods raise SourceError when they fail."""

    get: str
    helper: str

    def base_uris(self) -> list[str]:
        """Return the addresses that package file names are relative to, in apt's order.

        Works for every user, and before the first `apt-get update`.
        """
        printed = self._ask([self.get, "-o", "Debug::NoLocking=1", "update", "--print-uris"])
        found = [_base_of(uri) for uri in _PRINTED.findall(printed)]
        listed = [one.base_uri for one in self.index_files()]
        every = dict.fromkeys(uri for uri in [*listed, *found] if uri)
        return list(dict.fromkeys(uri for base in every for uri in self._mirrors(base)))

    def _mirrors(self, base_uri: str) -> list[str]:
        """Return what a mirror: address stands for (apt-transport-mirror(1)), others as they are.

        apt's own mirror method serves only files that apt knows from its lists.
        """
        scheme, _, rest = base_uri.partition(":")
        if scheme != "mirror" and not scheme.startswith("mirror+"):
            return [base_uri]
        uri = (scheme.removeprefix("mirror").removeprefix("+") or "http") + ":" + rest.rstrip("/")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "mirrors"
            if self.download([Download(uri, target, "", 0)], threading.Event()):
                return []
            with target.open("rb") as file:
                lines = file.read(MAX_MIRROR_LIST_BYTES).decode("utf-8", "replace").splitlines()
        words = [line.partition("#")[0].split() for line in lines]
        # What is no address would be an option to apt: the list may come from anywhere.
        bases = [word[0].rstrip("/") + "/" for word in words if word and _ADDRESS.match(word[0])]
        return bases[:MAX_MIRRORS]

    def index_files(self, options: Sequence[str] = ()) -> list[IndexFile]:
        """Return the Packages files that apt has; none before the first `apt-get update`."""
        form = "$(REPO_URI)\t$(FILENAME)\t$(ARCHITECTURE)"
        command = [self.get, *options, "indextargets", "--format", form, "Created-By: Packages"]
        rows = [line.split("\t") for line in self._ask(command).splitlines()]
        return [IndexFile(*row) for row in rows if len(row) == 3 and Path(row[1]).is_file()]

    def read_index(self, file: IndexFile) -> bytes:
        """Return a Packages file, decompressed by apt's own means."""
        with subprocess.Popen(
            [self.helper, "cat-file", file.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        ) as process:
            assert process.stdout is not None
            data = process.stdout.read(MAX_INDEX_BYTES + 1)
            if len(data) > MAX_INDEX_BYTES:
                process.kill()
                raise SourceError(f"{file.path}: longer than {MAX_INDEX_BYTES} bytes")
        if process.returncode:
            raise SourceError(f"{file.path}: cannot be read (code {process.returncode})")
        return data

    def update(self, folder: Path, architectures: Sequence[str]) -> list[IndexFile]:
        """Fetch the mirrors' Packages into a private folder; the host's own lists stay."""
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (folder / "cache").mkdir(exist_ok=True)
        options = [
            *_set("Dir::State::lists", f"{folder}/lists"),
            *_set("Dir::Cache", f"{folder}/cache"),
            *_set("Dir::Cache::pkgcache", ""),
            *_set("Dir::Cache::srcpkgcache", ""),
            *_set("Acquire::Languages", "none"),
            *_set("Acquire::IndexTargets::deb-src::Sources::DefaultEnabled", "false"),
        ]
        if architectures:  # a guest's may be foreign to this host
            options += _set("APT::Architecture", architectures[0])
        for name in architectures:
            options += _set("APT::Architectures::", name)
        self._ask([self.get, "-qq", *options, "update"], UPDATE_SECONDS)
        return self.index_files(options)

    def download(
        self,
        downloads: Sequence[Download],
        stop: threading.Event,
        *,
        stall_seconds: float = STALL_SECONDS,
    ) -> dict[str, str]:
        """Fetch package files to their targets and return {uri: reason} of those that failed.

        What lies at a target is continued. A file appears complete or not at all: with the size
        and digest asked for, where they are known. stall_seconds: with fewer than STALL_BYTES in
        this time apt is ended, whatever it still waits for.
        """
        command = [self.helper, "-qq", *_set("Acquire::Retries", "3")]
        command += _set("Acquire::Source-Symlinks", "false")  # file: is copied like the rest
        command.append("download-file")
        for one in downloads:
            command += [one.uri, str(one.target)]
            command += [f"SHA256:{one.sha256}"] if one.sha256 else []
            command += [f"Checksum-FileSize:{one.size_bytes}"] if one.size_bytes else []
        with tempfile.TemporaryFile() as messages:
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=messages,
                env=_environment(),
            ) as process:
                _watch(process, downloads, stop, stall_seconds)
            messages.seek(0)
            text = messages.read(1 << 20).decode("utf-8", "replace")
        reasons = {unquote(uri): reason.strip() for uri, reason in _FAILED.findall(text)}
        failed: dict[str, str] = {}
        for one in downloads:
            if problem := _problem(one):
                failed[one.uri] = reasons.get(unquote(one.uri), problem)
                one.target.with_name(one.target.name + ".FAILED").unlink(missing_ok=True)
        return failed

    def _ask(self, command: Sequence[str], seconds: float = ASK_SECONDS) -> str:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=_environment(),
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SourceError(f"apt: {error}") from error
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason"]
            raise SourceError(
                f"apt: {command[-1]} failed: {lines[0][:300]}",
                hint="does `apt-get update` work on this host?",
            )
        return done.stdout.decode("utf-8", "replace")


def find_apt() -> Apt | None:
    """Return this host's apt, or None where there is none."""
    get = shutil.which("apt-get")
    helper = next((path for path in HELPERS if os.access(path, os.X_OK)), None)
    return Apt(get, helper) if get and helper else None


def package_uri(base_uri: str, filename: str) -> str | None:
    """Return the address of a package file, or None for a name that leads out of the mirror.

    filename: as Packages has it, relative to the base; it may come from a stranger's pack.
    """
    parts = [part for part in filename.split("/") if part not in ("", ".")]
    if not parts or len(filename) > 1000 or not parts[-1].endswith(".deb"):
        return None
    if any(part == ".." or not _FILE_NAME.fullmatch(part) for part in parts):
        return None
    return base_uri.rstrip("/") + "/" + quote("/".join(parts), safe="/+~:@=,")


def _watch(
    process: subprocess.Popen[bytes],
    downloads: Sequence[Download],
    stop: threading.Event,
    stall_seconds: float,
) -> None:
    """Wait for apt; end it when told so, when a file has no end, or when hardly anything comes."""
    counted, since = sum(_size(one.target) for one in downloads), time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
        if process.poll() is not None:
            return
        endless = any(
            _size(one.target) > (one.size_bytes or MAX_PACKAGE_BYTES) for one in downloads
        )
        now = sum(_size(one.target) for one in downloads)
        if abs(now - counted) >= STALL_BYTES:  # apt may begin a file again
            counted, since = now, time.monotonic()
        if stop.is_set() or endless or time.monotonic() - since > stall_seconds:
            process.terminate()


def _problem(download: Download) -> str:
    """Return what is wrong with a fetched file, "" when it is what was asked for."""
    size = _size(download.target)
    if size == 0:
        return "not fetched"
    if size != (download.size_bytes or size):
        return f"expected {download.size_bytes} bytes, found {size}"
    if not download.sha256:
        return "" if size <= MAX_PACKAGE_BYTES else "longer than any package"
    with download.target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == download.sha256 else f"expected SHA-256 {download.sha256}, found {found}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _base_of(uri: str) -> str:
    """Return what file names are relative to, from the address of an InRelease file."""
    folder, _, name = uri.rpartition("/")
    if name not in ("InRelease", "Release"):
        return ""
    return folder.partition("/dists/")[0] + "/" if "/dists/" in folder else folder + "/"


def _set(option: str, value: str) -> list[str]:
    return ["-o", f"{option}={value}"]


def _environment() -> dict[str, str]:
    return {**inherited(), "LC_ALL": "C"}  # its messages are read
