"""Hives on a disk are read by a child, and its answer is not believed unchecked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from formats.windows.hive import Value
from formats.windows.hive_query import KeyRecord, View, Wanted, query
from packer.columns import PackedColumn, encode_column
from packer.errors import InputError
from packer.survey import wire
from packer.survey.child import ChildError
from packer.survey.disk import open_disk
from packer.survey.hives import believe_hive, read_hive
from packer.survey.limits import Limits
from packer.survey.wire import MalformedError
from tests.formats.damage import damaged
from tests.formats.windows.corpus import corpus, dirty_logs, needs_corpus
from tests.formats.windows.make_hive import at_rest, in_the_middle, new_log, with_services
from tests.hostile.harmful_hives import lists_of_lists

CLUSTER = 4096
SERVICES = Wanted("ControlSet001\\Services\\*", values=("Start",))


def lay_out(path: Path, files: Sequence[bytes]) -> list[NDArray[np.int64]]:
    """Write a disk with the files' clusters in an order of chance; returns their runs."""
    places = [(file, at) for file, data in enumerate(files) for at in range(0, len(data), CLUSTER)]
    random.Random(1).shuffle(places)
    runs: list[list[tuple[int, int, int]]] = [[] for _ in files]
    with path.open("wb") as disk:
        disk.write(b"\xee" * CLUSTER)
        for file, at in places:
            piece = files[file][at : at + CLUSTER]
            runs[file].append((at, disk.tell(), len(piece)))
            disk.write(piece.ljust(CLUSTER, b"\xee"))
    return [np.array(sorted(rows), dtype=np.int64).reshape(-1, 3) for rows in runs]


def read(
    path: Path,
    hive: bytes,
    *logs: bytes,
    wanted: Sequence[Wanted] = (SERVICES,),
    limits: Limits | None = None,
) -> View:
    primary, *others = lay_out(path, [hive, *logs])
    with open_disk(path, container="raw") as disk:
        return read_hive(disk, primary, others, wanted, limits=limits)


def test_a_fragmented_hive_is_read(tmp_path: Path) -> None:
    found = read(tmp_path / "disk.raw", at_rest())
    assert found == query(at_rest(), [], [SERVICES])
    assert len(found.keys) == 20


def test_its_logs_are_replayed(tmp_path: Path) -> None:
    torn = in_the_middle(at_rest(), 22, 21)
    log = new_log([at_rest(), with_services("late")], 22)
    found = read(tmp_path / "disk.raw", torn, b"", log)
    assert found.done == ("log 2: entries 22 to 22 applied",)
    assert found.value("ControlSet001\\Services\\late", "Start") is not None


def test_all_values_of_a_key_and_those_below_can_be_had(tmp_path: Path) -> None:
    everything = [Wanted("", depth=9)]
    found = read(tmp_path / "disk.raw", at_rest(), wanted=everything)
    assert found == query(at_rest(), [], everything)


@pytest.mark.parametrize(
    ("hive", "reason"),
    [
        (b"", "expected 512 bytes, found 0"),
        (bytes(8192), "expected b'regf'"),
        (at_rest()[:-CLUSTER], "the file ends after"),
    ],
)
def test_what_is_no_hive_is_one_error(tmp_path: Path, hive: bytes, reason: str) -> None:
    with pytest.raises(InputError, match="a registry hive on") as caught:
        read(tmp_path / "disk.raw", hive)
    assert reason in caught.value.message


def test_a_file_larger_than_any_hive_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(CLUSTER))
    runs = np.array([(0, -1, 1 << 50)], dtype=np.int64)
    with (
        open_disk(tmp_path / "disk.raw", container="raw") as disk,
        pytest.raises(InputError, match="1125899906842624 bytes, at most 268435456 are read"),
    ):
        read_hive(disk, runs, [], [SERVICES])


def test_a_log_larger_than_any_is_not_applied(tmp_path: Path) -> None:
    (primary,) = lay_out(tmp_path / "disk.raw", [in_the_middle(at_rest(), 22, 21)])
    log = np.array([(0, 0, CLUSTER), (CLUSTER, -1, 1 << 50)], dtype=np.int64)
    with open_disk(tmp_path / "disk.raw", container="raw") as disk:
        found = read_hive(disk, primary, [log], [SERVICES])
    assert found.state == "stale"
    assert "log 1 is not applied: it has 67108865 bytes" in found.warnings[0]


def test_a_child_that_uses_too_much_is_one_error(tmp_path: Path) -> None:
    """libregf follows lists of lists, for more than a second each time."""
    harmful = [Wanted(f"Victim\\child{number}") for number in range(15)]
    with pytest.raises(ChildError, match="the registry reader used more than 2 seconds of proc"):
        read(tmp_path / "disk.raw", lists_of_lists(), wanted=harmful, limits=Limits(cpu_seconds=2))


def test_a_child_without_memory_for_a_key_leaves_it_out(tmp_path: Path) -> None:
    limits = Limits(memory_bytes=400 << 20)
    wanted = [Wanted("Victim"), Wanted("Lists", values=())]
    found = read(tmp_path / "disk.raw", lists_of_lists(), wanted=wanted, limits=limits)
    assert [key.path for key in found.keys] == ["Lists"]
    assert found.warnings[0].endswith("it is left out")


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_hive_is_an_answer_or_one_error(tmp_path: Path, seed: int) -> None:
    (hive,) = damaged(at_rest(), [(0, len(at_rest()))], 1, seed)
    try:
        found = read(tmp_path / "disk.raw", hive)
    except InputError as error:
        assert type(error) is InputError  # noqa: PT017  # a reader that died is a ChildError
    else:
        assert len(found.keys) + len(found.warnings) > 0


@needs_corpus
def test_a_real_hive_with_its_logs(tmp_path: Path) -> None:
    found = read(tmp_path / "disk.raw", corpus("SYSTEM_win10_dirty"), *dirty_logs())
    starts = [value.number for key in found.keys for value in key.values]
    assert starts.count(0) == 86
    assert found.done[-1] == "log 2: entries 2111 to 2130 applied"


def column(*values: int) -> PackedColumn:
    return encode_column(np.array(values, dtype=np.int64))


def reply(**changes: Any) -> wire.HiveReply:
    """An honest answer: two keys, the second with two values."""
    honest = wire.HiveReply(
        state="clean",
        done=[],
        warnings=[],
        keys=["Select", "Setup"],
        values=(column(1, 1), column(4, 0xFFFF0012), column(4, 1)),
        names=["Number", ""],
        data=b"\1\0\0\0x",
    )
    return msgspec.structs.replace(honest, **changes)


def test_an_honest_answer_is_believed() -> None:
    decoded = wire.decode_reply(wire.encode(reply()), wire.HiveReply)
    assert isinstance(decoded, wire.HiveReply)
    assert believe_hive(decoded) == View(
        (
            KeyRecord("Select", ()),
            KeyRecord("Setup", (Value("Number", 4, b"\1\0\0\0"), Value("", 0xFFFF0012, b"x"))),
        ),
        "clean",
    )


def test_an_empty_answer_is_believed() -> None:
    nothing = reply(keys=[], values=(column(), column(), column()), names=[], data=b"")
    assert believe_hive(nothing) == View((), "clean")


def test_what_could_steer_a_terminal_is_replaced() -> None:
    found = believe_hive(reply(keys=["a\x1b", "b\n"], names=["\u202e", ""], warnings=["\x07"]))
    assert all(key.path.isprintable() for key in found.keys)
    assert all(value.name.isprintable() for key in found.keys for value in key.values)
    assert all(warning.isprintable() for warning in found.warnings)


@pytest.mark.parametrize(
    "lie",
    [
        {"state": "mended"},
        {"keys": ["Setup", "Setup"]},
        {"keys": ["Setup"]},
        {"keys": ["x" * 8193, "Setup"]},
        {"keys": [str(number) for number in range(200_001)]},
        {"names": ["Number"]},
        {"names": ["x" * 16_384, ""]},
        {"values": (column(1, 0), column(4, 4), column(4, 1))},
        {"values": (column(1, 2), column(4, 4), column(4, 1))},
        {"values": (column(1, 1), column(4, 1 << 32), column(4, 1))},
        {"values": (column(1, 1), column(4, 4), column(4, 2))},
        {"values": (column(1, 1), column(4, 4), column(4, 0))},
        {"values": (column(1, 1), column(4, 4))},
        {"values": (column(1, 1), column(4, 4), column(4))},
        {"values": (column(1, 1), column(4, 4), column(0, (1 << 20) + 1)), "data": bytes(1 << 21)},
        {"data": bytes((64 << 20) + 1)},
        {"warnings": ["x"] * 1000},
        {"done": ["x" * 100_000]},
    ],
)
def test_a_lie_is_not_believed(lie: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        believe_hive(reply(**lie))


def test_endless_lists_of_nothing_are_not_taken_in() -> None:
    """An empty text takes one byte of a reply, and eight of whoever reads it."""
    most = wire.MAX_LISTED
    assert len(answered(most).keys) == most
    with pytest.raises(MalformedError, match="not a reply"):
        answered(most + 1)


def answered(keys: int) -> wire.HiveReply:
    data = wire.encode(reply(keys=[""] * keys))
    found = wire.decode_reply(data, wire.HiveReply)
    assert isinstance(found, wire.HiveReply)
    return found
