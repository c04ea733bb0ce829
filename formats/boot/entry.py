"""What every boot menu of a Linux system says, in whichever language: entries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a boot menu.

    kernel: path as written, without the device in front. initrds: in order, likewise. arguments:
    the words of the kernel's command line; some may hold variables of the loader's ("$name").
    """

    title: str
    kernel: str
    initrds: tuple[str, ...]
    arguments: tuple[str, ...]
