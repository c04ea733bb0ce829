"""How Windows compares names: of files, of registry keys and values."""

from __future__ import annotations


def fold(name: str) -> str:
    """Return a name in the form in which Windows compares names: upper case, letter by letter."""
    if name.isascii():
        return name.upper()
    return "".join(upper if len(upper := letter.upper()) == 1 else letter for letter in name)
