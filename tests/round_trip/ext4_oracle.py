"""Which bytes of an ext4 nobody can read, by e2fsprogs alone."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.round_trip.disks import Range, joined, tool

BLOCK = 4096
JOURNAL_INODE = 8
FIRST_FILE_INODE = 11
_GROUP_FREE = re.compile(r"^  Free (blocks|inodes): (.*)$", re.MULTILINE)
_EXTENT = re.compile(r"\((\d+)(?:-(\d+))?(\[u\])?\):(\d+)(?:-\d+)?")


@dataclass(frozen=True, slots=True)
class Unseen:
    """Ranges of the disk, in bytes: free blocks; after the last byte of files; extents that were
    never written; the journal behind its superblock.
    """

    free: list[Range]
    tails: list[Range]
    unwritten: list[Range]
    journal: list[Range]

    def all(self) -> list[Range]:
        return joined([*self.free, *self.tails, *self.unwritten, *self.journal])


def unseen(image: Path, offset: int) -> Unseen:
    filesystem = f"{image}?offset={offset}"
    listing = tool("dumpe2fs", filesystem)
    assert re.search(rf"^Block size: +{BLOCK}$", listing, re.MULTILINE)
    total = re.search(r"^Inode count: +(\d+)$", listing, re.MULTILINE)
    assert total is not None
    lists: dict[str, list[Range]] = {"blocks": [], "inodes": []}
    for kind, text in _GROUP_FREE.findall(listing):
        lists[kind].extend(_numbers(text))
    idle = {inode for low, high in lists["inodes"] for inode in range(low, high)}
    used = [inode for inode in range(1, int(total[1]) + 1) if inode not in idle]

    def on_disk(ranges: list[Range]) -> list[Range]:
        return joined([(offset + low, offset + high) for low, high in ranges])

    tails, unwritten, journal = _files(filesystem, used)
    free = [(low * BLOCK, high * BLOCK) for low, high in lists["blocks"]]
    return Unseen(on_disk(free), on_disk(tails), on_disk(unwritten), on_disk(journal))


def _numbers(text: str) -> list[Range]:
    """'3-5, 9' as half-open ranges."""
    found = []
    for part in filter(None, text.replace(" ", "").split(",")):
        low, _, high = part.partition("-")
        found.append((int(low), int(high or low) + 1))
    return found


def _files(filesystem: str, inodes: list[int]) -> tuple[list[Range], list[Range], list[Range]]:
    """(tails, unwritten, journal) in bytes of the file system."""
    requests = "".join(f"stat <{inode}>\n" for inode in inodes)
    listing = subprocess.run(
        ["/usr/sbin/debugfs", "-f", "-", filesystem],
        input=requests,
        capture_output=True,
        check=True,
        text=True,
        errors="replace",
    ).stdout
    tails, unwritten, journal = [], [], []
    for text in listing.split("\nInode: ")[1:]:
        number = int(text.split(maxsplit=1)[0])
        size = re.search(r"Size: (\d+)", text)
        if "Type: regular" not in text or size is None:
            continue
        if number < FIRST_FILE_INODE and number != JOURNAL_INODE:
            continue
        for first, last, never, block in _EXTENT.findall(text.partition("EXTENTS:")[2]):
            start, count = int(block) * BLOCK, int(last or first) - int(first) + 1
            end, logical = start + count * BLOCK, int(first) * BLOCK
            if number == JOURNAL_INODE:
                journal.append((start + (BLOCK if int(first) == 0 else 0), end))
            elif never:
                unwritten.append((start, end))
            elif logical < int(size[1]) < logical + count * BLOCK:
                # Whole blocks past the end may hold data of fs-verity: only the last one's rest.
                last_byte = start + int(size[1]) - logical
                tails.append((last_byte, -(-last_byte // BLOCK) * BLOCK))
    return tails, unwritten, journal
