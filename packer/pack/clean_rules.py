"""What `--clean` takes out of a guest: named groups, the user's patterns, what they select.

Groups list what is known to come back by itself. `/var/cache` is no such place as a whole: Debian
keeps the answers of debconf there, bind its zones, cracklib its dictionary.

A service that has given up root cannot make its log anew in a folder of root's, so a log that is
not root's alone is emptied, not removed: owner, mode and SELinux label stay (logrotate(8), "create"
serves the same case).

Of Windows only files go that it makes anew by itself, or that its users threw away: what
installers keep (`Installer`, `WinSxS`) is needed to repair and remove things. Source: Microsoft,
"Disk Cleanup" (`cleanmgr`) and what its handlers list; "Delivery Optimization reference" for its
cache.
"""

from __future__ import annotations

import glob
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, Protocol

from packer.errors import UsageError
from packer.text import format_bytes, printable

Action = Literal["remove", "files", "logs", "empty"]
"""remove: the path and all below it. files: plain files at or below the path; folders, with their
owners and modes, stay. logs: as files, but see above. empty: the plain file becomes empty."""

DEFAULT = ("tmp", "cache", "logs", "trash")
WINDOWS_FOLDER = "/Windows"
"""Stands in rules for the folder of Windows, however a guest calls it."""

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are; stat(2)
_NAMED_PLACES = 3
_MAGIC = re.compile(r"[*?[]")
_ONLY_MAGIC = re.compile(r"[*?]+")
# Nobody writes on into these: what logrotate and newsyslog leave behind, and systemd's journal.
_ROTATED = re.compile(r"(\.(\d+|old|gz|xz|zst|bz2)|-\d{8,}|\.journal~?)$")


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of absolute guest paths and what is done to what it selects.

    `*`, `?` and `[…]` stand within one folder, a leading dot is a character like others.
    """

    pattern: str
    action: Action = "remove"


@dataclass(frozen=True, slots=True)
class Group:
    """Rules under a name. note: what an author must know when it took something.

    windows: the rules of a Windows guest, in place of the others; without any, the group is for
    Linux alone. folded: whether upper and lower case are the same, as they are there.
    """

    name: str
    rules: tuple[Rule, ...]
    note: str = ""
    windows: tuple[Rule, ...] = ()
    folded: bool = False


def _rules(action: Action, *patterns: str) -> tuple[Rule, ...]:
    return tuple(Rule(pattern, action) for pattern in patterns)


GROUPS: dict[str, Group] = {
    one.name: one
    for one in (
        Group(
            "tmp",
            _rules("remove", "/tmp/*", "/var/tmp/*"),
            windows=_rules(
                "remove",
                "/Windows/Temp/*",
                "/Windows/ServiceProfiles/*/AppData/Local/Temp/*",
                "/Users/*/AppData/Local/Temp/*",
                "/Documents and Settings/*/Local Settings/Temp/*",
            ),
        ),
        Group(
            "cache",
            _rules(
                "files",
                "/var/cache/apt/*",
                "/var/lib/apt/lists/*",
                "/var/cache/dnf/*",
                "/var/cache/libdnf5/*",
                "/var/cache/yum/*",
                "/var/cache/zypp/*",
                "/var/cache/pacman/pkg/*",
                "/var/cache/apk/*",
                "/var/cache/PackageKit/*",
                "/var/cache/swcatalog/*",
                "/var/cache/app-info/*",
                "/var/cache/man/*",
                "/var/cache/ldconfig/*",
                "/var/cache/snapd/*",
                "/var/lib/snapd/cache/*",
                "/root/.cache/*",
                "/home/*/.cache/*",
            ),
            windows=_rules(
                "files",
                "/Windows/SoftwareDistribution/Download/*",
                "/Windows/SoftwareDistribution/DeliveryOptimization/*",
                "/Windows/ServiceProfiles/NetworkService/AppData/Local/Microsoft/Windows/"
                "DeliveryOptimization/Cache/*",
                "/Users/*/AppData/Local/Microsoft/Windows/INetCache/*",
                "/Documents and Settings/*/Local Settings/Temporary Internet Files/*",
            ),
        ),
        Group(
            "logs",
            (
                *_rules("logs", "/var/log/*"),
                *_rules("files", "/var/crash/*", "/var/lib/systemd/coredump/*"),
            ),
            # The event log makes its files anew when it starts.
            windows=_rules(
                "files",
                "/Windows/MEMORY.DMP",
                "/Windows/Minidump/*",
                "/Windows/LiveKernelReports/*",
                "/Windows/Logs/*",
                "/Windows/System32/winevt/Logs/*",
                "/Users/*/AppData/Local/CrashDumps/*",
                "/ProgramData/Microsoft/Windows/WER/Report*/*",
            ),
        ),
        Group(
            "trash",
            _rules("remove", "/root/.local/share/Trash/*/*", "/home/*/.local/share/Trash/*/*"),
            windows=_rules(
                "remove", "/$Recycle.Bin/*/$[IR]*", "/RECYCLER/*/D*", "/RECYCLER/*/INFO2"
            ),
        ),
        Group(
            "identity",
            (
                # machine-id(5), "Initialization": empty, not missing, in an image
                *_rules("empty", "/etc/machine-id"),
                *_rules("remove", "/etc/ssh/ssh_host_*"),
                *_rules(
                    "files",
                    "/var/lib/dbus/machine-id",
                    "/var/lib/systemd/random-seed",
                    "/var/lib/dhcp/*.lease*",
                    "/var/lib/dhclient/*.lease*",
                    "/var/lib/dhcpcd/*.lease*",
                    "/var/lib/NetworkManager/*.lease",
                    "/var/lib/NetworkManager/secret_key",
                    "/etc/udev/rules.d/70-persistent-net.rules",
                ),
            ),
            note="Debian and Ubuntu make no SSH host keys at boot: without cloud-init, "
            "run `ssh-keygen -A` in each new VM",
        ),
        Group(
            "history",
            _rules(
                "files",
                *(
                    f"{home}/{name}"
                    for home in ("/root", "/home/*")
                    for name in (".*_history", ".lesshst", ".viminfo", ".wget-hsts")
                ),
            ),
            windows=_rules(
                "files", "/Users/*/AppData/Roaming/Microsoft/Windows/PowerShell/PSReadLine/*"
            ),
        ),
    )
}


def parse_request(text: str) -> tuple[Group, ...]:
    """Return the groups that `--clean=TEXT` names: names and absolute patterns, with commas.

    "default" stands for DEFAULT. Raises UsageError for what is neither, and for a pattern that
    would select the whole guest.
    """
    groups: dict[str, Group] = {}
    for word in (one.strip() for one in text.split(",")):
        names = DEFAULT if word == "default" else (word,)
        for name in names:
            groups[name] = GROUPS[name] if name in GROUPS else _own_group(name)
    return tuple(groups.values())


def for_windows(groups: Sequence[Group], folder: str) -> tuple[Group, ...]:
    """Return the groups as they are meant for a Windows guest. folder: of Windows ("/WINNT").

    Raises UsageError for a group that means nothing there.
    """
    return tuple(_for_windows(group, folder) for group in groups)


def _for_windows(group: Group, folder: str) -> Group:
    if group.name not in GROUPS:
        return replace(group, folded=True)
    if not group.windows:
        raise UsageError(
            f"--clean: {group.name} is for Linux guests, and this one is a Windows",
            hint="sysprep /generalize, inside the guest, makes it ready to be copied",
        )
    rules = tuple(replace(rule, pattern=_moved(rule.pattern, folder)) for rule in group.windows)
    return Group(group.name, rules, folded=True)


def _moved(pattern: str, folder: str) -> str:
    inside = pattern.removeprefix(f"{WINDOWS_FOLDER}/")
    return pattern if inside == pattern else f"{glob.escape(folder)}/{inside}"


def _own_group(word: str) -> Group:
    if not word.startswith("/"):
        raise UsageError(
            f"--clean: {word!r} is no group and no absolute path",
            hint=f"groups: {', '.join(GROUPS)}; or a path of the guest such as '/opt/demo/cache/*'",
        )
    parts = [part for part in word.split("/") if part not in ("", ".")]
    if not word.isprintable() or ".." in parts:
        raise UsageError(f"--clean: {word!r} must be a plain path, without '..'")
    if not parts or _ONLY_MAGIC.fullmatch(parts[0]):
        raise UsageError(f"--clean: {word!r} would take the whole guest")
    return Group(word, (Rule("/" + "/".join(parts)),))


@dataclass(frozen=True, slots=True)
class Stat:
    """What lstat(2) says; size in bytes, blocks in units of 512 bytes."""

    device: int
    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    blocks: int


class Files(Protocol):
    """A guest's files. Folders are given as `real_folder` returns them, so no link is followed."""

    def real_folder(self, path: str) -> str | None:
        """Return the path of a folder without links in it, or None if there is no such folder."""

    def names(self, folder: str) -> Sequence[str]:
        """Return the names in a folder."""

    def below(self, folder: str) -> Sequence[str]:
        """Return the paths of all entries below a folder, relative to it."""

    def stats(self, folder: str, names: Sequence[str]) -> Sequence[Stat]:
        """Return what lstat says about paths relative to a folder."""


@dataclass(slots=True)
class Selection:
    """What one group takes. trees: whole paths. files: single files. emptied: become empty.

    count: entries that are no folders. size_bytes: of their data on disk. places: where.
    """

    group: Group
    trees: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    count: int = 0
    size_bytes: int = 0
    places: list[str] = field(default_factory=list)
    _inodes: set[tuple[int, int]] = field(default_factory=set)

    def line(self) -> str:
        """Return the report for people: what the group took, and where."""
        if not (self.trees or self.count):
            return f"{self.group.name}: nothing found"
        what = f"{self.count:,} file{'' if self.count == 1 else 's'}"
        what += f", {format_bytes(self.size_bytes)}"
        if self.group.name in GROUPS:
            more = ", …" if len(self.places) > _NAMED_PLACES else ""
            what += f" below {printable(', '.join(self.places[:_NAMED_PLACES]))}{more}"
        if self.emptied:
            what += f" ({len(self.emptied)} of them emptied, not removed)"
        return f"{self.group.name}: {what}" + (f"; {self.group.note}" if self.group.note else "")

    def add(self, place: str, taken: Iterable[Stat]) -> None:
        """Count entries that go. A file with several names counts once."""
        if place not in self.places:
            self.places.append(place)
        for one in taken:
            if not stat.S_ISDIR(one.mode) and (one.device, one.inode) not in self._inodes:
                self._inodes.add((one.device, one.inode))
                self.count += 1
                self.size_bytes += min(one.size, one.blocks * _BLOCK_BYTES)


def select(files: Files, group: Group) -> Selection:
    """Return what a group takes out of a guest; nothing is changed."""
    selection = Selection(group)
    seen: set[str] = set()
    for rule in group.rules:
        for folder, name in _matches(files, rule.pattern, folded=group.folded):
            path = _join(folder, name)
            if path not in seen:
                seen.add(path)
                _select(files, rule.action, folder, name, selection)
    return selection


def _matches(files: Files, pattern: str, *, folded: bool) -> Iterator[tuple[str, str]]:
    """Yield (folder without links, name) of everything that fits a pattern."""
    *above, last = pattern[1:].split("/")
    folders = ["/"]
    for part in above:
        found = (
            files.real_folder(_join(folder, name))
            for folder in folders
            for name in _fitting(files.names(folder), part, folded=folded)
        )
        folders = list(dict.fromkeys(folder for folder in found if folder is not None))
    for folder in folders:
        for name in _fitting(files.names(folder), last, folded=folded):
            yield folder, name


def _fitting(names: Sequence[str], part: str, *, folded: bool) -> list[str]:
    if folded:
        wanted = part.casefold()
        return sorted(name for name in names if fnmatchcase(name.casefold(), wanted))
    if not _MAGIC.search(part):
        return [part] if part in names else []
    return sorted(name for name in names if fnmatchcase(name, part))


def _select(files: Files, action: Action, folder: str, name: str, selection: Selection) -> None:
    path = _join(folder, name)
    (own,) = files.stats(folder, [name])
    inner = list(files.below(path)) if stat.S_ISDIR(own.mode) else []
    entries = [(path, own)]
    entries += [
        (_join(path, one), status)
        for one, status in zip(inner, files.stats(path, inner) if inner else (), strict=True)
    ]
    if action == "remove":
        selection.trees.append(path)
        selection.add(folder, (status for _, status in entries))
        return
    taken = []
    for entry, status in entries:
        if not stat.S_ISREG(status.mode):
            continue
        if action in ("logs", "empty") and not status.size:
            continue
        emptied = action == "empty" or (action == "logs" and not _can_be_made_anew(entry, status))
        (selection.emptied if emptied else selection.files).append(entry)
        taken.append(status)
    if taken:
        selection.add(folder, taken)


def _can_be_made_anew(path: str, status: Stat) -> bool:
    return bool(_ROTATED.search(path)) or (status.uid == 0 and status.gid == 0)


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
