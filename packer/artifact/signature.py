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
from packer.errors import InputError, TrustError, UsageError

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
    return sign_payload(media_types.SIGNED_PAYLOAD, payload_of(config_digest), keys)


def sign_payload(payload_type: str, payload: bytes, keys: Sequence[PrivateKey]) -> bytes:
    """Return the envelope in which these keys sign a payload; otherwise as `sign`."""
    distinct = {key.public.fingerprint: key for key in keys}
    if not 1 <= len(distinct) <= MAX_SIGNATURES:
        raise ValueError(f"{len(distinct)} keys, expected 1 to {MAX_SIGNATURES}")
    message = pre_authentication_encoding(payload_type, payload)
    return _encode(payload_type, payload, [_signature(key, message) for key in distinct.values()])


def open_envelope(data: bytes, config_digest: str, what: str = "signature") -> OpenEnvelope:
    """Return an envelope that speaks of this config; nothing in it is verified yet.

    what: names it in errors. Raises InputError when it is no such envelope (sizes, counts and
    base64 are checked), TrustError when it is about another config.
    """
    opened = open_payload(data, media_types.SIGNED_PAYLOAD, what)
    if opened.payload != payload_of(config_digest):
        raise TrustError(
            f"{what}: payload: expected {payload_of(config_digest).decode()}, "
            f"found {strict_json.show(opened.payload)}",
            hint="the signature belongs to another pack, or the config was changed",
        )
    return opened


def open_payload(
    data: bytes, payload_type: str, what: str, max_bytes: int = MAX_ENVELOPE_BYTES
) -> OpenEnvelope:
    """Return an envelope around a payload of this type; nothing in it is verified yet.

    Raises InputError when it is no such envelope.
    """
    envelope = strict_json.decode(data, Envelope, what, max_bytes)
    if envelope.payload_type != payload_type:
        raise strict_json.invalid(what, "payloadType", repr(payload_type), envelope.payload_type)
    payload = _unbase64(envelope.payload, f"{what}: payload")
    raw: list[bytes] = []
    for row, signature in enumerate(envelope.signatures):
        path = f"{what}: signatures[{row}].sig"
        raw.append(_unbase64(signature.sig, path))
        if len(raw[-1]) > MAX_SIGNATURE_BYTES:
            raise InputError(f"{path}: expected at most {MAX_SIGNATURE_BYTES} bytes")
    return OpenEnvelope(payload_type, payload, envelope.signatures, tuple(raw))


class OpenEnvelope:
    """A payload and its signatures, each with the public key it claims to be from."""

    def __init__(
        self,
        payload_type: str,
        payload: bytes,
        signatures: tuple[Signature, ...],
        raw: tuple[bytes, ...],
    ) -> None:
        self.payload = payload
        self._payload_type = payload_type
        self._message = pre_authentication_encoding(payload_type, payload)
        self._signatures = signatures
        self._raw = raw

    def __len__(self) -> int:
        return len(self._signatures)

    def signed_by(self, keys: Iterable[PublicKey]) -> frozenset[PublicKey]:
        """Return which of these keys really signed: each is tried on every signature."""
        return frozenset(
            key for key in keys if any(key.verifies(raw, self._message) for raw in self._raw)
        )

    def claimed_signers(self) -> frozenset[PublicKey]:
        """Return the public keys that lie beside a signature that verifies with them.

        Anybody can make such a pair: who the key belongs to must be known from elsewhere.
        """
        found: set[PublicKey] = set()
        for signature, raw in zip(self._signatures, self._raw, strict=True):
            try:
                key = parse_public(signature.public_key or "")
            except InputError:
                continue  # another tool's envelope, or a kind of key that is not used here
            if key.verifies(raw, self._message):
                found.add(PublicKey(key.algorithm, key.blob))  # nobody vouches for the comment
        return frozenset(found)

    def countersigned(self, keys: Iterable[PrivateKey]) -> bytes:
        """Return the envelope with more signatures; those that it has stay as they are.

        It does not matter who signed first: one after the other gives the bytes that `sign` gives
        for all of them. Raises UsageError when a key has signed already or there are too many.
        """
        more = {key.public: key for key in keys}
        if again := self.signed_by(more):
            prints = ", ".join(sorted(key.fingerprint for key in again))
            raise UsageError(f"signed by {prints} already", hint="name another key with --key")
        signatures = [*self._signatures, *(_signature(key, self._message) for key in more.values())]
        envelope = _encode(self._payload_type, self.payload, signatures)
        if len(signatures) > MAX_SIGNATURES or len(envelope) > MAX_ENVELOPE_BYTES:
            raise UsageError(
                f"expected at most {MAX_SIGNATURES} signatures in {MAX_ENVELOPE_BYTES} bytes, "
                f"found {len(signatures)} in {len(envelope)}"
            )
        return envelope


def _signature(key: PrivateKey, message: bytes) -> Signature:
    public = key.public
    return Signature(
        keyid=public.fingerprint, sig=_base64(key.sign(message)), public_key=public.line
    )


def _encode(payload_type: str, payload: bytes, signatures: Iterable[Signature]) -> bytes:
    ordered = sorted(signatures, key=lambda one: (one.keyid or "", one.sig))
    return strict_json.encode(Envelope(_base64(payload), payload_type, tuple(ordered)))


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
