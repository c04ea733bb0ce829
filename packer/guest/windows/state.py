"""What a Windows guest was doing when its disk was left, and what it can lose without harm.

Sources: ntfs-3g 2022.10.3, libntfs-3g/volume.c (ntfs_volume_check_hiberfile: a first page of
zeros means that nothing sleeps there, "hibr" and "HIBR" that something does); Volatility,
"Hiber Address Space", and Hibr2Bin, Hiber.h (further signatures); Microsoft, "Fast startup" and
"powercfg /hibernate". Page files: Microsoft, "Introduction to the page file"; a dump in one begins
with DUMP_HEADER ("PAGEDUMP", "PAGEDU64"), and the next start copies it into a file.

These files take clusters over without writing to them. A shadow copy that is older reads them where
they lie: where shadow copies stay, nothing is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from formats.ranges import total
from packer.guest.droppable import CURE_FOR_WINDOWS, Findings, ranges_of_stream
from packer.guest.model import Dropped
from packer.guest.mounts import volume_name
from packer.guest.tree import Tree
from packer.guest.windows.guest import Windows
from packer.guest.windows.registry import MEMORY
from packer.text import printable

HIBERNATION_FILE = "/hiberfil.sys"
PAGE_FILES = ("/pagefile.sys", "/swapfile.sys")
FILE_SYSTEMS = ("ntfs", "vfat")

# Windows 8 and later write them in capitals. RSTR: while it restores; LINK: the system sleeps in
# another volume's file; BRKP, HORM: the same for debuggers and embedded systems.
ASLEEP = frozenset((b"HIBR", b"RSTR", b"LINK", b"BRKP", b"HORM"))
AWAKE = b"WAKE"
"""Set when a restart from the file begins. In a volume that was cleanly left since, it ended."""

DUMPS = (b"PAGEDUMP", b"PAGEDU64")
_PAGE = 4096
_ANY_DRIVE = re.compile(r"\?:\\")
_SIZES = re.compile(r"(?: +[0-9]+){1,2}$")  # initial and largest size, MB


def find_state(tree: Tree, windows: Windows | None, *, drop_snapshots: bool = False) -> Findings:
    """Return what may be dropped, and what forbids or costs something.

    windows: whose page files are looked for; without one, hibernation files are still found.
    drop_snapshots: whether volume shadow copies go.
    """
    dropped: list[Dropped] = []
    refusals: list[str] = []
    warnings: list[str] = []
    for row, volume in enumerate(tree.survey.volumes):
        if volume.kind in FILE_SYSTEMS:
            stream = tree.stream_in(row, HIBERNATION_FILE)
            if stream is not None:
                _judge_hibernation_file(tree, row, stream, dropped, refusals, warnings)
    for path, stream in _page_files(tree, windows) if windows else ():
        _judge_page_file(tree, path, stream, dropped, warnings)
    if not drop_snapshots:
        dropped = [one for one in dropped if not _may_be_in_snapshots(tree, one)]
    return Findings(tuple(dropped), tuple(refusals), tuple(warnings))


def _judge_hibernation_file(
    tree: Tree,
    row: int,
    stream: int,
    dropped: list[Dropped],
    refusals: list[str],
    warnings: list[str],
) -> None:
    volume = tree.survey.volumes[row]
    name = f"hiberfil.sys on {volume_name(volume)}"
    page = tree.read_stream(stream, _PAGE, name)
    signature = page[:4].upper()
    is_clean = volume.state == "clean"
    is_hidden = not page and int(tree.survey.file_size[stream]) > 0
    if signature in ASLEEP or (not is_clean and (signature == AWAKE or is_hidden)):
        found = f"begins {printable(page[:4].decode('latin-1'))!r}" if page else "cannot be read"
        refusals.append(
            f"Windows on {volume_name(volume)} is hibernated, or was shut down for a fast startup"
            f" (hiberfil.sys {found}): {CURE_FOR_WINDOWS}"
        )
    elif not page:
        return
    elif signature != AWAKE and any(page):
        warnings.append(f"{name} begins with something unknown: it is packed as it is")
    elif is_clean:
        _drop(tree, stream, name, "hibernation file: nothing sleeps in it", dropped)


def _page_files(tree: Tree, windows: Windows) -> Iterator[tuple[str, int]]:
    """Yield (path, stream) of each file that Windows pages to, wherever the registry puts it."""
    seen: set[int] = set()
    for row, path in _page_file_places(windows):
        stream = tree.stream_in(row, path)
        if stream is not None and stream not in seen:
            seen.add(stream)
            yield path, stream


def _page_file_places(windows: Windows) -> Iterator[tuple[int, str]]:
    yield from ((windows.volume, path) for path in PAGE_FILES)
    if windows.system is None:
        return
    for value in ("PagingFiles", "ExistingPageFiles", "SwapfileFile"):
        for text in windows.system.texts(MEMORY, value):
            path = _SIZES.sub("", text)
            if _ANY_DRIVE.match(path):  # "?:\pagefile.sys": wherever Windows likes
                name = "/" + path[3:].replace("\\", "/")
                yield from ((row, name) for row in windows.drives.volumes.values())
            elif place := windows.drives.locate(path):
                yield place.volume, place.path


def _judge_page_file(
    tree: Tree, path: str, stream: int, dropped: list[Dropped], warnings: list[str]
) -> None:
    volume = tree.survey.volumes[int(tree.survey.volume[stream])]
    name = printable(f"{path.lstrip('/')} on {volume_name(volume)}")
    start = tree.read_stream(stream, _PAGE, name)
    if start.startswith(DUMPS):
        warnings.append(
            f"{name} holds a memory dump that Windows has not saved yet: it is packed as it is;"
            " start the guest, and shut it down"
        )
    elif start and volume.state == "clean":
        # In a volume that is not clean these clusters may already be somebody else's.
        _drop(tree, stream, name, "pages: a guest that was shut down never reads them", dropped)


def _may_be_in_snapshots(tree: Tree, one: Dropped) -> bool:
    survey = tree.survey
    volumes = [survey.volumes[row] for row in survey.with_snapshots]
    return any(volume.start <= int(one.ranges[0, 0]) < volume.end for volume in volumes)


def _drop(tree: Tree, stream: int, what: str, reason: str, dropped: list[Dropped]) -> None:
    if np.count_nonzero(tree.survey.name_stream == stream) > 1:
        return  # Windows gives these files one name: by another it is somebody's document
    ranges = ranges_of_stream(tree.survey, stream)
    if total(ranges):
        dropped.append(Dropped(what, reason, ranges))
