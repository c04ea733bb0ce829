"""Look into files of a surveyed disk that have a structure of their own: hives, programs.

Policy asks, and never parses: what reads a guest's structures runs in children.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import PLAIN
from formats.windows.hive_query import View, Wanted
from packer.errors import InputError
from packer.survey.disk import Disk
from packer.survey.hives import read_hive
from packer.survey.limits import Limits
from packer.survey.model import Survey
from packer.survey.programs import MAX_PROGRAMS, Program, read_programs
from packer.survey.records import (
    MAX_RECORDS,
    Catalog,
    Manifest,
    read_catalogs,
    read_manifests,
)
from packer.survey.runs import runs_of
from packer.survey.small_files import read_small_files

UNREADABLE = "its file system stores it compressed or encrypted, or its extents overlap"

_Answer = TypeVar("_Answer")


class Examiner(Protocol):
    """Answers questions about files; streams are rows of the survey's columns."""

    def hive(self, primary: int, logs: Sequence[int], wanted: Sequence[Wanted]) -> View:
        """Return keys of a registry hive, after a replay of its logs.

        logs: `.LOG`, `.LOG1` and `.LOG2`, in this order, as many as there are.
        Raises InputError when it cannot be read.
        """

    def programs(self, streams: Sequence[int]) -> list[Program]:
        """Return what each program says about itself; `error` says what could not be read.

        Raises InputError when none of them can be read.
        """

    def signers(self, streams: Sequence[int]) -> list[tuple[str, str]]:
        """Return (organization, common name) of whom each program's signature names, or ("", "").

        Raises InputError when none of them can be read.
        """

    def catalogs(self, streams: Sequence[int]) -> list[Catalog]:
        """Return what security catalogs list. Raises InputError when none can be read."""

    def manifests(self, streams: Sequence[int]) -> list[Manifest]:
        """Return what component manifests list. Raises InputError when none can be read."""

    def small_files(self, volume: int, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the files, by path as it was asked for, that lie within the metadata of a volume.

        A survey does not list these (NTFS: resident ones, up to about 700 bytes). paths: of the
        volume, in any case; those that are no such file are left out.
        Raises InputError when the volume cannot be read.
        """


class ChildExaminer:
    """Has children of this process read an open disk. What a program says is asked for once."""

    def __init__(self, disk: Disk, survey: Survey, *, limits: Limits | None = None) -> None:
        self._disk = disk
        self._survey = survey
        self._limits = limits
        self._programs: dict[int, Program] = {}

    def hive(self, primary: int, logs: Sequence[int], wanted: Sequence[Wanted]) -> View:
        """See Examiner."""
        hive = self._runs(primary)
        if hive is None:
            raise InputError(f"a hive cannot be read: {UNREADABLE}")
        files = [runs for runs in map(self._runs, logs) if runs is not None]
        return read_hive(self._disk, hive, files, wanted, limits=self._limits)

    def programs(self, streams: Sequence[int]) -> list[Program]:
        """See Examiner."""
        new = [one for one in dict.fromkeys(streams) if one not in self._programs]
        read = partial(read_programs, self._disk, limits=self._limits)
        found = self._each(new, read, Program(error=UNREADABLE), MAX_PROGRAMS)
        self._programs.update(zip(new, found, strict=True))
        return [self._programs[one] for one in streams]

    def signers(self, streams: Sequence[int]) -> list[tuple[str, str]]:
        """See Examiner."""
        read = partial(read_programs, self._disk, with_signers=True, limits=self._limits)
        found = self._each(streams, read, Program(), MAX_PROGRAMS)
        return [(one.organization, one.common_name) for one in found]

    def catalogs(self, streams: Sequence[int]) -> list[Catalog]:
        """See Examiner."""
        read = partial(read_catalogs, self._disk, limits=self._limits)
        return self._each(streams, read, Catalog(error=UNREADABLE), MAX_RECORDS)

    def manifests(self, streams: Sequence[int]) -> list[Manifest]:
        """See Examiner."""
        read = partial(read_manifests, self._disk, limits=self._limits)
        return self._each(streams, read, Manifest(error=UNREADABLE), MAX_RECORDS)

    def small_files(self, volume: int, paths: Sequence[str]) -> dict[str, bytes]:
        """See Examiner."""
        one = self._survey.volumes[volume]
        if one.kind != "ntfs" or not paths:
            return {}
        return read_small_files(self._disk, one.start, one.end, paths, limits=self._limits)

    def _each(
        self,
        streams: Sequence[int],
        read: Callable[[Sequence[NDArray[np.int64]]], list[_Answer]],
        unreadable: _Answer,
        at_once: int,
    ) -> list[_Answer]:
        """Return what `read` says of each stream, and `unreadable` of those that have no runs."""
        runs = [self._runs(one) for one in streams]
        readable = [one for one in runs if one is not None]
        answers = iter(
            [
                answer
                for first in range(0, len(readable), at_once)
                for answer in read(readable[first : first + at_once])
            ]
        )
        return [unreadable if one is None else next(answers) for one in runs]

    def _runs(self, stream: int) -> NDArray[np.int64] | None:
        if self._survey.form[stream] != PLAIN:
            return None
        return runs_of(self._survey, stream, int(self._survey.file_size[stream]))
