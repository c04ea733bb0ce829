"""guestfish: a guest's files in an appliance of libguestfs, told one command after the other.

Sources: guestfish(1) for the language, guestfs(3) for the commands and the structures they print.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from packer.environment import inherited
from packer.errors import Error
from packer.pack.clean_rules import Stat
from packer.survey.child import clean_text

KVM_LAUNCH_SECONDS = 60.0
"""After which the appliance is started again without KVM: /dev/kvm proves nothing, some hosts'
starts a guest that then stands still."""
LAUNCH_SECONDS = 900.0
COMMAND_SECONDS = 900.0
STOP_SECONDS = 5.0

_HINT = (
    "libguestfs-test-tool shows whether it works here; LIBGUESTFS_BACKEND_SETTINGS=force_tcg does "
    "without KVM"
)
_SETTINGS = "LIBGUESTFS_BACKEND_SETTINGS"
_STATS_AT_ONCE = 200
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/+:@=,-")
_PREFIX = re.compile(r"^(\*stdin\*:\d+: )?(libguestfs: error: )?")
_READ_BYTES = 1 << 16


@contextmanager
def launched(program: str, overlay: Path) -> Iterator[Guestfish]:
    """Start an appliance with the overlay as its disk.

    As the user's environment says, else with KVM, else without it. What is temporary lies beside
    the overlay. Raises Error when libguestfs cannot start it.
    """
    # All that is temporary lies beside the overlay and goes with it; the appliance, which takes
    # long to make and serves the next time, stays where libguestfs would keep it anyway.
    kept = os.environ.get("LIBGUESTFS_CACHEDIR") or os.environ.get("TMPDIR") or "/var/tmp"
    environment = {
        **inherited(),
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
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
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


class GuestFiles:
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


def _quoted(argument: str) -> bytes:
    """Return a word of guestfish's language; guestfish(1), "ESCAPE SEQUENCES"."""
    octets = os.fsencode(argument)
    plain = _PLAIN | {0x20}
    return b'"' + b"".join(bytes([o]) if o in plain else b"\\x%02x" % o for o in octets) + b'"'
