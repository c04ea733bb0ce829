"""inspect of a disk image: what packing it would mean, before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats.ranges import total
from packer.artifact.contents import Class
from packer.artifact.map import Kind
from packer.guest.model import Guest
from packer.guest.privacy import Finding
from packer.inspect.files import Group, largest_folders, sum_up_boot_set
from packer.inspect.origins import OriginSum, sum_up_origins
from packer.pack.bundle import estimate_bytes
from packer.pack.prepare import prepare
from packer.pack.published import find_published
from packer.progress import Progress, Silent
from packer.survey.disk import open_disk
from packer.survey.model import Volume


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What is in an image.

    totals: {class name: (contents, bytes)}. boot: the boot set by reason. private: the folders
    with the most private bytes, (folder, files, bytes). dropped: (what, bytes, reason).
    thin_bytes: about what a thin pack would weigh. privacy: what looks private in any copy.
    origins: where shared and private files come from, of a guest that says so.
    errors: why the guest will not start as it is.
    """

    path: str
    container: str
    size: int
    table: str
    guest: Guest
    volumes: tuple[Volume, ...]
    totals: dict[str, tuple[int, int]]
    boot: tuple[Group, ...]
    private: tuple[tuple[str, int, int], ...]
    origins: tuple[OriginSum, ...]
    unused_bytes: int
    zero_bytes: int
    dropped: tuple[tuple[str, int, str], ...]
    packages: int
    thin_bytes: int
    privacy: tuple[Finding, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect_image(
    image: str | Path,
    *,
    backing: Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> ImageReport:
    """Return what packing an image would mean.

    Raises InUseError and InputError as `pack` would.
    """
    progress = progress or Silent()
    jobs = jobs or os.cpu_count() or 1
    with open_disk(image, backing=backing) as disk:
        prepared = prepare(disk, incomplete=True, jobs=jobs, progress=progress)
        contents = prepared.map.contents
        carried = np.flatnonzero(contents.classes != Class.SHARED)
        with progress.stage("weighing", int(contents.size[carried].sum())) as advance:
            thin_bytes = estimate_bytes(
                contents, prepared.hints, prepared.read_block, jobs=jobs, progress=advance
            )
        survey, judgement = prepared.survey, prepared.judgement
        return ImageReport(
            str(image),
            survey.container,
            survey.size,
            survey.table,
            judgement.guest,
            survey.volumes,
            {
                one.name.lower(): (
                    int((contents.classes == one).sum()),
                    int(contents.size[contents.classes == one].sum()),
                )
                for one in Class
            },
            sum_up_boot_set(survey, judgement, prepared.map),
            largest_folders(contents, prepared.hints, Class.PRIVATE),
            sum_up_origins(judgement, prepared.cut, prepared.map),
            prepared.map.bytes_of_kind(Kind.UNUSED),
            prepared.map.bytes_of_kind(Kind.ZERO),
            tuple((one.what, total(one.ranges), one.reason) for one in judgement.dropped),
            len(judgement.packages),
            thin_bytes,
            find_published(prepared, np.ones(len(contents), dtype=bool)),
            judgement.errors,
            judgement.warnings,
        )
