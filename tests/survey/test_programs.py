"""Programs on a disk are looked at by a child, and its answer is not believed unchecked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from formats.windows.pe import MAX_MODULE_NAME
from packer.columns import PackedColumn, encode_column
from packer.survey import wire
from packer.survey.child import ChildError
from packer.survey.disk import open_disk
from packer.survey.limits import Limits
from packer.survey.programs import Program, believe_programs, read_programs
from packer.survey.wire import MalformedError
from tests.formats.damage import damaged
from tests.formats.windows.make_pe import NATIVE, TIMESTAMP, Form, program
from tests.formats.windows.signing import COMMON_NAME, ORGANIZATION, make_author

CLUSTER = 4096
ZEROS = -1
DRIVER = program(
    Form(
        imports=("ntoskrnl.exe", "HAL.dll"),
        delay_imports=("ksecdd.sys",),
        forwarders=("NTDLL.RtlAllocateHeap",),
    )
)
DRIVER_FOUND = Program(
    0x8664,
    TIMESTAMP,
    0x2000,
    NATIVE,
    ("ntoskrnl.exe", "HAL.dll"),
    ("ksecdd.sys",),
    ("NTDLL.dll",),
)


def lay_out(path: Path, files: list[bytes]) -> list[NDArray[np.int64]]:
    """Write a disk with the files' clusters in an order of chance; returns their runs."""
    pieces = [
        (number, start, data[start : start + CLUSTER])
        for number, data in enumerate(files)
        for start in range(0, len(data), CLUSTER)
    ]
    places = list(range(1, len(pieces) + 1))
    random.Random(1).shuffle(places)
    runs: list[list[tuple[int, int, int]]] = [[] for _ in files]
    disk = bytearray((len(pieces) + 1) * CLUSTER)
    for (number, start, piece), place in zip(pieces, places, strict=True):
        disk[place * CLUSTER : place * CLUSTER + len(piece)] = piece
        runs[number].append((start, place * CLUSTER, len(piece)))
    path.write_bytes(disk)
    return [np.array(rows, dtype=np.int64).reshape(-1, 3) for rows in runs]


def look(path: Path, files: list[bytes], *, with_signers: bool = False) -> list[Program]:
    runs = lay_out(path, files)
    with open_disk(path) as disk:
        return read_programs(disk, runs, with_signers=with_signers)


def test_every_program_has_its_row_whatever_its_neighbours(tmp_path: Path) -> None:
    other = program(Form(imports=("HAL.dll",), is_64_bit=False))
    files = [DRIVER, b"", b"no program", other, DRIVER[:700], DRIVER + bytes(3 * CLUSTER)]
    found = look(tmp_path / "disk.raw", files)
    assert found[0] == DRIVER_FOUND
    assert found[5] == DRIVER_FOUND
    assert found[3] == Program(0x14C, TIMESTAMP, 0x2000, NATIVE, ("HAL.dll",))
    assert "expected 2 bytes" in found[1].error
    assert found[2] == Program(error=found[2].error)
    assert "no program" in found[2].error


def test_what_is_wrong_with_one_part_spoils_no_other(tmp_path: Path) -> None:
    broken = DRIVER.replace(b"NTDLL.RtlAllocateHeap", b"NTDLL_RtlAllocateHeap")
    (found,) = look(tmp_path / "disk.raw", [broken])
    assert found.imports == DRIVER_FOUND.imports
    assert found.timestamp == TIMESTAMP
    assert found.forwarders == ()
    assert "MODULE.NAME" in found.error


def test_a_module_in_a_folder_is_an_error_of_its_program(tmp_path: Path) -> None:
    found = look(tmp_path / "disk.raw", [program(Form(imports=("..\\evil.dll",))), DRIVER])
    assert found[0].imports == ()
    assert "evil.dll" in found[0].error
    assert found[1] == DRIVER_FOUND


def test_clusters_that_read_as_zeros_are_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(DRIVER + b"\xff" * CLUSTER)
    runs = np.array([(0, 0, len(DRIVER)), (len(DRIVER), ZEROS, 1 << 40)], dtype=np.int64)
    with open_disk(path, container="raw") as disk:
        assert read_programs(disk, [runs]) == [DRIVER_FOUND]


def test_signers_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "driver.sys").write_bytes(DRIVER)
    signed = make_author(tmp_path).sign(tmp_path / "driver.sys", tmp_path / "signed.sys")
    files = [DRIVER, signed.read_bytes(), signed.read_bytes()]
    unsigned, *others = look(tmp_path / "disk.raw", files, with_signers=True)
    assert unsigned == DRIVER_FOUND
    assert [(one.organization, one.common_name) for one in others] == [
        (ORGANIZATION, COMMON_NAME)
    ] * 2
    assert {one.common_name for one in look(tmp_path / "disk.raw", files)} == {""}


def test_no_programs_start_no_child(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(CLUSTER))
    with open_disk(path) as disk:
        assert read_programs(disk, [], limits=Limits(wall_seconds=0.0)) == []


def test_a_thousand_damaged_programs_are_a_thousand_rows(tmp_path: Path) -> None:
    files = list(damaged(DRIVER, [(0, len(DRIVER))], 1000))
    found = look(tmp_path / "disk.raw", [*files, DRIVER], with_signers=True)
    assert len(found) == 1001
    assert found[-1] == DRIVER_FOUND
    assert 50 < sum(1 for one in found if one.error) < 1000


def test_a_child_that_takes_too_long_is_named(tmp_path: Path) -> None:
    runs = lay_out(tmp_path / "disk.raw", [DRIVER])
    limits = Limits(wall_seconds=0.001)
    with (
        open_disk(tmp_path / "disk.raw") as disk,
        pytest.raises(ChildError, match="the PE reader took longer"),
    ):
        read_programs(disk, runs, limits=limits)


def column(*values: int) -> PackedColumn:
    return encode_column(np.array(values, dtype=np.int64))


def reply(**changes: Any) -> wire.ProgramsReply:
    """An honest answer about two programs."""
    honest = wire.ProgramsReply(
        numbers=(
            column(0x8664, 0),  # machine
            column(5, 0),  # timestamp
            column(0x2000, 0),  # size of the image
            column(1, 0),  # subsystem
            column(1, 0),  # signer
        ),
        needs=(column(0, 0, 0, 1), column(0, 0, 2, 1), column(0, 1, 0, 1)),
        modules=["ntdll.dll", "hal.dll"],
        signers=[("Example", "A Name")],
        errors=["", "odd"],
    )
    return msgspec.structs.replace(honest, **changes)


def numbers(row: int, values: PackedColumn) -> wire.Table:
    table = list(reply().numbers)
    table[row] = values
    return tuple(table)


def test_an_honest_answer_is_believed() -> None:
    data = wire.encode(reply())
    decoded = wire.decode_reply(data, wire.ProgramsReply)
    assert isinstance(decoded, wire.ProgramsReply)
    assert believe_programs(decoded, 2) == [
        Program(
            *(0x8664, 5, 0x2000, 1),
            *(("ntdll.dll", "hal.dll"), (), ("ntdll.dll",)),
            *("Example", "A Name"),
        ),
        Program(delay_imports=("hal.dll",), error="odd"),
    ]


def test_what_could_steer_a_terminal_is_replaced() -> None:
    names = {
        "modules": ["nt\x1bdll.dll", "b.dll"],
        "signers": [("a\nb", "c\x07")],
        "errors": ["", "\u202e"],
    }
    for one in believe_programs(reply(**names), 2):
        texts = (*one.imports, *one.forwarders, one.organization, one.common_name, one.error)
        assert all(text.isprintable() for text in texts)


@pytest.mark.parametrize(
    "lie",
    [
        {"numbers": reply().numbers[:4]},
        {"numbers": tuple(column(1) for _ in range(5))},
        {"numbers": numbers(0, column(1 << 32, 0))},
        {"numbers": numbers(4, column(2, 0))},
        {"needs": (column(1, 0), column(0, 0), column(0, 0))},
        {"needs": (column(0, 2), column(0, 0), column(0, 0))},
        {"needs": (column(0, 1), column(0, 3), column(0, 0))},
        {"needs": (column(0, 1), column(0, 0), column(0, 2))},
        {"needs": (column(0, 1), column(0), column(0, 0))},
        {"needs": (PackedColumn(0, 1 << 30, b""),) * 3},
        {"modules": ["a.dll", "x" * (MAX_MODULE_NAME + 1)]},
        {"modules": ["a.dll", "../b.dll"]},
        {"modules": ["a.dll", "c:\\b.dll"]},
        {"signers": [("x" * 257, "")]},
        {"signers": [("a", "b")] * 3},
        {"errors": [""]},
        {"errors": ["", "x" * (wire.MAX_TEXT_CHARACTERS + 1)]},
    ],
)
def test_a_lie_is_noticed(lie: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        believe_programs(reply(**lie), 2)
