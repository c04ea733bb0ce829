"""What the place of a file says of where it comes from: names only, nothing is read."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from packer.guest.windows.components import Release, release_of_component, release_of_package
from packer.survey.model import Survey

WOF_STREAM = "wofcompresseddata"
"""The stream in which CompactOS keeps the bytes of a file."""

MANIFEST = ".manifest"
CATALOG = ".cat"

PROGRAMS = frozenset(
    {
        *("exe", "dll", "sys", "ocx", "cpl", "scr", "drv", "efi", "mui", "ax", "acm", "tsp", "com"),
        *("winmd", "node", "pyd", "rll", "ime", "tlb", "olb", "flt", "cnv", "wll", "xll", "vst3"),
    }
)
"""Endings of files that may be programs with a signature in them."""


class Place(enum.IntEnum):
    """Kinds of places. Of a file with several names the first one here counts.

    COMPONENT: what servicing has put there, its name says of which release. GENERATED: below the
    Windows folder, made on this machine. WINDOWS: the rest of that folder.
    """

    COMPONENT = 0
    HIVE = 1
    LOG = 2
    PROFILE = 3
    PROGRAM_DATA = 4
    GENERATED = 5
    WINDOWS = 6
    PROGRAM_FILES = 7
    ELSEWHERE = 8


_IN_VOLUME = (
    ("/documents and settings/all users/", Place.PROGRAM_DATA),
    ("/documents and settings/", Place.PROFILE),
    ("/users/", Place.PROFILE),
    ("/$recycle.bin/", Place.PROFILE),
    ("/recycler/", Place.PROFILE),
    ("/programdata/", Place.PROGRAM_DATA),
    ("/program files/", Place.PROGRAM_FILES),
    ("/program files (x86)/", Place.PROGRAM_FILES),
    ("/program files (arm)/", Place.PROGRAM_FILES),
)
_IN_WINDOWS = (
    ("system32/config/systemprofile/", Place.PROFILE),
    ("serviceprofiles/", Place.PROFILE),
    ("system32/config/", Place.HIVE),
    ("repair/", Place.HIVE),
    ("logs/", Place.LOG),
    ("debug/", Place.LOG),
    ("panther/", Place.LOG),
    ("system32/logfiles/", Place.LOG),
    ("system32/winevt/", Place.LOG),
    ("system32/wdi/", Place.LOG),
    ("assembly/nativeimages", Place.GENERATED),
    ("csc/", Place.GENERATED),
    ("installer/", Place.GENERATED),
    ("livekernelreports/", Place.GENERATED),
    ("memory.dmp", Place.GENERATED),
    ("minidump/", Place.GENERATED),
    ("prefetch/", Place.GENERATED),
    ("rescache/", Place.GENERATED),
    ("softwaredistribution/", Place.GENERATED),
    ("system32/catroot2/", Place.GENERATED),
    ("temp/", Place.GENERATED),
    ("winsxs/filemaps/", Place.GENERATED),
    ("winsxs/temp/", Place.GENERATED),
)
_HIVE_NAMES = ("ntuser.dat", "usrclass.dat")
_HIVE_ENDING = ".hve"
_LOG_ENDINGS = (".log", ".etl", ".evt", ".evtx")  # below Windows
_WINSXS = "winsxs/"
_MANIFESTS = "manifests/"
_CATALOGS = "system32/catroot/"
_PACKAGES = (_CATALOGS, "servicing/packages/", "winsxs/catalogs/")


@dataclass(slots=True)
class Places:
    """What the names of all streams say.

    kinds: the Place of each stream. release: stream -> of what release the component is. members:
    (component, file) in lower case -> stream. manifests: component -> stream. catalogs: (path,
    stream), sorted. programs: streams with a name of a program.
    """

    kinds: list[int]
    programs: set[int] = field(default_factory=set)
    release: dict[int, Release] = field(default_factory=dict)
    members: dict[tuple[str, str], int] = field(default_factory=dict)
    manifests: dict[str, int] = field(default_factory=dict)
    catalogs: list[tuple[str, int]] = field(default_factory=list)

    def are(self, *places: Place) -> NDArray[np.bool_]:
        """Return bool[n]: which streams lie in such places."""
        return np.isin(np.array(self.kinds, dtype=np.int8), places)


def find_places(survey: Survey, volume: int, folder: str) -> Places:
    """Return what the names of streams say.

    volume, folder: of Windows. Other volumes are ELSEWHERE.
    """
    found = Places([int(Place.ELSEWHERE)] * len(survey.inode))
    windows = folder.casefold() + "/"
    of_volume = (survey.volume == volume).tolist()
    for stream, path in _names(survey):
        folded = path.casefold()
        file, _, named = folded.rpartition("/")[2].partition(":")
        if named == WOF_STREAM:
            folded, named = folded[: -len(WOF_STREAM) - 1], ""
        if not named and file.rpartition(".")[2] in PROGRAMS:
            found.programs.add(stream)
        if not of_volume[stream]:
            continue
        if folded.startswith(windows) and not named:
            inside = folded[len(windows) :]
            _note_component(found, stream, inside)
            if inside.startswith(_CATALOGS) and inside.endswith(CATALOG):
                found.catalogs.append((folded, stream))
        place = Place.COMPONENT if stream in found.release else _place(folded, file, windows)
        if place < found.kinds[stream]:
            found.kinds[stream] = int(place)
    found.catalogs.sort()
    return found


def _names(survey: Survey) -> Iterator[tuple[int, str]]:
    return zip(survey.name_stream.tolist(), survey.name, strict=True)


def _note_component(found: Places, stream: int, inside: str) -> None:
    """Note what a path below Windows says of a component; nothing if it is none's."""
    release = None
    if inside.startswith(_WINSXS):
        component, _, file = inside[len(_WINSXS) :].partition("/")
        if component + "/" == _MANIFESTS and file.endswith(MANIFEST):
            release = release_of_component(file.removesuffix(MANIFEST))
            if release is not None:
                found.manifests[file.removesuffix(MANIFEST)] = stream
        elif file:
            release = release_of_component(component)
            if release is not None:
                found.members[component, file] = stream
    if release is None and inside.startswith(_PACKAGES):
        release = release_of_package(inside.rpartition("/")[2])
    if release is not None:
        found.release.setdefault(stream, release)


def _place(folded: str, file: str, windows: str) -> Place:
    if file.startswith(_HIVE_NAMES) or file.endswith(_HIVE_ENDING):
        return Place.HIVE
    if folded.startswith(windows):
        inside = folded[len(windows) :]
        for beginning, place in _IN_WINDOWS:
            if inside.startswith(beginning):
                return place
        return Place.LOG if file.endswith(_LOG_ENDINGS) else Place.WINDOWS
    for beginning, place in _IN_VOLUME:
        if folded.startswith(beginning):
            return place
    return Place.ELSEWHERE
