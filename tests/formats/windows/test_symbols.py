"""Paths in a symbol store, as Microsoft's documents and other programs form them."""

from __future__ import annotations

import pytest

from formats.errors import Unsupported
from formats.windows.symbols import compressed_path, symbol_path


@pytest.mark.parametrize(
    ("name", "timestamp", "size", "path"),
    [
        ("ntdll.dll", 0x5D69A3D8, 0x1F4000, "ntdll.dll/5D69A3D81f4000/ntdll.dll"),
        # the example of SSQP_Key_Conventions.md, whose text asks for upper case in the timestamp
        ("foo.exe", 0x542D5742, 0x32000, "foo.exe/542D574232000/foo.exe"),
        # microsoft/perfview, pull request 2417: the timestamp keeps its leading zero
        (
            "SystemSettings.dll",
            0x0D9F641E,
            0x599000,
            "SystemSettings.dll/0D9F641E599000/SystemSettings.dll",
        ),
    ],
)
def test_a_program_is_named_by_timestamp_and_size(
    name: str, timestamp: int, size: int, path: str
) -> None:
    assert symbol_path(name, timestamp, size) == path


def test_a_compressed_file_ends_in_an_underscore() -> None:
    path = symbol_path("ntdll.dll", 0x5D69A3D8, 0x1F4000)
    assert compressed_path(path) == "ntdll.dll/5D69A3D81f4000/ntdll.dl_"
    assert compressed_path("foo.pdb/1/foo.pdb") == "foo.pdb/1/foo.pd_"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b.dll", "..\\b.dll", "a\0b"])
def test_a_path_is_no_name(name: str) -> None:
    with pytest.raises(Unsupported):
        symbol_path(name, 0, 0)


@pytest.mark.parametrize(("timestamp", "size"), [(-1, 0), (1 << 32, 0), (0, 1 << 32)])
def test_fields_have_32_bits(timestamp: int, size: int) -> None:
    with pytest.raises(ValueError, match="TimeDateStamp"):
        symbol_path("a.dll", timestamp, size)
