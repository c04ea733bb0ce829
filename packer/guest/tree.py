"""A guest's files as one tree: volumes at their mount points, symbolic links followed.

This is the only view through which policy reads a guest. No path of the guest ever becomes a path
of this host: names are looked up in the survey's columns, bytes come from the disk at the extents
that the survey found.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from formats.errors import FormatError
from formats.filesystem.model import PLAIN
from formats.source import Runs, Source
from formats.windows.names import fold
from packer.guest.fstab import MAX_FSTAB_BYTES, Entry, parse_fstab
from packer.guest.mounts import Mount, find_mounts, find_roots, volume_name
from packer.survey.model import CASE_INSENSITIVE, Survey
from packer.survey.runs import runs_of
from packer.text import printable

MAX_PATH_CHARACTERS = 4096
"""PATH_MAX of Linux."""

MAX_DEPTH = 200
"""Folders and links that one lookup may pass; a chain of links that is longer leads nowhere."""

MAX_WARNINGS = 50

MAX_REMEMBERED_CHARACTERS = 64 << 20
"""What all resolved folders together may be long; a guest of a million files needs a tenth."""


@dataclass(slots=True)
class _Names:
    """The names of one volume: path within the volume -> row of the survey's name columns."""

    rows: dict[str, int]
    links: dict[str, str]
    folded: bool
    in_order: list[str] = field(default_factory=list)

    def row(self, path: str) -> int | None:
        return self.rows.get(fold(path) if self.folded else path)

    def link(self, path: str) -> str | None:
        return self.links.get(fold(path) if self.folded else path)

    def below(self, folder: str) -> Iterator[int]:
        """Yield the row of every name below a folder ("" for the volume's root), sorted."""
        if not self.in_order:
            self.in_order = sorted(self.rows)
        prefix = (fold(folder) if self.folded else folder) + "/"
        for index in range(bisect_left(self.in_order, prefix), len(self.in_order)):
            path = self.in_order[index]
            if not path.startswith(prefix):
                return
            yield self.rows[path]


class Tree:
    """The guest's files. Everything that is looked up is built once, on first use.

    root: row of the volume at "/", or None. mounts: which volume is where, the longest path first.
    fstab: the guest's own list of mounts and swap files.
    warnings: what could not be read, for the author of the pack; lookups add to it.
    """

    def __init__(self, survey: Survey, source: Source, *, root: int | None = None) -> None:
        """Open the tree of a Linux guest; with a `root`, of a guest that mounts nothing else."""
        self.survey = survey
        self.source = source
        self.warnings: list[str] = []
        self._names: dict[int, _Names] = {}
        self._folders: dict[str, str | None] = {}
        self._remembered_characters = 0
        if root is not None:
            self.root: int | None = root
            self.mounts: tuple[Mount, ...] = (Mount("/", root),)
            self.fstab: tuple[Entry, ...] = ()
            return
        roots = find_roots(survey)
        self.root = roots[0] if roots else None
        self._warn_of_other_roots(roots)
        self.mounts = find_mounts(survey, self.root)
        self.fstab = parse_fstab(self.read("/etc/fstab", MAX_FSTAB_BYTES))
        self.mounts = find_mounts(survey, self.root, self.fstab)
        self._folders.clear()

    @cached_property
    def paths(self) -> list[str]:
        """The guest path of each row of `survey.name`.

        Names of a volume that is mounted nowhere keep the volume's own path.
        """
        paths = list(self.survey.name)
        for mount in self.mounts:
            if mount.path == "/":
                continue
            for row in self._name_rows(mount.volume):
                paths[row] = mount.path + paths[row]
        return paths

    def stream_at(self, path: str) -> int | None:
        """Return the stream of a plain file at exactly this path; no link is followed."""
        located = self._locate(path)
        row = None if located is None else self._names_of(located[0]).row(located[1])
        return None if row is None else int(self.survey.name_stream[row])

    def stream_of(self, path: str) -> int | None:
        """Return the stream of a file, following links, or None if there is no plain file."""
        stream = self.stream_at(path)
        if stream is None:
            resolved = self.resolve(path)
            stream = None if resolved is None else self.stream_at(resolved)
        return stream

    def stream_in(self, volume: int, path: str) -> int | None:
        """Return the stream of a plain file of a volume, mounted or not; no link is followed."""
        row = self._names_of(volume).row(path)
        return None if row is None else int(self.survey.name_stream[row])

    def below_in(self, volume: int, folder: str) -> Iterator[tuple[str, int]]:
        """Yield (path, stream) of every plain file below a folder of a volume; "" is its root.

        Paths are the volume's own.
        """
        for row in self._names_of(volume).below(folder.rstrip("/")):
            yield self.survey.name[row], int(self.survey.name_stream[row])

    def canonical(self, path: str) -> str | None:
        """Return the path with the links of its folder followed, but not the last name's."""
        folder, _, name = path.rpartition("/")
        resolved = self.resolve(folder + "/")
        return None if resolved is None else f"{resolved}/{name}"

    def resolve(self, path: str) -> str | None:
        """Return the path with all links followed, also the last; None for loops and the like.

        What it leads to need not exist: folders are not listed in a survey.
        """
        return self._resolve(path.rstrip("/"), 0) if path.startswith("/") else None

    def below(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield (guest path, stream) of every plain file below a folder, links of it followed.

        What lies below a mount point inside the folder belongs to the mounted volume.
        """
        resolved = self.resolve(folder)
        located = None if resolved is None else self._locate(resolved + "/")
        if resolved is None or located is None:
            return
        volume, inside = located
        deeper = [m for m in self.mounts if m.path.startswith(resolved + "/") and m.path != "/"]
        hidden = tuple(m.path + "/" for m in deeper)
        streams = self.survey.name_stream
        for row in self._names_of(volume).below(inside.rstrip("/")):
            path = self.paths[row]
            if not hidden or not path.startswith(hidden):
                yield path, int(streams[row])
        for mount in deeper:
            for row in self._names_of(mount.volume).below(""):
                located = self._locate(self.paths[row])
                if located is not None and located[0] == mount.volume:
                    yield self.paths[row], int(streams[row])

    def links_below(self, folder: str) -> Iterator[str]:
        """Yield the guest path of every symbolic link directly in a folder."""
        resolved = self.resolve(folder)
        located = None if resolved is None else self._locate(resolved + "/")
        if resolved is None or located is None:
            return
        for path in self._names_of(located[0]).links:
            if path.rpartition("/")[0] == located[1].rstrip("/"):
                yield f"{resolved}/{path.rpartition('/')[2]}"

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return the bytes of a file, b"" if there is none.

        A file above `max_bytes` and one that cannot be read count as empty, with a warning.
        """
        stream = self.stream_of(path)
        if stream is None:
            return b""
        size = int(self.survey.file_size[stream])
        if size > max_bytes:
            self.warn(f"{path} is not read: {size} bytes, at most {max_bytes} expected")
            return b""
        return self.read_stream(stream, size, path)

    def read_stream(self, stream: int, length: int, what: str) -> bytes:
        """Return the first `length` bytes of a stream, fewer if it is shorter.

        what: names it in warnings; b"" where its extents contradict each other or the disk, and
        where the file system stores something else than the file's bytes (compressed ones).
        """
        if self.survey.form[stream] != PLAIN:
            self.warn(f"{what} is not read: its file system stores it compressed or encrypted")
            return b""
        length = min(length, int(self.survey.file_size[stream]))
        runs = runs_of(self.survey, stream, length)
        if runs is None:
            self.warn(f"{what} is not read: its extents overlap")
            return b""
        try:
            return Runs(self.source, runs).pread(0, length)
        except FormatError as error:
            self.warn(f"{what} is not read: {error}")
            return b""

    def warn(self, warning: str) -> None:
        """Tell the author something; what a hostile guest can repeat is cut after MAX_WARNINGS.

        Names of the guest in it are made safe to print.
        """
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(printable(warning))

    def _warn_of_other_roots(self, roots: list[int]) -> None:
        volumes = self.survey.volumes
        for row in roots[1:]:
            self.warn(
                f"{volume_name(volumes[row])} holds another system, which is not looked into:"
                f" only the one on {volume_name(volumes[roots[0]])} is"
            )

    def _resolve(self, path: str, depth: int) -> str | None:
        if path in self._folders:
            return self._folders[path]
        full = self._remembered_characters > MAX_REMEMBERED_CHARACTERS
        if not path or full or depth > MAX_DEPTH or len(path) > MAX_PATH_CHARACTERS:
            return "" if not path else None
        # A lookup that comes back here while this one is under way goes in a circle.
        self._folders[path] = None
        self._remembered_characters += len(path)
        above, _, last = path.rpartition("/")
        folder = self._resolve(above, depth + 1)
        found = None if folder is None else self._enter(folder, last, depth)
        self._folders[path] = found
        return found

    def _enter(self, folder: str, name: str, depth: int) -> str | None:
        if name in ("", "."):
            return folder
        if name == "..":
            return folder.rpartition("/")[0]
        path = f"{folder}/{name}"
        located = self._locate(path)
        target = None if located is None else self._names_of(located[0]).link(located[1])
        if target is None:
            return path
        return self._resolve(target if target.startswith("/") else f"{folder}/{target}", depth + 1)

    def _locate(self, path: str) -> tuple[int, str] | None:
        """Return the volume that holds a guest path, and the path within it."""
        for mount in self.mounts:
            if mount.path == "/":
                return mount.volume, path
            if path.startswith(mount.path + "/"):
                return mount.volume, path[len(mount.path) :]
        return None

    def _name_rows(self, volume: int) -> list[int]:
        survey = self.survey
        mine: list[int] = np.flatnonzero(survey.volume[survey.name_stream] == volume).tolist()
        return mine

    def _names_of(self, volume: int) -> _Names:
        names = self._names.get(volume)
        if names is None:
            survey = self.survey
            mine = self._name_rows(volume)
            paths = [survey.name[row] for row in mine]
            folded = survey.volumes[volume].kind in CASE_INSENSITIVE
            if folded:
                paths = [fold(path) for path in paths]
            links = {
                fold(path) if folded else path: target
                for row, path, target in survey.symlinks
                if row == volume
            }
            names = _Names(dict(zip(paths, mine, strict=True)), links, folded)
            self._names[volume] = names
        return names
