from __future__ import annotations

import pytest

from packer.errors import UsageError
from packer.transport.registry_reference import (
    Reference,
    is_reference,
    is_repository,
    parse_reference,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4

RIGHT = {
    "oci://registry.example/demo": Reference("registry.example", "demo"),
    "oci://registry.example/team/demo:1": Reference("registry.example", "team/demo", "1"),
    f"oci://r.example/demo@{DIGEST}": Reference("r.example", "demo", digest=DIGEST),
    "oci://localhost:5000/a/b_c/d__e/f-g/h---i/j.k:v1.0_x-Y": Reference(
        "localhost:5000", "a/b_c/d__e/f-g/h---i/j.k", "v1.0_x-Y"
    ),
    "oci://REGISTRY.Example:443/demo:LATEST": Reference("registry.example:443", "demo", "LATEST"),
    "oci://[::1]:5000/demo:1": Reference("[::1]:5000", "demo", "1"),
    "oci://127.0.0.1/demo:" + "x" * 128: Reference("127.0.0.1", "demo", "x" * 128),
    "oci+http://10.0.0.7:5000/demo:1": Reference("10.0.0.7:5000", "demo", "1", plain_http=True),
    "oci://h/" + "a" * 253: Reference("h", "a" * 253),
}


@pytest.mark.parametrize("text", RIGHT)
def test_an_address_is_read(text: str) -> None:
    assert is_reference(text)
    assert parse_reference(text) == RIGHT[text]


@pytest.mark.parametrize("reference", RIGHT.values(), ids=str)
def test_an_address_is_written_as_it_is_read(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


WRONG = {
    "oci://": "no repository",
    "oci://host": "no repository",
    "oci://host/": "no repository",
    "oci:///demo": "the host ''",
    "oci://user@host/demo": "no repository",
    "oci://user:secret@host/demo:1": "no repository",
    "oci://-host/demo": "the host",
    "oci://ho st/demo": "the host",
    "oci://host:/demo": "the host",
    "oci://host:0/demo": "the host",
    "oci://host:65536/demo": "the host",
    "oci://host:\u0661/demo": "the host",
    "oci://[::1/demo": "the host",
    "oci://[:::1]/demo": "the host",
    "oci://[1.2.3.4]/demo": "the host",
    "oci://host..example/demo": "the host",
    "oci://" + "h" * 64 + "/demo": "the host",
    "oci://host/Demo": "the repository 'Demo'",
    "oci://host/demo/": "the repository 'demo/'",
    "oci://host//demo": "the repository '/demo'",
    "oci://host/a/../b": "the repository",
    "oci://host/a/./b": "the repository",
    "oci://host/.a": "the repository",
    "oci://host/a..b": "the repository",
    "oci://host/a___b": "the repository",
    "oci://host/a%2e": "the repository",
    "oci://host/demo?x=1": "the repository",
    "oci://host/demo#x": "the repository",
    "oci://host/demo\n": "the repository",
    "oci://h/" + "a" * 254: "the repository",
    "oci://host/" + "a" * 10_000: "10005 characters",
    "oci://host/demo:1@" + DIGEST: "a tag and a digest",
    "oci://host/demo@sha256:12": "the digest",
    "oci://host/demo@" + DIGEST.upper(): "the digest",
    "oci://host/demo@md5:" + "0" * 32: "the digest",
    "oci://host/demo@": "the digest ''",
    "https://host/demo": "another beginning",
    "ocix://host/demo": "another beginning",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_address_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UsageError, match="expected oci://HOST") as caught:
        parse_reference(text)
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a b", "a/b", "a:b", "ä", "x" * 129, "a\n"])
def test_a_wrong_tag_is_refused(tag: str) -> None:
    with pytest.raises(UsageError, match="expected a tag"):
        parse_reference("oci://host/demo").with_tag(tag)


def test_a_tag_takes_the_place_of_a_digest() -> None:
    assert str(parse_reference(f"oci://host/demo@{DIGEST}").with_tag("1")) == "oci://host/demo:1"


@pytest.mark.parametrize(
    "text", ["demo.vmpack", "/oci://x", "oci:dir", "https://host/oci://", "pack:oci://h/d", "oci"]
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert not is_reference(text)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:1", "[::1]:5"]
)
def test_this_host_is_recognised(host: str) -> None:
    assert parse_reference(f"oci://{host}/demo").loopback


@pytest.mark.parametrize(
    "host", ["localhost.example", "10.0.0.1", "128.0.0.1", "0.0.0.0", "[::2]", "a.localhost"]
)
def test_other_hosts_are_not_this_one(host: str) -> None:
    assert not parse_reference(f"oci://{host}/demo").loopback


def test_docker_hub_has_other_names_in_its_api() -> None:
    own, official = (
        parse_reference("oci://docker.io/ada/demo"),
        parse_reference("oci://docker.io/x"),
    )
    assert (own.api_host, own.api_repository) == ("registry-1.docker.io", "ada/demo")
    assert official.api_repository == "library/x"
    assert parse_reference("oci://host/x").api_repository == "x"


@pytest.mark.parametrize(
    ("name", "right"), [("a/b", True), ("", False), ("A", False), ("a/", False)]
)
def test_names_of_repositories(name: str, right: bool) -> None:
    assert is_repository(name) is right
