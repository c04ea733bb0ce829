"""Where this host keeps what belongs to vmpack: settings, memory, caches, data.

VMPACK_HOME puts all of them below one folder: for tests, for a stick that is carried around, for
a second set of settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

_NAME = "vmpack"
_NO_HOME = Path("/nonexistent")
"""The home of users who have none (Debian Policy 9.2.2): nothing is found there, nothing kept."""


def config_dir() -> Path:
    """Return the folder of settings, keys and trust; it may not exist yet."""
    return _folder("config", platformdirs.user_config_dir)


def state_dir() -> Path:
    """Return the folder of what must be remembered between runs; it may not exist yet."""
    return _folder("state", platformdirs.user_state_dir)


def cache_dir() -> Path:
    """Return the folder of what can be made again; it may not exist yet."""
    return _folder("cache", platformdirs.user_cache_dir)


def packages_dir() -> Path:
    """Return the folder of the package files that were fetched; it may not exist yet."""
    return cache_dir() / "packages"


def media_dir() -> Path:
    """Return the folder where parts of media are unpacked for a while; it may not exist yet."""
    return cache_dir() / "media"


def data_dir() -> Path:
    """Return the folder of the store and of VMs; it may not exist yet."""
    return _folder("data", platformdirs.user_data_dir)


def _folder(kind: str, usual: Callable[[str], str]) -> Path:
    home = os.environ.get("VMPACK_HOME", "")
    if home:
        return Path(home).absolute() / kind
    try:
        folder = Path(usual(_NAME))
    except RuntimeError:  # neither HOME nor the list of users says where this user is at home
        return _NO_HOME / kind
    return folder if folder.is_absolute() else _NO_HOME / kind
