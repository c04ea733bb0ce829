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
    from packer.artifact.copy import Copied, CopyReport, Extent, Fit, copy_packs
    from packer.artifact.countersign import SignReport, countersign_pack
    from packer.artifact.keys import PrivateKey, load_private
    from packer.artifact.layout.base import LayoutWriter
    from packer.artifact.layout.extras import Extra
    from packer.artifact.layout.open import create_layout
    from packer.artifact.opened import OpenedPack
    from packer.artifact.want import WantReport, write_want
    from packer.density.compact import CompactReport, compact
    from packer.density.dedupe import DedupeReport, dedupe
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
    from packer.inspect.summary import Summary, summarise
    from packer.media.chances import chances
    from packer.media.device import Device, look_at
    from packer.media.fill import FillReport, fill_list
    from packer.media.write import WriteReport, write
    from packer.pack.against import Against, open_against
    from packer.pack.pack import PackOptions, PackReport, pack
    from packer.progress import Progress
    from packer.run.control import Control
    from packer.run.control_protocol import Hello, ServerStatus
    from packer.run.ensure import ensure_server
    from packer.run.server import Listening, Served, serve
    from packer.run.spec import ServerAddress, ServerSpec, server_spec
    from packer.sources.base import Source
    from packer.sources.inventory import Inventory, take_inventory
    from packer.sources.open import SourceOpener, open_pack
    from packer.sources.store import Store
    from packer.unpack.dry_run import DryRun, dry_run
    from packer.unpack.gather import Supplied
    from packer.unpack.unpack import ContentsMissingError, UnpackReport, unpack
    from packer.unpack.update import (
        Held,
        OldDisk,
        UpdateReport,
        Version,
        identify,
        old_disk,
        update,
    )
    from packer.unpack.verify import VerifyReport, verify

_HOMES = {
    "packer.artifact.copy": ("Copied", "CopyReport", "Extent", "Fit", "copy_packs"),
    "packer.artifact.countersign": ("SignReport", "countersign_pack"),
    "packer.artifact.keys": ("PrivateKey", "load_private"),
    "packer.artifact.layout.base": ("LayoutWriter",),
    "packer.artifact.layout.extras": ("Extra",),
    "packer.artifact.layout.open": ("create_layout",),
    "packer.artifact.opened": ("OpenedPack",),
    "packer.artifact.want": ("WantReport", "write_want"),
    "packer.density.compact": ("CompactReport", "compact"),
    "packer.density.dedupe": ("DedupeReport", "dedupe"),
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
    "packer.inspect.summary": ("Summary", "summarise"),
    "packer.media.chances": ("chances",),
    "packer.media.device": ("Device", "look_at"),
    "packer.media.fill": ("FillReport", "fill_list"),
    "packer.media.write": ("WriteReport", "write"),
    "packer.pack.against": ("Against", "open_against"),
    "packer.pack.pack": ("PackOptions", "PackReport", "pack"),
    "packer.progress": ("Progress",),
    "packer.run.control": ("Control",),
    "packer.run.control_protocol": ("Hello", "ServerStatus"),
    "packer.run.ensure": ("ensure_server",),
    "packer.run.server": ("Listening", "Served", "serve"),
    "packer.run.spec": ("ServerAddress", "ServerSpec", "server_spec"),
    "packer.sources.base": ("Source",),
    "packer.sources.inventory": ("Inventory", "take_inventory"),
    "packer.sources.open": ("SourceOpener", "open_pack"),
    "packer.sources.store": ("Store",),
    "packer.unpack.dry_run": ("DryRun", "dry_run"),
    "packer.unpack.gather": ("Supplied",),
    "packer.unpack.unpack": ("ContentsMissingError", "UnpackReport", "unpack"),
    "packer.unpack.update": (
        "Held",
        "OldDisk",
        "UpdateReport",
        "Version",
        "identify",
        "old_disk",
        "update",
    ),
    "packer.unpack.verify": ("VerifyReport", "verify"),
}

__all__ = [
    "Against",
    "CompactReport",
    "ContentsMissingError",
    "Control",
    "Copied",
    "CopyReport",
    "DedupeReport",
    "Device",
    "Difference",
    "DryRun",
    "Error",
    "Extent",
    "Extra",
    "FillReport",
    "Fit",
    "Held",
    "Hello",
    "ImageReport",
    "InUseError",
    "InputError",
    "Inventory",
    "LayoutWriter",
    "Listening",
    "MismatchError",
    "MissingError",
    "OldDisk",
    "OpenedPack",
    "PackOptions",
    "PackReport",
    "PackSummary",
    "PolicyError",
    "PrivateKey",
    "Progress",
    "Served",
    "ServerAddress",
    "ServerSpec",
    "ServerStatus",
    "SignReport",
    "Source",
    "SourceOpener",
    "Store",
    "Summary",
    "Supplied",
    "TrustError",
    "UnpackReport",
    "UpdateReport",
    "UsageError",
    "VerifyReport",
    "Version",
    "WantReport",
    "WriteReport",
    "chances",
    "compact",
    "copy_packs",
    "countersign_pack",
    "create_layout",
    "dedupe",
    "diff_packs",
    "dry_run",
    "ensure_server",
    "fill_list",
    "identify",
    "inspect_image",
    "inspect_pack",
    "load_private",
    "look_at",
    "old_disk",
    "open_against",
    "open_pack",
    "pack",
    "serve",
    "server_spec",
    "summarise",
    "take_inventory",
    "unpack",
    "update",
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
