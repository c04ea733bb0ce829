"""What is known and decided about a guest; policy as values, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.ranges import Ranges
from packer.artifact.config import Guest
from packer.artifact.hints import Package


@dataclass(frozen=True, slots=True)
class Dropped:
    """Ranges of the disk (bytes) whose loss the policy accepts."""

    what: str
    reason: str
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Judgement:
    """The policy's word on every stream of a survey; columns have one row per stream.

    path: the guest path of each row of `Survey.name` (mount points applied).
    boot: int64[n], row in `boot_reasons`, or -1 for streams outside the boot set.
    package: int64[n], row in `packages`, or -1. md5: for each stream the MD5 (16 bytes) that its
    package's record gives, or None; a control member has a package and no MD5.
    dropped: beyond the streams. refusals: why this guest must not be packed as it is (hibernated),
    each with its cure; warnings: what the author should know.
    """

    guest: Guest
    path: list[str]
    boot: NDArray[np.int64]
    boot_reasons: tuple[str, ...]
    package: NDArray[np.int64]
    md5: list[bytes | None]
    packages: tuple[Package, ...]
    dropped: tuple[Dropped, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


__all__ = ["Dropped", "Guest", "Judgement"]
