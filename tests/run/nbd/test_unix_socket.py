"""The name of a Unix socket: whose it is, who may connect, when it goes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import stat
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from packer.errors import Error, InUseError
from packer.run.nbd.unix_socket import UnixListener


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_this_user_may_connect(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        one = UnixListener.open(tmp_path / "socket", 8)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "socket").lstat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["socket"]
    assert answers(tmp_path / "socket")
    one.remove()
    assert not list(tmp_path.iterdir())


def test_the_socket_is_born_with_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its first moment and its name, nothing changes the mode."""
    modes = []
    link = os.link

    def spy(source: str, *arguments: str, src_dir_fd: int, dst_dir_fd: int) -> None:
        modes.append(os.stat(source, dir_fd=src_dir_fd).st_mode & 0o777)
        link(source, *arguments, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "link", spy)
    monkeypatch.setattr(os, "chmod", None)
    UnixListener.open(tmp_path / "socket", 8).remove()
    assert modes == [0o600]


def test_a_living_server_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    one = UnixListener.open(path, 8)
    with pytest.raises(InUseError, match="a server listens there already"):
        UnixListener.open(path, 8)
    assert answers(path)
    one.remove()


def test_a_busy_server_is_not_replaced(tmp_path: Path) -> None:
    """Its queue is full, so that connecting takes longer than anybody waits."""
    path = tmp_path / "socket"
    one = UnixListener.open(path, 0)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(str(path))
    with pytest.raises(InUseError):
        UnixListener.open(path, 8)
    for client in clients:
        client.close()
    one.remove()


def test_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    dead_socket(path)
    assert not answers(path)
    one = UnixListener.open(path, 8)
    assert answers(path)
    one.remove()
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    dead_socket(tmp_path / "dead")
    (tmp_path / "link").symlink_to(tmp_path / "dead")
    for name in ("file", "folder", "link"):
        with pytest.raises(InUseError, match="expected nothing, or a socket"):
            UnixListener.open(tmp_path / name, 8)
    assert (tmp_path / "file").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "dead", "link"}


def test_only_the_own_name_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    one = UnixListener.open(path, 8)
    path.unlink()
    other = UnixListener.open(path, 8)
    one.remove()
    assert answers(path)
    other.remove()


def test_a_deep_folder_and_a_path_that_nobody_could_connect_to(tmp_path: Path) -> None:
    length = 107 - len(os.fsencode(tmp_path)) - 1
    UnixListener.open(tmp_path / ("x" * length), 8).remove()
    with pytest.raises(Error, match="at most 107 bytes, found 108"):
        UnixListener.open(tmp_path / ("x" * (length + 1)), 8)
    with pytest.raises(Error, match="cannot listen there: No such file"):
        UnixListener.open(tmp_path / "no" / "x", 8)
    assert not list(tmp_path.iterdir())


def try_to_open(path: Path, start: Barrier, won: Path, end: Barrier) -> None:
    start.wait(30)
    one = None
    with suppress(InUseError):
        one = UnixListener.open(path, 8)
        (won / str(os.getpid())).touch()
    end.wait(30)
    if one is not None:
        one.remove()


def test_of_several_that_replace_a_dead_server_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(10):
        won = tmp_path / f"won{number}"
        won.mkdir()
        path = tmp_path / f"socket{number}"
        dead_socket(path)
        start, end = context.Barrier(5), context.Barrier(5)
        others = [
            context.Process(target=try_to_open, args=(path, start, won, end)) for _ in range(4)
        ]
        for other in others:
            other.start()
        start.wait(30)
        end.wait(30)
        for other in others:
            other.join()
        assert len(list(won.iterdir())) == 1
