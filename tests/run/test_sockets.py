"""The runtime folder: whose it is, how long paths may be, who holds it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packer.run.sockets import (
    MAX_SOCKET_BYTES,
    RuntimeFolderError,
    lock_folder,
    own_folder,
    remove_stale,
    runtime_folder,
    socket_path,
)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "vmpack"


def test_it_lies_where_the_session_keeps_such_folders_and_only_its_user_may_enter(
    runtime: Path,
) -> None:
    before = os.umask(0)
    try:
        folder = runtime_folder("servers", "one")
    finally:
        os.umask(before)
    assert folder == runtime / "servers" / "one"
    assert {path.stat().st_mode & 0o777 for path in (runtime, folder.parent, folder)} == {0o700}


def test_without_a_session_it_lies_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert runtime_folder() == tmp_path / f"vmpack-{os.getuid()}"


def test_a_folder_that_others_may_enter_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o755)
    runtime.chmod(0o755)
    with pytest.raises(RuntimeFolderError, match="expected mode 0700, found 0755"):
        runtime_folder()


def test_a_link_that_somebody_has_laid_there_is_refused(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "trap").mkdir(mode=0o700)
    runtime.symlink_to(tmp_path / "trap")
    with pytest.raises(RuntimeFolderError, match="expected a folder of user"):
        runtime_folder()


@pytest.mark.root
def test_a_folder_of_somebody_else_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    os.chown(runtime, 12345, -1)
    with pytest.raises(RuntimeFolderError, match="of user 12345"):
        runtime_folder()


def test_the_longest_path_of_a_socket_can_be_listened_at_and_no_longer_one(tmp_path: Path) -> None:
    folder = tmp_path
    while len(os.fsencode(folder)) < MAX_SOCKET_BYTES - 60:
        folder = folder / ("x" * 40)
    folder.mkdir(parents=True, exist_ok=True)
    left = MAX_SOCKET_BYTES - len(os.fsencode(folder)) - 1
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path(folder, "s" * left)))
    with pytest.raises(RuntimeFolderError, match=f"at most {MAX_SOCKET_BYTES} bytes, found 108"):
        socket_path(folder, "s" * (left + 1))


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "held"
    code = (
        "import sys, time; from pathlib import Path; from packer.run.sockets import lock_folder; "
        "assert lock_folder(Path(sys.argv[1])) is not None; print('held', flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert lock_folder(folder) is None
        holder.send_signal(signal.SIGKILL)
    fd = lock_folder(folder)
    assert fd is not None
    os.close(fd)


def test_who_waits_for_a_lock_gets_that_of_the_folder_that_is_there(tmp_path: Path) -> None:
    """Whoever tidies up may remove a folder between its being opened and its being locked."""
    folder = tmp_path / "held"
    first = lock_folder(folder)
    assert first is not None
    folder.rename(tmp_path / "away")
    second = lock_folder(folder)
    assert second is not None
    assert os.path.samestat(os.fstat(second), folder.stat())
    os.close(first)
    os.close(second)


def test_what_killed_servers_left_is_removed_after_a_day_and_a_living_one_stays() -> None:
    servers = runtime_folder("servers")
    for name, age_seconds in (("old", 90_000), ("young", 3600), ("living", 90_000)):
        (servers / name).mkdir()
        (servers / name / "log").write_text("…")
        then = time.time() - age_seconds
        os.utime(servers / name, (then, then))
    held = lock_folder(servers / "living")
    assert held is not None
    remove_stale(servers)
    assert {path.name for path in servers.iterdir()} == {"young", "living"}
    os.close(held)


def test_a_folder_of_ones_own_is_gone_afterwards() -> None:
    with own_folder("mine") as folder:
        (folder / "nbd").touch()
        with pytest.raises(RuntimeFolderError, match="another process"), own_folder("mine"):
            pass
        assert (folder / "nbd").exists()
    assert not folder.exists()
