"""Where this host keeps what belongs to vmpack: settings, memory, caches, data.

VMPACK_HOME puts all of them below one folder: for tests, for a stick that is carried around, for
a second set of settings.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

_NAME = "vmpack"


def config_dir() -> Path:
    """Return the folder of settings, keys and trust; it may not exist yet."""
    return _home("config") or Path(platformdirs.user_config_dir(_NAME))


def state_dir() -> Path:
    """Return the folder of what must be remembered between runs; it may not exist yet."""
    return _home("state") or Path(platformdirs.user_state_dir(_NAME))


def cache_dir() -> Path:
    """Return the folder of what can be made again; it may not exist yet."""
    return _home("cache") or Path(platformdirs.user_cache_dir(_NAME))


def packages_dir() -> Path:
    """Return the folder of the package files that were fetched; it may not exist yet."""
    return cache_dir() / "packages"


def data_dir() -> Path:
    """Return the folder of the store and of VMs; it may not exist yet."""
    return _home("data") or Path(platformdirs.user_data_dir(_NAME))


def _home(kind: str) -> Path | None:
    home = os.environ.get("VMPACK_HOME", "")
    return Path(home).absolute() / kind if home else None
