"""What a registry's answers mean, as far as no registry is needed for it."""

from __future__ import annotations

import pytest

from packer.transport.registry_auth import parse_challenges
from packer.transport.registry_http import Answer, RegistryHttp, _place
from packer.transport.registry_reference import parse_reference
from packer.transport.response import TransportError

CHALLENGES = {
    'Basic realm="x"': [("basic", {"realm": "x"})],
    "Bearer realm=https://a/b,service=c": [("bearer", {"realm": "https://a/b", "service": "c"})],
    'BEARER Realm="https://a/b?c=d,e" , SERVICE = "s s"': [
        ("bearer", {"realm": "https://a/b?c=d,e", "service": "s s"})
    ],
    r'Bearer realm="a\"b\\c"': [("bearer", {"realm": r'a"b\c'})],
    'Negotiate, Basic realm="a", Bearer realm="b"': [
        ("negotiate", {}),
        ("basic", {"realm": "a"}),
        ("bearer", {"realm": "b"}),
    ],
    'Bearer realm="a",realm="b"': [("bearer", {"realm": "a"})],
    "": [],
    ',,,"': [],
    'realm="x"': [],
    'Bearer realm="never ends': [("bearer", {}), ("realm", {}), ("never", {}), ("ends", {})],
}


@pytest.mark.parametrize("text", CHALLENGES)
def test_challenges_are_read(text: str) -> None:
    assert parse_challenges(text) == CHALLENGES[text]


def test_a_challenge_without_end_is_cut() -> None:
    assert len(parse_challenges("Basic " * 1_000_000)) < 2000
    assert len(parse_challenges('Bearer realm="' + "\\" * 1_000_000)) < 20


def http(address: str = "oci://registry.example/team/demo") -> RegistryHttp:
    return RegistryHttp(parse_reference(address), [])


def answer(location: str, url: str = "https://registry.example/v2/x/blobs/uploads/") -> Answer:
    return Answer(202, url, {"Location": location} if location else {}, b"")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/v2/x?y=1", "https://registry.example/v2/x?y=1"),
        ("1234", "https://registry.example/v2/x/blobs/uploads/1234"),
        ("https://registry.example/z", "https://registry.example/z"),
        ("https://storage.example/z?sig=1#x", "https://storage.example/z?sig=1"),
        ("https://ada:secret@storage.example/z", "https://storage.example/z"),
        ("//storage.example/z", "https://storage.example/z"),
        ("", ""),
    ],
)
def test_where_to_go_on(location: str, expected: str) -> None:
    assert http().location(answer(location)) == expected


@pytest.mark.parametrize("location", ["http://registry.example/z", "http://registry.example:80/z"])
def test_a_registry_that_forgets_its_tls_is_not_left(location: str) -> None:
    """As behind a TLS proxy that does not say so."""
    assert http().location(answer(location)) == "https://registry.example/z"


@pytest.mark.parametrize(
    "location", ["http://other.example/z", "ftp://registry.example/z", "file:///x"]
)
def test_nothing_is_sent_where_anybody_can_read_it(location: str) -> None:
    with pytest.raises(TransportError, match="refused"):
        http().location(answer(location))


@pytest.mark.parametrize(
    ("address", "root"),
    [
        ("oci://registry.example/x", "https://registry.example"),
        ("oci://10.0.0.1:5000/x", "https://10.0.0.1:5000"),
        ("oci+http://registry.example:5000/x", "http://registry.example:5000"),
        ("oci://docker.io/ada/x", "https://registry-1.docker.io"),
        ("oci://localhost:1/x", "https://localhost:1"),  # nobody answers without TLS
    ],
)
def test_tls_unless_somebody_says_otherwise(address: str, root: str) -> None:
    assert http(address).root == root


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://registry.example/v2/", True),
        ("https://registry.example:443/v2/", True),
        ("https://REGISTRY.example/v2/", True),
        ("https://registry.example:5000/v2/", False),
        ("http://registry.example/v2/", False),
        ("http://registry.example:443/v2/", False),
        ("https://registry.example.evil/v2/", False),
        ("https://registry.example@evil/v2/", False),
        ("https://evil/registry.example", False),
    ],
)
def test_credentials_are_bound_to_scheme_host_and_port(url: str, same: bool) -> None:
    assert (_place(url) == _place("https://registry.example")) is same
