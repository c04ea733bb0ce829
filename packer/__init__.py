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
    from packer.density.adopt import AdoptOptions, AdoptReport, adopt
    from packer.density.compact import CompactReport, compact
    from packer.density.dedupe import DedupeReport, dedupe
    from packer.density.forecast import Forecast, forecast
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
    from packer.media.boot_image import BootImageReport, boot_device, boot_image
    from packer.media.chances import chances
    from packer.media.device import Device, look_at
    from packer.media.fill import FillReport, fill_list
    from packer.media.write import WriteReport, write
    from packer.pack.against import Against, open_against
    from packer.pack.pack import PackOptions, PackReport, pack
    from packer.progress import Progress
    from packer.run.manage.commit import commit, commit_in_place
    from packer.run.manage.detach import DetachReport, detach
    from packer.run.manage.libvirt import domain_xml
    from packer.run.manage.overview import VmReport, look_at_vms
    from packer.run.manage.profile import ProfileOptions, ProfileReport, profile
    from packer.run.manage.remove import remove_vm
    from packer.run.manage.session import RunningVm, start_vm, stop_vm
    from packer.run.manage.trial import Bench, Goal, Trial, bench
    from packer.run.manage.unit import Manager, lasting_socket, manager_of, systemd_unit
    from packer.run.manage.upgrade import Upgraded, upgrade_vms
    from packer.run.netboot.script import Place
    from packer.run.netboot.service import NetworkBoot, NetworkBootServer, Offer, network_boot
    from packer.run.server.control import Control
    from packer.run.server.control_protocol import Hello, ServerStatus
    from packer.run.server.ensure import ensure_server
    from packer.run.server.serve import Beside, Listening, Served, serve
    from packer.run.server.spec import ServerAddress, ServerSpec, server_spec
    from packer.run.supervisor.link import Ended
    from packer.run.vm.create import DiskOrigin, Wishes, create_vm, known_vm
    from packer.run.vm.vm import DamagedVm, Vm, all_vms, the_vm
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
    "packer.density.adopt": ("AdoptOptions", "AdoptReport", "adopt"),
    "packer.density.compact": ("CompactReport", "compact"),
    "packer.density.dedupe": ("DedupeReport", "dedupe"),
    "packer.density.forecast": ("Forecast", "forecast"),
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
    "packer.media.boot_image": ("BootImageReport", "boot_device", "boot_image"),
    "packer.media.chances": ("chances",),
    "packer.media.device": ("Device", "look_at"),
    "packer.media.fill": ("FillReport", "fill_list"),
    "packer.media.write": ("WriteReport", "write"),
    "packer.pack.against": ("Against", "open_against"),
    "packer.pack.pack": ("PackOptions", "PackReport", "pack"),
    "packer.progress": ("Progress",),
    "packer.run.manage.commit": ("commit", "commit_in_place"),
    "packer.run.server.control": ("Control",),
    "packer.run.server.control_protocol": ("Hello", "ServerStatus"),
    "packer.run.vm.create": ("DiskOrigin", "Wishes", "create_vm", "known_vm"),
    "packer.run.manage.detach": ("DetachReport", "detach"),
    "packer.run.supervisor.link": ("Ended",),
    "packer.run.server.ensure": ("ensure_server",),
    "packer.run.manage.libvirt": ("domain_xml",),
    "packer.run.netboot.script": ("Place",),
    "packer.run.netboot.service": ("NetworkBoot", "NetworkBootServer", "Offer", "network_boot"),
    "packer.run.manage.overview": ("VmReport", "look_at_vms"),
    "packer.run.manage.profile": ("ProfileOptions", "ProfileReport", "profile"),
    "packer.run.manage.remove": ("remove_vm",),
    "packer.run.server.serve": ("Beside", "Listening", "Served", "serve"),
    "packer.run.manage.session": ("RunningVm", "start_vm", "stop_vm"),
    "packer.run.server.spec": ("ServerAddress", "ServerSpec", "server_spec"),
    "packer.run.manage.trial": ("Bench", "Goal", "Trial", "bench"),
    "packer.run.manage.unit": ("Manager", "lasting_socket", "manager_of", "systemd_unit"),
    "packer.run.manage.upgrade": ("Upgraded", "upgrade_vms"),
    "packer.run.vm.vm": ("DamagedVm", "Vm", "all_vms", "the_vm"),
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
    "AdoptOptions",
    "AdoptReport",
    "Against",
    "Bench",
    "Beside",
    "BootImageReport",
    "CompactReport",
    "ContentsMissingError",
    "Control",
    "Copied",
    "CopyReport",
    "DamagedVm",
    "DedupeReport",
    "DetachReport",
    "Device",
    "Difference",
    "DiskOrigin",
    "DryRun",
    "Ended",
    "Error",
    "Extent",
    "Extra",
    "FillReport",
    "Fit",
    "Forecast",
    "Goal",
    "Held",
    "Hello",
    "ImageReport",
    "InUseError",
    "InputError",
    "Inventory",
    "LayoutWriter",
    "Listening",
    "Manager",
    "MismatchError",
    "MissingError",
    "NetworkBoot",
    "NetworkBootServer",
    "Offer",
    "OldDisk",
    "OpenedPack",
    "PackOptions",
    "PackReport",
    "PackSummary",
    "Place",
    "PolicyError",
    "PrivateKey",
    "ProfileOptions",
    "ProfileReport",
    "Progress",
    "RunningVm",
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
    "Trial",
    "TrustError",
    "UnpackReport",
    "UpdateReport",
    "Upgraded",
    "UsageError",
    "VerifyReport",
    "Version",
    "Vm",
    "VmReport",
    "WantReport",
    "Wishes",
    "WriteReport",
    "adopt",
    "all_vms",
    "bench",
    "boot_device",
    "boot_image",
    "chances",
    "commit",
    "commit_in_place",
    "compact",
    "copy_packs",
    "countersign_pack",
    "create_layout",
    "create_vm",
    "dedupe",
    "detach",
    "diff_packs",
    "domain_xml",
    "dry_run",
    "ensure_server",
    "fill_list",
    "forecast",
    "identify",
    "inspect_image",
    "inspect_pack",
    "known_vm",
    "lasting_socket",
    "load_private",
    "look_at",
    "look_at_vms",
    "manager_of",
    "network_boot",
    "old_disk",
    "open_against",
    "open_pack",
    "pack",
    "profile",
    "remove_vm",
    "serve",
    "server_spec",
    "start_vm",
    "stop_vm",
    "summarise",
    "systemd_unit",
    "take_inventory",
    "the_vm",
    "unpack",
    "update",
    "upgrade_vms",
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
