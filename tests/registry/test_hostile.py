"""Registries and token servers that mean harm: one line, the right exit code, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.registry import Running
from packer.artifact.manifest import MAX_MANIFEST_BYTES
from tests.hostile.refusal import refused
from tests.registry.conftest import Address
from tests.registry.proxy import Fault, Proxy, Request, always, proxy
from tests.registry.servers import PASSWORD, USER, config_json
from tests.round_trip.command import Vmpack
from tests.round_trip.packs import author
from tests.round_trip.small import pack_small
from tests.transport.servers import Answer, serving


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack, a folder, of a disk of 16 MiB."""
    return pack_small(author(), tmp_path_factory.mktemp("small"))


def served(data: bytes, status: int = 200, **headers: str) -> Fault:
    """A registry whose manifests are these bytes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return always(lambda one: one.give(status, dict(named), data), path="/manifests/")


def demands(challenge: str) -> Fault:
    """A registry that lets nobody in, whatever they bring."""
    return always(lambda one: one.refuse(401, WWW_Authenticate=challenge))


def manifest(**changes: object) -> bytes:
    """A manifest that is wrong in one place."""
    blob = {
        "mediaType": "application/vnd.vmpack.config.v1+json",
        "digest": "sha256:" + "0" * 64,
        "size": 2,
    }
    right = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.vmpack.pack.v1",
        "config": blob,
        "layers": [
            {
                **blob,
                "mediaType": "application/vnd.vmpack.map.v1+zstd",
                "annotations": {"org.vmpack.disk": "0"},
            }
        ],
    }
    return json.dumps({**right, **changes}).encode()


HOSTILE: dict[str, tuple[Fault, int, tuple[str, ...]]] = {
    "a login for ever": (demands('Basic realm="x"'), 1, ("401", USER)),
    "an unknown login": (demands("Negotiate"), 1, ("a login of a kind",)),
    "a token server without TLS": (
        demands('Bearer realm="http://evil.invalid/token"'),
        1,
        ("https address", "not sent there"),
    ),
    "a token server that is no address": (demands('Bearer realm="\\n"'), 1, ("https address",)),
    "no manifest": (served(b"<html>"), 3, ("manifest",)),
    "an endless manifest": (served(b" " * (MAX_MANIFEST_BYTES + 1)), 1, ("at most 4194304",)),
    "a manifest under a wrong digest": (
        served(manifest(), Docker_Content_Digest="sha256:" + "1" * 64),
        1,
        ("sha256:1111",),
    ),
    "a digest that is a path": (
        served(manifest(config={**json.loads(manifest())["config"], "digest": "sha256:../../x"})),
        3,
        ("config.digest",),
    ),
    "a size below nothing": (
        served(manifest(config={**json.loads(manifest())["config"], "size": -1})),
        3,
        ("config.size",),
    ),
    "an index of several platforms": (
        served(
            b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",'
            b'"manifests":[]}'
        ),
        3,
        ("manifest",),
    ),
    "blobs that are not there": (served(manifest()), 3, ("does not hold blob",)),
    "an image": (served(manifest(artifactType="x/y")), 3, ("artifactType",)),
    "a refusal that colours the screen": (
        served(
            b'{"errors":[{"code":"DENIED","message":"\\u001b[31mno\\nvmpack: all is well"}]}', 403
        ),
        1,
        ("DENIED",),
    ),
    "a refusal without end": (served(b"x" * 1_000_000, 400), 1, ("400",)),
    "redirects in a circle": (served(b"", 307, Location="/v2/manifests/x"), 1, ("redirects",)),
    "a redirect to nowhere": (served(b"", 307, Location="http://[/"), 1, ("nowhere",)),
    "a redirect to a file": (served(b"", 302, Location="file:///etc/passwd"), 1, ("refused",)),
    "a strange status": (served(b"", 299), 1, ("299",)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_registry_is_named_in_a_line(
    docker_registry: Running, address: Address, run_vmpack: Vmpack, room: Path, kind: str
) -> None:
    fault, code, words = HOSTILE[kind]
    with proxy(docker_registry.host, fault) as server:
        known = {"DOCKER_CONFIG": str(config_json(room / "docker", server.host))}
        done = run_vmpack("pull", address(server.host), "-o", room / "x.vmpack", environment=known)
    refused(done, code, *words)
    assert not list(room.glob("x.vmpack*"))
    assert PASSWORD not in done.stderr
    assert "\x1b" not in done.stderr


def test_a_digest_is_what_is_read(
    docker_registry: Running, address: Address, run_vmpack: Vmpack
) -> None:
    """Whatever the registry has under it."""
    with proxy(docker_registry.host, served(manifest())) as server:
        name = address(server.host).rpartition(":")[0]
        done = run_vmpack("inspect", f"{name}@sha256:{'1' * 64}")
    refused(done, 3, "1" * 64, "found sha256:")


def test_a_tag_is_looked_up_once(
    docker_registry: Running, address: Address, run_vmpack: Vmpack, small: Path, room: Path
) -> None:
    """So one that moves meanwhile changes nothing: all else is named by digest."""
    run_vmpack.good("push", small, address(docker_registry.host))
    with proxy(docker_registry.host) as server:
        run_vmpack.good("pull", address(server.host), "-o", room / "x.vmpack")
    assert len([one for one in server.methods("GET") if "/manifests/" in one.path]) == 1


def test_an_endless_token_is_named(
    docker_registry: Running, address: Address, run_vmpack: Vmpack, room: Path
) -> None:
    def endless(answer: Answer, _: int) -> None:
        answer.give(200, {"Content-Length": str(1 << 40)}, b'{"token":"')
        while True:
            answer.wfile.write(b"x" * 65536)

    with serving(endless) as tokens:
        challenge = f'Bearer realm="{tokens.url}"'
        with proxy(docker_registry.host, demands(challenge)) as server:
            done = run_vmpack("inspect", address(server.host))
    refused(done, 1, tokens.url, "at most 131072 bytes")


def points_to(other: Proxy) -> Callable[[Request], None]:
    def point(request: Request) -> None:
        request.give(307, {"Location": f"http://{other.host}{request.path}"}, b"")

    return point


def test_a_registry_that_sends_everything_elsewhere_is_read(
    docker_registry: Running, address: Address, run_vmpack: Vmpack, small: Path, room: Path
) -> None:
    """As registry.k8s.io does, manifests included; the other host learns no password."""
    run_vmpack.good("push", small, address(docker_registry.host))
    with proxy(docker_registry.host) as other:

        def fault(request: Request) -> bool:
            if "Authorization" not in request.headers:
                request.refuse(401, WWW_Authenticate='Basic realm="here"')
            elif request.command == "GET":
                points_to(other)(request)
            else:
                return False
            return True

        with proxy(docker_registry.host, fault) as server:
            known = {"DOCKER_CONFIG": str(config_json(room / "docker", server.host))}
            run_vmpack.good(
                "pull", address(server.host), "-o", room / "x.vmpack", environment=known
            )
    assert len(other.seen) > 5
    assert not any("Authorization" in one.headers for one in other.seen)
