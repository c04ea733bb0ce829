"""The policy's word on a surveyed guest: what it needs, what others have, what it can lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import DATA
from formats.ranges import intersect, total, union
from formats.source import Source
from packer.artifact.config import Guest
from packer.guest import linux_boot
from packer.guest.droppable import find_droppable
from packer.guest.identify import identify
from packer.guest.model import Dropped, Judgement
from packer.guest.provenance import Provenance, find_provenance, no_provenance
from packer.guest.tree import Tree
from packer.guest.windows import boot_set as windows_boot
from packer.guest.windows.file_lists import GROUPS as WINDOWS_GROUPS
from packer.guest.windows.guest import Windows, find_windows
from packer.guest.windows.identify import identify as identify_windows
from packer.guest.windows.provenance import find_windows_provenance
from packer.guest.windows.shadow_copies import find_shadow_copies, warn_of
from packer.guest.windows.state import find_state
from packer.survey.examine import Examiner
from packer.survey.model import Survey


@dataclass(frozen=True, slots=True)
class _Known:
    """What follows from which system it is. boot, reasons, rules, errors: see Judgement."""

    tree: Tree
    guest: Guest
    boot: NDArray[np.int64]
    reasons: tuple[str, ...]
    rules: Mapping[int, str]
    errors: tuple[str, ...]
    provenance: Provenance
    windows: Windows | None = None


def judge(
    survey: Survey, source: Source, examiner: Examiner, *, drop_snapshots: bool = False
) -> Judgement:
    """Return the judgement of the guest on a disk.

    source: the disk that was surveyed; only what policy needs is read of it. A guest that is not
    known has no boot set and no packages: all its files are private and nothing is lost. What the
    guest's own files say wrongly costs stubs and is warned of; nothing is raised for it.
    drop_snapshots: let volume shadow copies go. warnings: those of the survey come first.
    """
    known = _know(survey, source, examiner)
    tree = known.tree
    findings = find_droppable(tree)
    state = find_state(tree, known.windows, drop_snapshots=drop_snapshots)
    copies = find_shadow_copies(tree)
    if not drop_snapshots:
        warn_of(tree, copies)
    files = tuple(one for one in state.dropped if not _hits_boot_set(survey, known.boot, one))
    return Judgement(
        guest=known.guest,
        path=tree.paths,
        boot=known.boot,
        boot_reasons=known.reasons,
        boot_rules=known.rules,
        package=known.provenance.package,
        expected=known.provenance.expected,
        packages=known.provenance.packages,
        origin=known.provenance.origin,
        origins=known.provenance.origins,
        dropped=(*findings.dropped, *files, *(copies if drop_snapshots else ())),
        refusals=(*findings.refusals, *state.refusals),
        errors=known.errors,
        warnings=(*survey.warnings, *tree.warnings, *findings.warnings, *state.warnings),
    )


def _hits_boot_set(survey: Survey, boot: NDArray[np.int64], one: Dropped) -> bool:
    """Return whether a part of what the guest starts from would go: a registry can call any file a
    page file.
    """
    rows = (survey.kind == DATA) & (boot[survey.stream] >= 0)
    start = survey.disk_offset[rows]
    needed = union(np.stack([start, start + survey.length[rows]], axis=1))
    return total(intersect(needed, one.ranges)) > 0


def _know(survey: Survey, source: Source, examiner: Examiner) -> _Known:
    tree = Tree(survey, source)
    guest = identify(tree)
    windows = None if is_linux(tree, guest) else find_windows(survey, source, examiner)
    if windows is not None:
        found = windows_boot.find_boot_set(windows)
        return _Known(
            windows.tree,
            identify_windows(windows),
            found.group,
            WINDOWS_GROUPS,
            found.rules,
            found.errors,
            find_windows_provenance(windows),
            windows,
        )
    if guest.family == "linux":
        boot, provenance = linux_boot.find_boot_set(tree), find_provenance(tree)
    else:
        boot = np.full(len(survey.inode), -1, dtype=np.int64)
        provenance = no_provenance(len(survey.inode))
    return _Known(tree, guest, boot, linux_boot.BOOT_REASONS, {}, (), provenance)


def is_linux(tree: Tree, guest: Guest) -> bool:
    """Return whether there is a Linux that a folder of a Windows cannot be mistaken for."""
    if guest.family != "linux":
        return False
    return tree.root is None or tree.survey.volumes[tree.root].kind not in ("ntfs", "vfat")
