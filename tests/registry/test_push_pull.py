"""A real guest by way of a real registry: push, other people's tools, pull, verify, unpack."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures.registry import Running, registry
from packer.sources.open import open_pack
from tests.hostile.refusal import INTERRUPTED, refused
from tests.registry.conftest import Address
from tests.registry.proxy import Proxy, Request, always, once, proxy
from tests.registry.servers import (
    PASSWORD,
    USER,
    TokenServer,
    authority,
    certificate,
    config_json,
    token_server,
)
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.layouts import manifest_of
from tests.round_trip.packs import Packed, trusting_host
from tests.round_trip.small import make_disk, pack_small, write_files

MIB = 1 << 20


@pytest.fixture(scope="module")
def everything(busybox: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full pack, a folder, with a bundle of each class: another disk lacks but one file."""
    room = tmp_path_factory.mktemp("everything")
    other = room / "other.raw"
    shutil.copyfile(busybox.guest.image, other)
    for name in ("own-data", "hard-link-to-own-data"):
        where = f"{other}?offset={busybox.guest.root_offset}"
        tool("debugfs", "-w", "-R", f"rm /srv/vmpack/{name}", where)
    author = trusting_host(room / "author")
    author.good("pack", busybox.guest.image, "-o", f"{room}/full/", "--no-packages", "--level",
                "1", "--unsigned", "--against", f"disk:{other}")  # fmt: skip
    other.unlink()
    return room / "full"


@pytest.fixture
def second(tmp_path: Path) -> Vmpack:
    """Another host that trusts the tests' author."""
    return trusting_host(tmp_path / "second")


def is_rebuilt(vmpack: Vmpack, disk: Path, pack: Path | str) -> bool:
    return bool(vmpack.json("verify", disk, pack, "--exact", "--allow-unsigned")["right"])


def skopeo(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["skopeo", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# There and back


@pytest.mark.guest
def test_a_guest_goes_through_other_peoples_tools_and_comes_back(
    docker_registry: Running, address: Address, busybox: Packed, run_vmpack: Vmpack,
    second: Vmpack, room: Path,
) -> None:  # fmt: skip
    """push, skopeo to a folder, to a file, into another repository, pull elsewhere, unpack."""
    place, host = address(docker_registry.host), docker_registry.host
    pushed = run_vmpack.json("push", busybox.full, place)
    assert pushed["references"] == [place]
    docker = f"docker://{place.removeprefix('oci://')}"
    skopeo("copy", "--src-tls-verify=false", docker, f"oci:{room}/folder:demo")
    skopeo("copy", f"oci:{room}/folder:demo", f"oci-archive:{room}/file.tar:demo")
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{room}/file.tar:demo",
           f"docker://{host}/other/{room.name.lower()}:back")  # fmt: skip
    back = f"oci://{host}/other/{room.name.lower()}:back"
    raw = skopeo("inspect", "--raw", "--tls-verify=false", docker)
    assert json.loads(raw) == manifest_of(room / "folder")
    pulled = second.json("pull", back, "-o", room / "pulled.vmpack")
    assert pulled["packs"] == pushed["packs"]
    disk = room / "rebuilt.raw"
    second.good("unpack", room / "pulled.vmpack", "-o", disk, "--from", "store:", "--no-store")
    assert is_rebuilt(second, disk, busybox.full)
    assert (
        second.json("inspect", back)["signers"]
        == run_vmpack.json("inspect", busybox.full)["signers"]
    )


@pytest.mark.guest
@pytest.mark.parametrize("extent", ["boot", "thin", "full"])
def test_what_was_pulled_is_what_copy_would_have_made(
    docker_registry: Running, address: Address, everything: Path, run_vmpack: Vmpack,
    room: Path, extent: str,
) -> None:  # fmt: skip
    place = address(docker_registry.host)
    run_vmpack.good("push", everything, place, f"--{extent}")
    run_vmpack.good("pull", place, "-o", room / "pulled.vmpack", f"--{extent}", "--allow-unsigned")
    run_vmpack.good("copy", everything, f"--{extent}", room / "copied.vmpack")
    assert (room / "pulled.vmpack").read_bytes() == (room / "copied.vmpack").read_bytes()


@pytest.mark.guest
def test_a_guest_is_rebuilt_straight_from_a_registry(
    docker_registry: Running, address: Address, everything: Path, run_vmpack: Vmpack, room: Path
) -> None:
    """Once with ranges, and once from a registry that has none: then each bundle comes once."""

    def whole(request: Request) -> bool:
        del request.headers["Range"]
        return False

    run_vmpack.good("push", everything, address(docker_registry.host))
    bundles = [one["digest"] for one in manifest_of(everything)["layers"][-3:]]
    for number, fault in enumerate((lambda _: False, whole)):
        with proxy(docker_registry.host, fault) as server:
            disk, place = room / f"{number}.raw", address(server.host)
            run_vmpack.good("unpack", place, "-o", disk, "--from", "store:", "--no-store",
                            "--allow-unsigned")  # fmt: skip
            assert is_rebuilt(run_vmpack, disk, place)
    for digest in bundles:
        assert len([one for one in server.seen if one.path.endswith(digest)]) == 1


@pytest.mark.guest
def test_a_thin_copy_takes_the_rest_from_a_registry(
    docker_registry: Running, address: Address, everything: Path, run_vmpack: Vmpack, room: Path
) -> None:
    place = address(docker_registry.host)
    run_vmpack.good("push", everything, place)
    run_vmpack.good("copy", everything, "--boot", room / "boot.vmpack")
    disk = room / "rebuilt.raw"
    report = run_vmpack.json("unpack", room / "boot.vmpack", "-o", disk, "--from", place,
                             "--no-store", "--allow-unsigned")  # fmt: skip
    (source,) = [one for one in report["supplied"] if one["source"] == place]
    assert source["content_bytes"] > MIB
    assert is_rebuilt(run_vmpack, disk, everything)


def test_a_pack_may_recommend_a_registry(
    docker_registry: Running, address: Address, author: Vmpack, room: Path
) -> None:
    place = address(docker_registry.host)
    image = make_disk(room / "d.raw", write_files(room / "files", seed=1), size_mib=16)
    author.good("pack", image, "-o", room / "d.vmpack", "--no-packages", "--source", place)
    author.good("push", room / "d.vmpack", place)
    author.good("copy", room / "d.vmpack", "--boot", room / "boot.vmpack")
    disk = room / "rebuilt.raw"
    author.good("unpack", room / "boot.vmpack", "-o", disk, "--no-store")
    assert is_rebuilt(author, disk, room / "d.vmpack")
    refused(
        author("unpack", room / "boot.vmpack", "-o", room / "x.raw", "--no-store", "--offline"), 5
    )


@pytest.fixture(scope="module")
def author_home(tmp_path_factory: pytest.TempPathFactory) -> Vmpack:
    """An author's host."""
    home = Vmpack(tmp_path_factory.mktemp("author"))
    home.good("key", "generate")
    return home


@pytest.fixture(scope="module")
def small(author_home: Vmpack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack, a folder, of a disk of 16 MiB."""
    return pack_small(author_home, tmp_path_factory.mktemp("small"))


# Who is trusted


def test_nothing_of_a_stranger_is_fetched(
    docker_registry: Running,
    address: Address,
    author_home: Vmpack,
    small: Path,
    stranger: Vmpack,
    room: Path,
) -> None:
    author_home.good("push", small, address(docker_registry.host))
    bundles = [
        one["digest"] for one in manifest_of(small)["layers"] if "bundle" in one["mediaType"]
    ]
    with proxy(docker_registry.host) as server:
        place = address(server.host)
        refused(stranger("pull", place, "-o", room / "x.vmpack"), 4, "does not trust")
        asked = " ".join(one.path for one in server.seen)
    assert not any(digest in asked for digest in bundles)
    assert not list(room.glob("x.vmpack*"))


# Words


def test_what_push_and_pull_say(
    docker_registry: Running, address: Address, author_home: Vmpack, small: Path, room: Path
) -> None:
    place = address(docker_registry.host)
    said = author_home.good("push", small, place).splitlines()
    assert said[0].startswith(f"{place}  ")
    assert said[1].startswith("  small:1  sha256:")
    assert said[-1].startswith("  sent ")
    assert said[-1].endswith(", 0 B were there")
    refused(author_home("push", small, place), 2, f"{place} exists already", "--force")
    again = author_home.json("push", small, place, "--force")
    assert again["sent_bytes"] < 5000
    (room / "taken").touch()
    refused(author_home("pull", place, "-o", room / "taken"), 2, "exists already")
    refused(author_home("pull", place.removesuffix(":1"), "-o", room / "x"), 2, "tags there: 1")
    refused(author_home("pull", place.replace(":1", ":nine"), "-o", room / "x"), 3, "tags there")
    refused(author_home("push", small, f"{place}@sha256:{'0' * 64}"), 2, "tag and a digest")
    refused(author_home("push", small, "demo.vmpack"), 2, "expected oci://HOST")
    refused(author_home("push", small, place, "--mount-from", "No/Name"), 2, "name of a repository")


def test_a_registry_that_is_not_there_is_named(author: Vmpack, room: Path) -> None:
    refused(author("inspect", "oci://127.0.0.1:1/demo:1"), 1, "127.0.0.1:1", "5 attempts")


# Several packs


def test_several_packs_share_a_repository(
    docker_registry: Running, address: Address, author: Vmpack, room: Path
) -> None:
    one, two = (pack_small(author, room / "small", seed=1, version=n) for n in (1, 2))
    place = address(docker_registry.host, tag="")
    report = author.json("push", one, two, place)
    assert report["references"] == [f"{place}:small-1", f"{place}:small-2"]
    blobs = [path for pack in (one, two) for path in (pack / "blobs/sha256").iterdir()]
    twice = sum(path.stat().st_size for path in blobs)
    assert report["sent_bytes"] == report["bytes"] < 0.6 * twice  # the same files, sent once


# Interruptions


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory, author_home: Vmpack) -> Path:
    """A pack, a folder, with 40 MB of noise: two chunks and a rest."""
    folder = tmp_path_factory.mktemp("medium")
    files = write_files(folder / "files", seed=5, big=20, small=20)
    image = make_disk(folder / "medium.raw", files, size_mib=96)
    author_home.good("pack", image, "-o", f"{folder}/medium/", "--no-packages")
    return folder / "medium"


def wait_for(server: Proxy, count: int) -> None:
    """Return when so many bytes of bodies have come."""
    deadline = time.monotonic() + 60
    while server.received < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def slowly(request: Request) -> bool:
    """Take bodies at 40 MB/s."""
    if request.length < MIB:
        return False
    pieces = []
    for start in range(0, request.length, MIB):
        pieces.append(request.read_body(min(MIB, request.length - start)))
        time.sleep(1 / 40)
    request.body = b"".join(pieces)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_push_that_was_interrupted_sends_the_rest(
    docker_registry: Running, address: Address, author_home: Vmpack, medium: Path,
    number: signal.Signals,
) -> None:  # fmt: skip
    boot, private = (one["size"] for one in manifest_of(medium)["layers"][-2:])
    with open_pack(str(medium)) as pack:
        first = boot + sum(one.size for one in pack.manifest.kept())
    with proxy(docker_registry.host, slowly) as server:
        place = address(server.host)
        process = author_home.start("push", medium, place, "--quiet")
        wait_for(server, first + private // 2)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == INTERRUPTED
            assert said == "vmpack: interrupted\n"
    refused(author_home("inspect", address(docker_registry.host)), 3)
    report = author_home.json("push", medium, address(docker_registry.host))
    assert report["sent_bytes"] == report["bytes"] - first
    again = author_home.json("push", medium, address(docker_registry.host, tag="again"))
    assert again["sent_bytes"] < 5000  # everything was there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_was_interrupted_goes_on(
    docker_registry: Running, address: Address, author_home: Vmpack, medium: Path, room: Path,
    number: signal.Signals,
) -> None:  # fmt: skip
    author_home.good("push", medium, address(docker_registry.host))
    sent = [0]

    def drip(request: Request) -> bool:
        if request.command != "GET" or "/blobs/" not in request.path:
            return False
        status, headers, body = request.ask()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        for start in range(0, len(body), 1 << 16):
            request.wfile.write(body[start : start + (1 << 16)])
            sent[0] += len(body[start : start + (1 << 16)])
            time.sleep(0.005)
        return True

    with proxy(docker_registry.host, drip) as server:
        arguments = ("pull", address(server.host), "-o", room / "p.vmpack", "--quiet")
        process = author_home.start(*arguments)
        deadline = time.monotonic() + 60
        while sent[0] < 34 * MIB and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.communicate(timeout=60)
        assert not (room / "p.vmpack").exists()
        before = sent[0]
        report = author_home.json(*arguments)
    # Four connections bring 8 MiB each; what lies behind a gap then is fetched again.
    assert sent[0] - before < report["bytes"] - 16 * MIB
    assert is_rebuilt_from(author_home, room / "p.vmpack", medium, room)


def is_rebuilt_from(vmpack: Vmpack, pack: Path, original: Path, room: Path) -> bool:
    vmpack.good("unpack", pack, "-o", room / "d.raw", "--from", "store:", "--no-store")
    return is_rebuilt(vmpack, room / "d.raw", original)


# Logins and TLS as people have them


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Running, TokenServer, Path]]:
    """A registry with TLS whose token server has TLS, too; and the authority of both."""
    work = tmp_path_factory.mktemp("guarded")
    ca = authority(work)
    server_certificate = certificate(work, ca, "localhost")
    with ExitStack() as stack:
        tokens = stack.enter_context(token_server(work / "tokens", server_certificate))
        running = stack.enter_context(
            registry(work / "registry", auth=tokens.auth, tls=server_certificate)
        )
        yield running, tokens, ca.certificate


@pytest.mark.guest
def test_a_guest_goes_through_a_registry_with_tls_and_tokens(
    guarded: tuple[Running, TokenServer, Path], busybox: Packed, run_vmpack: Vmpack,
    second: Vmpack, room: Path,
) -> None:  # fmt: skip
    running, _, ca = guarded
    host = running.host.replace("127.0.0.1", "localhost")
    place = f"oci://{host}/team/busybox:1"
    trusting = {"REQUESTS_CA_BUNDLE": str(ca)}
    known = {**trusting, "DOCKER_CONFIG": str(config_json(room / "docker", host))}
    refused(run_vmpack("push", busybox.full, place), 1, "no trusted connection",
            "REQUESTS_CA_BUNDLE")  # fmt: skip
    refused(run_vmpack("push", busybox.full, place, environment=trusting), 1, "anonymously",
            "skopeo login")  # fmt: skip
    run_vmpack.good("push", busybox.full, place, environment=known)
    second.good("pull", place, "-o", room / "p.vmpack", environment=trusting)  # anybody may
    certificates = room / "certificates"
    certificates.mkdir()
    shutil.copy(ca, certificates / "ca.crt")
    skopeo("copy", f"--src-cert-dir={certificates}", f"docker://{place[6:]}",
           f"oci:{room}/folder:x", SSL_CERT_FILE=str(ca))  # fmt: skip
    skopeo("copy", f"--dest-cert-dir={certificates}", f"--dest-creds={USER}:{PASSWORD}",
           f"oci:{room}/folder:x", f"docker://{host}/other/busybox:1",
           SSL_CERT_FILE=str(ca))  # fmt: skip
    disk = room / "rebuilt.raw"
    second.good("unpack", f"oci://{host}/other/busybox:1", "-o", disk, "--from", "store:",
                "--no-store", environment=trusting)  # fmt: skip
    assert is_rebuilt(second, disk, busybox.full)


def test_a_registry_without_tls_elsewhere_has_to_be_named_so(
    docker_registry: Running, author_home: Vmpack, small: Path, room: Path
) -> None:
    port = docker_registry.host.partition(":")[2]
    author_home.good("push", small, f"oci+http://127.0.0.1:{port}/team/plain:1")
    author_home.good("inspect", f"oci+http://127.0.0.1:{port}/team/plain:1")


# Registries that break


def test_a_blob_that_comes_wrong_is_named(
    docker_registry: Running, address: Address, author_home: Vmpack, small: Path, room: Path
) -> None:
    author_home.good("push", small, address(docker_registry.host))
    (digest,) = [
        one["digest"]
        for one in manifest_of(small)["layers"]
        if one.get("annotations", {}).get("org.opencontainers.image.title") == "private"
    ]

    def wrong(request: Request) -> None:
        status, headers, body = request.ask()
        request.give(status, headers, bytes(one ^ 0x55 for one in body))

    with proxy(docker_registry.host, always(wrong, path=digest)) as server:
        place = address(server.host)
        refused(author_home("pull", place, "-o", room / "x.vmpack"), 3, digest)
        assert not (room / "x.vmpack").exists()
        arguments = ("unpack", place, "-o", room / "x.raw", "--no-store", "--from", "store:")
        assert author_home(*arguments).returncode == 5
        author_home.good(*arguments, "--from", f"pack:{small}")  # another source has it


FAULTS = {
    "cut": lambda: once(Request.cut, path="/blobs/"),
    "cut in the middle": lambda: once(lambda one: one.cut_after(100_000), path="/blobs/"),
    "429": lambda: once(lambda one: one.refuse(429, Retry_After="1")),
    "503": lambda: once(lambda one: one.refuse(503)),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_pull_survives(
    docker_registry: Running,
    address: Address,
    author_home: Vmpack,
    small: Path,
    room: Path,
    kind: str,
) -> None:
    author_home.good("push", small, address(docker_registry.host))
    with proxy(docker_registry.host, FAULTS[kind]()) as server:
        author_home.good("pull", address(server.host), "-o", f"{room}/pulled/")
    tool("diff", "-r", small / "blobs", room / "pulled/blobs")
