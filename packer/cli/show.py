"""Lines that several verbs print alike."""

from __future__ import annotations

from packer.artifact.config import Guest


def guest_line(guest: Guest) -> str:
    """Return what is installed, in a line: "Debian GNU/Linux 12 (bookworm), x86_64, bios"."""
    name = guest.name or " ".join(part for part in (guest.id, guest.release) if part)
    words = [name or f"{guest.family} guest", guest.architecture, guest.firmware]
    return ", ".join(word for word in words if word)
