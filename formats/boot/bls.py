"""Boot Loader Specification entries: the files below `loader/entries`.

Source: UAPI.1 Boot Loader Specification, "Type #1 Boot Loader Specification Entries".
"""

from __future__ import annotations

from dataclasses import dataclass

from formats.boot.entry import Entry as MenuEntry
from formats.errors import Unsupported

MAX_ENTRY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; paths are as written, from the root of the entry's own partition.

    title, version, machine_id, options: for people and for choosing; several options are joined.
    initrd: in order. devicetree_overlay: in order.
    """

    title: str
    version: str
    machine_id: str
    linux: str
    initrd: tuple[str, ...]
    efi: str
    uki: str
    devicetree: str
    devicetree_overlay: tuple[str, ...]
    options: str

    @property
    def paths(self) -> tuple[str, ...]:
        """All files that the entry needs, without those that name a variable of GRUB's."""
        one = (self.linux, self.efi, self.uki, self.devicetree)
        every = (*one, *self.initrd, *self.devicetree_overlay)
        return tuple(path for path in every if path and "$" not in path)

    @property
    def menu_entry(self) -> MenuEntry | None:
        """Return it as a line of a menu, or None when it starts no Linux kernel by itself."""
        if not self.linux:
            return None
        return MenuEntry(self.title, self.linux, self.initrd, tuple(self.options.split()))


def parse_entry(data: bytes) -> Entry:
    """Return the entry in the text; unknown keys are skipped; raises Unsupported above 1 MiB."""
    if len(data) > MAX_ENTRY_BYTES:
        raise Unsupported("boot loader entry", 0, f"{len(data)} bytes")
    values: dict[str, list[str]] = {}
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        words = line.split(None, 1)
        if len(words) == 2 and not words[0].startswith("#"):
            values.setdefault(words[0], []).append(words[1].strip())

    def last(key: str) -> str:
        return values.get(key, [""])[-1]

    def every(key: str) -> tuple[str, ...]:
        # Fedora's entries put several files into one line
        return tuple(path for value in values.get(key, []) for path in value.split())

    return Entry(
        title=last("title"),
        version=last("version"),
        machine_id=last("machine-id"),
        linux=last("linux"),
        initrd=every("initrd"),
        efi=last("efi"),
        uki=last("uki"),
        devicetree=last("devicetree"),
        devicetree_overlay=every("devicetree-overlay"),
        options=" ".join(values.get("options", [])),
    )
