"""WimBootCompress.ini: the guest's own word on which files its loaders read.

Sources: Microsoft, "DISM Configuration List and WimScript.ini Files" (sections and patterns: one
that begins with a backslash is a whole path, any other one a name; `*` and `?`); wimlib,
`src/pattern.c` and `wimcapture(1)`, which read the same lists; what stands in it: see the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

from packer.guest.tree import Tree
from packer.guest.windows.patterns import any_of

LIST = "/System32/WimBootCompress.ini"
SECTION = "[prepopulatelist]"
MAX_LIST_BYTES = 256 << 10  # real ones have 3 kB
MAX_PATTERNS = 200
MAX_COMPARISONS = 4_000_000
"""Names times patterns with wildcards; 300,000 names and the usual four patterns are a third."""


def parse_prepopulate_list(data: bytes) -> tuple[str, ...]:
    """Return the patterns of [PrepopulateList], in lower case, with slashes.

    At most MAX_PATTERNS; the file may be in UTF-16 or UTF-8, with or without a mark.
    """
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16" if wide else "utf-8-sig", "replace")
    section = ""
    patterns: dict[str, None] = {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.casefold()
        elif line and not line.startswith((";", "#")) and section == SECTION:
            patterns[line.strip('"').casefold().replace("\\", "/")] = None
        if len(patterns) == MAX_PATTERNS:
            break
    return tuple(patterns)


def find_prepopulated(tree: Tree, volume: int, folder: str) -> Iterator[tuple[str, int]]:
    """Yield (path, stream) of each file of the boot volume that the guest's own list names.

    folder: of Windows. What goes beyond MAX_COMPARISONS is not looked at, with a warning.
    """
    path = folder + LIST
    stream = tree.stream_in(volume, path)
    if stream is None:
        return
    data = tree.read_stream(stream, MAX_LIST_BYTES, path)
    patterns = parse_prepopulate_list(data)
    wild = [one for one in patterns if "*" in one or "?" in one]
    plain = frozenset(patterns).difference(wild)
    of_paths = any_of(one for one in wild if one.startswith("/"))
    of_names = any_of(one for one in wild if not one.startswith("/"))
    left = MAX_COMPARISONS
    for name, one in tree.below_in(volume, ""):
        folded = name.casefold()
        last = folded.rpartition("/")[2]
        left -= len(wild)
        if left < 0:
            tree.warn(f"{path} is not followed to its end: too many files and patterns")
            return
        if {folded, last} & plain or of_paths.match(folded) or of_names.match(last):
            yield name, one
