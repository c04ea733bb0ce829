"""vmpack: pack installed virtual machines, rebuild them bit for bit elsewhere.

The verbs of the command as functions: `from packer import pack, unpack, …`. They are loaded when
they are asked for: the children that parse hostile bytes import this package, too, and must not
pay for HTTP clients and cryptography.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packer.artifact.copy import CopyReport, Extent, Fit, copy_packs
    from packer.artifact.opened import OpenedPack
    from packer.artifact.want import WantReport, write_want
    from packer.errors import (
        Error,
        InputError,
        InUseError,
        MismatchError,
        MissingError,
        PolicyError,
        TrustError,
        UsageError,
    )
    from packer.inspect.diff import Difference, diff_packs
    from packer.inspect.image import ImageReport, inspect_image
    from packer.inspect.pack import PackSummary, inspect_pack
    from packer.media.device import Device, look_at
    from packer.media.fill import FillReport, fill_list
    from packer.media.write import WriteReport, write
    from packer.pack.pack import PackOptions, PackReport, pack
    from packer.sources.open import SourceOpener, open_pack
    from packer.unpack.dry_run import DryRun, dry_run
    from packer.unpack.unpack import ContentsMissingError, UnpackReport, unpack
    from packer.unpack.verify import VerifyReport, verify

_HOMES = {
    "packer.artifact.copy": ("CopyReport", "Extent", "Fit", "copy_packs"),
    "packer.artifact.opened": ("OpenedPack",),
    "packer.artifact.want": ("WantReport", "write_want"),
    "packer.errors": (
        "Error",
        "InUseError",
        "InputError",
        "MismatchError",
        "MissingError",
        "PolicyError",
        "TrustError",
        "UsageError",
    ),
    "packer.inspect.diff": ("Difference", "diff_packs"),
    "packer.inspect.image": ("ImageReport", "inspect_image"),
    "packer.inspect.pack": ("PackSummary", "inspect_pack"),
    "packer.media.device": ("Device", "look_at"),
    "packer.media.fill": ("FillReport", "fill_list"),
    "packer.media.write": ("WriteReport", "write"),
    "packer.pack.pack": ("PackOptions", "PackReport", "pack"),
    "packer.sources.open": ("SourceOpener", "open_pack"),
    "packer.unpack.dry_run": ("DryRun", "dry_run"),
    "packer.unpack.unpack": ("ContentsMissingError", "UnpackReport", "unpack"),
    "packer.unpack.verify": ("VerifyReport", "verify"),
}

__all__ = [
    "ContentsMissingError",
    "CopyReport",
    "Device",
    "Difference",
    "DryRun",
    "Error",
    "Extent",
    "FillReport",
    "Fit",
    "ImageReport",
    "InUseError",
    "InputError",
    "MismatchError",
    "MissingError",
    "OpenedPack",
    "PackOptions",
    "PackReport",
    "PackSummary",
    "PolicyError",
    "SourceOpener",
    "TrustError",
    "UnpackReport",
    "UsageError",
    "VerifyReport",
    "WantReport",
    "WriteReport",
    "copy_packs",
    "diff_packs",
    "dry_run",
    "fill_list",
    "inspect_image",
    "inspect_pack",
    "look_at",
    "open_pack",
    "pack",
    "unpack",
    "verify",
    "write",
    "write_want",
]


class _Loaded:
    """A name of the API that is loaded from its module when it is read."""

    def __init__(self, home: str, name: str) -> None:
        self._home = home
        self._name = name

    def __get__(self, module: object, owner: type) -> object:
        return getattr(import_module(self._home), self._name)

    def __set__(self, module: object, value: object) -> None:
        """Ignore the import system, which would put the folder `pack` in place of the verb."""


class _Api(ModuleType):
    """This package with the names of the API as attributes."""


for _home, _names in _HOMES.items():
    for _name in _names:
        setattr(_Api, _name, _Loaded(_home, _name))
sys.modules[__name__].__class__ = _Api
