"""What programs of the boot set import, and what that imports: rule 9."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from packer.guest.tree import Tree
from packer.survey.examine import Examiner
from packer.survey.programs import Program

FOLDERS = ("/System32/drivers", "/System32")
"""Below Windows, in the order in which the loader looks for a module that a driver imports."""

API_SETS = ("api-ms-", "ext-ms-")
"""Names that stand for a module: the schema in apisetschema.dll says for which (Microsoft, "Windows
API sets"). There need not be a file of that name."""

MAX_ROUNDS = 64
MAX_PROGRAMS = 20_000
"""Bounds for what a guest can make up; the boot set of Windows 11 has 500 programs."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A program that another one needs. by: name of the first one that was found to need it."""

    path: str
    stream: int
    by: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A module that a program needs and that lies in none of the FOLDERS."""

    module: str
    by: str


def find_imported(
    tree: Tree,
    examiner: Examiner,
    volume: int,
    folder: str,
    first: Iterable[tuple[str, int]],
) -> Iterator[Imported | Lost]:
    """Yield every program that the first ones need, at once or at last, and what is not there.

    folder: of Windows on its volume. first: (path, stream) of programs of the boot set.
    Raises InputError when no program can be read.
    """
    names = {stream: _name(path) for path, stream in first}
    left = list(names)[:MAX_PROGRAMS]
    lost: set[str] = set()
    for _ in range(MAX_ROUNDS):
        if not left:
            return
        found: dict[int, str] = {}  # stream -> name
        for stream, program in zip(left, examiner.programs(left), strict=True):
            for module in _needs(program):
                place = _look_up(tree, volume, folder, module)
                if place is None:
                    if module not in lost and not module.startswith(API_SETS):
                        lost.add(module)
                        yield Lost(module, names[stream])
                elif place[1] not in names and place[1] not in found:
                    found[place[1]] = module
                    yield Imported(place[0], place[1], names[stream])
        names.update(found)
        left = list(found)
        if len(names) > MAX_PROGRAMS:
            break
    tree.warn(f"not all imports of the boot set are followed: more than {MAX_PROGRAMS} programs")


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _needs(program: Program) -> dict[str, None]:
    names = (*program.imports, *program.delay_imports, *program.forwarders)
    return {name.casefold(): None for name in names}


def _look_up(tree: Tree, volume: int, folder: str, module: str) -> tuple[str, int] | None:
    for place in FOLDERS:
        path = f"{folder}{place}/{module}"
        stream = tree.stream_in(volume, path)
        if stream is not None:
            return path, stream
    return None
