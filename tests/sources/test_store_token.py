"""Tokens lie where nobody else can read them, and are shown to nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from packer.environment import STORE_TOKEN
from packer.errors import UsageError
from packer.sources.store_token import (
    access_to,
    make_token,
    neighbours_path,
    read_token,
)

TOKEN = "a-token-of-more-than-16"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(STORE_TOKEN, TOKEN)
    return tmp_path / "home"


def test_a_token_is_made_once_and_readable_by_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    token = make_token(path, replace=False)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == token
    assert len(token) > 40
    with pytest.raises(UsageError, match="exists"):
        make_token(path, replace=False)
    assert read_token(path) == token
    assert make_token(path, replace=True) != token
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o777])
def test_a_token_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    make_token(path, replace=False)
    path.chmod(mode)
    with pytest.raises(UsageError, match="other users") as caught:
        read_token(path)
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("text", ["", "short", "x" * 600, "with a blank in it, this one"])
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="expected a token") as caught:
        read_token(path)
    assert not text or text not in str(caught.value)


def test_each_neighbour_has_its_token(home: Path, tmp_path: Path) -> None:
    path = neighbours_path()
    path.parent.mkdir(parents=True)
    path.write_text(
        '["a:1"]\ntoken = "token-of-host-a-abc"\n'
        f'["b:2"]\ntoken = "token-of-host-b-abc"\ncertificate = "{tmp_path}/b.pem"\n'
    )
    path.chmod(0o600)
    assert access_to("a:1").token == "token-of-host-a-abc"
    assert access_to("b:2").certificate == tmp_path / "b.pem"
    assert access_to("c:3").token == TOKEN  # of the environment
    path.chmod(0o644)
    with pytest.raises(UsageError, match="other users"):
        access_to("a:1")


@pytest.mark.parametrize(
    "text", ["nonsense", '["a:1"]\nkey = "x"', 'a = "b"', '["a:1"]\ntoken = 5']
)
def test_a_bad_table_of_neighbours_is_refused(home: Path, text: str) -> None:
    neighbours_path().parent.mkdir(parents=True)
    neighbours_path().write_text(text)
    neighbours_path().chmod(0o600)
    with pytest.raises(UsageError, match=r"neighbours\.toml"):
        access_to("a:1")
