"""Volume shadow copies: snapshots whose blocks lie in clusters that the volume calls free.

They are kept whole or dropped whole. Dropped means: the pointer to their catalogue reads as zeros,
so that Windows finds none, and so do their blocks and the files that they are stored in.

Source: libyal's libvshadow, "Volume Shadow Snapshot (VSS) format".
"""

from __future__ import annotations

from formats.filesystem.ntfs.shadow import is_store
from formats.ranges import Ranges, empty_ranges, intersect, total, union
from packer.guest.droppable import ranges_of_stream
from packer.guest.model import Dropped
from packer.guest.mounts import volume_name
from packer.guest.tree import Tree
from packer.text import format_bytes

OPTION = "--drop-snapshots"
_FOLDER = "/System Volume Information"


def find_shadow_copies(tree: Tree) -> tuple[Dropped, ...]:
    """Return what has to go for the shadow copies of each volume to vanish."""
    survey = tree.survey
    held = dict(survey.held)
    snapshots = dict(survey.snapshots)
    found = []
    for row in sorted(held.keys() | snapshots.keys()):
        files = tree.below_in(row, _FOLDER)
        ranges = union(
            held.get(row, empty_ranges()),
            snapshots.get(row, empty_ranges()),
            *(ranges_of_stream(survey, stream) for path, stream in files if is_store(path)),
        )
        name = f"shadow copies on {volume_name(survey.volumes[row])}"
        found.append(Dropped(name, "snapshots of the volume: the author left them out", ranges))
    return tuple(found)


def warn_of(tree: Tree, copies: tuple[Dropped, ...]) -> None:
    """Say what it costs to keep them."""
    for one in copies:
        stored = _stored_bytes(tree, one.ranges)
        tree.warn(
            f"{one.what} are kept, and with them what the volume calls free: up to"
            f" {format_bytes(stored)}; {OPTION} leaves them out"
        )


def _stored_bytes(tree: Tree, ranges: Ranges) -> int:
    """Return how many bytes of the ranges are no holes of the image."""
    if not len(ranges):
        return 0
    data = tree.source.data_ranges(int(ranges[0, 0]), int(ranges[-1, 1]))
    return total(intersect(data, ranges))
