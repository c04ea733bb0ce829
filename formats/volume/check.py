"""What every partition table must obey, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterable

from formats.errors import Corrupt
from formats.volume.model import Partition


def check_layout(structure: str, partitions: Iterable[Partition], disk_size: int) -> None:
    """Raise Corrupt when a partition leaves the disk or overlaps another; both are named."""
    previous: Partition | None = None
    for one in sorted(partitions, key=lambda partition: (partition.start, partition.end)):
        if one.start < 0 or one.end <= one.start or one.end > disk_size:
            raise Corrupt(
                structure,
                one.start,
                f"partition {one.number} ends at byte {one.end}, the disk at byte {disk_size}",
            )
        if previous is not None and one.start < previous.end:
            raise Corrupt(
                structure,
                one.start,
                f"partition {one.number} begins before partition {previous.number} ends at byte "
                f"{previous.end}",
            )
        previous = one
