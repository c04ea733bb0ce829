"""Who gets to know user names, passwords and tokens: the registry and its token server."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fixtures.registry import Certificate, Running, htpasswd, registry
from packer.errors import Error
from packer.transport import deadline
from packer.transport.registry import Registry
from packer.transport.registry_reference import Reference, parse_reference
from packer.transport.registry_upload import CHUNK_BYTES
from packer.transport.response import ForbiddenError, TransportError
from tests.registry.conftest import Address
from tests.registry.proxy import Fault, Proxy, Request, always, once, proxy
from tests.registry.servers import (
    PASSWORD,
    USER,
    TokenServer,
    authority,
    certificate,
    config_json,
    token_server,
)
from tests.transport.servers import Answer, Server, serving

DATA = random.Random(1).randbytes(CHUNK_BYTES + 1_000_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
SECRET = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

LogIn = Callable[[str], None]


@pytest.fixture
def log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogIn:
    """`log_in(host)`: user name and password for one registry are in the config.json."""

    def log_in(host: str) -> None:
        folder = config_json(tmp_path / "docker", host)
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))

    return log_in


@contextmanager
def opened(address: str, *, push: bool = False) -> Iterator[Registry]:
    with Registry(parse_reference(address), push=push, back_off_seconds=0.01) as made:
        yield made


def send(made: Registry, data: bytes = DATA) -> None:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if not made.obtain_blob(digest, len(data)):
        made.send_blob(digest, len(data), lambda offset, n: data[offset : offset + n])


def check_read(made: Registry) -> None:
    ranges = [(0, 5), (2_000_000, 1000)]
    found = dict(made.get_ranges(DIGEST, ranges))
    assert found == {row: DATA[at : at + n] for row, (at, n) in enumerate(ranges)}


@contextmanager
def forbidden(*words: str) -> Iterator[None]:
    """Refused in one line that says these words and no secret."""
    with pytest.raises(ForbiddenError) as caught:
        yield
    said = f"{caught.value} {caught.value.hint}"
    assert "\n" not in said
    assert PASSWORD not in said
    assert SECRET not in said
    for word in words:
        assert word in said


# User name and password


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry that wants user name and password."""
    work = tmp_path_factory.mktemp("locked")
    with registry(work, auth=htpasswd(work, USER, PASSWORD)) as running:
        yield running


def test_user_name_and_password_open_a_registry(
    locked: Running, address: Address, log_in: LogIn
) -> None:
    log_in(locked.host)
    with opened(address(locked.host), push=True) as made:
        send(made)
        check_read(made)


def test_nobody_is_let_in_without(locked: Running, address: Address) -> None:
    with opened(address(locked.host)) as made, forbidden("found none", "skopeo login"):
        made.tags()


def test_a_wrong_password_is_said_once(
    locked: Running, address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with proxy(locked.host) as before:
        folder = config_json(tmp_path, before.host, password="wrong")
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
        with opened(address(before.host)) as made, forbidden(USER, "UNAUTHORIZED"):
            made.tags()
    assert len(before.methods("GET")) == 2


def test_what_is_kept_for_other_registries_is_not_used(
    locked: Running, address: Address, log_in: LogIn
) -> None:
    log_in("127.0.0.1:1")
    with (
        proxy(locked.host) as before,
        opened(address(before.host)) as made,
        forbidden("found none"),
    ):
        made.tags()
    assert not any("Authorization" in one.headers for one in before.seen)


def test_the_netrc_file_is_left_alone(
    docker_registry: Running, address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with proxy(docker_registry.host) as before, opened(address(before.host), push=True) as made:
        send(made)
    assert not any("Authorization" in one.headers for one in before.seen)


def test_nobody_is_told_who_we_are_before_he_asks(
    docker_registry: Running, address: Address, log_in: LogIn
) -> None:
    with proxy(docker_registry.host) as before:
        log_in(before.host)
        with opened(address(before.host), push=True) as made:
            send(made)
    assert not any("Authorization" in one.headers for one in before.seen)


# Other hosts


@pytest.fixture
def elsewhere(docker_registry: Running) -> Iterator[Proxy]:
    """Another host, where blobs can be had by anybody."""
    with proxy(docker_registry.host) as server:
        yield server


def wants_login(request: Request) -> bool:
    """Whether a request lacks user name and password; then it was answered."""
    if request.headers.get("Authorization") == f"Basic {SECRET}":
        return False
    request.refuse(401, WWW_Authenticate='Basic realm="here"')
    return True


Guarded = Callable[..., Proxy]


@pytest.fixture
def guarded(docker_registry: Running, log_in: LogIn) -> Iterator[Guarded]:
    """`guarded(fault)`: a registry that wants a login, and has that fault for who is let in."""
    with ExitStack() as stack:

        def guarded(fault: Fault) -> Proxy:
            def check(request: Request) -> bool:
                return wants_login(request) or fault(request)

            server = stack.enter_context(proxy(docker_registry.host, check))
            log_in(server.host)
            return server

        yield guarded


def no_secrets(server: Proxy) -> bool:
    everything = " ".join(f"{one.path} {one.headers}" for one in server.seen)
    return "Authorization" not in everything and SECRET not in everything


def points_to(other: Proxy) -> Callable[[Request], None]:
    """Answers with another host's address, signed anew each time."""
    count = iter(range(1, 1000))

    def point(request: Request) -> None:
        location = f"http://{other.host}{request.path}?signature={next(count)}"
        request.give(307, {"Location": location}, b"")

    return point


@pytest.fixture
def stored(docker_registry: Running, address: Address) -> None:
    """This test's repository has the blob."""
    with opened(address(docker_registry.host), push=True) as made:
        send(made)


@pytest.mark.usefixtures("stored")
def test_a_host_that_is_pointed_to_gets_no_credentials(
    elsewhere: Proxy, guarded: Guarded, address: Address
) -> None:
    server = guarded(always(points_to(elsewhere), method="GET", path="/blobs/"))
    with opened(address(server.host)) as made:
        check_read(made)
    assert elsewhere.seen
    assert no_secrets(elsewhere)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_address_that_has_run_out_is_asked_for_again(
    docker_registry: Running, guarded: Guarded, address: Address, status: int
) -> None:
    challenge = {"WWW_Authenticate": 'Basic realm="give it to me"'}
    with proxy(docker_registry.host, once(lambda one: one.refuse(status, **challenge))) as other:
        server = guarded(always(points_to(other), method="GET", path="/blobs/"))
        with opened(address(server.host)) as made:
            check_read(made)
    assert no_secrets(other)
    assert [one.path.partition("?")[2] for one in other.seen][:2] == ["signature=1", "signature=2"]


@pytest.mark.usefixtures("stored")
def test_an_address_that_never_works_is_given_up(
    docker_registry: Running, guarded: Guarded, address: Address
) -> None:
    with proxy(docker_registry.host, always(lambda one: one.refuse(403))) as other:
        server = guarded(always(points_to(other), method="GET", path="/blobs/"))
        with opened(address(server.host)) as made, pytest.raises(TransportError) as caught:
            check_read(made)
    assert "403" in str(caught.value)
    assert "5 attempts" in str(caught.value)


def sends_to(other: Proxy) -> Callable[[Request], None]:
    """Answers as the registry does, with an upload's address on another host."""

    def send_away(request: Request) -> None:
        status, headers, body = request.ask()
        parts = urlsplit(headers["Location"])
        location = parts._replace(netloc=other.host).geturl()
        request.give(status, {**headers, "Location": location}, body)

    return send_away


@pytest.mark.parametrize("status", [403, 404])
def test_an_upload_that_another_host_has_forgotten_begins_again(
    docker_registry: Running, guarded: Guarded, address: Address, status: int
) -> None:
    cut = once(Request.cut, method="PATCH")
    forgotten = always(lambda one: one.refuse(status), method="GET")
    with proxy(docker_registry.host, lambda one: cut(one) or forgotten(one)) as other:
        server = guarded(always(sends_to(other), method="POST"))
        with opened(address(server.host), push=True) as made:
            send(made)
    assert len(server.methods("POST")) == 2
    assert no_secrets(other)
    assert docker_registry.blob_file(DIGEST).read_bytes() == DATA


def test_an_upload_to_another_host_carries_no_credentials(
    elsewhere: Proxy, guarded: Guarded, address: Address, docker_registry: Running
) -> None:
    server = guarded(always(sends_to(elsewhere), method="POST"))
    with opened(address(server.host), push=True) as made:
        send(made)
    assert len(elsewhere.methods("PATCH", "PUT")) == 2
    assert no_secrets(elsewhere)
    assert docker_registry.blob_file(DIGEST).read_bytes() == DATA


def test_a_registry_that_demands_a_login_for_ever_is_given_up(
    docker_registry: Running, address: Address, log_in: LogIn
) -> None:
    challenge = {"WWW_Authenticate": 'Basic realm="again"'}
    with proxy(docker_registry.host, always(lambda one: one.refuse(401, **challenge))) as server:
        log_in(server.host)
        with opened(address(server.host), push=True) as made, forbidden("401", USER):
            send(made)
    assert len(server.methods("HEAD", "GET", "POST")) == 2


@pytest.mark.parametrize("challenge", ["", "Negotiate", "Digest realm=x", '"', "Basic" * 99999])
def test_a_login_that_nobody_knows_is_refused(
    docker_registry: Running, address: Address, log_in: LogIn, challenge: str
) -> None:
    headers = {"WWW_Authenticate": challenge[:60_000]}
    with proxy(docker_registry.host, always(lambda one: one.refuse(401, **headers))) as server:
        log_in(server.host)
        with opened(address(server.host)) as made, forbidden("a login of a kind"):
            made.tags()
    assert no_secrets(server)


# Tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    with token_server(tmp_path_factory.mktemp("tokens")) as server:
        yield server


@pytest.fixture(scope="module")
def by_token(tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry that lets in who brings a token of that server."""
    with registry(tmp_path_factory.mktemp("by-token"), auth=tokens.auth) as running:
        yield running


def test_a_token_opens_a_registry(
    by_token: Running, tokens: TokenServer, address: Address, log_in: LogIn, repository: str
) -> None:
    tokens.asked.clear()
    log_in(by_token.host)
    with opened(address(by_token.host), push=True) as made:
        send(made)
        check_read(made)
    asked = [(one.method, one.scopes, one.known) for one in tokens.asked]
    assert asked == [("GET", [f"repository:{repository}:pull,push"], True)]
    assert tokens.asked[0].fields["account"] == [USER]


def test_anybody_may_read_where_the_token_server_says_so(
    by_token: Running, tokens: TokenServer, address: Address, log_in: LogIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    log_in(by_token.host)
    with opened(address(by_token.host), push=True) as made:
        send(made)
    monkeypatch.setenv("DOCKER_CONFIG", "/nowhere")
    tokens.asked.clear()
    with opened(address(by_token.host)) as made:
        check_read(made)
    assert [one.known for one in tokens.asked] == [False]


def test_nobody_may_write_unknown(by_token: Running, address: Address) -> None:
    with opened(address(by_token.host), push=True) as made, forbidden("anonymously"):
        send(made)


def test_an_identity_token_is_changed_for_a_token(
    by_token: Running, tokens: TokenServer, address: Address, repository: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    entry = {"identitytoken": tokens.refresh_token}
    (tmp_path / "config.json").write_text(json.dumps({"auths": {by_token.host: entry}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    tokens.asked.clear()
    with opened(address(by_token.host), push=True) as made:
        send(made)
    asked = [(one.method, one.scopes) for one in tokens.asked]
    assert asked == [("POST", [f"repository:{repository}:pull,push"])]


def test_a_token_server_that_knows_better_is_named(
    by_token: Running, tokens: TokenServer, address: Address, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = config_json(tmp_path, by_token.host, password="wrong")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    with opened(address(by_token.host)) as made, forbidden(tokens.url, "401"):
        made.tags()


def test_a_login_that_fails_while_blobs_are_read_says_why(
    docker_registry: Running, address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Several threads read; the first demand for a login comes to one of them."""
    with opened(address(docker_registry.host), push=True) as made:
        send(made)
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))

    def demand(one: Request) -> bool:
        if one.headers.get("Range", "bytes=0-").startswith("bytes=0-"):
            return False
        one.refuse(401, WWW_Authenticate='Basic realm="x"')
        return True

    with (
        proxy(docker_registry.host, demand) as server,
        opened(address(server.host)) as made,
        pytest.raises(Error, match=r"config\.json"),
    ):
        dict(made.get_ranges(DIGEST, [(at, 1000) for at in range(0, len(DATA) - 1000, 100_000)]))


def test_a_token_that_has_run_out_is_renewed(
    by_token: Running, tokens: TokenServer, address: Address, log_in: LogIn
) -> None:
    def run_out(request: Request) -> None:
        challenge = f'Bearer realm="{tokens.url}",service="a registry",error="invalid_token"'
        request.refuse(401, WWW_Authenticate=challenge)

    tokens.asked.clear()
    with proxy(by_token.host, once(run_out, method="PATCH")) as server:
        log_in(server.host)
        with opened(address(server.host), push=True) as made:
            send(made)
    assert len(tokens.asked) == 2


def test_taking_over_from_another_repository_asks_for_the_right_to(
    by_token: Running, tokens: TokenServer, address: Address, log_in: LogIn, repository: str
) -> None:
    log_in(by_token.host)
    with opened(address(by_token.host), push=True) as made:
        send(made)
    tokens.asked.clear()
    other = address(by_token.host, name=f"{repository}-too")
    with opened(other, push=True) as made:
        assert not made.obtain_blob(DIGEST, len(DATA))
        made.mount_from(repository)
        assert made.obtain_blob(DIGEST, len(DATA))
    own = f"repository:{repository}-too:pull,push"
    assert [one.scopes for one in tokens.asked] == [[own], [own, f"repository:{repository}:pull"]]


def test_no_right_is_asked_for_that_a_challenge_suggests(
    docker_registry: Running, tokens: TokenServer, address: Address, log_in: LogIn, repository: str
) -> None:
    scope = "repository:team/secret:pull,push,delete registry:catalog:*"
    challenge = f'Bearer realm="{tokens.url}",service="a registry",scope="{scope}"'
    tokens.asked.clear()
    fault = once(lambda one: one.refuse(401, WWW_Authenticate=challenge))
    with proxy(docker_registry.host, fault) as server:
        log_in(server.host)
        with opened(address(server.host)) as made:
            made.has_blob(DIGEST, len(DATA))
    assert [one.scopes for one in tokens.asked] == [[f"repository:{repository}:pull"]]


# Token servers that are not what they should be


Demanding = Callable[[str], Reference]


@pytest.fixture
def demanding(docker_registry: Running, address: Address, log_in: LogIn) -> Iterator[Demanding]:
    """`demanding(realm)`: a registry that sends its clients to this token server, logged in."""
    with ExitStack() as stack:

        def demanding(realm: str) -> Reference:
            challenge = f'Bearer realm="{realm}",service="x"'
            fault = always(lambda one: one.refuse(401, WWW_Authenticate=challenge))
            server = stack.enter_context(proxy(docker_registry.host, fault))
            log_in(server.host)
            return parse_reference(address(server.host))

        yield demanding


@contextmanager
def misbehaving(answer: Callable[[Answer], None]) -> Iterator[Server]:
    with serving(lambda request, _: answer(request)) as server:
        yield server


def body(text: bytes) -> Callable[[Answer], None]:
    return lambda one: one.give(200, {"Content-Length": str(len(text))}, text)


def endless(answer: Answer) -> None:
    answer.give(200, {"Content-Length": str(1 << 40)}, b'{"token":"')
    while True:
        answer.wfile.write(b"x" * 65536)


BAD_TOKENS = {
    "no JSON": b"<html>log in here</html>",
    "no token": b"{}",
    "a list": b"[]",
    "an empty token": b'{"token":""}',
    "two lines": b'{"token":"a\\r\\nX-Evil: 1"}',
    "blanks": b'{"token":"a b"}',
    "a number": b'{"token":5}',
    "a strange life": b'{"token":"x","expires_in":"for ever"}',
    "far too long": b'{"token":"' + b"x" * (1 << 20) + b'"}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("text", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_what_is_no_token_is_refused(demanding: Demanding, text: bytes) -> None:
    with (
        misbehaving(body(text)) as server,
        Registry(demanding(server.url)) as made,
        pytest.raises(TransportError, match=r"127\.0\.0\.1") as caught,
    ):
        made.tags()
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1


def test_an_endless_token_comes_to_an_end(demanding: Demanding) -> None:
    with (
        misbehaving(endless) as server,
        Registry(demanding(server.url)) as made,
        pytest.raises(TransportError, match="at most 131072 bytes"),
    ):
        made.tags()


def test_a_token_that_drips_comes_to_an_end(
    demanding: Demanding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "STEP_SECONDS", 0.5)
    over = threading.Event()

    def drip(answer: Answer) -> None:
        answer.send_response_only(200)
        while not over.wait(0.05):
            answer.wfile.write(b"X")

    try:
        with misbehaving(drip) as server:
            reference = demanding(server.url)
            with (
                Registry(reference, back_off_seconds=0.01) as made,
                pytest.raises(TransportError, match="5 attempts"),
            ):
                made.tags()
    finally:
        over.set()


def test_a_token_server_that_sends_us_on_is_not_followed(demanding: Demanding) -> None:
    with misbehaving(body(b"{}")) as other:

        def point(answer: Answer) -> None:
            answer.give(307, {"Location": other.url, "Content-Length": "0"}, b"")

        with (
            misbehaving(point) as server,
            Registry(demanding(server.url)) as made,
            pytest.raises(TransportError, match="307"),
        ):
            made.tags()
        assert not other.asked


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_token_server_is_asked_again(demanding: Demanding, status: int) -> None:
    def busy(answer: Answer) -> None:
        answer.give(status, {"Content-Length": "0", "Retry-After": "0"}, b"")

    with misbehaving(busy) as server:
        with (
            Registry(demanding(server.url), back_off_seconds=0.01) as made,
            pytest.raises(TransportError, match=str(status)),
        ):
            made.tags()
        assert len(server.asked) == 5


REALMS = ["", "ftp://127.0.0.1/", "/token", "http://[/", "http://other.invalid/token", "x" * 8100]


@pytest.mark.parametrize("realm", REALMS)
def test_nobody_goes_to_a_token_server_without_tls(demanding: Demanding, realm: str) -> None:
    with Registry(demanding(realm)) as made, forbidden("https address"):
        made.tags()


def test_a_token_server_without_tls_on_another_host_gets_nothing(demanding: Demanding) -> None:
    with misbehaving(body(b'{"token":"x"}')) as server:
        other = server.url.replace("127.0.0.1", "localhost")  # another name is another host
        with Registry(demanding(other)) as made, forbidden("https address"):
            made.tags()
        assert not server.asked


@pytest.fixture
def secured(tmp_path: Path) -> Certificate:
    return certificate(tmp_path / "ca", authority(tmp_path / "ca"), "localhost")


def test_a_token_server_with_tls_on_another_host_gets_what_is_kept_for_the_registry(
    demanding: Demanding, secured: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Docker Hub needs it: docker.io sends its users to auth.docker.io."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca" / "authority.crt"))
    with token_server(tmp_path / "tokens", secured) as server:
        with Registry(demanding(server.url)) as made, forbidden("401"):
            made.tags()
        assert [one.known for one in server.asked] == [True]


def test_a_token_server_whose_certificate_nobody_knows_gets_nothing(
    demanding: Demanding, secured: Certificate, tmp_path: Path
) -> None:
    with token_server(tmp_path / "tokens", secured) as server:
        with (
            Registry(demanding(server.url)) as made,
            pytest.raises(TransportError, match="no trusted connection"),
        ):
            made.tags()
        assert not server.asked


def test_a_token_server_on_this_host_is_asked_through_no_proxy(
    demanding: Demanding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the registry itself: without TLS a proxy would read the password."""
    with misbehaving(body(b"")) as between, misbehaving(body(b'{"token":"x"}')) as server:
        monkeypatch.setenv("http_proxy", between.url)
        monkeypatch.delenv("no_proxy", raising=False)
        with Registry(demanding(server.url)) as made, forbidden("401"):
            made.tags()
        assert len(server.asked) == 1
        assert not between.asked


def test_waiting_for_a_token_is_not_done_twice(
    by_token: Running, tokens: TokenServer, address: Address, log_in: LogIn
) -> None:
    """Several threads that are turned away at once fetch one token."""
    log_in(by_token.host)
    with opened(address(by_token.host), push=True) as made:
        send(made)
    tokens.asked.clear()
    started = time.monotonic()
    with opened(address(by_token.host)) as made:
        dict(made.get_ranges(DIGEST, [(at, 10) for at in range(0, len(DATA) - 10, 100_000)]))
    assert len(tokens.asked) == 1
    assert time.monotonic() - started < 10
