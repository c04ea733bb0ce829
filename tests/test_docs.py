"""The pages say what the program does."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from packer import errors
from packer.artifact import media_types
from packer.artifact.contents import Class
from packer.artifact.map import Kind, decode_map, encode_map
from packer.artifact.signature import payload_of
from packer.cli import settings
from packer.cli.interrupts import INTERRUPTED
from packer.cli.main import EXIT_CODES, VERBS, build_parser
from tests.artifact.make import contents_of, map_of

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "fixtures" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
FORMAT = ROOT / "docs" / "format.md"
NOT_OF_VMPACK = {
    *("--patch-from", "--verify", "--long", "--sparse", "--scale"),
    *("--attach", "--reason"),  # virt-viewer, virsh
    "--dedupe-options",  # duperemove
}
"""Options of other programs that the pages name."""

DOCUMENTED_ELSEWHERE = {"--help"}
ROOMS = ("formats", "packer")
NO_ROOMS = {"__pycache__", "build", "dist"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def code_lines(page: Path) -> Iterator[str]:
    """Yield the lines of a page's code: between fences, or indented by four blanks."""
    fenced = False
    for line in text_of(page).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            yield line
        elif line.startswith("    "):
            yield line.removeprefix("    ")


def commands(page: Path) -> list[str]:
    return [
        line.removeprefix("$ ")
        for line in code_lines(page)
        if re.match(r"(\$ )?(\S*/)?vmpack( |$)", line)
    ]


def block_after(page: Path, marker: str) -> list[str]:
    """Return the table rows or fenced lines that follow `<!-- marker: … -->`."""
    lines = _after(page, marker, "tests/test_docs.py").split("\n\n", 1)[0].splitlines()
    if lines[0].startswith("```"):
        return lines[1 : lines.index("```", 1)]
    return lines[2:]  # without the table's head


def code_block(page: Path, marker: str, checked_by: str) -> list[str]:
    """Return the fenced lines that follow `<!-- marker: … -->`; some may be empty."""
    lines = _after(page, marker, checked_by).splitlines()
    return lines[1 : lines.index("```", 1)]


def _after(page: Path, marker: str, checked_by: str) -> str:
    _, found, rest = text_of(page).partition(f"<!-- {marker}: checked by {checked_by} -->\n")
    assert found, f"{relative(page)} has no block {marker}"
    return rest


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return {"pack": …, "trust": …, "trust add": …, …}."""
    found = dict(verbs_of(build_parser()))
    for verb, parser in list(found.items()):
        found |= {f"{verb} {action}": one for action, one in verbs_of(parser).items()}
    return found


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


ALL_COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


def test_the_pages_show_commands() -> None:
    assert len(ALL_COMMANDS) > 25


@pytest.mark.parametrize(
    ("page", "line"), ALL_COMMANDS, ids=[f"{relative(page)}: {line}" for page, line in ALL_COMMANDS]
)
def test_every_command_that_a_page_shows_is_one(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words == ["--help"]:
        return
    parsed = build_parser().parse_args(words)
    assert callable(parsed.run)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    if page == ROOT / "fixtures" / "README.md":
        return  # it names options of the fixtures' own programs
    known = set().union(*(options_of(parser) for parser in parsers().values()))
    code = " ".join([*re.findall(r"`([^`\n]+)`", text_of(page))])
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code))
    assert named - known - NOT_OF_VMPACK == set()


def test_every_option_is_explained_on_a_page() -> None:
    pages = " ".join(text_of(page) for page in PAGES)
    known = set().union(*(options_of(parser) for parser in parsers().values()))
    missing = {
        name
        for name in known
        if name.startswith("--") and name not in DOCUMENTED_ELSEWHERE and f"{name}" not in pages
    }
    assert missing <= {"--quiet", "--jobs"}  # --help says all there is to say


def test_inline_commands_name_verbs() -> None:
    for page in PAGES:
        for words in re.findall(r"`vmpack ([a-z-]+)", text_of(page)):
            assert words in VERBS, f"{relative(page)}: vmpack {words}"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_shows_an_example_that_parses(verb: str) -> None:
    parser = parsers()[verb]
    shown = parser.format_help()
    examples = (parser.epilog or "").partition("example:\n")[2].strip()
    assert examples
    assert examples in shown
    for example in examples.splitlines():
        words = shlex.split(example)
        assert words[:2] == ["vmpack", verb]
        build_parser().parse_args(words[1:])


def test_the_help_of_the_command_shows_examples_that_parse() -> None:
    epilog = build_parser().epilog or ""
    examples = re.findall(r"^  (vmpack .*)$", epilog, re.MULTILINE)
    assert len(examples) > 2
    for line in examples:
        build_parser().parse_args(shlex.split(line)[1:])


def exit_codes() -> set[int]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = {kind.exit_code for kind in kinds if issubclass(kind, errors.Error)}
    return {0, INTERRUPTED} | raised


def test_the_list_of_exit_codes_is_that_of_the_program() -> None:
    rows = block_after(ROOT / "docs" / "unpacking.md", "exit-codes")
    assert [int(cells(row)[0]) for row in rows] == sorted(exit_codes())


def test_the_help_lists_the_same_exit_codes() -> None:
    assert {int(code) for code in re.findall(r"(?<!\S)\d+(?= )", EXIT_CODES)} == exit_codes()


def test_the_readme_names_every_room() -> None:
    tree = text_of(ROOT / "README.md").partition("## The tree")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `([^`]+)/`", tree, re.MULTILINE))
    there = {relative(path) for path in ROOT.iterdir() if _is_room(path)}
    there |= {
        relative(path) for room in ROOMS for path in (ROOT / room).iterdir() if _is_room(path)
    }
    assert named == there


def _is_room(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and path.name not in NO_ROOMS


def test_the_format_names_the_media_types_of_the_program() -> None:
    names = {value for name, value in vars(media_types).items() if name.isupper()}
    page = text_of(FORMAT)
    written = set(re.findall(r"application/vnd\.(?:vmpack|dsse|oci)[\w.+-]*", page))
    written |= set(re.findall(r"org\.(?:vmpack|opencontainers)[\w.]*", page))
    assert written == names


@pytest.mark.parametrize("row", block_after(FORMAT, "bounds"), ids=lambda row: cells(row)[0])
def test_a_bound_of_the_format_is_that_of_the_program(row: str) -> None:
    _, value, constant = cells(row)
    module, _, name = constant.strip("`").rpartition(".")
    expected = int(value.split()[0].removeprefix("2^"))
    assert getattr(importlib.import_module(module), name) == expected


def test_the_example_map_of_the_format_is_what_the_program_writes() -> None:
    lines = block_after(FORMAT, "example-map")
    written = bytes.fromhex("".join(line.partition("#")[0] for line in lines))
    contents = contents_of([b"B" * 512, b"F" * 5000], [Class.BOOT, Class.PRIVATE])
    ranges = [cells(row) for row in block_after(FORMAT, "example-ranges")]
    rows = [
        (Kind[kind.upper()], int(end) - int(start), int(content or -1), int(offset or 0))
        for start, end, kind, content, offset in ranges
    ]
    assert written == encode_map(map_of(contents, rows))
    assert len(written) == 214
    assert hashlib.sha256(written).hexdigest() in text_of(FORMAT)
    read = decode_map(written)
    assert read.end.tolist() == [int(end) for _, end, *_ in ranges]
    assert np.array_equal(read.contents.digest, contents.digest)


def test_the_format_shows_the_signed_payload() -> None:
    shown = payload_of("sha256:" + "0" * 64).decode().replace("0" * 64, "…")
    assert f"    {shown}\n" in text_of(FORMAT)


def test_the_page_about_the_host_shows_every_setting() -> None:
    lines = block_after(ROOT / "docs" / "host.md", "settings")
    assert set(tomllib.loads("\n".join(lines))) == set(get_type_hints(settings._File))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_the_make_targets_that_a_page_names_exist(page: Path) -> None:
    code = [*code_lines(page), *re.findall(r"`([^`\n]+)`", text_of(page))]
    named = {found[1] for line in code if (found := re.match(r"make ([a-z-]+)", line))}
    assert named <= targets()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in text_of(ROOT / ".ci" / "run")
    assert "`make test`" in text_of(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if heading:
            assert heading in headings(file), target


def headings(page: Path) -> set[str]:
    """Return the anchors that a page's headings get: lower case, hyphens for blanks."""
    lines = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_decision_is_in_the_index_and_names_its_drawbacks() -> None:
    folder = ROOT / "docs" / "decisions"
    index = text_of(folder / "README.md")
    for page in sorted(folder.glob("[0-9]*.md")):
        assert f"({page.name})" in index
        for part in ("## Context", "## Decision", "## Consequences", "Against it:"):
            assert part in text_of(page), f"{page.name}: {part}"
