"""The policy's word on a surveyed guest: what it needs, what others have, what it can lose."""

from __future__ import annotations

import numpy as np

from formats.source import Source
from packer.guest.droppable import find_droppable
from packer.guest.identify import identify
from packer.guest.linux_boot import BOOT_REASONS, find_boot_set
from packer.guest.model import Judgement
from packer.guest.provenance import find_provenance, no_provenance
from packer.guest.tree import Tree
from packer.survey.model import Survey


def judge(survey: Survey, source: Source) -> Judgement:
    """Return the judgement of the guest on a disk.

    source: the disk that was surveyed; only what policy needs is read of it. A guest that is not
    known has no boot set and no packages: all its files are private and nothing is lost. What the
    guest's own files say wrongly costs stubs and is warned of; nothing is raised for it.
    warnings: those of the survey come first.
    """
    tree = Tree(survey, source)
    guest = identify(tree)
    streams = len(survey.inode)
    if guest.family == "linux":
        boot = find_boot_set(tree)
        provenance = find_provenance(tree)
    else:
        boot = np.full(streams, -1, dtype=np.int64)
        provenance = no_provenance(streams)
    findings = find_droppable(tree)
    return Judgement(
        guest=guest,
        path=tree.paths,
        boot=boot,
        boot_reasons=BOOT_REASONS,
        package=provenance.package,
        md5=provenance.md5,
        packages=provenance.packages,
        dropped=findings.dropped,
        refusals=findings.refusals,
        warnings=(*survey.warnings, *tree.warnings, *findings.warnings),
    )
