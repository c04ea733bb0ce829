"""The control channel: what is asked, what is answered, what a rude client may do."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from packer.errors import Error, MissingError
from packer.run.server import control_server
from packer.run.server.control import Control, ServerGoneError
from packer.run.server.control_protocol import (
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    PROTOCOL,
    Hello,
    RemoteError,
    Request,
    ServerStatus,
    encode_result,
)
from packer.run.server.control_server import ControlServer

HELLO = Hello(PROTOCOL, 4711, "sha256:" + "1" * 64, "0123456789abcdef")
TOUCHED = [(0, 65536), (1 << 40, (1 << 40) + 65536)]


class Answers:
    """Handlers with fixed answers; `asked` is what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.stopping = asyncio.Event()

    async def hello(self, request: Request) -> object:
        self.asked.append(request)
        return HELLO

    async def touched(self, request: Request) -> object:
        self.asked.append(request)
        return TOUCHED

    async def nothing(self, request: Request) -> object:
        self.asked.append(request)
        return None

    async def fail(self, request: Request) -> object:
        self.asked.append(request)
        raise MissingError("nobody has it", hint="name another source")

    async def stop(self, request: Request) -> object:
        self.asked.append(request)
        self.stopping.set()
        return None

    def handlers(self) -> dict[str, control_server.Handler]:
        return {
            "hello": self.hello,
            "touched": self.touched,
            "forget_touched": self.nothing,
            "complete": self.nothing,
            "retry": self.fail,
            "stop": self.stop,
        }


@contextmanager
def serving(path: Path) -> Iterator[tuple[Answers, Callable[[], int]]]:
    """A control server in a thread: what it was asked, and how many clients it has."""
    started: Future[tuple[Answers, asyncio.AbstractEventLoop, ControlServer]] = Future()

    async def run() -> None:
        answers = Answers()
        server = ControlServer(answers.handlers())
        await server.start(path)
        started.set_result((answers, asyncio.get_running_loop(), server))
        await answers.stopping.wait()
        await asyncio.sleep(0)
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    answers, loop, server = started.result(10)
    try:
        yield answers, lambda: server.connections
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(answers.stopping.set)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


def test_questions_reach_the_server_and_answers_come_back(path: Path) -> None:
    with serving(path) as (answers, _), Control(path) as control:
        assert control.hello() == HELLO
        touched = control.touched()
        assert touched.dtype == np.int64
        assert touched.tolist() == [list(one) for one in TOUCHED]
        control.forget_touched()
        control.complete()
        control.complete(on=False)
        assert [one.on for one in answers.asked if one.do == "complete"] == [True, False]
        assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_touched_is_a_table_of_no_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.run.server.test_control.TOUCHED", [])
    with serving(path), Control(path) as control:
        assert control.touched().shape == (0, 2)


def test_what_the_server_says_against_it_is_an_error_with_the_same_exit_code(path: Path) -> None:
    with serving(path), Control(path) as control:
        with pytest.raises(RemoteError, match="nobody has it") as caught:
            control.retry()
        assert caught.value.exit_code == MissingError.exit_code
        assert caught.value.hint == "name another source"
        assert control.hello() == HELLO  # it goes on


def test_stop_returns_when_the_server_has_ended(path: Path) -> None:
    with serving(path), Control(path) as control:
        control.stop()
        with pytest.raises(ServerGoneError):
            control.hello()
        with pytest.raises(ServerGoneError, match="does not answer"):
            Control(path)


def test_nobody_there_is_one_clear_error(path: Path) -> None:
    with pytest.raises(ServerGoneError, match="No such file"):
        Control(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ServerGoneError, match="refused"):
        Control(path)


def test_a_server_that_does_not_answer_is_not_waited_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with (
            Control(path, seconds=0.2) as control,
            pytest.raises(ServerGoneError, match="timed out"),
        ):
            control.hello()


@pytest.mark.parametrize(
    "said", [b"\n", b"{}\n", b"[1]\n", b'{"result": 1}\n', b"\xff\n", b'{"result": {}}\n']
)
def test_a_server_that_answers_something_else_is_not_believed(path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as liar:
        liar.bind(str(path))
        liar.listen()
        with Control(path, seconds=5) as control:
            connection, _ = liar.accept()
            connection.sendall(said)
            with connection, pytest.raises(Error, match="expected an answer to 'hello'"):
                control.hello()


def asked(path: Path, data: bytes) -> list[dict[str, object]]:
    """The answers to bytes that anybody may send."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"null",
        b'{"do": "dance"}',
        b'{"do": "hello", "path": "/etc/passwd"}',
        b'{"do": "complete", "on": 7}',
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b'{"do": "status"',
    ],
)
def test_what_is_no_request_is_answered_so_and_the_next_one_is_heard(
    path: Path, line: bytes
) -> None:
    with serving(path):
        refused, fine = asked(path, line + b'\n{"do": "hello"}\n')
    assert "expected a request" in str(refused["error"])
    assert fine["result"] == {
        "protocol": PROTOCOL,
        "pid": HELLO.pid,
        "config": HELLO.config,
        "key": HELLO.key,
    }


def test_requests_that_come_together_are_answered_in_their_order(path: Path) -> None:
    with serving(path):
        found = asked(path, b'{"do": "touched"}\n{"do": "retry"}\n{"do": "hello"}\n{"do": "hel')
    assert [next(iter(one)) for one in found] == ["result", "error", "result"]


def test_a_line_without_an_end_is_not_kept(path: Path) -> None:
    with serving(path) as (answers, connections):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            with pytest.raises(ConnectionError):
                client.sendall(b"x" * (4096 * MAX_REQUEST_BYTES))
        with Control(path) as control:
            assert control.hello() == HELLO
        assert [one.do for one in answers.asked] == ["hello"]
        assert connections() <= 1


def test_only_so_many_may_be_connected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "MAX_CONNECTIONS", 3)
    with serving(path):
        held = [Control(path) for _ in range(3)]
        assert [one.hello() for one in held] == [HELLO] * 3
        with Control(path) as one_more, pytest.raises(ServerGoneError):
            one_more.hello()
        for one in held:
            one.close()


def test_a_client_that_takes_no_answer_is_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "TAKE_SECONDS", 0.2)
    monkeypatch.setattr(
        "tests.run.server.test_control.TOUCHED", [(one, one) for one in range(200_000)]
    )
    with serving(path) as (_, connections):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(b'{"do": "touched"}\n')
            threading.Event().wait(1.0)
            assert connections() == 0
        with Control(path) as control:
            assert control.hello() == HELLO


def test_an_answer_that_would_be_too_long_is_an_error() -> None:
    line = encode_result("x" * MAX_ANSWER_BYTES)
    assert len(line) < 1000
    assert b"expected an answer of at most" in line


def test_a_status_has_every_field_that_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    for name in ServerStatus.__struct_fields__:
        assert f"`{name}`" in text
