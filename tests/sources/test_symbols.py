"""Symbol stores: folders, nginx, and servers that do one thing wrong."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.errors import UsageError
from packer.sources.base import Bytes, FileRange, Learning, Piece, Source, SourceError, Wanted
from packer.sources.cabinet import expand, find_cabextract
from packer.sources.symbol_server import CABINETS_IN_VAIN, SymbolServer
from packer.sources.symbols import SymbolFolder, symbol_paths
from tests.sources.programs import Program, cabinet, keep, keep_cabinet, programs_wanted
from tests.transport.servers import Answer, Server, nginx, serving

MIB = 1 << 20
NTDLL = Program("/Windows/System32/NTDLL.dll", b"MZ ntdll" * 1000)
LARGE = Program("/Windows/System32/Shell32.dll", os.urandom(3 * MIB + 77), timestamp=7)
OWN = Program("/Program Files/Own/own.exe", b"MZ own" * 99, timestamp=8, kept=Class.PRIVATE)


@pytest.fixture
def store() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def assembled(source: Source, wanted: Wanted, rows: np.ndarray) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for piece in source.fetch(rows):
        add(found, piece, wanted)
    return found


def add(found: dict[int, bytes], piece: Piece, wanted: Wanted) -> None:
    if isinstance(piece, FileRange):
        size = int(wanted.contents.size[piece.row])
        found[piece.row] = os.pread(piece.fd, size, piece.offset)
        return
    start, end = wanted.contents.block_bounds(piece.row, piece.block)
    assert len(piece.data) == end - start
    found[piece.row] = found.get(piece.row, b"") + bytes(piece.data)


def test_a_program_is_looked_for_under_what_its_headers_say() -> None:
    wanted = programs_wanted(NTDLL, LARGE, OWN)
    assert symbol_paths(wanted) == {
        0: ["ntdll.dll/4A5BDB3B1aa000/ntdll.dll"],
        1: ["shell32.dll/000000071aa000/shell32.dll"],
    }
    assert symbol_paths(wanted.only(np.array([1, 2]))).keys() == {1}


@pytest.mark.parametrize("name", ["..", "", "a\\b.dll", "x" * 256, "a\nb.dll", "a\udc80.dll"])
def test_a_name_that_no_store_can_have_is_not_asked_for(name: str) -> None:
    wanted = programs_wanted(NTDLL)
    wanted = Wanted(wanted.contents, wanted.rows, replace(wanted.hints, path=[f"/Windows/{name}"]))
    assert symbol_paths(wanted) == {}


def test_a_folder_gives_files_as_ranges(store: Path) -> None:
    keep(store, NTDLL, place="NtDll.DLL/4a5bdb3b1AA000/ntdll.dll")  # as a server on Windows has it
    keep(store, LARGE)
    keep(store, OWN)
    source = SymbolFolder(store)
    assert source.local
    assert isinstance(source, Learning)
    wanted = programs_wanted(NTDLL, LARGE, OWN)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == [0, 1]
    assert all(isinstance(piece, FileRange) for piece in source.fetch(rows))
    assert assembled(source, wanted, rows) == {0: NTDLL.data, 1: LARGE.data}
    source.close()


def test_a_file_of_another_size_or_one_that_others_may_not_read_is_not_offered(store: Path) -> None:
    keep(store, NTDLL, data=b"another")
    keep(store, LARGE).chmod(0o600)
    source = SymbolFolder(store)
    assert source.find(programs_wanted(NTDLL, LARGE), deep=True).rows.tolist() == []


def test_a_wrong_file_is_offered_once(store: Path) -> None:
    keep(store, NTDLL, data=NTDLL.data[::-1])
    source = SymbolFolder(store)
    wanted = programs_wanted(NTDLL)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == [0]
    source.learn(rows, ok=False)
    assert source.find(wanted, deep=True).rows.tolist() == []


def test_cabinets_are_expanded(store: Path) -> None:
    for program in (NTDLL, LARGE):
        keep_cabinet(store, program)
    source = SymbolFolder(store)
    wanted = programs_wanted(NTDLL, LARGE)
    rows = source.find(wanted, deep=False).rows
    assert assembled(source, wanted, rows) == {0: NTDLL.data, 1: LARGE.data}


def test_without_cabextract_one_note_says_so(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for program in (NTDLL, LARGE):
        keep_cabinet(store, program)
    monkeypatch.setenv("PATH", "/nonexistent")
    source = SymbolFolder(store)
    assert source.find(programs_wanted(NTDLL, LARGE), deep=False).rows.tolist() == []
    assert [r.message for r in caplog.records if "install cabextract" in r.message] == [
        f"symbols:{store}: holds compressed files, and cabextract is not installed; "
        "install cabextract"
    ]


def test_a_cabinet_hands_out_no_more_than_was_asked_for(tmp_path: Path) -> None:
    program = find_cabextract()
    assert program is not None
    bomb = Program("/bomb.dll", bytes(200 * MIB))
    (tmp_path / "bomb.dl_").write_bytes(cabinet(bomb))
    (tmp_path / "junk.dl_").write_bytes(b"MSCF" + os.urandom(5000))
    with (tmp_path / "bomb.dl_").open("rb") as file:
        assert sum(map(len, expand(program, file.fileno(), 5 * MIB))) == 5 * MIB
    with (tmp_path / "junk.dl_").open("rb") as file:
        assert list(expand(program, file.fileno(), 5 * MIB)) == []


def test_a_server_sends_what_it_has(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(store, NTDLL)
    keep_cabinet(store, LARGE)
    absent = Program("/Windows/none.sys", b"MZ none")
    with nginx(store, tmp_path / "nginx") as url:
        source = SymbolServer(f"{url}/")
        assert not source.local
        wanted = programs_wanted(NTDLL, LARGE, absent, OWN)
        offers = source.find(wanted, deep=False)
        assert offers.rows.tolist() == [0, 1, 2]
        assert offers.cost_bytes.tolist() == [len(NTDLL.data), len(LARGE.data), len(absent.data)]
        assert assembled(source, wanted, offers.rows) == {0: NTDLL.data, 1: LARGE.data}
        assert source.find(wanted, deep=True).rows.tolist() == [0, 1], "what is not there is known"
        source.close()
    assert "has 2 of 3 programs that it was asked for" in caplog.text
    log = (tmp_path / "nginx" / "access.log").read_text()
    assert "own.exe" not in log
    assert log.count("none.sys/") == 2, "once as it is, once as a cabinet"


def give(answer: Answer, body: bytes) -> None:
    answer.give(200, {"Content-Length": str(len(body))}, body)


def missing(answer: Answer) -> None:
    answer.give(404, {"Content-Length": "0"}, b"")


def ask(server: Server, wanted: Wanted) -> dict[int, bytes]:
    source = SymbolServer(server.url)
    try:
        return assembled(source, wanted, source.find(wanted, deep=False).rows)
    finally:
        source.close()


def test_a_cut_connection_goes_on_where_it_broke() -> None:
    def answer(one: Answer, number: int) -> None:
        if number == 1:
            one.send_response(200)
            one.send_header("Content-Length", str(len(LARGE.data)))
            one.end_headers()
            one.wfile.write(LARGE.data[: 2 * MIB])
            return one.cut()
        return one.give_range(LARGE.data)

    with serving(answer) as server:
        assert ask(server, programs_wanted(LARGE)) == {0: LARGE.data}
        assert server.asked[1][1]["Range"] == f"bytes={2 * MIB}-{len(LARGE.data) - 1}"


def test_a_file_of_another_size_is_not_read() -> None:
    with serving(lambda one, _: give(one, NTDLL.data + b"x")) as server:
        assert ask(server, programs_wanted(NTDLL)) == {}
        assert len(server.asked) == 1


@pytest.mark.parametrize("more", [b"", b" and more"])
def test_a_server_that_names_no_size_is_read_no_further_than_wanted(more: bytes) -> None:
    def answer(one: Answer, _: int) -> None:
        one.close_connection = True
        one.give(200, {"Connection": "close"}, NTDLL.data + more)

    with serving(answer) as server:
        assert ask(server, programs_wanted(NTDLL)) == {0: NTDLL.data}


def test_a_file_that_ends_too_soon_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def answer(one: Answer, _: int) -> None:
        one.close_connection = True
        one.give(200, {"Connection": "close"}, NTDLL.data[:-1])

    with serving(answer) as server:
        assert ask(server, programs_wanted(NTDLL)) == {}
    assert f"expected {len(NTDLL.data)} bytes" in caplog.text


def test_nothing_of_the_user_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No password, whatever ~/.netrc has; the same name as every client of ours."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(lambda one, _: give(one, NTDLL.data)) as server:
        assert ask(server, programs_wanted(NTDLL)) == {0: NTDLL.data}
        ((path, headers),) = server.asked
    assert path == f"/{NTDLL.place}"
    assert "Authorization" not in headers
    assert headers["User-Agent"] == "vmpack"


def many(count: int) -> list[Program]:
    return [Program(f"/Windows/{n}.dll", b"MZ%d" % n, timestamp=n) for n in range(count)]


def test_a_server_without_cabinets_is_soon_not_asked_for_them() -> None:
    with serving(lambda one, _: missing(one)) as server:
        assert ask(server, programs_wanted(*many(100))) == {}
        cabinets = [path for path, _ in server.asked if path.endswith("_")]
    assert CABINETS_IN_VAIN <= len(cabinets) < CABINETS_IN_VAIN + 4, "four connections"


def test_a_server_that_refuses_everything_is_left_out_and_not_asked_again() -> None:
    with serving(lambda one, _: one.give(418, {"Content-Length": "0"}, b"")) as server:
        source = SymbolServer(server.url)
        wanted = programs_wanted(*many(100))
        rows = source.find(wanted, deep=False).rows
        with pytest.raises(SourceError, match="418"):
            assembled(source, wanted, rows)
        assert len(server.asked) < 12
        with pytest.raises(SourceError, match="left out"):
            source.find(wanted, deep=True)
        source.close()


def test_one_file_that_cannot_be_had_is_no_reason_to_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    some = many(20)

    def answer(one: Answer, _: int) -> None:
        name = one.path.rpartition("/")[2]
        if name == "3.dll":
            return one.give(418, {"Content-Length": "0"}, b"")
        return give(one, b"MZ" + name.removesuffix(".dll").encode())

    with serving(answer) as server, caplog.at_level(logging.WARNING):
        found = ask(server, programs_wanted(*some))
    assert found == {n: one.data for n, one in enumerate(some) if n != 3}
    assert "418" in caplog.text


def test_several_connections_are_used_at_once() -> None:
    together = threading.Barrier(4, timeout=10)

    def answer(one: Answer, _: int) -> None:
        together.wait()
        give(one, b"MZ" + one.path.rpartition("/")[2].removesuffix(".dll").encode())

    with serving(answer) as server:
        assert len(ask(server, programs_wanted(*many(8)))) == 8


def test_wrong_bytes_cost_one_fetch() -> None:
    with serving(lambda one, _: give(one, NTDLL.data[::-1])) as server:
        source = SymbolServer(server.url)
        wanted = programs_wanted(NTDLL)
        rows = source.find(wanted, deep=False).rows
        (piece,) = source.fetch(rows)
        assert isinstance(piece, Bytes)
        source.learn(rows, ok=False)
        assert source.find(wanted, deep=True).rows.tolist() == []
        source.close()


@pytest.mark.parametrize(
    "url", ["https://", "https://ann:secret@host/x", "https://host/x?token=secret", "http://[/"]
)
def test_what_is_no_plain_address_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        SymbolServer(url)
    assert "secret" not in str(caught.value)
