"""One real registry for all tests that each use a repository of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from fixtures.registry import Running, registry

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Debian's docker-registry, which anybody may use."""
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def repository() -> str:
    """The name of a repository that nobody has used yet."""
    return f"team/demo-{next(_numbers)}"


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Nobody is logged in anywhere, whoever runs the tests."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", f"{tmp_path}/nobody")


Address = Callable[..., str]


@pytest.fixture
def address(repository: str) -> Address:
    """`address(host, tag="1")`: this test's repository at a host."""

    def address(host: str, tag: str = "1", name: str = "") -> str:
        end = f":{tag}" if tag else ""
        return f"oci://{host}/{name or repository}{end}"

    return address
