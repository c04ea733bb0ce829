"""How a place in a registry is written: oci://HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]. No I/O.

Reference: OCI distribution-spec 1.1, "Pulling manifests" (the grammar of names and tags).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from packer.errors import UsageError
from packer.text import printable

SCHEME = "oci"
PLAIN_SCHEME = "oci+http"
"""Says that this registry is spoken to without TLS."""

SCHEMES = (SCHEME, PLAIN_SCHEME)
FORM = "oci://HOST[:PORT]/REPOSITORY[:TAG|@sha256:…]"
MAX_NAME_CHARACTERS = 255
"""Of host and repository together: what registries and clients accept."""

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(
    rf"(?P<name>{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_COMPONENT = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, and perhaps one manifest in it.

    host: with its port, in lower case. tag, digest: "" without; at most one of them is given.
    plain_http: the user asked for a connection without TLS.
    """

    host: str
    repository: str
    tag: str = ""
    digest: str = ""
    plain_http: bool = False

    def __str__(self) -> str:
        scheme = PLAIN_SCHEME if self.plain_http else SCHEME
        end = f":{self.tag}" if self.tag else f"@{self.digest}" if self.digest else ""
        return f"{scheme}://{self.host}/{self.repository}{end}"

    @property
    def target(self) -> str:
        """Return what names the manifest, a tag or a digest; "" when nothing does."""
        return self.tag or self.digest

    @property
    def api_host(self) -> str:
        """Return the host that answers; Docker Hub's has another name than its users write."""
        return _DOCKER_HUB_API if self.host == DOCKER_HUB else self.host

    @property
    def api_repository(self) -> str:
        """Return the repository's name in the API; Docker Hub's own ones lie below library/."""
        short = self.host == DOCKER_HUB and "/" not in self.repository
        return f"library/{self.repository}" if short else self.repository

    @property
    def loopback(self) -> bool:
        """Whether the registry runs on this very host."""
        found = _HOST.fullmatch(self.host)
        name = found["name"].strip("[]") if found else ""
        if name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def with_tag(self, tag: str) -> Reference:
        """Return the same repository with this tag. Raises UsageError for one that is not legal."""
        if not _TAG.fullmatch(tag):
            raise UsageError(
                f"{self}: expected a tag of 1 to 128 letters, digits, '.', '_' and '-', "
                f"found {printable(tag)[:200]!r}"
            )
        return replace(self, tag=tag, digest="")


def is_reference(text: str) -> bool:
    """Return whether the user means a registry."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def is_repository(text: str) -> bool:
    """Return whether this is a legal name of a repository."""
    return len(text) <= MAX_NAME_CHARACTERS and _REPOSITORY.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Return the place that the user names. Raises UsageError that says what is wrong."""
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise _unlike(text, "another beginning")
    name, at, digest = rest.partition("@")
    host, slash, path = name.partition("/")
    host = host.lower()
    if len(name) > MAX_NAME_CHARACTERS + 130:
        raise _unlike(text, f"{len(name)} characters")
    if not slash or not path:
        raise _unlike(text, "no repository")
    _check_host(text, host)
    repository, colon, tag = path.partition(":")
    if len(host) + 1 + len(repository) > MAX_NAME_CHARACTERS or not is_repository(repository):
        raise _unlike(
            text,
            f"the repository {repository!r:.100}",
            "a repository has lower-case letters, digits and single '.', '_', '-' between them, "
            "in parts separated by '/'",
        )
    if colon and at:
        raise _unlike(text, "a tag and a digest", "name one of them")
    if at and not _DIGEST.fullmatch(digest):
        raise _unlike(text, f"the digest {digest!r:.100}")
    reference = Reference(host, repository, digest=digest, plain_http=scheme == PLAIN_SCHEME)
    return reference.with_tag(tag) if colon else reference


def _check_host(text: str, host: str) -> None:
    found = _HOST.fullmatch(host)
    if found is None or not 0 < int(found["port"] or 443) < 1 << 16:
        raise _unlike(text, f"the host {host!r:.100}")
    if found["name"].startswith("["):
        try:
            ipaddress.IPv6Address(found["name"].strip("[]"))
        except ValueError as error:
            raise _unlike(text, f"the host {host!r:.100}") from error


def _unlike(text: str, found: str, hint: str = "") -> UsageError:
    return UsageError(f"{printable(text)[:200]}: expected {FORM}, found {found}", hint=hint)
