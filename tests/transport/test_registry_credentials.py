"""Credentials from the files and helper programs of docker and podman."""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from pathlib import Path

import pytest

from packer.errors import Error, UsageError
from packer.transport import credentials
from packer.transport.credentials import Credentials, find_credentials

SECRET = "pass:word"


def encoded(user: str = "ada", password: str = SECRET) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".docker").mkdir()
    (tmp_path / "bin").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def _programs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def auths(**entries: str) -> dict[str, object]:
    return {"auths": {host: {"auth": auth} for host, auth in entries.items()}}


def find(
    home: Path, content: object, host: str = "r.example", repository: str = "team/demo"
) -> Credentials | None:
    write(home / ".docker/config.json", content)
    return find_credentials(host, repository, {"HOME": str(home)})


def helper(home: Path, name: str, script: str) -> None:
    path = write(home / "bin" / f"docker-credential-{name}", f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# Files


def test_nobody_has_credentials_without_files() -> None:
    assert find_credentials("r.example", "demo", {}) is None


def test_user_name_and_password_are_found(home: Path) -> None:
    found = find(home, {"auths": {"r.example": {"auth": encoded()}}})
    assert found == Credentials("ada", SECRET)


def test_secrets_are_not_shown(home: Path) -> None:
    entry = {"auth": encoded(), "identitytoken": "also secret"}
    found = find(home, {"auths": {"r.example": entry}})
    assert found == Credentials("ada", SECRET, "also secret")
    assert "word" not in repr(found)
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "key",
    [
        "r.example",
        "https://r.example",
        "http://r.example/v1/",
        "https://r.example/v2/",
        "R.example",
    ],
)
def test_a_registry_is_found_however_it_was_written(home: Path, key: str) -> None:
    assert find(home, {"auths": {key: {"auth": encoded()}}}) == Credentials("ada", SECRET)


@pytest.mark.parametrize(
    "key", ["r.example:5000", "other.example", "r.example/other", "sub.r.example", "example", ""]
)
def test_what_is_kept_for_others_is_not_found(home: Path, key: str) -> None:
    assert find(home, {"auths": {key: {"auth": encoded()}}}) is None


def test_the_most_exact_entry_counts(home: Path) -> None:
    content = {
        "auths": {
            name: {"auth": encoded(name)}
            for name in ("r.example", "r.example/team", "r.example/team/demo")
        }
    }
    for repository, user in (
        ("team/demo", "r.example/team/demo"),
        ("team/other", "r.example/team"),
        ("demo", "r.example"),
    ):
        found = find(home, content, repository=repository)
        assert found is not None
        assert found.username == user


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_is_known_by_its_old_name(home: Path, key: str) -> None:
    found = find(home, {"auths": {key: {"auth": encoded()}}}, host="docker.io")
    assert found == Credentials("ada", SECRET)


def test_empty_entries_are_passed_over(home: Path) -> None:
    """docker writes them beside a credential store."""
    assert find(home, {"auths": {"r.example": {}, "x": None}}) is None


def test_which_files_are_looked_into(home: Path) -> None:
    files = {
        "DOCKER_CONFIG": write(home / "docker/config.json", auths(a=encoded("docker"))),
        "REGISTRY_AUTH_FILE": write(home / "named.json", auths(a=encoded("named"))),
        "XDG_RUNTIME_DIR": write(home / "run/containers/auth.json", auths(a=encoded("run"))),
        "HOME": write(home / ".docker/config.json", auths(a=encoded("home"))),
    }
    environment = {
        "DOCKER_CONFIG": str(home / "docker"),
        "REGISTRY_AUTH_FILE": str(home / "named.json"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "HOME": str(home),
    }
    for name, user in (
        ("DOCKER_CONFIG", "docker"),
        ("REGISTRY_AUTH_FILE", "named"),
        ("XDG_RUNTIME_DIR", "run"),
        ("HOME", "home"),
    ):
        found = find_credentials("a", "demo", environment)
        assert found is not None
        assert found.username == user
        files[name].unlink()
        del environment[name]


def test_a_named_file_or_folder_stands_for_the_usual_ones(home: Path) -> None:
    write(home / ".docker/config.json", auths(a=encoded()))
    empty = write(home / "docker/config.json", {})
    for name, path in (("DOCKER_CONFIG", empty.parent), ("REGISTRY_AUTH_FILE", empty)):
        environment = {"HOME": str(home), name: str(path)}
        assert find_credentials("a", "demo", environment) is None


BAD_FILES = {
    "no JSON": "{",
    "a list": "[]",
    "auths is a list": '{"auths": []}',
    "a number": '{"auths": {"a": {"auth": 5}}}',
    "helpers is a text": '{"credHelpers": "x"}',
    "nested": "[" * 100_000,
    "no UTF-8": "\udcff",
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named(home: Path, text: str) -> None:
    path = home / ".docker/config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"\.docker/config\.json") as caught:
        find_credentials("a", "demo", {"HOME": str(home)})
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused(home: Path) -> None:
    with pytest.raises(UsageError, match="at most 1048576 bytes"):
        find(home, " " * (credentials.MAX_FILE_BYTES + 1))


def test_a_file_that_is_a_folder_is_named(home: Path) -> None:
    (home / ".docker/config.json").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        find_credentials("a", "demo", {"HOME": str(home)})


@pytest.mark.parametrize(
    "auth", ["%%%", "c2VjcmV0", "AAAA", "//8="], ids=["odd", "no-colon", "0", "ff"]
)
def test_a_bad_entry_is_named_without_its_secret(home: Path, auth: str) -> None:
    with pytest.raises(UsageError, match=r"auths\.r\.example\.auth") as caught:
        find(home, {"auths": {"r.example": {"auth": auth}}})
    assert auth not in str(caught.value)
    assert "secret" not in str(caught.value)


# Helpers


def test_a_helper_is_asked_for_its_registry(home: Path) -> None:
    helper(
        home,
        "safe",
        'read -r server; test "$1" = get || exit 9\n'
        'echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"$server\\",\\"Secret\\":\\"s\\"}"',
    )
    content = {"credHelpers": {"r.example": "safe"}}
    assert find(home, content) == Credentials("r.example", "s")
    assert find(home, content, host="other.example") is None


def test_a_helper_gets_no_secret_that_was_given_to_vmpack(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VMPACK_STORE_TOKEN", "VMPACK_KEY_PASSPHRASE"):
        monkeypatch.setenv(name, f"the value of {name}")
    monkeypatch.setenv("VMPACK_HOME", str(home / "vmpack"))
    helper(
        home,
        "safe",
        f'env > {home}/seen; printf \'{{"Username":"a","Secret":"b"}}\'',
    )
    assert find(home, {"credsStore": "safe"}) == Credentials("a", "b")
    seen = (home / "seen").read_text()
    assert f"VMPACK_HOME={home}/vmpack\n" in seen
    assert "the value of" not in seen


def test_a_helper_may_have_an_identity_token(home: Path) -> None:
    helper(home, "safe", 'echo \'{"Username":"<token>","Secret":"t"}\'')
    assert find(home, {"credsStore": "safe"}) == Credentials(identity_token="t")


def test_the_store_is_asked_for_docker_hub_by_its_old_name(home: Path) -> None:
    helper(home, "safe", 'read -r s; echo "{\\"Username\\":\\"$s\\",\\"Secret\\":\\"s\\"}"')
    found = find(home, {"credsStore": "safe"}, host="docker.io")
    assert found == Credentials("https://index.docker.io/v1/", "s")


def test_what_a_store_does_not_have_the_file_may(home: Path) -> None:
    helper(home, "safe", "echo credentials not found in native keychain; exit 1")
    content = {"credsStore": "safe", "auths": {"r.example": {"auth": encoded()}}}
    assert find(home, content) == Credentials("ada", SECRET)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo the keyring is locked; exit 1", "the keyring is locked"),
        ("echo nonsense", "as JSON"),
        ("echo '{}'", "as JSON"),
        ("head -c 100000 /dev/zero", "at most 65536 bytes"),
        ("exec cat /dev/zero", "at most 65536 bytes"),
    ],
    ids=["fails", "no JSON", "empty", "long", "endless"],
)
def test_a_helper_that_fails_is_named(home: Path, script: str, words: str) -> None:
    helper(home, "safe", script)
    with pytest.raises(Error, match="docker-credential-safe") as caught:
        find(home, {"credsStore": "safe"})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "script",
    ["exec sleep 5", "sleep 5", "exec >&-; exec sleep 5"],
    ids=["itself", "a child of its", "after its answer"],
)
def test_a_helper_that_hangs_is_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(credentials, "HELPER_SECONDS", 0.3)
    helper(home, "safe", script)
    started = time.monotonic()
    with pytest.raises(Error, match="no answer within"):
        find(home, {"credsStore": "safe"})
    assert time.monotonic() - started < 3


def test_a_helper_that_is_not_there_is_named(home: Path) -> None:
    with pytest.raises(UsageError, match="docker-credential-nowhere"):
        find(home, {"credsStore": "nowhere"})


@pytest.mark.parametrize("name", ["../x", "a/b", "-x", "a b", "x" * 65])
def test_the_name_of_a_helper_is_no_path(home: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name of a credential helper"):
        find(home, {"credHelpers": {"r.example": name}})
