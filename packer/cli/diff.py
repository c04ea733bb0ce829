"""vmpack diff: why is one of two packs bigger?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from packer.cli.options import add_common, add_verb, print_json
from packer.errors import UsageError
from packer.inspect.diff import UNOWNED, Amount, Difference, Row, Side, diff_packs
from packer.inspect.files import FOLDER_PARTS
from packer.sources.open import open_pack
from packer.text import format_bytes, format_table, printable

ROWS_SHOWN = 12
MAX_WORDS = 64
"""Characters of a path or package that are shown; the end of a path tells more than its start."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "diff",
        "show why one of two packs is bigger",
        "vmpack diff demo-v1.vmpack demo-v2.vmpack",
    )
    parser.add_argument("old", help="file, folder or URL of a pack")
    parser.add_argument("new", help="the pack to compare with it, such as the next version")
    parser.add_argument(
        "--top",
        type=int,
        default=ROWS_SHOWN,
        metavar="N",
        help="rows of each table (default: %(default)s)",
    )
    parser.add_argument(
        "--depth",
        type=int,
        default=FOLDER_PARTS,
        metavar="N",
        help="sum folders up at this depth (default: %(default)s, such as /usr/share/doc)",
    )
    add_common(parser, jobs=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare."""
    for name in ("top", "depth"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: expected at least 1")
    with open_pack(options.old) as old, open_pack(options.new) as new:
        found = diff_packs(old, new, depth=options.depth)
    if options.json:
        print_json(_as_json(found))
    else:
        _print(found, options.top)
    return 0


def _print(found: Difference, top: int) -> None:
    for side in (found.old, found.new):
        print(f"{printable(side.location)}  {format_bytes(side.stored_bytes)}")
        print(f"  {side.ref_name}  {side.identity}")
    if found.old.identity == found.new.identity:
        print("the same pack: copies differ only in what they carry")
    else:
        _print_difference(found.differing)
    _print_classes(found)
    _print_table("by package", found.packages, top)
    _print_table("by folder", found.folders, top)
    _print_table("by file, the largest that are new or gone", found.files, top)


def _print_difference(row: Row) -> None:
    more = row.difference_bytes
    words = f"{format_bytes(abs(more))} {'more' if more > 0 else 'less'}" if more else "as much"
    print(
        f"{row.new.contents:,} contents of {format_bytes(row.new.size_bytes)} are new, "
        f"{row.old.contents:,} of {format_bytes(row.old.size_bytes)} are gone: {words} in all"
    )


def _print_classes(found: Difference) -> None:
    old, new = found.old, found.new
    rows = [
        ("", "", "", "contents", "", "", "", "stored"),
        ("", "old", "new", "difference", "", "old", "new", "difference"),
        *(_class_row(row.what, row) for row in found.classes),
    ]
    for what, before, after in (
        ("carried, not used", old.idle_bytes, new.idle_bytes),
        ("deltas", old.delta_bytes, new.delta_bytes),
        ("map, hints, index", old.table_bytes, new.table_bytes),
    ):
        if before or after:
            rows.append((what, "", "", "", "", *_three(before, after)))
    contents = _three(old.whole.size_bytes, new.whole.size_bytes)
    rows.append(("in all", *contents, "", *_three(old.stored_bytes, new.stored_bytes)))
    print("\nby class")
    print(format_table(rows, "<>>>>>>>"))


def _class_row(what: str, row: Row) -> tuple[str, ...]:
    more = row.stored_difference_bytes
    return (
        what,
        *_three(row.old.size_bytes, row.new.size_bytes),
        "",
        _stored(row.old),
        _stored(row.new),
        "" if more is None else _signed(more),
    )


def _print_table(title: str, rows: Sequence[Row], top: int) -> None:
    if not rows:
        return
    named = [row for row in rows if row.what not in UNOWNED]
    cells = [_cells(row) for row in named[:top]]
    if len(named) > top:
        cells.append(_cells(_together(named[top:], f"{len(named) - top:,} more")))
    cells += [_cells(row) for row in rows if row.what in UNOWNED]
    print(f"\n{title}")
    head = ("", "", "gone", "new", "difference", "as stored")
    print(format_table([head, *cells], "<<>>>>"))


def _cells(row: Row) -> tuple[str, ...]:
    more = row.stored_difference_bytes
    return (
        _short(row.what),
        _short(row.change),
        format_bytes(row.old.size_bytes) if row.old.contents else "",
        format_bytes(row.new.size_bytes) if row.new.contents else "",
        _signed(row.difference_bytes),
        "not carried" if more is None else _signed(more),
    )


def _together(rows: Sequence[Row], what: str) -> Row:
    return Row(what, "", _sum([row.old for row in rows]), _sum([row.new for row in rows]))


def _sum(amounts: Sequence[Amount]) -> Amount:
    stored = [one.stored_bytes for one in amounts if one.stored_bytes is not None]
    return Amount(
        sum(one.contents for one in amounts),
        sum(one.size_bytes for one in amounts),
        sum(stored) if len(stored) == len(amounts) else None,
    )


def _short(words: str) -> str:
    shown = printable(words)
    return shown if len(shown) <= MAX_WORDS else "…" + shown[1 - MAX_WORDS :]


def _stored(amount: Amount) -> str:
    return "not carried" if amount.stored_bytes is None else format_bytes(amount.stored_bytes)


def _three(old: int, new: int) -> tuple[str, str, str]:
    return format_bytes(old), format_bytes(new), _signed(new - old)


def _signed(count: int) -> str:
    sign = "+" if count > 0 else "-" if count < 0 else ""
    return sign + format_bytes(abs(count))


def _as_json(found: Difference) -> dict[str, object]:
    return {
        "old": _side_as_json(found.old),
        "new": _side_as_json(found.new),
        "difference_bytes": found.differing.difference_bytes,
        "repacked_bytes": found.repacked_bytes,
        "differing": _row_as_json(found.differing),
        "classes": [_row_as_json(row) for row in found.classes],
        "packages": [_row_as_json(row) for row in found.packages],
        "folders": [_row_as_json(row) for row in found.folders],
        "files": [_row_as_json(row) for row in found.files],
    }


def _side_as_json(side: Side) -> dict[str, object]:
    return {
        "location": side.location,
        "name": side.ref_name,
        "identity": side.identity,
        "contents": side.whole.contents,
        "bytes": side.whole.size_bytes,
        "stored_bytes": side.stored_bytes,
        "idle_bytes": side.idle_bytes,
        "delta_bytes": side.delta_bytes,
        "table_bytes": side.table_bytes,
    }


def _row_as_json(row: Row) -> dict[str, object]:
    return {
        "what": row.what,
        "change": row.change,
        "difference_bytes": row.difference_bytes,
        "stored_difference_bytes": row.stored_difference_bytes,
        "old": _amount_as_json(row.old),
        "new": _amount_as_json(row.new),
    }


def _amount_as_json(amount: Amount) -> dict[str, object]:
    return {
        "contents": amount.contents,
        "bytes": amount.size_bytes,
        "stored_bytes": amount.stored_bytes,
    }
