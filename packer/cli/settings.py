"""The user's settings: `config.toml` in vmpack's config folder.

sources = ["store:", "dir:/usr", "https://mirror.example/demo/"]   # instead of the defaults
store = "/srv/vmpack/store"
jobs = 2
accelerator = "tcg"                                                # of `vmpack run`
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from packer import host
from packer.errors import UsageError

MAX_JOBS = 256
"""Each job keeps some MiB in memory and a thread; more of them only wait for each other."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    sources: list[str] = []
    store: str = ""
    jobs: int = 0
    accelerator: Literal["", "auto", "kvm", "hvf", "whpx", "tcg"] = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """sources: URIs to use when none is named on the command line. store: folder, or None.

    accelerator: of VMs, "auto" to find one by trying; None when the file does not say.
    """

    sources: tuple[str, ...]
    store: Path | None
    jobs: int | None
    accelerator: Literal["auto", "kvm", "hvf", "whpx", "tcg"] | None = None


def load_settings() -> Settings:
    """Return the settings, empty when there is no file. Raises UsageError for a bad one."""
    path = host.config_dir() / "config.toml"
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Settings((), None, None)
    except PermissionError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}",
            hint="if HOME is somebody else's, name a folder of your own with VMPACK_HOME",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    try:
        found = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}") from error
    if not 0 <= found.jobs <= MAX_JOBS:
        raise UsageError(f"{path}: jobs: expected 1 to {MAX_JOBS}, found {found.jobs}")
    return Settings(
        tuple(found.sources),
        Path(found.store) if found.store else None,
        found.jobs or None,
        found.accelerator or None,
    )
