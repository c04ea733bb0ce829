"""What a server of a pack's disk serves, in words that another process can be told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from packer import host
from packer.errors import InputError
from packer.sources.neighbour import is_neighbour
from packer.sources.open import split_location
from packer.transport.registry_reference import is_reference

MAX_SPEC_BYTES = 1 << 20
KEY_DIGITS = 16

_WITH_PATH = ("store", "dir", "disk", "medium", "symbols", "pack", "deb")
"""Kinds of sources that name a file or folder of this host after the colon."""


class ServerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pack whose use was decided, and who is asked for its contents. See `server_spec`.

    pack: absolute path or URL, "…#demo:3" for one of several. config: the digest of its config;
    a pack with another one is refused. sources: URIs in order; none: the defaults. offline: the
    defaults without network. store: absolute folder. complete: fetch in the background what no
    client has asked for.
    """

    pack: str
    config: str
    store: str
    sources: tuple[str, ...] = ()
    offline: bool = False
    complete: bool = False

    @property
    def key(self) -> str:
        """Return what tells servers apart, in hexadecimal: all but `complete`, and the home."""
        told = msgspec.structs.replace(self, complete=False)
        data = msgspec.json.encode((told, str(host.cache_dir())))
        return hashlib.sha256(data).hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens, and where it writes what it has to say. Paths of Unix sockets."""

    nbd: Path
    control: Path
    log: Path

    @property
    def uri(self) -> str:
        """Return the address as NBD clients want it (the NBD URI specification)."""
        return nbd_uri(self.nbd)


def nbd_uri(socket: Path, export: str = "") -> str:
    """Return the address of an export at a Unix socket."""
    return f"nbd+unix:///{quote(export, safe='')}?socket={quote(str(socket))}"


def server_spec(
    pack: str,
    config: str,
    store: Path,
    sources: tuple[str, ...] = (),
    *,
    offline: bool = False,
    complete: bool = False,
) -> ServerSpec:
    """Return a spec that means the same in every folder: relative paths are made absolute."""
    return ServerSpec(
        absolute_location(pack),
        config,
        str(store.absolute()),
        tuple(absolute_source(one) for one in sources),
        offline,
        complete,
    )


def absolute_location(location: str) -> str:
    """Return the path or URL of a pack with its path made absolute."""
    place, ref_name = split_location(location.removeprefix("pack:"))
    if _is_remote(place):
        return location
    return str(Path(place).absolute()) + (f"#{ref_name}" if ref_name else "")


def absolute_source(uri: str) -> str:
    """Return the URI of a source with its path made absolute."""
    kind, _, rest = uri.partition(":")
    if kind not in _WITH_PATH or not rest or _is_remote(rest) or is_neighbour(uri):
        return uri
    if kind == "pack":
        return f"pack:{absolute_location(rest)}"
    return f"{kind}:{Path(rest).absolute()}"


def _is_remote(place: str) -> bool:
    return "://" in place or place.startswith(("https:", "http:")) or is_reference(place)


def encode_spec(spec: ServerSpec) -> bytes:
    """Return a spec as JSON."""
    return msgspec.json.encode(spec)


def decode_spec(data: bytes) -> ServerSpec:
    """Return the spec that JSON says. Raises InputError."""
    try:
        return msgspec.json.decode(data, type=ServerSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"a server's description: {error}") from error
