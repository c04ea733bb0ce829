"""What is known and decided about a guest; policy as values, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from formats.ranges import Ranges
from packer.artifact.config import Guest
from packer.artifact.hints import Package
from packer.guest.expected import Expected


@dataclass(frozen=True, slots=True)
class Dropped:
    """Ranges of the disk (bytes) whose loss the policy accepts."""

    what: str
    reason: str
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Origin:
    """Where streams come from, in words: if they turn out to be shared, and if private.

    "" where the one cannot be, except by way of another file with the same bytes.
    """

    shared: str
    private: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The policy's word on every stream of a survey; columns have one row per stream.

    path: the guest path of each row of `Survey.name` (mount points applied).
    boot: int64[n], row in `boot_reasons`, or -1 for streams outside the boot set. boot_rules:
    stream -> the rule that put it there, "KIND" or "KIND: of what", where there is more to say.
    package: int64[n], row in `packages`, or -1. expected: for each stream what a record of the
    guest says it hashes to, or None; a stream with a package and None is believed to be its.
    origin: int64[n], row in `origins`, or -1: what else is known of where a stream comes from.
    dropped: beyond the streams. refusals: why this guest must not be packed as it is (hibernated),
    each with its cure; errors: why it will not start, wherever it is rebuilt; warnings: what the
    author should know.
    """

    guest: Guest
    path: list[str]
    boot: NDArray[np.int64]
    boot_reasons: tuple[str, ...]
    package: NDArray[np.int64]
    expected: list[Expected | None]
    packages: tuple[Package, ...]
    origin: NDArray[np.int64]
    origins: tuple[Origin, ...]
    dropped: tuple[Dropped, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    boot_rules: Mapping[int, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


__all__ = ["Dropped", "Guest", "Judgement"]
