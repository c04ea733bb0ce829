"""`vmpack serve`: what other people's programs read is the disk, whoever had its bytes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.registry import registry
from packer.errors import InUseError, TrustError, UsageError
from packer.run.server.control import ServerGoneError
from packer.run.server.control_protocol import ServerStatus
from packer.run.sockets import MAX_SOCKET_BYTES
from packer.text import format_bytes
from tests.registry.servers import authority, certificate
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import differences, needs_root, tool
from tests.round_trip.mirror import mirror
from tests.round_trip.oracle import nobody_sees
from tests.round_trip.packs import Packed
from tests.round_trip.test_web_mirror import counted
from tests.run.served import Served, read, reading, same, served
from tests.run.serving import wait_until

Pack = Callable[[str], Packed]
MIB = 1 << 20
STORE = ("--from", "store:")
"""Nobody beside the pack and the store is asked."""


@pytest.fixture
def unpacked(run_vmpack: Vmpack, busybox: Packed, tmp_path: Path) -> Path:
    """The disk as unpack rebuilds it."""
    run_vmpack.good("unpack", busybox.full, "-o", tmp_path / "busybox.raw", "--no-store", "-q")
    return tmp_path / "busybox.raw"


@pytest.fixture
def host(run_vmpack: Vmpack, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Vmpack:
    """A host that trusts the author, with a runtime folder of its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(short_folder / "nobody"))
    return run_vmpack


def _fetched(status: ServerStatus) -> int:
    return sum(each.fetched_bytes for each in status.sources)


def given(one: Served, source: str) -> int:
    """Bytes of contents that sources gave whose URI begins so, by its last word."""
    return sum(
        int(each["content_bytes"])
        for each in one.ended["sources"]
        if str(each["source"]).startswith(source)
    )


def test_clients_read_the_disk(
    host: Vmpack, busybox: Packed, unpacked: Path, tmp_path: Path
) -> None:
    with served(host, busybox.thin, "--offline") as one:
        assert one.start["disk_bytes"] == unpacked.stat().st_size
        assert read("nbdinfo", "--size", one.uri).strip() == str(unpacked.stat().st_size)
        assert "is_read_only: true" in read("nbdinfo", one.uri)
        assert same(unpacked, one.uri)
        read("nbdcopy", one.uri, tmp_path / "copied.raw")
    assert same(unpacked, tmp_path / "copied.raw")
    guest = busybox.guest
    assert differences(guest.image, tmp_path / "copied.raw", nobody_sees(guest)) == []
    assert one.ended["missing"] == []
    assert one.ended["connections"] == 0
    assert one.notes == ""
    assert not Path(one.start["control"]).parent.exists()


@pytest.mark.slow
@pytest.mark.guest
def test_a_thin_pack_of_a_real_guest_is_its_disk(
    host: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """What the thin copy lacks comes from the full one, block by block, and stays in the store."""
    packed, copied, store = pack_guest("debian-bios"), room / "copied.raw", room / "store"
    source, guest = f"pack:{packed.full}", packed.guest
    with served(host, packed.thin, "--from", source, "--store", store) as one:
        read("nbdcopy", one.uri, copied)
    assert differences(guest.image, copied, nobody_sees(guest)) == []
    shared = given(one, source)
    assert shared > 500_000_000
    assert given(one, "pack:") - shared < 150_000_000
    with served(host, packed.thin, "--store", store, *STORE) as alone:
        assert same(copied, alone.uri)


def test_only_what_a_client_touches_comes_from_a_web_server(
    host: Vmpack, busybox: Packed, unpacked: Path, room: Path
) -> None:
    with counted(busybox, room / "web") as (url, count):
        with served(host, url, *STORE) as one:
            before = count()
            assert before.bundle_bytes == 0
            read("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x55 510 1", one.uri)
            asked = count()
            with one.control() as control:
                touched = control.touched()
                assert control.status().touched_bytes == 65536
                # Counted when all of a frame's contents are in the store, after the answer.
                wait_until(lambda: _fetched(control.status()) == asked.bundle_bytes)
        assert 0 < asked.bundle_bytes < 2 * MIB
        assert touched.tolist() == [[0, 65536]]
        with served(host, url, *STORE) as again:
            assert same(unpacked, again.uri)
        whole = count()
    fetched = sum(int(each["fetched_bytes"]) for each in again.ended["sources"])
    assert fetched == whole.bundle_bytes - asked.bundle_bytes
    # A boot copy is a part of the whole; what was fetched before was not fetched again.
    assert whole.bundle_bytes <= 1.05 * sum(
        path.stat().st_size for path in (busybox.full / "blobs" / "sha256").iterdir()
    )


def test_a_registry_serves_it_too(
    host: Vmpack, author: Vmpack, busybox: Packed, unpacked: Path, room: Path
) -> None:
    with registry(room / "registry") as running:
        place = f"oci+http://{running.host}/demo/busybox:1"
        author.good("push", busybox.full, place, "--quiet")
        with served(host, place, *STORE) as one:
            read("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", one.uri)
            with one.control() as control:
                # Counted when all of a frame's contents are in the store, after the answer.
                wait_until(lambda: control.status().at_hand_bytes > 0)
                assert control.status().at_hand_bytes < 4 * MIB
            assert same(unpacked, one.uri)


def test_the_rest_follows_when_it_is_asked_for(
    host: Vmpack, busybox: Packed, unpacked: Path, room: Path
) -> None:
    """The mirror is gone then, and every byte is there."""
    with (
        counted(busybox, room / "web") as (url, _),
        served(host, url, *STORE, "--complete") as one,
        one.control() as control,
    ):
        wait_until(lambda: not control.status().completing, 60)
        status = control.status()
    assert status.complaint == ""
    assert status.at_hand_bytes == status.content_bytes
    with served(host, busybox.boot, *STORE) as alone:
        assert same(unpacked, alone.uri)


def test_what_cannot_be_had_is_an_error_of_that_read_and_is_named(
    host: Vmpack, busybox: Packed, unpacked: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    with served(host, busybox.boot, "--from", f"dir:{tmp_path}/nothing", "--hold", "1") as one:
        failed = reading("qemu-img", "compare", "-f", "raw", "-F", "raw", unpacked, one.uri)
        assert failed.returncode > 1
        assert "Input/output error" in failed.stderr
        read("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x55 510 1", one.uri)  # others go on
        with one.control() as control:
            status = control.status()
    assert status.missing_contents == len(status.missing) > 0
    assert all(missing.content.startswith("sha256:") for missing in status.missing)
    assert all(f"dir:{tmp_path}/nothing" in missing.looked_in for missing in status.missing)


def test_several_clients_read_at_once(
    host: Vmpack, busybox: Packed, unpacked: Path, tmp_path: Path
) -> None:
    with served(host, busybox.full, "--offline", "--name", "demo/1") as one:
        assert "demo%2F1" in one.uri
        clients = [
            subprocess.Popen(["nbdcopy", one.uri, tmp_path / f"{number}.raw"]) for number in "012"
        ]
        clients.append(
            subprocess.Popen(
                ["qemu-img", "compare", "-f", "raw", "-F", "raw", unpacked, one.uri],
                stdout=subprocess.DEVNULL,
            )
        )
        assert [client.wait(120) for client in clients] == [0] * 4
    for number in "012":
        assert differences(unpacked, tmp_path / f"{number}.raw") == []


def test_a_client_goes_on_with_the_next_server_after_a_kill(
    host: Vmpack, busybox: Packed, short_folder: Path
) -> None:
    """qemu-io waits for the socket's next owner, as QEMU does for a guest."""
    path = short_folder / "demo.sock"
    with served(host, busybox.full, "--offline", "--socket", path) as first:
        image = f"driver=nbd,server.type=unix,server.path={path},reconnect-delay=30"
        with subprocess.Popen(
            ["qemu-io", "-r", "--image-opts", image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:
            assert client.stdin is not None
            client.stdin.write("read -P 0x55 510 1\n")
            client.stdin.flush()
            with first.control() as control:
                wait_until(lambda: bool(len(control.touched())))
            first.process.send_signal(signal.SIGKILL)
            first.process.wait(10)
            assert path.is_socket()  # a killed server leaves it
            client.stdin.write("read 64M 4096\nread -P 0xaa 511 1\nquit\n")
            client.stdin.flush()
            with served(host, busybox.full, "--offline", "--socket", path):
                said = client.communicate(timeout=60)[0]
    assert client.returncode == 0
    assert said.count("ops") >= 3, said
    assert "Pattern verification failed" not in said
    assert "error" not in said


def test_a_socket_that_lives_is_not_taken(
    host: Vmpack, busybox: Packed, short_folder: Path
) -> None:
    path = short_folder / "demo.sock"
    with served(host, busybox.boot, "--offline", "--socket", path) as one:
        assert one.uri == f"nbd+unix:///?socket={path}"
        assert path.stat().st_mode & 0o777 == 0o600
        done = host("serve", busybox.boot, "--offline", "--socket", path)
        assert done.returncode == InUseError.exit_code
        assert "listens there already" in done.stderr
        assert read("nbdinfo", "--size", one.uri)
    assert not path.exists()


def test_sigterm_ends_it_and_people_read_what_came_from_where(
    host: Vmpack, busybox: Packed
) -> None:
    process = host.start("serve", busybox.full, "--offline")
    assert process.stdout is not None
    first = process.stdout.readline()
    uri = first.split()[-1]
    assert first.startswith("busybox:1  disk of ")
    examples = [process.stdout.readline().strip() for _ in range(3)]
    assert [line.split()[0] for line in examples] == ["qemu-system-x86_64", "qemu-img", "nbdcopy"]
    assert all(uri in line for line in examples)
    read("qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", uri)
    process.send_signal(signal.SIGUSR1)
    asked = [process.stdout.readline() for _ in range(2)]
    assert asked[0] == f"{format_bytes(MIB)} of 134 MB were read, from:\n"
    process.send_signal(signal.SIGTERM)
    said, notes = process.communicate(timeout=30)
    assert process.returncode == 0, notes
    assert said.startswith(asked[0])
    assert f"pack:{busybox.full}" in said
    assert notes == ""


def test_it_ends_while_a_mirror_stalls_and_somebody_waits(host: Vmpack, busybox: Packed) -> None:
    with mirror(busybox.full) as stalling, served(host, stalling.url, *STORE) as one:
        stalling.hold_at = stalling.sent_bytes
        with subprocess.Popen(
            ["qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", one.uri],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:
            with one.control() as control:
                wait_until(lambda: control.status().touched_bytes > 0)
            began = time.monotonic()
            one.end()
            assert time.monotonic() - began < 10
            assert client.wait(20) != 0
        stalling.go_on()


def test_nobody_there_for_a_while_ends_it_if_that_is_wanted(host: Vmpack, busybox: Packed) -> None:
    with served(host, busybox.boot, "--offline", "--idle-exit", "1") as one:
        with one.control() as control:
            control.hello()
            with pytest.raises(subprocess.TimeoutExpired):
                one.process.wait(2)
        assert one.process.wait(20) == 0
        with pytest.raises(ServerGoneError):
            one.control()


def test_a_pack_of_somebody_unknown_is_not_served(
    stranger: Vmpack, busybox: Packed, short_folder: Path
) -> None:
    done = stranger("serve", busybox.full, "--socket", short_folder / "demo.sock")
    assert done.returncode == TrustError.exit_code
    assert list(short_folder.iterdir()) == []


@needs_root
@pytest.mark.root
def test_a_pack_on_a_read_only_medium_is_served(
    host: Vmpack, busybox: Packed, unpacked: Path, room: Path
) -> None:
    medium = room / "medium"
    medium.mkdir()
    tool("mount", "-t", "tmpfs", "none", medium)
    try:
        tool("cp", busybox.thin, medium / "demo.vmpack")
        tool("mount", "-o", "remount,ro", medium)
        with served(host, medium / "demo.vmpack", "--offline") as one:
            assert same(unpacked, one.uri)
    finally:
        tool("umount", medium)


def test_an_image_of_a_medium_is_served(
    host: Vmpack, author: Vmpack, busybox: Packed, unpacked: Path, room: Path
) -> None:
    author.good("copy", busybox.full, room / "demo.iso", "--quiet")
    with served(host, room / "demo.iso", "--offline") as one:
        assert same(unpacked, one.uri)


# -- over a network ------------------------------------------------------------------------------


def test_this_host_reads_over_tcp_without_more(
    host: Vmpack, busybox: Packed, unpacked: Path
) -> None:
    with served(host, busybox.full, "--offline", "--tcp", "127.0.0.1:0", "--name", "demo") as one:
        assert one.uri.startswith("nbd://127.0.0.1:")
        assert one.uri.endswith("/demo")
        assert same(unpacked, one.uri)
        assert reading("nbdinfo", one.uri.removesuffix("demo") + "other").returncode != 0


def test_others_need_tls_or_the_word_of_its_owner(host: Vmpack, busybox: Packed) -> None:
    refused = host("serve", busybox.boot, "--offline", "--tcp", "0.0.0.0:0")
    assert refused.returncode == UsageError.exit_code
    assert "--tls-cert" in refused.stderr
    with served(host, busybox.boot, "--offline", "--tcp", "0.0.0.0:0", "--no-tls") as one:
        assert read("nbdinfo", "--size", one.uri.replace("0.0.0.0", "127.0.0.1"))
    assert "can read the disk" in one.notes


def test_only_who_has_a_certificate_reads_where_one_is_wanted(
    host: Vmpack, busybox: Packed, unpacked: Path, tmp_path: Path
) -> None:
    signer = authority(tmp_path)
    server = certificate(tmp_path, signer, "127.0.0.1")
    client = certificate(tmp_path, signer, "client")
    known, unknown = tmp_path / "known", tmp_path / "unknown"
    for folder in (known, unknown):
        folder.mkdir()
        (folder / "ca-cert.pem").symlink_to(signer.certificate)
    (known / "client-cert.pem").symlink_to(client.certificate)
    (known / "client-key.pem").symlink_to(client.key)
    tls = ("--tls-cert", server.certificate, "--tls-key", server.key)
    options = (*tls, "--tls-client-ca", signer.certificate, "--tcp", "127.0.0.1:0")
    with served(host, busybox.full, "--offline", *options) as one:
        assert one.uri.startswith("nbds://127.0.0.1:")
        size = read("nbdinfo", "--size", f"{one.uri}?tls-certificates={known}")
        assert size.strip() == str(unpacked.stat().st_size)
        assert reading("nbdinfo", f"{one.uri}?tls-certificates={unknown}").returncode != 0
        assert reading("nbdinfo", one.uri.replace("nbds:", "nbd:")).returncode != 0
        port = one.uri.rpartition(":")[2].strip("/")
        credentials = f"tls-creds-x509,id=tls,endpoint=client,dir={known}"
        image = f"driver=nbd,host=127.0.0.1,port={port},tls-creds=tls"
        read(
            *("qemu-img", "convert", "--object", credentials, "--image-opts", image),
            *("-O", "raw", tmp_path / "far.raw"),
        )
    assert same(unpacked, tmp_path / "far.raw")


@pytest.mark.parametrize(
    "options",
    [
        ("--tls-cert", "x.pem"),
        ("--no-tls",),
        ("--tcp", "127.0.0.1:0", "--tls-key", "x.pem"),
        ("--tcp", "127.0.0.1:0", "--tls-client-ca", "x.pem"),
        ("--tcp", "127.0.0.1:0", "--no-tls", "--tls-cert", "x.pem"),
        ("--tcp", "127.0.0.1"),
        ("--idle-exit", "0"),
        ("--idle-exit", "nan"),
        ("--hold", "-1"),
        ("--tcp", "127.0.0.1:0", "--tls-cert", "/nonexistent.pem"),
        ("--name", "x" * 5000),
        ("--name", "a\nb"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    host: Vmpack, busybox: Packed, options: tuple[str, ...]
) -> None:
    done = host("serve", busybox.boot, "--offline", *options, limit_s=60)
    assert done.returncode == UsageError.exit_code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_that_no_socket_can_have_is_refused(
    host: Vmpack, busybox: Packed, tmp_path: Path
) -> None:
    path = tmp_path / ("x" * MAX_SOCKET_BYTES)
    done = host("serve", busybox.boot, "--offline", "--socket", path)
    assert done.returncode == 1
    assert f"at most {MAX_SOCKET_BYTES} bytes" in done.stderr
