"""Hosts on one network: the command serves a store, another one rebuilds a disk from it."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.sources.store import Store
from tests.artifact.make import contents_of
from tests.artifact.real_packs import disk_of, straight_map, write_pack
from tests.hostile.refusal import FAILED, USAGE, refused
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.mirror import mirror
from tests.round_trip.packs import Packed, trusting_host
from tests.sources.stores import put, sha256
from tests.unpack.simulated import numbered

MIB = 1 << 20
LIMIT_S = 20
DATA = [numbered(MIB // 2 + number, number) for number in range(12)]
CLASSES = [Class.BOOT, Class.PRIVATE, *[Class.SHARED] * 10]
UNSIGNED = "--allow-unsigned"
Pack = Callable[[str], Packed]


@dataclass(slots=True)
class Serving:
    """A running `vmpack store serve`. summary: what it printed when it ended."""

    uri: str
    token: str
    first_line: str
    process: subprocess.Popen[str]
    summary: str = ""

    @property
    def port(self) -> int:
        return int(self.uri.rstrip("/").rpartition(":")[2])


@contextmanager
def serving(host: Vmpack, *options: str | Path) -> Iterator[Serving]:
    token = host.good("store", "token").strip()
    process = host.start("store", "serve", "--listen", "127.0.0.1:0", *options)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert " at store" in line, process.communicate()
        one = Serving(line.split()[-1], token, line, process)
        yield one
    finally:
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    one.summary = rest


def requests_of(one: Serving) -> int:
    return int(one.summary.split()[1].replace(",", ""))


@pytest.fixture
def theirs(tmp_path: Path) -> Vmpack:
    return Vmpack(tmp_path / "theirs")


@pytest.fixture
def ours(tmp_path: Path) -> Vmpack:
    return Vmpack(tmp_path / "ours")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    write_pack(f"{tmp_path}/full/", DATA, CLASSES).close()
    return tmp_path / "full"


@pytest.fixture
def thin(tmp_path: Path, full: Path) -> Path:
    write_pack(tmp_path / "thin.vmpack", DATA, CLASSES, carried=[Class.BOOT, Class.PRIVATE]).close()
    return tmp_path / "thin.vmpack"


def store_of(host: Vmpack) -> Store:
    return Store(host.home / "data" / "store")


def knows(token: str) -> dict[str, str]:
    return {"VMPACK_STORE_TOKEN": token}


def is_right(disk: Path) -> bool:
    return disk.read_bytes() == disk_of(straight_map(contents_of(DATA, CLASSES)), DATA)


def fetched_from(report: dict[str, Any], uri: str) -> int:
    (one,) = [one for one in report["supplied"] if one["source"] == uri]
    return int(one["fetched_bytes"])


def test_a_neighbour_is_asked_before_the_mirror_and_what_came_is_kept(
    theirs: Vmpack, ours: Vmpack, full: Path, thin: Path, tmp_path: Path
) -> None:
    """However they are named; here in the settings."""
    for blob in DATA[2:8]:
        put(store_of(theirs), blob)
    with serving(theirs) as one, mirror(full) as far:
        (ours.home / "config").mkdir(parents=True)
        (ours.home / "config" / "config.toml").write_text(f'sources = ["{far.url}", "{one.uri}"]\n')
        disk = tmp_path / "disk.raw"
        report = ours.json("unpack", thin, "-o", disk, UNSIGNED, environment=knows(one.token))
        assert is_right(disk)
        assert content_bytes(report, "store://") == sum(map(len, DATA[2:8]))
        assert fetched_from(report, one.uri) == sum(map(len, DATA[2:8]))
        assert content_bytes(report, "http") == sum(map(len, DATA[8:]))
        plan = ours.json("unpack", thin, "--dry-run", UNSIGNED, "--no-store",
                         environment=knows(one.token))  # fmt: skip
        steps = {step["source"]: step["content_bytes"] for step in plan["steps"]}
        assert steps[one.uri] == sum(map(len, DATA[2:8]))
        disk.unlink()
        ours.good("unpack", thin, "-o", disk, UNSIGNED, environment=knows(one.token))
        assert is_right(disk)
    assert {row.digest for row in store_of(ours).list()} == {sha256(blob) for blob in DATA[2:]}
    # Two lists of digests (the dry run has its own), one request for 3 MiB; nothing for the last.
    assert requests_of(one) == 3


def test_a_mirror_is_not_contacted_when_neighbours_have_everything(
    theirs: Vmpack, ours: Vmpack, full: Path, thin: Path, tmp_path: Path
) -> None:
    for blob in DATA[2:]:
        put(store_of(theirs), blob)
    with serving(theirs) as one, mirror(full) as far:
        ours.good("unpack", thin, "-o", tmp_path / "disk.raw", UNSIGNED, "--from", far.url,
                  "--from", one.uri, environment=knows(one.token))  # fmt: skip
        assert far.requests == 0
    assert is_right(tmp_path / "disk.raw")


def test_only_shared_contents_ever_lie_in_a_store_so_no_others_are_served(
    theirs: Vmpack, ours: Vmpack, full: Path, tmp_path: Path
) -> None:
    """Also when boot and private contents came over the network, from a pack on a mirror."""
    with mirror(full) as far:
        theirs.good("unpack", far.url, "-o", tmp_path / "theirs.raw", UNSIGNED, "--from", "store:")
    assert {row.digest for row in store_of(theirs).list()} == {sha256(blob) for blob in DATA[2:]}
    # And nobody asks a neighbour for others, whatever it holds.
    for blob in DATA[:2]:
        put(store_of(theirs), blob)
    write_pack(tmp_path / "bare.vmpack", DATA, CLASSES, carried=[]).close()
    with serving(theirs) as one:
        plan = ours("unpack", tmp_path / "bare.vmpack", "--dry-run", UNSIGNED, "--json",
                    "--from", one.uri, environment=knows(one.token))  # fmt: skip
    assert plan.returncode == 5
    assert f'"bytes": {len(DATA[0])}' in plan.stdout
    assert f'"bytes": {len(DATA[1])}' in plan.stdout
    assert f'"bytes": {len(DATA[2])}' not in plan.stdout


@pytest.mark.parametrize("token", ["", "some-other-token-of-theirs"])
def test_a_neighbour_that_does_not_know_us_is_told_and_the_mirror_asked(
    theirs: Vmpack, ours: Vmpack, full: Path, thin: Path, tmp_path: Path, token: str
) -> None:
    put(store_of(theirs), DATA[2])
    disk = tmp_path / "disk.raw"
    with serving(theirs) as one, mirror(full) as far:
        done = ours("unpack", thin, "-o", disk, UNSIGNED, "--from", one.uri, "--from", far.url,
                    environment=knows(token))  # fmt: skip
    if not token:
        refused(done, USAGE, one.uri, "its token is not known here", "vmpack store token")
        return
    assert done.returncode == 0, done.stderr
    assert "401" in done.stderr
    assert one.token not in done.stderr
    assert token not in done.stderr
    assert is_right(disk)


def test_wrong_bytes_in_a_neighbours_store_are_noticed(
    theirs: Vmpack, ours: Vmpack, full: Path, thin: Path, tmp_path: Path
) -> None:
    for blob in DATA[2:]:
        path = store_of(theirs).path_of(put(store_of(theirs), blob))
        path.chmod(0o644)
        path.write_bytes(bytes(len(blob)))
    disk = tmp_path / "disk.raw"
    with serving(theirs) as one, mirror(full) as far:
        report = ours.json("unpack", thin, "-o", disk, UNSIGNED, "--from", one.uri,
                           "--from", far.url, environment=knows(one.token))  # fmt: skip
    assert content_bytes(report, "store://") == 0
    assert content_bytes(report, "http") == sum(map(len, DATA[2:]))
    assert is_right(disk)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by itself; as docs/lan.md makes one."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=neighbour", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "certificate.pem", folder / "key.pem"


@pytest.mark.parametrize("known", [True, False], ids=["its certificate is known", "it is not"])
def test_over_tls_only_who_has_the_certificate_gets_the_token(
    theirs: Vmpack, ours: Vmpack, thin: Path, tmp_path: Path,
    certificate: tuple[Path, Path], known: bool,
) -> None:  # fmt: skip
    for blob in DATA[2:]:
        put(store_of(theirs), blob)
    with serving(theirs, "--certificate", certificate[0], "--key", certificate[1]) as one:
        assert one.uri.startswith("store+https://")
        table = ours.home / "config" / "neighbours.toml"
        table.parent.mkdir(parents=True)
        table.write_text(
            f'["127.0.0.1:{one.port}"]\ntoken = "{one.token}"\n'
            + (f'certificate = "{certificate[0]}"\n' if known else "")
        )
        table.chmod(0o600)
        done = ours("unpack", thin, "-o", tmp_path / "disk.raw", UNSIGNED, "--from", one.uri)
    assert done.returncode == (0 if known else 5), done.stderr
    if known:
        assert is_right(tmp_path / "disk.raw")
        assert requests_of(one) > 1
    else:
        assert "no trusted connection" in done.stderr
        assert requests_of(one) == 0


@contextmanager
def relay(port: int, hold_at: int) -> Iterator[int]:
    """A line to a server that brings so many bytes, then nothing more."""
    ended = threading.Event()

    def forward(source: socket.socket, target: socket.socket, most: int) -> None:
        while most > 0 and (data := source.recv(min(1 << 16, most))):
            target.sendall(data)
            most -= len(data)
        if most <= 0:
            ended.wait(LIMIT_S)

    def take(listener: socket.socket) -> None:
        while not ended.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, server, 1 << 40), (server, client, hold_at)):
                threading.Thread(target=forward, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=take, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)


def test_ctrl_c_ends_an_unpack_from_a_neighbour_and_the_next_one_goes_on(
    theirs: Vmpack, ours: Vmpack, tmp_path: Path
) -> None:
    data = [numbered(MIB + number, number) for number in range(24)]
    thin = tmp_path / "thin.vmpack"
    write_pack(thin, data, [Class.SHARED] * len(data), carried=[]).close()
    for blob in data:
        put(store_of(theirs), blob)
    disk = tmp_path / "disk.raw"
    with serving(theirs) as one:
        with relay(one.port, hold_at=9 * MIB) as port:
            running = ours.start("unpack", thin, "-o", disk, UNSIGNED, "--from",
                                 f"store://127.0.0.1:{port}/",
                                 environment=knows(one.token))  # fmt: skip
            partial, deadline = Path(f"{disk}.partial"), time.monotonic() + LIMIT_S
            while not partial.exists() or partial.stat().st_blocks * 512 < 4 * MIB:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=LIMIT_S)
        assert running.returncode == 130, errors
        assert errors.endswith("\nvmpack: interrupted\n")
        assert "Traceback" not in errors
        assert not disk.exists()
        report = ours.json("unpack", thin, "-o", disk, UNSIGNED, "--from", one.uri,
                           environment=knows(one.token))  # fmt: skip
    assert report["resumed_bytes"] >= 4 * MIB
    assert fetched_from(report, one.uri) == sum(map(len, data)) - report["resumed_bytes"]
    assert disk.read_bytes() == disk_of(straight_map(contents_of(data)), data)


# -- the command that serves -----------------------------------------------------------------------


def test_serving_changes_nothing_but_when_an_object_was_last_used(
    theirs: Vmpack, ours: Vmpack, thin: Path, tmp_path: Path
) -> None:
    for blob in DATA[2:]:
        put(store_of(theirs), blob)
    theirs.good("store", "token")

    def everything() -> list[tuple[str, int, int]]:
        return [
            (str(path), (found := path.lstat()).st_mode, found.st_size)
            for path in sorted(theirs.home.rglob("*"))
        ]

    before = everything()
    with serving(theirs) as one:
        ours.good("unpack", thin, "-o", tmp_path / "disk.raw", UNSIGNED, "--from", one.uri,
                  environment=knows(one.token))  # fmt: skip
    assert everything() == before
    assert one.first_line.startswith(f"{len(DATA) - 2} contents, ")
    assert one.summary.startswith("answered 3 requests, sent ")


def test_it_listens_on_this_host_only_unless_told_otherwise(theirs: Vmpack) -> None:
    shown = theirs.good("store", "serve", "--help")
    assert "default: 127.0.0.1:7436" in shown


def test_without_tls_a_note_says_what_others_can_read(theirs: Vmpack) -> None:
    theirs.good("store", "token")
    process = theirs.start("store", "serve", "--listen", "0.0.0.0:0")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("0 contents")
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert rest == "answered 0 requests, sent 0 B\n"
    assert errors.startswith("vmpack: note: without --certificate")


def test_the_token_is_shown_and_kept_from_others(theirs: Vmpack, tmp_path: Path) -> None:
    token = theirs.good("store", "token")
    path = theirs.home / "config" / "store-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert theirs.good("store", "token") == token
    renewed = theirs.good("store", "token", "--new")
    assert renewed != token
    assert theirs.good("store", "token") == renewed
    other = theirs.good("store", "token", "--token-file", tmp_path / "other")
    assert other not in (token, renewed)


def test_what_it_cannot_do_is_one_clear_error(theirs: Vmpack, tmp_path: Path) -> None:
    refused(theirs("store", "serve"), USAGE, "store-token", "vmpack store token")
    theirs.good("store", "token")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = theirs("store", "serve", "--listen", f"127.0.0.1:{port}")
        refused(done, FAILED, f"cannot listen at 127.0.0.1, port {port}")
    done = theirs("store", "serve", "--listen", "256.0.0.1:1")
    refused(done, FAILED, "cannot listen at 256.0.0.1")
    (tmp_path / "junk.pem").write_text("junk")
    done = theirs("store", "serve", "--certificate", tmp_path / "junk.pem")
    refused(done, USAGE, "junk.pem", "no certificate")
    for options in (["--key", "key.pem"], ["--listen", "7436"], ["--listen", "a:b"],
                    ["--listen", "::1:7436"], ["--listen", "h:99999"]):  # fmt: skip
        assert theirs("store", "serve", *options).returncode == USAGE
    (theirs.home / "config" / "store-token").chmod(0o644)
    refused(theirs("store", "serve"), USAGE, "other users may read it", "chmod 600")
    (tmp_path / "file").write_text("no store")
    (theirs.home / "config" / "store-token").chmod(0o600)
    done = theirs("store", "serve", "--store", tmp_path / "file")
    refused(done, FAILED, "expected a folder")


# -- a real guest ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.guest
def test_a_guest_comes_from_the_neighbour_with_few_requests(
    run_vmpack: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """What one host has fetched, the next one does not fetch from far away."""
    pack = pack_guest("debian-bios")
    second = trusting_host(room / "second")
    first_disk, disk = room / "first.raw", room / "second.raw"
    with mirror(pack.full) as far:
        run_vmpack.good("unpack", pack.thin, "-o", first_disk, "--from", far.url)
        before = far.requests
        first_disk.unlink()
        with serving(run_vmpack) as one:
            started = time.monotonic()
            report = second.json("unpack", pack.thin, "-o", disk, "--from", far.url,
                                 "--from", one.uri, environment=knows(one.token))  # fmt: skip
            print(f"{time.monotonic() - started:.1f} s")
        assert far.requests == before
    print(one.summary)
    assert second.json("verify", disk, pack.boot, "--exact")["right"]
    assert content_bytes(report, "store://") > 600_000_000
    assert requests_of(one) <= fetched_from(report, one.uri) / MIB


def test_the_sample_is_of_every_class() -> None:
    assert np.unique(CLASSES).tolist() == [Class.BOOT, Class.PRIVATE, Class.SHARED]
