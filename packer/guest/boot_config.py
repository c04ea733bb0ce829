"""The boot configurations of a Linux guest, and the files they name.

A path in a configuration begins at the root of some file system that only the loader knows; so it
is looked up below every mount point, and what is there counts. Nothing is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from formats.boot import bls, grub, syslinux
from formats.errors import FormatError
from packer.guest.mounts import is_esp
from packer.guest.tree import Tree

CONFIGURATION = "boot configuration"
LOADER = "boot loader"
KERNEL = "kernel"
INITRAMFS = "initramfs"
DEVICE_TREE = "device tree"

MAX_CONFIGS = 256
MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIGS_BYTES = 4 << 20  # all together; a menu with 100 kernels takes 0.3 MB
MAX_LOOKUPS = 40_000
"""Places where named files are looked for, all together: files times mount points. A menu with 100
kernels names 400 files, of which each is looked for in two to six places."""

GRUB = "GRUB"
BLS = "Boot Loader Specification"
SYSLINUX = "SYSLINUX"

_SYSLINUX_NAMES = frozenset(("extlinux.conf", "syslinux.cfg", "isolinux.cfg"))
_GRUB_NAMES = frozenset(("menu.lst", "grub.conf"))
# Where EXTLINUX looks besides /boot (doc/extlinux.txt).
SYSLINUX_FOLDERS = ("/", "/extlinux", "/syslinux")

# GRUB's commands and SYSLINUX's keywords, in lower case. Xen's modules are kernel and initramfs.
_REASONS = {
    **dict.fromkeys(("linux", "linux16", "linuxefi", "kernel"), KERNEL),
    **dict.fromkeys(("multiboot", "multiboot2", "xen_hypervisor"), KERNEL),
    **dict.fromkeys(("initrd", "initrd16", "initrdefi"), INITRAMFS),
    **dict.fromkeys(("module", "module2", "xen_module"), INITRAMFS),
    **dict.fromkeys(("devicetree", "fdt"), DEVICE_TREE),
    **dict.fromkeys(("configfile", "legacy_configfile", "syslinux_configfile"), CONFIGURATION),
    **dict.fromkeys(("source", ".", "normal", "config", "include"), CONFIGURATION),
}


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration file: its guest path, its stream, and the language it is written in."""

    path: str
    stream: int
    language: str


@dataclass(frozen=True, slots=True)
class _Named:
    path: str
    reason: str


def find_configs(tree: Tree) -> list[Config]:
    """Return the configurations that a loader reads, at most MAX_CONFIGS."""
    return list(islice(_configs(tree), MAX_CONFIGS))


def named_files(tree: Tree, configs: list[Config]) -> Iterator[tuple[int, str]]:
    """Yield (stream, reason) of every file that the configurations name and that is there.

    What lies beyond MAX_CONFIGS_BYTES and MAX_LOOKUPS is not followed, with a warning.
    """
    left_bytes, left_lookups = MAX_CONFIGS_BYTES, MAX_LOOKUPS
    for config in configs:
        data = tree.read(config.path, min(MAX_CONFIG_BYTES, left_bytes))
        left_bytes -= len(data)
        try:
            named = list(islice(_named(config.language, data), left_lookups + 1))
        except FormatError as error:
            tree.warn(f"{config.path} is not followed: {error}")
            continue
        for one in named:
            places = _places(tree, config, one.path)
            if len(places) > left_lookups:
                tree.warn(f"{config.path} names too many files: not all of them are followed")
                break
            left_lookups -= len(places)
            for place in places:
                stream = tree.stream_of(place)
                if stream is not None:
                    yield stream, one.reason


def language_of(path: str, *, on_esp: bool = False) -> str:
    """Return which language a file in /boot or on an ESP is written in by its name, or ""."""
    folder, _, name = path.rpartition("/")
    if folder.endswith("/loader/entries") and name.endswith(".conf"):
        return BLS
    if name in _SYSLINUX_NAMES:
        return SYSLINUX
    if name.endswith(".cfg") or name in _GRUB_NAMES:
        return GRUB if on_esp or path.startswith("/boot/grub") else ""
    return ""


def _configs(tree: Tree) -> Iterator[Config]:
    for path, stream in tree.below("/boot"):
        language = language_of(path)
        if language:
            yield Config(path, stream, language)
    for mount in tree.mounts:
        if is_esp(tree.survey, mount.volume):
            for path, stream in tree.below(mount.path):
                language = language_of(path, on_esp=True)
                if language:
                    yield Config(path, stream, language)
    for folder in SYSLINUX_FOLDERS:
        for name in sorted(_SYSLINUX_NAMES):
            path = f"{folder.rstrip('/')}/{name}"
            found = tree.stream_of(path)
            if found is not None:
                yield Config(path, found, SYSLINUX)


def _named(language: str, data: bytes) -> Iterator[_Named]:
    if language == GRUB:
        for reference in grub.parse_config(data).references:
            if reference.complete:
                yield _Named(reference.path, _REASONS.get(reference.command, LOADER))
    elif language == SYSLINUX:
        for named in syslinux.parse_config(data):
            yield _Named(named.path, _REASONS.get(named.keyword.lower(), LOADER))
    else:
        entry = bls.parse_entry(data)
        for reason, paths in (
            (KERNEL, (entry.linux, entry.efi, entry.uki)),
            (INITRAMFS, entry.initrd),
            (DEVICE_TREE, (entry.devicetree, *entry.devicetree_overlay)),
        ):
            # A variable stands for a file of GRUB's environment that is not known here.
            yield from (_Named(path, reason) for path in paths if path and "$" not in path)


def _places(tree: Tree, config: Config, path: str) -> list[str]:
    if not path.startswith("/"):
        return [f"{config.path.rpartition('/')[0]}/{path}"]
    roots = {mount.path.rstrip("/") for mount in tree.mounts} | {"", "/boot"}
    return [root + path for root in sorted(roots)]
