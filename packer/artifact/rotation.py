"""Rotation: a statement, signed by both keys, that a new key takes the place of an old one.

A DSSE envelope as in packer.artifact.signature, with a payload type of its own and this payload,
in exactly these bytes (RFC 8785: keys sorted, nothing between them):

    {"names":["*"],"new":"ssh-ed25519 AAAA…","old":"SHA256:…","schema":1}

The old key's signature says that its owner wants this; the new key's says that whoever holds it
agrees, so that nobody can make a stranger's key their heir and burden it with their versions.
The model is the root of TUF (specification 1.0.33, 5.3: a new root is signed by the threshold of
the old one and by its own); here each key replaces itself alone.

Nothing here knows whom a host trusts; see packer.artifact.succession.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from packer.artifact import media_types, name_patterns, strict_json
from packer.artifact.keys import PrivateKey, PublicKey, is_fingerprint, parse_public
from packer.artifact.manifest import MAX_ROTATIONS
from packer.artifact.signature import OpenEnvelope, open_payload, sign_payload
from packer.artifact.small_files import read_small_file
from packer.errors import InputError, UsageError

SCHEMA = 1
MAX_STATEMENT_BYTES = 64 << 10
"""Twice what two RSA keys of the largest size need."""
MAX_NAMES = 64
_PARTIES = 2


@dataclass(frozen=True, slots=True)
class Rotation:
    """The key with the fingerprint `old` is replaced by `new` for packs whose name fits."""

    old: str
    new: PublicKey
    names: tuple[str, ...] = (name_patterns.EVERY_NAME,)

    def fits(self, name: str) -> bool:
        """Return whether the statement speaks about packs of this name."""
        return name_patterns.fits(name, self.names)

    @property
    def sentence(self) -> str:
        """Return it in words: "SHA256:… is replaced by SHA256:… for demo*"."""
        names = name_patterns.for_people(self.names)
        return f"{self.old} is replaced by {self.new.fingerprint} for {names}"


class _Payload(msgspec.Struct, frozen=True):
    """What is signed; the keys in the order of RFC 8785."""

    names: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_NAMES)]
    new: str
    old: str
    schema: int = SCHEMA


class _Schema(msgspec.Struct, frozen=True):
    schema: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was read. What it says is worth nothing before `proven_by`."""

    rotation: Rotation
    envelope: OpenEnvelope

    @property
    def agreed(self) -> bool:
        """Return whether the new key signed. It says itself which one it is, so that proves it."""
        return bool(self.envelope.signed_by((self.rotation.new,)))

    @property
    def lacking(self) -> tuple[str, ...]:
        """Return the fingerprints whose signatures are not there, as far as anybody can tell.

        The old key is known here only if the envelope carries it.
        """
        signed = {key.fingerprint for key in self.envelope.claimed_signers()}
        if self.agreed:
            signed.add(self.rotation.new.fingerprint)
        parties = (self.rotation.old, self.rotation.new.fingerprint)
        return tuple(one for one in parties if one not in signed)

    def proven_by(self, old: PublicKey) -> bool:
        """Return whether this is the old key and both keys signed."""
        return (
            old.fingerprint == self.rotation.old
            and self.agreed
            and bool(self.envelope.signed_by((old,)))
        )


def payload_of(rotation: Rotation) -> bytes:
    """Return the bytes that both keys sign."""
    return msgspec.json.encode(_Payload(rotation.names, rotation.new.line, rotation.old))


def make_statement(rotation: Rotation, keys: Sequence[PrivateKey]) -> bytes:
    """Return the envelope in which these keys, one of the two or both, sign a rotation.

    Raises UsageError when the rotation says nothing or a key is neither of the two.
    """
    if rotation.old == rotation.new.fingerprint:
        raise UsageError("the old key and the new one are the same: there is nothing to replace")
    if not 1 <= len(rotation.names) <= MAX_NAMES:
        raise UsageError(f"expected 1 to {MAX_NAMES} patterns, found {len(rotation.names)}")
    name_patterns.check_patterns(rotation.names)
    _check_parties(rotation, keys)
    return sign_payload(media_types.ROTATION_PAYLOAD, payload_of(rotation), keys)


def countersign(data: bytes, keys: Sequence[PrivateKey], what: str = "statement") -> bytes:
    """Return a statement with the signatures of these keys added.

    Raises UsageError when a key is neither the old nor the new one, or has signed already;
    InputError when the bytes are no statement.
    """
    statement = open_statement(data, what)
    _check_parties(statement.rotation, keys)
    return statement.envelope.countersigned(keys)


def open_statement(data: bytes, what: str = "statement") -> Statement:
    """Return a statement; nothing in it is verified yet.

    what: names it in errors. Raises InputError when it is none, or not in its one spelling.
    """
    envelope = open_payload(data, media_types.ROTATION_PAYLOAD, what, MAX_STATEMENT_BYTES)
    if len(envelope) > _PARTIES:
        raise strict_json.invalid(what, "signatures", "at most two", len(envelope))
    where = f"{what}: payload"
    schema = strict_json.decode(envelope.payload, _Schema, where, MAX_STATEMENT_BYTES).schema
    if schema != SCHEMA:
        raise InputError(
            f"{where}: schema: expected {SCHEMA}, found {schema}",
            hint="a newer vmpack wrote this" if schema > SCHEMA else "",
        )
    payload = strict_json.decode(envelope.payload, _Payload, where, MAX_STATEMENT_BYTES)
    for row, pattern in enumerate(payload.names):
        if not name_patterns.is_pattern(pattern):
            raise strict_json.invalid(where, f"names[{row}]", "a pattern of pack names", pattern)
    if not is_fingerprint(payload.old):
        raise strict_json.invalid(where, "old", "a fingerprint SHA256:…", payload.old)
    rotation = Rotation(payload.old, parse_public(payload.new, f"{where}: new"), payload.names)
    if rotation.old == rotation.new.fingerprint:
        raise strict_json.invalid(where, "new", "another key than the old one", payload.old)
    if payload_of(rotation) != envelope.payload:
        raise InputError(
            f"{where}: expected {strict_json.show(payload_of(rotation))}, "
            f"found {strict_json.show(envelope.payload)}: the same in another spelling"
        )
    return Statement(rotation, envelope)


def check_carried(statements: Sequence[bytes], signers: Collection[PublicKey]) -> None:
    """Raise UsageError unless these statements make sense beside a pack that these keys signed.

    There are at most MAX_ROTATIONS, both keys signed each, and one names a key that signed.
    Raises InputError for bytes that are no statement.
    """
    if len(statements) > MAX_ROTATIONS:
        raise UsageError(
            f"expected at most {MAX_ROTATIONS} statements with a pack, found {len(statements)}"
        )
    opened = [open_statement(data, f"statement {row}") for row, data in enumerate(statements)]
    for statement in opened:
        if statement.lacking:
            raise UsageError(
                f"nobody would go by the statement that {statement.rotation.sentence}: "
                f"not signed by {' and '.join(statement.lacking)}",
                hint="whoever holds that key: vmpack sign STATEMENT --key KEYFILE",
            )
    if opened and not any(one.rotation.new in signers for one in opened):
        raise UsageError(
            "expected statements that lead to a key which signs this pack, found that "
            + "; ".join(one.rotation.sentence for one in opened),
            hint="sign with the new key: --key KEYFILE",
        )


def load_statement(path: Path) -> tuple[Statement, bytes]:
    """Return the statement in a file, and its bytes. Raises InputError when there is none."""
    data = read_small_file(path, MAX_STATEMENT_BYTES, "a statement of 'vmpack key rotate'")
    return open_statement(data, str(path)), data


def _check_parties(rotation: Rotation, keys: Sequence[PrivateKey]) -> None:
    parties = (rotation.old, rotation.new.fingerprint)
    for key in keys:
        if key.public.fingerprint not in parties:
            raise UsageError(
                f"{key.public.fingerprint} is neither the old nor the new key of this statement",
                hint=f"sign it with {parties[0]} and {parties[1]}",
            )
