"""Catalogs and manifests are read by a child, and its answer is not believed unchecked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fixtures.windows import signing
from fixtures.windows.components import Component
from formats.source import Memory
from packer.columns import PackedColumn, encode_column
from packer.survey import record_reader, wire
from packer.survey.child import ChildError
from packer.survey.disk import open_disk
from packer.survey.limits import Limits
from packer.survey.opening import pack_files
from packer.survey.records import (
    Catalog,
    Manifest,
    believe_catalogs,
    believe_manifests,
    read_catalogs,
    read_manifests,
)
from packer.survey.wire import MalformedError
from tests.formats.damage import damaged
from tests.formats.windows import make_catalog
from tests.formats.windows.make_catalog import SHA1, SHA256, Member
from tests.survey.test_programs import lay_out

TEXT = b"[Version]\r\n" * 1000
COMPONENT = Component("Demo", "10.0.1.2", {"System32/a.inf": TEXT, "INF/b.inf": b"b"})
SHA256_OF = {data: hashlib.sha256(data).digest() for data in (TEXT, b"b")}
SIGNED = signing.catalog({"a.inf": TEXT}, "demo")
OLD = make_catalog.catalog(
    [Member(b"a", (SHA1, bytes([2]) * 20)), Member(b"b", (SHA1, bytes([1]) * 20))]
)
BOTH = make_catalog.catalog(
    [Member(b"a", (SHA256, bytes([3]) * 32)), Member(b"b", (SHA1, bytes([4]) * 20))]
)


def test_every_catalog_has_its_row_whatever_its_neighbours(tmp_path: Path) -> None:
    runs = lay_out(tmp_path / "disk.raw", [SIGNED, b"", OLD, b"no catalog" * 2000, BOTH, SIGNED])
    with open_disk(tmp_path / "disk.raw") as disk:
        found = read_catalogs(disk, runs)
    signed = Catalog("Microsoft Corporation", "Microsoft Windows", b"", SHA256_OF[TEXT])
    assert found[0] == found[5] == signed
    assert found[2] == Catalog(sha1=bytes([1]) * 20 + bytes([2]) * 20)
    assert found[4] == Catalog(sha1=bytes([4]) * 20, sha256=bytes([3]) * 32)
    assert all(one == Catalog(error=one.error) and one.error for one in (found[1], found[3]))


def test_every_manifest_has_its_row_whatever_its_neighbours(tmp_path: Path) -> None:
    files = [b"DCM\x01" + bytes(90), COMPONENT.manifest(), b"", b"<x/>", COMPONENT.manifest()]
    runs = lay_out(tmp_path / "disk.raw", files)
    with open_disk(tmp_path / "disk.raw") as disk:
        found = read_manifests(disk, runs)
    both = Manifest((("a.inf", SHA256_OF[TEXT]), ("b.inf", SHA256_OF[b"b"])))
    assert found[1] == found[4] == both
    assert "DCM" in found[0].error
    assert found[2].error
    assert found[2].files == ()


def test_no_files_start_no_child(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    with open_disk(path) as disk:
        limits = Limits(wall_seconds=0.0)
        assert read_catalogs(disk, [], limits=limits) == []
        assert read_manifests(disk, [], limits=limits) == []


@pytest.mark.parametrize("read", [read_catalogs, read_manifests])
def test_a_child_that_takes_too_long_is_one_clear_error(
    tmp_path: Path, read: Callable[..., object]
) -> None:
    runs = lay_out(tmp_path / "disk.raw", [SIGNED])
    with (
        open_disk(tmp_path / "disk.raw") as disk,
        pytest.raises(ChildError, match="took longer than 0 seconds"),
    ):
        read(disk, runs, limits=Limits(wall_seconds=0.0))


@pytest.mark.parametrize("sound", [SIGNED, COMPONENT.manifest()], ids=["catalog", "manifest"])
def test_a_thousand_damaged_files_are_a_thousand_rows(tmp_path: Path, sound: bytes) -> None:
    files = [*damaged(sound, [(0, len(sound))], 1000), sound]
    runs = lay_out(tmp_path / "disk.raw", files)
    with open_disk(tmp_path / "disk.raw") as disk:
        found: list[Catalog] | list[Manifest]
        found = read_catalogs(disk, runs) if sound is SIGNED else read_manifests(disk, runs)
    assert len(found) == 1001
    assert not found[-1].error
    assert 50 < sum(1 for one in found if one.error) < 1000


def test_after_too_many_digests_nothing_more_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_reader, "MAX_DIGESTS", 1)
    catalogs = believe_catalogs(in_process(wire.ReadCatalogs, [OLD, SIGNED]), 2)
    assert len(catalogs[0].sha1) == 40
    assert "more than 1 digests" in catalogs[1].error
    manifests = believe_manifests(in_process(wire.ReadManifests, [COMPONENT.manifest()] * 2), 2)
    assert len(manifests[0].files) == 2
    assert "more than 1 digests" in manifests[1].error


def in_process(kind: Any, files: list[bytes]) -> Any:
    """What a child answers, without one."""
    starts = np.cumsum([0, *map(len, files)]).tolist()
    pairs = zip(starts, files, strict=False)
    runs = [np.array([(0, start, len(data))], dtype=np.int64) for start, data in pairs]
    request = kind(wire.PlainFile(-1), pack_files(runs))
    is_catalogs = kind is wire.ReadCatalogs
    answer = record_reader.answer_catalogs if is_catalogs else record_reader.answer_manifests
    return answer(request, Memory(b"".join(files)))


def column(*values: int) -> PackedColumn:
    return encode_column(np.array(values, dtype=np.int64))


def catalogs_reply(**changes: Any) -> wire.CatalogsReply:
    """An honest answer about one catalog."""
    honest = wire.CatalogsReply(
        numbers=(column(1), column(2), column(0)),  # signer; SHA-1, SHA-256 digests
        sha1=bytes(40),
        sha256=b"",
        signers=[("Example", "A Name")],
        errors=[""],
    )
    return msgspec.structs.replace(honest, **changes)


def manifests_reply(**changes: Any) -> wire.ManifestsReply:
    """An honest answer about two manifests."""
    honest = wire.ManifestsReply(
        numbers=(column(0, 1), column(20, 32)),  # manifest, bytes of the digest
        names=b"a\0b",
        digests=bytes(52),
        errors=["", ""],
    )
    return msgspec.structs.replace(honest, **changes)


def test_honest_answers_are_believed() -> None:
    assert believe_catalogs(catalogs_reply(), 1) == [Catalog("Example", "A Name", bytes(40))]
    found = believe_manifests(manifests_reply(), 2)
    assert found == [Manifest((("a", bytes(20)),)), Manifest((("b", bytes(32)),))]


@pytest.mark.parametrize(
    "lie",
    [
        {"numbers": (column(0, 0), column(2, 0), column(0, 1))},
        {"numbers": (column(2), column(2), column(0))},
        {"numbers": (column(1), column(3), column(0))},
        {"numbers": (column(1), column(1 << 59), column(0))},
        {"numbers": (column(1), column(1), column(1))},
        {"numbers": (column(1), column(2))},
        {"numbers": (PackedColumn(0, 1 << 30, b""),) * 3},
        {"sha1": b""},
        {"sha256": b"x"},
        {"errors": []},
        {"errors": ["x" * (wire.MAX_TEXT_CHARACTERS + 1)]},
        {"signers": []},
        {"signers": [("x" * 257, "")]},
        {"signers": [("a", "b"), ("c", "d")]},
    ],
)
def test_a_lie_about_catalogs_is_noticed(lie: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        believe_catalogs(catalogs_reply(**lie), 1)


@pytest.mark.parametrize(
    "lie",
    [
        {"numbers": (column(0, 2), column(20, 32))},
        {"numbers": (column(0, 1), column(20, 31))},
        {"numbers": (column(0, 1), column(32, 32))},
        {"numbers": (column(0), column(20))},
        {"numbers": (column(0, 1),)},
        {"numbers": (PackedColumn(0, 1 << 30, b""),) * 2},
        {"names": b"a"},
        {"names": b"a\0b\0c"},
        {"names": b"\xff\0b"},
        {"names": b"a\0" + b"b" * (wire.MAX_TEXT_CHARACTERS + 1)},
        {"digests": bytes(51)},
        {"errors": [""]},
    ],
)
def test_a_lie_about_manifests_is_noticed(lie: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        believe_manifests(manifests_reply(**lie), 2)


def test_what_could_steer_a_terminal_is_replaced() -> None:
    changes = {"signers": [("\x1b[2J", "a\nb")], "errors": ["\u202e"]}
    (found,) = believe_catalogs(catalogs_reply(**changes), 1)
    assert all(one.isprintable() for one in (found.organization, found.common_name, found.error))
    (first, _) = believe_manifests(manifests_reply(errors=["\x07", ""]), 2)
    assert first.error.isprintable()
