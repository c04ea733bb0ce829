"""Sum up files for people: the boot set by reason, what is private by folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from packer.artifact.contents import Class, Contents
from packer.artifact.hints import Hints
from packer.artifact.map import Map
from packer.guest.model import Judgement
from packer.guest.windows.file_lists import BOOT_SECTOR
from packer.survey.model import Survey

FOLDERS_SHOWN = 12
FOLDER_PARTS = 3
"""Folders are summed up at this depth: deep enough to tell what it is, shallow enough to read."""


METADATA = "boot sectors, partition tables, file-system metadata"


@dataclass(frozen=True, slots=True)
class BootFile:
    """A file of the boot set. rule: what put it there, "KIND" or "KIND: of what"; "" if the reason
    of its group says all.
    """

    path: str
    size_bytes: int
    rule: str


@dataclass(frozen=True, slots=True)
class Group:
    """Files of the boot set that are there for one reason; bytes of the files.

    paths: each file, sorted by path. rules: (kind of rule, how many files it put there), the most
    frequent first.
    """

    reason: str
    files: int
    size_bytes: int
    paths: tuple[BootFile, ...]
    rules: tuple[tuple[str, int], ...] = ()


def sum_up_boot_set(survey: Survey, judgement: Judgement, disk_map: Map) -> tuple[Group, ...]:
    """Return the boot set by reason; file-system metadata and boot sectors come first.

    A guest whose reasons begin with boot sectors has its metadata there.
    """
    by_reason: dict[int, dict[int, str]] = {}
    for row, path in zip(survey.name_stream.tolist(), judgement.path, strict=True):
        reason = int(judgement.boot[row])
        if reason >= 0:
            by_reason.setdefault(reason, {}).setdefault(row, path)
    groups = [
        _group(judgement.boot_reasons[reason], streams, survey, judgement)
        for reason, streams in sorted(by_reason.items())
    ]
    boot = int(disk_map.contents.size[disk_map.contents.classes == Class.BOOT].sum())
    metadata = max(0, boot - sum(group.size_bytes for group in groups))
    if judgement.boot_reasons[:1] != (BOOT_SECTOR,):
        return (Group(METADATA, 0, metadata, ()), *groups)
    if not groups or groups[0].reason != BOOT_SECTOR:
        groups.insert(0, Group(BOOT_SECTOR, 0, 0, ()))
    first = groups[0]
    sectors = replace(
        first, size_bytes=first.size_bytes + metadata, rules=((METADATA, 0), *first.rules)
    )
    return (sectors, *groups[1:])


def _group(reason: str, streams: dict[int, str], survey: Survey, judgement: Judgement) -> Group:
    files = [
        BootFile(path, int(survey.file_size[row]), judgement.boot_rules.get(row, ""))
        for row, path in streams.items()
    ]
    kinds = Counter(one.rule.partition(":")[0] for one in files if one.rule)
    return Group(
        reason,
        len(files),
        sum(one.size_bytes for one in files),
        tuple(sorted(files, key=lambda one: one.path)),
        tuple(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
    )


def largest_folders(
    contents: Contents, hints: Hints, one: Class
) -> tuple[tuple[str, int, int], ...]:
    """Return (folder, contents, bytes) of the folders with the most bytes of a class."""
    found: dict[str, list[int]] = {}
    rows = np.flatnonzero(contents.classes == one)
    first = np.searchsorted(hints.content, rows)
    for row, place in zip(rows.tolist(), first.tolist(), strict=True):
        named = place < len(hints.content) and hints.content[place] == row
        folder = _folder(hints.path[place]) if named else "(no file)"
        entry = found.setdefault(folder, [0, 0])
        entry[0] += 1
        entry[1] += int(contents.size[row])
    largest = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))[:FOLDERS_SHOWN]
    return tuple((folder, count, size) for folder, (count, size) in largest)


def _folder(path: str) -> str:
    parts = path.split("/")[1:-1][:FOLDER_PARTS]
    return "/" + "/".join(parts)
