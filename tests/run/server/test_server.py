"""The server that VMs share: found or started, alone, alive after its starter, gone when idle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from packer.errors import Error, InputError, TrustError
from packer.run.server.control import Control, ServerGoneError
from packer.run.server.control_protocol import RemoteError
from packer.run.server.ensure import address_of, ensure_server
from packer.run.server.process import MAX_LOG_BYTES
from packer.run.server.spec import ServerAddress, ServerSpec, encode_spec, server_spec
from packer.sources.open import open_pack
from packer.sources.store import Store
from tests.round_trip.command import Vmpack
from tests.round_trip.layouts import config_digest
from tests.round_trip.packs import Packed
from tests.run.served import is_running, kill, read, reading, same
from tests.run.serving import wait_until

STARTING = (
    "import sys; from packer.run.server.ensure import ensure_server; "
    "from packer.run.server.spec import decode_spec; "
    "print(ensure_server(decode_spec(sys.stdin.buffer.read()), idle_exit_seconds=60).nbd)"
)


@pytest.fixture(autouse=True)
def host(tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder and a home of this test's own; the servers there end with it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    yield short_folder
    for path in short_folder.glob("vmpack/servers/*/control"):
        try:
            with Control(path) as control:
                control.stop()
        except ServerGoneError:
            pass


@pytest.fixture
def spec(busybox: Packed, tmp_path: Path) -> ServerSpec:
    digest = config_digest(busybox.full)
    return server_spec(str(busybox.full), digest, tmp_path / "store", ("store:",))


def pid_of(address: ServerAddress) -> int:
    with Control(address.control) as control:
        return control.hello().pid


def test_it_serves_the_disk_and_says_what_it_is(
    spec: ServerSpec, run_vmpack: Vmpack, busybox: Packed, tmp_path: Path
) -> None:
    disk = tmp_path / "busybox.raw"
    run_vmpack.good("unpack", busybox.full, "-o", disk, "--no-store", "-q")
    address = ensure_server(spec)
    assert same(disk, address.uri)
    with Control(address.control) as control:
        hello, status, touched = control.hello(), control.status(), control.touched()
        assert (hello.config, hello.key) == (spec.config, spec.key)
        assert (status.pid, status.pack, status.config) == (hello.pid, "busybox:1", spec.config)
        assert status.disk_bytes == disk.stat().st_size
        assert status.touched_bytes == int((touched[:, 1] - touched[:, 0]).sum()) > 0
        assert status.missing == ()
        control.forget_touched()
        assert control.touched().tolist() == []
        read("qemu-io", "-r", "-f", "raw", "-c", "read 1M 4k", address.uri)
        assert [1 << 20, (1 << 20) + 65536] in control.touched().tolist()
    assert {path.stat().st_mode & 0o777 for path in (address.nbd, address.control)} == {0o600}
    assert address.log.stat().st_mode & 0o777 == 0o600


def test_who_comes_later_gets_the_same_one(spec: ServerSpec) -> None:
    first = ensure_server(spec)
    pid = pid_of(first)
    assert ensure_server(spec) == first
    assert ensure_server(msgspec.structs.replace(spec, complete=True)) == first
    assert pid_of(first) == pid
    other = ensure_server(msgspec.structs.replace(spec, offline=True))
    assert other.nbd != first.nbd
    assert pid_of(other) != pid


def test_of_many_who_start_it_at_once_one_does(spec: ServerSpec) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: ensure_server(spec), range(6)))
    assert found == {address_of(spec)}
    assert address_of(spec).log.read_text().count("serving") == 1


def test_it_holds_nothing_of_who_started_it(spec: ServerSpec, tmp_path: Path) -> None:
    """Neither its descriptors nor its terminal, folder or session; and it outlives it."""
    inherited = os.open(tmp_path / "inherited", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(inherited, True)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", STARTING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            close_fds=False,
            start_new_session=True,
            env={**os.environ, "VMPACK_KEY_PASSPHRASE": "secret", "VMPACK_STORE_TOKEN": "token"},
        ) as starter:
            printed = starter.communicate(encode_spec(spec), timeout=120)[0].decode().strip()
    finally:
        os.close(inherited)
    assert printed == str(address_of(spec).nbd)
    pid = pid_of(address_of(spec))
    links = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(path.readlink())
    assert tmp_path / "inherited" not in links
    assert not [link for link in links if str(link).startswith(("pipe:", "/dev/pts", "/dev/tty"))]
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert os.getsid(pid) not in (starter.pid, os.getsid(0))
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert not [line for line in environment if line.startswith(b"VMPACK_KEY_PASSPHRASE=")]
    assert b"VMPACK_STORE_TOKEN=token" in environment  # it is vmpack that asks the neighbours


def test_a_starter_that_is_killed_leaves_a_server_that_lives(spec: ServerSpec) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTING], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as starter:
        assert starter.stdin is not None
        starter.stdin.write(encode_spec(spec))
        starter.stdin.close()
        wait_until(address_of(spec).log.exists)
        starter.send_signal(signal.SIGKILL)
    address = ensure_server(spec)
    assert address.log.read_text().count("serving") == 1
    assert read("nbdinfo", "--size", address.uri)


def test_the_next_one_takes_the_place_of_one_that_was_killed(spec: ServerSpec) -> None:
    first = ensure_server(spec)
    pid = pid_of(first)
    kill(pid)
    assert first.nbd.is_socket()
    assert reading("nbdinfo", first.uri).returncode != 0
    assert ensure_server(spec) == first
    assert pid_of(first) != pid
    assert read("nbdinfo", "--size", first.uri)


def test_it_ends_when_nobody_was_there_for_a_while(spec: ServerSpec) -> None:
    address = ensure_server(spec, idle_exit_seconds=1)
    with Control(address.control) as control:
        pid = control.hello().pid
        time.sleep(2.5)
        assert control.hello().pid == pid  # who is connected keeps it
    image = f"driver=nbd,server.type=unix,server.path={address.nbd}"
    with subprocess.Popen(
        ["qemu-io", "-r", "--image-opts", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as client:
        time.sleep(2.5)
        assert is_running(pid)
        client.communicate(b"quit\n", timeout=20)
    wait_until(lambda: not is_running(pid))
    assert not address.nbd.exists()
    assert not address.control.exists()
    assert pid_of(ensure_server(spec)) != pid


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop"])
def test_it_ends_in_good_order(spec: ServerSpec, how: str) -> None:
    address = ensure_server(spec)
    pid = pid_of(address)
    if how == "stop":
        with Control(address.control) as control:
            control.stop()
    else:
        os.kill(pid, getattr(signal, how))
    wait_until(lambda: not is_running(pid))
    assert not address.nbd.exists()
    assert not address.control.exists()
    assert address.log.read_text().endswith(" INFO ended\n")
    assert list(Path(spec.store, "leases").iterdir()) == []


def test_what_it_needs_is_leased_while_it_lives(
    spec: ServerSpec, run_vmpack: Vmpack, busybox: Packed
) -> None:
    leases = Store(Path(spec.store)).leases
    pid = pid_of(ensure_server(spec))
    with open_pack(str(busybox.full)) as pack:
        needed = pack.map.contents.digest
    [(name, leased)] = leases.leased().items()
    assert name.startswith(f"@{pid}-")
    assert np.array_equal(leased, needed)
    kill(pid)
    assert leases.leased() == {}
    run_vmpack.good("store", "gc", "--store", spec.store)
    assert list(Path(spec.store, "leases").iterdir()) == []


def test_another_pack_than_was_decided_about_is_refused(spec: ServerSpec) -> None:
    other = msgspec.structs.replace(spec, config="sha256:" + "0" * 64)
    with pytest.raises(RemoteError, match="expected the pack sha256:000") as caught:
        ensure_server(other)
    assert caught.value.exit_code == TrustError.exit_code
    assert not address_of(other).nbd.exists()


def test_what_is_wrong_with_a_pack_is_said_by_who_starts_it(
    spec: ServerSpec, tmp_path: Path
) -> None:
    nowhere = msgspec.structs.replace(spec, pack=str(tmp_path / "nowhere"))
    with pytest.raises(RemoteError, match="nowhere: expected a pack") as caught:
        ensure_server(nowhere)
    assert caught.value.exit_code == InputError.exit_code
    (tmp_path / "broken.vmpack").write_bytes(b"\0" * 10240)
    broken = msgspec.structs.replace(spec, pack=str(tmp_path / "broken.vmpack"))
    with pytest.raises(RemoteError, match=r"broken\.vmpack"):
        ensure_server(broken)


def test_a_process_that_dies_while_it_starts_is_one_clear_error(
    spec: ServerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packer.run.server.ensure._BOOT", "import sys; sys.exit('no such module')")
    with pytest.raises(Error, match="did not start: no such module"):
        ensure_server(spec)


def test_a_source_that_is_not_there_is_said(spec: ServerSpec, tmp_path: Path) -> None:
    lost = msgspec.structs.replace(spec, sources=(f"dir:{tmp_path}/lost",))
    with pytest.raises(RemoteError, match="lost"):
        ensure_server(lost)


def test_its_log_is_bounded(spec: ServerSpec) -> None:
    """Whatever it says: the end is kept, the rest of a MiB is not."""
    address = ensure_server(spec)
    with address.log.open("ab") as log:
        log.write(b"x" * (MAX_LOG_BYTES + 1))
    wait_until(lambda: address.log.stat().st_size < 1000, 30)
    assert "longer than" in address.log.read_text()


def test_an_address_names_what_it_says(spec: ServerSpec) -> None:
    address = address_of(spec)
    assert address.uri == f"nbd+unix:///?socket={address.nbd}"
    assert replace(address, nbd=Path("/run/a b")).uri == "nbd+unix:///?socket=/run/a%20b"
