"""`from packer import …`: the verbs as functions, with the types that they take and return."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import packer
from packer.cli.main import VERBS

ROOT = Path(__file__).parent.parent

FUNCTIONS = {
    "pack": ["pack", "load_private"],
    "inspect": ["inspect_image", "inspect_pack", "open_pack"],
    "diff": ["diff_packs"],
    "summary": ["summarise", "open_against"],
    "copy": ["copy_packs", "create_layout", "chances"],
    "push": ["copy_packs", "create_layout"],
    "pull": ["copy_packs", "create_layout"],
    "unpack": ["unpack", "dry_run", "write_want"],
    "fill": ["fill_list"],
    "update": ["update", "old_disk", "identify"],
    "write": ["write", "look_at"],
    "verify": ["verify"],
    "serve": ["serve", "ensure_server", "server_spec"],
    "netboot": ["network_boot", "serve"],
    "boot-image": ["boot_image", "boot_device", "look_at"],
    "sign": ["countersign_pack"],
    "inventory": ["take_inventory"],
    "run": ["create_vm", "known_vm", "start_vm"],
    "ps": ["look_at_vms", "all_vms"],
    "stop": ["stop_vm", "the_vm"],
    "rm": ["remove_vm", "the_vm"],
    "detach": ["detach", "the_vm"],
    "dedupe": ["dedupe"],
    "compact": ["compact"],
    "adopt": ["adopt", "forecast", "load_private"],
    "commit": ["commit", "commit_in_place", "the_vm"],
    "profile": ["profile"],
    "test": ["bench"],
    "define": ["domain_xml", "systemd_unit", "manager_of", "lasting_socket"],
    "upgrade": ["upgrade_vms", "the_vm"],
}
"""What each verb calls."""

OF_THIS_HOST = {"key", "trust", "store"}
"""These manage the host's own files."""


INSIDE = {"Contents", "DiskRecords", "Hints", "Map", "Memory", "Part", "Replaced", "Settled"}
"""Nobody has to name these: they are parts of an opened pack, what one verb hands to another, or
what this host remembers.
"""


def of_the_api(kind: type) -> Iterator[str]:
    """The names of the API that are of a kind."""
    return (name for name in packer.__all__ if isinstance(getattr(packer, name), kind))


def types_in(hint: object) -> Iterator[type]:
    """The types of ours in an annotation."""
    for one in typing.get_args(hint):
        yield from types_in(one)
    if isinstance(hint, type) and hint.__module__.startswith("packer."):
        yield hint


def test_each_verb_is_there() -> None:
    assert FUNCTIONS.keys() | OF_THIS_HOST == set(VERBS)
    for name in {name for names in FUNCTIONS.values() for name in names}:
        assert callable(getattr(packer, name)), name


@pytest.mark.parametrize("name", list(of_the_api(types.FunctionType)))
def test_what_a_function_takes_and_returns_is_there(name: str) -> None:
    function = getattr(packer, name)
    hints = typing.get_type_hints(function)
    used = {one.__name__ for hint in hints.values() for one in types_in(hint)}
    assert used - INSIDE <= set(packer.__all__)


def test_the_three_lists_of_names_are_one() -> None:
    """What is loaded, what type checkers see, and what is offered."""
    tree = ast.parse((ROOT / "packer" / "__init__.py").read_text("utf-8"))
    seen = {
        node.module: {alias.name for alias in node.names}
        for outer in tree.body
        if isinstance(outer, ast.If)
        for node in outer.body
        if isinstance(node, ast.ImportFrom)
    }
    homes = {home: set(names) for home, names in vars(packer)["_HOMES"].items()}
    assert seen == homes
    assert sorted(name for names in homes.values() for name in names) == packer.__all__


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = (
        "import packer, sys; before = set(sys.modules); packer.update; "
        "loaded = {'requests', 'cryptography', 'numpy', 'packer.unpack'} & before; "
        "assert not loaded, loaded; "
        "assert 'packer.unpack.update' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
