"""Signatures: a DSSE envelope whose payload names the digest of a config.

    {"payload": BASE64, "payloadType": "application/vnd.vmpack.config-digest.v1+json",
     "signatures": [{"keyid": "SHA256:…", "sig": BASE64, "publicKey": "ssh-ed25519 AAAA…"}, …]}

Payload: {"config":"sha256:…"}, in exactly these bytes. What is signed is the pre-authentication
encoding of type and payload. Reference: secure-systems-lab/dsse 1.0.2, protocol.md, envelope.md.

Nothing outside the payload is authenticated. `keyid` is written for people and other tools and
never read. `publicKey`, a field of our own (other readers must pass over unknown fields), lets a
user who knows no more than a fingerprint check a signature: the key is used only when its own
SHA-256 is the fingerprint that the user gave.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from packer.artifact import media_types, strict_json
from packer.artifact.keys import PrivateKey, PublicKey, parse_public
from packer.errors import InputError, TrustError

MAX_ENVELOPE_BYTES = 1 << 20
MAX_SIGNATURES = 64
MAX_SIGNATURE_BYTES = 4096
"""Twice what the largest RSA key gives."""

_CONFIG_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Signature(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """One signature of an envelope: base64, and the signer's OpenSSH public key line.

    keyid is a hint by DSSE's definition and decides nothing.
    """

    keyid: str | None = None
    sig: str
    public_key: str | None = None


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """A DSSE envelope; payload is base64."""

    payload: str
    payload_type: str
    signatures: Annotated[
        tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)
    ]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed (DSSE protocol.md, "Signature Definition")."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def payload_of(config_digest: str) -> bytes:
    """Return the payload that names a config ("sha256:…")."""
    if not _CONFIG_DIGEST.fullmatch(config_digest):
        raise ValueError(f"not the digest of a config: {config_digest!r}")
    return b'{"config":"%s"}' % config_digest.encode("ascii")


def sign(config_digest: str, keys: Sequence[PrivateKey]) -> bytes:
    """Return the envelope in which these keys sign a config ("sha256:…").

    The same keys, in any order, and digest give the same bytes. Raises ValueError without a key
    or with more than MAX_SIGNATURES.
    """
    distinct = {key.public.fingerprint: key for key in keys}
    if not 1 <= len(distinct) <= MAX_SIGNATURES:
        raise ValueError(f"{len(distinct)} keys, expected 1 to {MAX_SIGNATURES}")
    payload = payload_of(config_digest)
    message = pre_authentication_encoding(media_types.SIGNED_PAYLOAD, payload)
    signatures = tuple(
        Signature(keyid=fingerprint, sig=_base64(key.sign(message)), public_key=key.public.line)
        for fingerprint, key in sorted(distinct.items())
    )
    return strict_json.encode(Envelope(_base64(payload), media_types.SIGNED_PAYLOAD, signatures))


def open_envelope(data: bytes, config_digest: str, what: str = "signature") -> OpenEnvelope:
    """Return an envelope that speaks of this config; nothing in it is verified yet.

    what: names it in errors. Raises InputError when it is no such envelope (sizes, counts and
    base64 are checked), TrustError when it is about another config.
    """
    envelope = strict_json.decode(data, Envelope, what, MAX_ENVELOPE_BYTES)
    if envelope.payload_type != media_types.SIGNED_PAYLOAD:
        raise strict_json.invalid(
            what, "payloadType", repr(media_types.SIGNED_PAYLOAD), envelope.payload_type
        )
    payload = _unbase64(envelope.payload, f"{what}: payload")
    if payload != payload_of(config_digest):
        raise TrustError(
            f"{what}: payload: expected {payload_of(config_digest).decode()}, "
            f"found {strict_json.show(payload)}",
            hint="the signature belongs to another pack, or the config was changed",
        )
    message = pre_authentication_encoding(envelope.payload_type, payload)
    signatures: list[tuple[bytes, str]] = []
    for row, signature in enumerate(envelope.signatures):
        path = f"{what}: signatures[{row}].sig"
        raw = _unbase64(signature.sig, path)
        if len(raw) > MAX_SIGNATURE_BYTES:
            raise InputError(f"{path}: expected at most {MAX_SIGNATURE_BYTES} bytes")
        signatures.append((raw, signature.public_key or ""))
    return OpenEnvelope(message, tuple(signatures))


class OpenEnvelope:
    """The signed message and its signatures, each with the public key it claims to be from."""

    def __init__(self, message: bytes, signatures: tuple[tuple[bytes, str], ...]) -> None:
        self._message = message
        self._signatures = signatures

    def __len__(self) -> int:
        return len(self._signatures)

    def signed_by(self, keys: Iterable[PublicKey]) -> frozenset[PublicKey]:
        """Return which of these keys really signed: each is tried on every signature."""
        return frozenset(
            key
            for key in keys
            if any(key.verifies(raw, self._message) for raw, _claim in self._signatures)
        )

    def claimed_signers(self) -> frozenset[PublicKey]:
        """Return the public keys that lie beside a signature that verifies with them.

        Anybody can make such a pair: who the key belongs to must be known from elsewhere.
        """
        found: set[PublicKey] = set()
        for raw, line in self._signatures:
            try:
                key = parse_public(line)
            except InputError:
                continue  # another tool's envelope, or a kind of key that is not used here
            if key.verifies(raw, self._message):
                found.add(PublicKey(key.algorithm, key.blob))  # nobody vouches for the comment
        return frozenset(found)


def verify(
    envelope: bytes,
    config_digest: str,
    trusted: Iterable[PublicKey],
    threshold: int = 1,
    what: str = "signature",
) -> frozenset[PublicKey]:
    """Return the distinct trusted keys that signed this config; at least `threshold` did.

    Raises InputError when the bytes are no envelope, TrustError when it is about another config
    or too few trusted keys signed. ValueError for a threshold below 1.
    """
    if threshold < 1:
        raise ValueError(f"a threshold of {threshold}")
    signers = open_envelope(envelope, config_digest, what).signed_by(trusted)
    if len(signers) < threshold:
        raise TrustError(
            f"{what}: expected signatures by {threshold} trusted keys, found {len(signers)}"
        )
    return signers


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str, what: str) -> bytes:
    """Return strict base64, standard or URL-safe alphabet (envelope.md allows both)."""
    for decode, encode in (
        (base64.b64decode, base64.b64encode),
        (base64.urlsafe_b64decode, base64.urlsafe_b64encode),
    ):
        try:
            data = decode(text.encode("ascii"))
        except ValueError:  # binascii.Error and UnicodeEncodeError are ValueErrors
            continue
        if encode(data).decode("ascii") == text:  # Python passes over what is no base64
            return data
    raise InputError(f"{what}: expected base64, found {strict_json.show(text)}")
