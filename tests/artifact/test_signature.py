from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from packer.artifact.keys import PrivateKey, PublicKey, parse_public
from packer.artifact.signature import (
    MAX_ENVELOPE_BYTES,
    open_envelope,
    payload_of,
    pre_authentication_encoding,
    sign,
)
from packer.errors import Error, InputError, TrustError
from tests.artifact.fake_packs import sha256

CONFIG = sha256(b"a config")


def wrap(key: Any) -> PrivateKey:
    text = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return PrivateKey(parse_public(text.decode()), key)


def ed25519_key(seed: int) -> PrivateKey:
    return wrap(ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


ALICE, BOB, CAROL = (ed25519_key(seed) for seed in (1, 2, 3))
EVERY_KIND = [
    ALICE,
    *(wrap(ec.generate_private_key(c())) for c in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)),
    wrap(rsa.generate_private_key(65537, 2048)),
]


def changed(envelope: bytes, **keys: object) -> bytes:
    return json.dumps({**json.loads(envelope), **keys}).encode()


def resigned(envelope: bytes, row: int = 0, **keys: object) -> bytes:
    document = json.loads(envelope)
    document["signatures"][row].update(keys)
    return json.dumps(document).encode()


def signers(envelope: bytes, keys: Sequence[PublicKey]) -> frozenset[PublicKey]:
    return open_envelope(envelope, CONFIG).signed_by(keys)


def test_the_encoding_is_that_of_the_specification() -> None:
    # protocol.md, "Test Vectors"
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pre_authentication_encoding("é", b"") == "DSSEv1 2 é 0 ".encode()


def test_an_envelope_is_what_dsse_says() -> None:
    document = json.loads(sign(CONFIG, [ALICE]))
    assert list(document) == ["payload", "payloadType", "signatures"]
    assert base64.b64decode(document["payload"]) == b'{"config":"%s"}' % CONFIG.encode()
    assert document["payloadType"] == "application/vnd.vmpack.config-digest.v1+json"
    (signature,) = document["signatures"]
    assert signature["keyid"] == ALICE.public.fingerprint
    assert signature["publicKey"] == ALICE.public.line
    message = pre_authentication_encoding(document["payloadType"], payload_of(CONFIG))
    assert ALICE.public.verifies(base64.b64decode(signature["sig"]), message)


def test_the_same_keys_give_the_same_bytes_in_any_order() -> None:
    assert sign(CONFIG, EVERY_KIND) == sign(CONFIG, [*reversed(EVERY_KIND), ALICE])


@pytest.mark.parametrize("key", EVERY_KIND, ids=lambda key: key.public.algorithm)
def test_every_kind_of_key_signs_and_verifies(key: PrivateKey) -> None:
    assert signers(sign(CONFIG, [key]), [BOB.public, key.public]) == {key.public}
    assert not signers(sign(CONFIG, [key]), [BOB.public])


def test_those_who_really_signed_are_returned() -> None:
    everybody = [key.public for key in (ALICE, BOB, CAROL)]
    assert signers(sign(CONFIG, [ALICE, CAROL]), everybody) == {
        ALICE.public,
        CAROL.public,
    }


def test_one_key_that_signed_twice_counts_once() -> None:
    document = json.loads(sign(CONFIG, [ALICE]))
    document["signatures"] *= 5
    twice = json.dumps(document).encode()
    assert len(open_envelope(twice, CONFIG)) == 5
    trusted = [ALICE.public, parse_public(ALICE.public.line + " again")]
    assert signers(twice, trusted) == {ALICE.public}


@pytest.mark.parametrize("keyid", ["", None, "wrong", BOB.public.fingerprint, "x" * 1000])
def test_the_keyid_decides_nothing(keyid: str | None) -> None:
    envelope = resigned(sign(CONFIG, [ALICE]), keyid=keyid)
    assert signers(envelope, [BOB.public, ALICE.public]) == {ALICE.public}


def test_the_public_key_beside_a_signature_decides_nothing() -> None:
    for claim in (BOB.public.line, "garbage", "", None):
        envelope = resigned(sign(CONFIG, [ALICE]), publicKey=claim)
        assert signers(envelope, [ALICE.public]) == {ALICE.public}
        assert not signers(envelope, [BOB.public])
        assert open_envelope(envelope, CONFIG).claimed_signers() == frozenset()


def test_keys_that_fit_their_signature_are_named() -> None:
    opened = open_envelope(sign(CONFIG, EVERY_KIND), CONFIG)
    assert opened.claimed_signers() == {key.public for key in EVERY_KIND}


def test_unknown_fields_are_passed_over_as_dsse_demands() -> None:
    envelope = changed(resigned(sign(CONFIG, [ALICE]), extra=[1]), another={"x": None})
    assert signers(envelope, [ALICE.public]) == {ALICE.public}


def test_another_tools_envelope_without_keyid_is_read() -> None:
    document = json.loads(sign(CONFIG, [ALICE]))
    document["signatures"] = [{"sig": document["signatures"][0]["sig"]}]
    assert signers(json.dumps(document).encode(), [ALICE.public]) == {ALICE.public}


def test_url_safe_base64_is_accepted_and_nothing_looser() -> None:
    for seed in range(1, 60):  # until both alphabets differ
        key = ed25519_key(seed)
        envelope = sign(CONFIG, [key])
        standard = json.loads(envelope)["signatures"][0]["sig"]
        if "+" in standard and "/" in standard:
            break
    safe = standard.replace("+", "-").replace("/", "_")
    assert signers(resigned(envelope, sig=safe), [key.public]) == {key.public}
    for wrong in (
        standard.rstrip("="), standard + "=", standard[:40] + "\n" + standard[40:], " " + standard,
        standard.replace("+", "-"), standard[:-3] + "x==", standard + "é", standard + "\0", "*",
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"signatures\[0\].sig: expected base64"):
            signers(resigned(envelope, sig=wrong), [key.public])


def test_a_signature_of_another_pack_is_refused() -> None:
    with pytest.raises(TrustError, match="payload") as caught:
        signers(sign(sha256(b"other"), [ALICE]), [ALICE.public])
    assert "another pack" in caught.value.hint


@pytest.mark.parametrize(
    "payload",
    [
        payload_of(CONFIG) + b"\n",
        payload_of(CONFIG).replace(b":", b": ", 1),
        b'{"config":"x","config":"%s"}' % CONFIG.encode(),
        b"",
    ],
)
def test_only_the_one_spelling_of_the_payload_is_accepted(payload: bytes) -> None:
    envelope = changed(sign(CONFIG, [ALICE]), payload=base64.b64encode(payload).decode())
    with pytest.raises(TrustError):
        signers(envelope, [ALICE.public])


def test_a_signature_made_for_another_purpose_is_refused() -> None:
    kind = "application/vnd.in-toto+json"
    signature = ALICE.sign(pre_authentication_encoding(kind, payload_of(CONFIG)))
    text = base64.b64encode(signature).decode()
    envelope = resigned(sign(CONFIG, [ALICE]), sig=text)
    assert not signers(envelope, [ALICE.public])
    with pytest.raises(InputError, match="payloadType"):
        signers(changed(envelope, payloadType=kind), [ALICE.public])


@pytest.mark.parametrize(
    ("envelope", "message"),
    [
        (b"", "expected JSON"),
        (b"[]", "expected `object`"),
        (b"{}", "payload: missing"),
        (changed(sign(CONFIG, [ALICE]), signatures=[]), "signatures: expected `array` of length"),
        (changed(sign(CONFIG, [ALICE]), signatures=[{"sig": ""}] * 65), "of length <= 64"),
        (changed(sign(CONFIG, [ALICE]), signatures=[{"keyid": "x"}]), r"\[0\].sig: missing"),
        (resigned(sign(CONFIG, [ALICE]), sig="A" * 8000), "at most 4096 bytes"),
        (b" " * (MAX_ENVELOPE_BYTES + 1), f"at most {MAX_ENVELOPE_BYTES} bytes"),
    ],
)
def test_errors_name_the_key(envelope: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        signers(envelope, [ALICE.public])


@pytest.mark.parametrize("key", [ALICE, EVERY_KIND[1]], ids=["ed25519", "ecdsa"])
def test_every_flipped_bit_is_an_error_or_the_same_signers(key: PrivateKey) -> None:
    envelope = sign(CONFIG, [key])
    for position in range(len(envelope)):
        for bit in range(8):
            damaged = bytearray(envelope)
            damaged[position] ^= 1 << bit
            try:
                assert signers(bytes(damaged), [key.public, BOB.public]) <= {key.public}
            except Error:
                continue
            try:
                open_envelope(bytes(damaged), CONFIG).claimed_signers()
            except Error:
                continue


def test_an_envelope_has_a_key_and_not_too_many() -> None:
    for number in (0, 65):
        with pytest.raises(ValueError, match="expected 1 to 64"):
            sign(CONFIG, [ed25519_key(seed) for seed in range(number)])
    with pytest.raises(ValueError, match="digest"):
        sign('sha256:"}', [ALICE])
