"""TLS with other people's clients: certificates on both sides, and nothing without them."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.errors import UsageError
from packer.run.nbd import Limits, server_tls
from packer.transport import nbd_wire as wire
from packer.transport.nbd import NbdError, NbdSource
from tests.run.nbd.exports import OpenFileExport, PatternExport, pattern
from tests.run.serving import Client, Serving, serving, start_tcp, wait_until

MIB = 1 << 20
DISK = PatternExport(40 * MIB, 100_000)
LIMITS = Limits(handshake_seconds=2.0, reply_seconds=2.0)


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def certify(folder: Path, name: str, usage: str) -> None:
    """NAME-cert.pem and NAME-key.pem, of the folder's authority."""
    (folder / "extensions").write_text(
        f"basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage={usage}\n"
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
    )
    key, request, certificate = f"{name}-key.pem", f"{name}.csr", f"{name}-cert.pem"
    new = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(folder, *new, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    authority = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"]
    signed = ["-days", "2", "-extfile", "extensions", "-out", certificate]
    openssl(folder, "x509", "-req", "-in", request, *authority, *signed)


def authority(folder: Path) -> Path:
    """A folder as QEMU and libnbd want it, with an authority and its two certificates."""
    folder.mkdir()
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    use = ["-addext", "keyUsage=critical,keyCertSign", "-days", "2", "-subj", "/CN=authority"]
    openssl(folder, *new, *use, "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    certify(folder, "server", "serverAuth")
    certify(folder, "client", "clientAuth")
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("tls") / "keys")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("tls") / "strangers")


@pytest.fixture
def server(keys: Path) -> Iterator[tuple[Serving, int]]:
    """A server that wants certificates of its clients, and its port."""
    names = ("server-cert.pem", "server-key.pem", "ca-cert.pem")
    with serving({"": DISK}, LIMITS) as one:
        yield one, start_tcp(one, server_tls(*(keys / name for name in names)))


def nbdinfo(port: int, keys: Path) -> subprocess.CompletedProcess[str]:
    uri = f"nbds://localhost:{port}/?tls-certificates={keys}"
    return subprocess.run(
        ["nbdinfo", "--json", uri], capture_output=True, text=True, timeout=60, check=False
    )


def test_nbdinfo_and_nbdcopy_come_in_with_a_certificate(
    server: tuple[Serving, int], keys: Path, tmp_path: Path
) -> None:
    _, port = server
    done = nbdinfo(port, keys)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["TLS"], found["structured"]) == (True, True)
    assert found["exports"][0]["export-size"] == DISK.size
    uri = f"nbds://localhost:{port}/?tls-certificates={keys}"
    subprocess.run(["nbdcopy", uri, str(tmp_path / "copy")], check=True, timeout=60)
    assert (tmp_path / "copy").read_bytes() == DISK.expected(0, DISK.size)


def test_what_the_kernel_cannot_send_comes_right(keys: Path, tmp_path: Path) -> None:
    """Parts of files are read before they are encrypted."""
    plain, copy = tmp_path / "plain", tmp_path / "copy"
    plain.write_bytes(pattern(0, 20 * MIB))
    with OpenFileExport(plain) as export, serving({"": export}, LIMITS) as one:
        port = start_tcp(one, server_tls(keys / "server-cert.pem", keys / "server-key.pem", None))
        uri = f"nbds://localhost:{port}/?tls-certificates={keys}"
        subprocess.run(["nbdcopy", uri, str(copy)], check=True, timeout=60)
    assert copy.read_bytes() == plain.read_bytes()


def test_qemu_img_comes_in_with_a_certificate(
    server: tuple[Serving, int], keys: Path, tmp_path: Path
) -> None:
    _, port = server
    credentials = f"tls-creds-x509,id=tls,endpoint=client,dir={keys}"
    image = f"driver=nbd,host=localhost,port={port},tls-creds=tls"
    compare = ["qemu-img", "compare", "--object", credentials, "--image-opts", image]
    (tmp_path / "disk.raw").write_bytes(DISK.expected(0, DISK.size))
    done = subprocess.run(
        [*compare, f"driver=raw,file.driver=file,file.filename={tmp_path / 'disk.raw'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "identical" in done.stdout


def test_a_stranger_gets_nothing(server: tuple[Serving, int], strangers: Path, keys: Path) -> None:
    one, port = server
    mixed = strangers / "ca-cert.pem"
    mixed.write_bytes((keys / "ca-cert.pem").read_bytes())  # trusts us; we do not trust it
    assert nbdinfo(port, strangers).returncode != 0
    wait_until(lambda: one.server.connections == 0)
    assert nbdinfo(port, keys).returncode == 0


def test_without_tls_nothing_is_told(server: tuple[Serving, int]) -> None:
    _, port = server
    with pytest.raises(NbdError, match="demands TLS"):
        NbdSource(f"nbd://127.0.0.1:{port}/")
    done = subprocess.run(
        ["qemu-img", "info", f"nbd://127.0.0.1:{port}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "TLS" in done.stderr


class TcpClient(Client):
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)

    def secure(self, keys: Path) -> None:
        assert self.option(wire.OPT_STARTTLS) == [(wire.REP_ACK, b"")]
        context = ssl.create_default_context(cafile=keys / "ca-cert.pem")
        context.load_cert_chain(keys / "client-cert.pem", keys / "client-key.pem")
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


def test_bytes_slipped_in_before_tls_end_the_connection(server: tuple[Serving, int]) -> None:
    """An attacker in between could put options before those of the client (CVE-2021-3716)."""
    _, port = server
    with TcpClient(port) as client:
        client.greet()
        start = wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_STARTTLS, 0)
        client.send(start + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_STRUCTURED_REPLY, 0))
        assert client.socket.recv(1) == b""


def test_what_was_agreed_before_tls_does_not_count(server: tuple[Serving, int], keys: Path) -> None:
    _, port = server
    with TcpClient(port) as client:
        client.greet()
        assert client.option(wire.OPT_STRUCTURED_REPLY)[0][0] == wire.REP_ERR_TLS_REQD
        client.secure(keys)
        assert client.option(wire.OPT_STARTTLS) == [(wire.REP_ERR_INVALID, b"")]
        assert client.option(wire.OPT_GO, wire.string(b"") + bytes(2))[-1] == (wire.REP_ACK, b"")
        client.request(wire.CMD_READ, 5, 99_000, 3 * MIB)
        assert client.simple() == (5, 0)
        assert client.receive(3 * MIB) == DISK.expected(99_000, 3 * MIB)


def test_who_never_ends_the_handshake_is_cut_off(server: tuple[Serving, int]) -> None:
    one, port = server
    with TcpClient(port) as silent, TcpClient(port) as noisy:
        for client in (silent, noisy):
            client.greet()
            client.option(wire.OPT_STARTTLS)
        noisy.send(b"this is no TLS" * 100)
        begin = time.monotonic()
        wait_until(lambda: one.server.connections == 1, 1.5)
        wait_until(lambda: one.server.connections == 0)
        assert time.monotonic() - begin > 1
        assert silent.is_cut()


def test_a_slow_reader_is_cut_off(server: tuple[Serving, int], keys: Path) -> None:
    one, port = server
    with TcpClient(port) as client:
        client.greet()
        client.secure(keys)
        client.option(wire.OPT_GO, wire.string(b"") + bytes(2))
        for cookie in range(8):
            client.request(wire.CMD_READ, cookie, 0, 32 * MIB)
        wait_until(lambda: one.server.connections == 0)


def test_without_an_authority_anybody_may_come(keys: Path) -> None:
    with serving({"": DISK}) as one:
        port = start_tcp(one, server_tls(keys / "server-cert.pem", keys / "server-key.pem"))
        with TcpClient(port) as client:
            client.greet()
            assert client.option(wire.OPT_STARTTLS) == [(wire.REP_ACK, b"")]
            context = ssl.create_default_context(cafile=keys / "ca-cert.pem")
            client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
            assert client.option(wire.OPT_LIST)[-1] == (wire.REP_ACK, b"")


def test_files_that_are_no_certificates_are_clear_errors(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    certificate, key = keys / "server-cert.pem", keys / "server-key.pem"
    with pytest.raises(UsageError, match="no certificate with its key"):
        server_tls(certificate, keys / "client-key.pem")
    for path in (tmp_path / "x", tmp_path / "nothing"):
        with pytest.raises(UsageError, match="no certificate of an authority"):
            server_tls(certificate, key, path)
