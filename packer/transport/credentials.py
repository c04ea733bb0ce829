"""User names, passwords and tokens for registries, from where docker, podman and oras keep them.

Only files and helper programs that the user's own environment names are asked. References:
containers-auth.json(5); docker's config.json ("Credential stores", "Credential helpers"). The order
of lookup within a file follows containers/image (pkg/docker/config), credsStore oras-go.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from packer.environment import inherited
from packer.errors import Error, UsageError
from packer.text import printable
from packer.transport.registry_reference import DOCKER_HUB

MAX_FILE_BYTES = 1 << 20
MAX_ANSWER_BYTES = 1 << 16
HELPER_SECONDS = 60.0
"""How long a helper may take; it may have to ask the person to unlock a keyring."""

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NOT_FOUND = "credentials not found"
"""What helpers say of a registry that they do not know (docker-credential-helpers)."""

_TOKEN_USER = "<token>"
"""The user name with which helpers mark an identity token."""

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_NAMES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a registry accepts: user name and password, or an identity token (OAuth 2)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class _Entry(msgspec.Struct):
    auth: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, _Entry | None] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _Answer(msgspec.Struct, rename="pascal"):
    username: str
    secret: str


def find_credentials(
    host: str, repository: str, environment: Mapping[str, str] = os.environ
) -> Credentials | None:
    """Return what the user has for a repository of a registry, or None.

    Raises UsageError for a file that cannot be read, Error for a helper that fails.
    """
    for path in _files(environment):
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        if found := _find(path, _decode(path, data), host, repository):
            return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files to look into; a named one stands instead of its default."""
    docker, named = environment.get("DOCKER_CONFIG"), environment.get("REGISTRY_AUTH_FILE")
    if docker:
        yield Path(docker, "config.json")
    if named:
        yield Path(named)
        return
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")
    if not docker and (home := environment.get("HOME")):
        yield Path(home, ".docker", "config.json")


def _decode(path: Path, data: bytes) -> _File:
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
    try:
        return msgspec.json.decode(data or b"{}", type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: expected a config.json of docker or podman: {error}") from error


def _find(path: Path, file: _File, host: str, repository: str) -> Credentials | None:
    helper = file.cred_helpers.get(host) or file.creds_store
    if helper:
        server = _DOCKER_HUB_KEY if host == DOCKER_HUB else host
        if found := _ask(path, helper, server):
            return found
    parts = [host, *repository.split("/")]
    for count in range(len(parts), 0, -1):  # the most exact entry first
        key = "/".join(parts[:count])
        if entry := file.auths.get(key):
            return _read(path, key, entry)
    for key, entry in file.auths.items():
        if entry and _host_of(key) == _host_of(host):
            return _read(path, key, entry)
    return None


def _host_of(key: str) -> str:
    """Return the host of a key, which older programs wrote as a URL."""
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):
            key = key.removeprefix(scheme).partition("/")[0]
    return DOCKER_HUB if key in _DOCKER_HUB_NAMES else key.lower()


def _read(path: Path, key: str, entry: _Entry) -> Credentials | None:
    if not entry.auth:
        return Credentials(identity_token=entry.identitytoken) if entry.identitytoken else None
    try:
        text = base64.b64decode(entry.auth, validate=True).decode("utf-8")
        username, colon, password = text.partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:  # what was found there is a secret; it is not shown
        raise UsageError(
            f"{path}: auths.{printable(key)}.auth: expected user name, ':' and password in base64"
        )
    return Credentials(username, password.strip("\0"), entry.identitytoken)


def _ask(path: Path, helper: str, server: str) -> Credentials | None:
    """Return what a helper program has (docker-credential-NAME get)."""
    if not _HELPER.fullmatch(helper):
        raise UsageError(f"{path}: expected the name of a credential helper, found {helper!r:.100}")
    program = f"docker-credential-{helper}"
    try:
        status, output = _run(program, server)
    except OSError as error:
        raise UsageError(
            f"{path}: names the credential helper {program}, which cannot be run: {error.strerror}",
            hint=f"install it, or remove it from {path}",
        ) from error
    if status:
        said = output[:400].decode("utf-8", "replace").strip()
        if _NOT_FOUND in said.lower():
            return None
        raise Error(f"{program}: failed for {server}: {printable(said)}")
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Error(f"{program}: expected user name and secret as JSON: {error}") from error
    if answer.username == _TOKEN_USER:
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret)


def _run(program: str, server: str) -> tuple[int, bytes]:
    """Return a helper's exit status and output; what it tells the person goes to the terminal.

    Raises OSError when it cannot be run, Error when it takes too long or says too much.
    """
    end = time.monotonic() + HELPER_SECONDS
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [program, "get"], stdin=pipe, stdout=pipe, bufsize=0, env=inherited()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # one with a fixed answer need not read the question
                process.stdin.write(server.encode())
            process.stdin.close()
            output = _read_output(process.stdout.fileno(), end)
            if len(output) > MAX_ANSWER_BYTES:
                raise Error(f"{program}: expected at most {MAX_ANSWER_BYTES} bytes, found more")
            return process.wait(max(0.0, end - time.monotonic())), output
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise Error(f"{program}: no answer within {HELPER_SECONDS:g} s") from error
        finally:
            process.kill()


def _read_output(fd: int, end: float) -> bytes:
    """Return what comes, a little more than MAX_ANSWER_BYTES at most. Raises TimeoutError."""
    output = bytearray()
    while len(output) <= MAX_ANSWER_BYTES:
        readable, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        if not readable:
            raise TimeoutError
        data = os.read(fd, 1 << 14)
        if not data:
            break
        output += data
    return bytes(output)
