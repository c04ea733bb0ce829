"""The tree is the architecture: imports point one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Who may import whom: each layer only what stands before it. Rooms in one tuple do not know
# each other. `packer` itself holds what every room may use.
LAYERS = (
    ("formats",),
    ("packer",),
    ("packer.transport",),
    ("packer.survey",),
    ("packer.artifact",),
    ("packer.sources",),
    ("packer.guest",),
    ("packer.pack", "packer.unpack"),
    ("packer.media", "packer.run"),
    ("packer.run.disk", "packer.run.qemu", "packer.run.netboot"),
    ("packer.run.nbd",),
    ("packer.run.server",),
    ("packer.run.vm",),
    ("packer.run.supervisor",),
    ("packer.run.manage",),
    ("packer.density",),
    ("packer.inspect",),
    ("packer.cli",),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN_IN_FORMATS = {"subprocess", "socket", "requests", "urllib", "http", "asyncio"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    for length in (3, 2, 1):
        room = ".".join(parts[:length])
        if room in RANK:
            return room
    return None


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules("formats") + modules("packer"), ids=module_name)
def test_a_module_imports_only_from_its_own_room_and_those_before_it(path: Path) -> None:
    own = room_of(module_name(path))
    assert own is not None
    if path == ROOT / "packer" / "__init__.py":
        return  # the API names every verb; it loads them only when they are asked for
    for imported in imports(path):
        room = room_of(imported)
        if room is None or room == own:
            continue
        assert RANK[room] < RANK[own], f"{module_name(path)} imports {imported}"


@pytest.mark.parametrize("path", modules("formats"), ids=module_name)
def test_formats_reaches_no_network_and_starts_no_program(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & FORBIDDEN_IN_FORMATS


def test_every_folder_of_the_product_has_a_place_in_the_order() -> None:
    for package in ("formats", "packer"):
        for path in modules(package):
            assert room_of(module_name(path)) is not None, path


def test_only_the_entry_of_the_command_catches_our_errors_for_good() -> None:
    """`except Error` elsewhere must turn it into something: a fallback, a note, another error."""
    main = (ROOT / "packer" / "cli" / "main.py").read_text("utf-8")
    assert main.count("except Error") == 1
    verbs = [path for path in modules("packer/cli") if path.name != "main.py"]
    assert verbs
    for path in verbs:
        assert "except Error" not in path.read_text("utf-8"), path


STARTERS = {"Popen", "run", "call", "check_call", "check_output"}


def started_programs(path: Path) -> Iterator[ast.Call]:
    """Yield the calls of subprocess in a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "subprocess"
            and node.func.attr in STARTERS
        ):
            yield node


def test_every_program_is_started_with_an_environment_of_its_own() -> None:
    """Without one it would inherit the secrets that this process was given: packer/environment."""
    paths = modules("packer")
    programs = [(path, call) for path in paths for call in started_programs(path)]
    assert len(programs) > 5
    for path, call in programs:
        assert "env" in {one.arg for one in call.keywords}, f"{path}:{call.lineno}"
