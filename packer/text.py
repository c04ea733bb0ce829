"""Words and numbers for people: sizes and tables on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence


def format_bytes(count: int) -> str:
    """Return a number of bytes for people, in decimal units ("3.2 GB")."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text from a guest or a pack as a terminal may show it: no control characters."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def format_table(rows: Sequence[Sequence[str]], align: str, *, indent: int = 2) -> str:
    """Return rows as aligned columns; align has one of "<" and ">" for each column."""
    if not rows:
        return ""
    widths = [max(len(row[number]) for row in rows) for number in range(len(align))]
    lines = []
    for row in rows:
        cells = [
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
