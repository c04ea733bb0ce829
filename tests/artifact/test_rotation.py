from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.artifact import media_types
from packer.artifact.keys import PrivateKey
from packer.artifact.rotation import (
    MAX_NAMES,
    MAX_STATEMENT_BYTES,
    Rotation,
    check_carried,
    countersign,
    load_statement,
    make_statement,
    open_statement,
    payload_of,
)
from packer.artifact.signature import pre_authentication_encoding, sign, sign_payload
from packer.errors import Error, InputError, UsageError
from tests.artifact.fake_packs import sha256
from tests.artifact.test_signature import ALICE, BOB, CAROL, EVERY_KIND, changed, resigned

EVERY_NAME = ("*",)


def rotation(
    old: PrivateKey = ALICE, new: PrivateKey = BOB, names: Sequence[str] = EVERY_NAME
) -> Rotation:
    return Rotation(old.public.fingerprint, new.public, tuple(names))


def statement(
    old: PrivateKey = ALICE, new: PrivateKey = BOB, names: Sequence[str] = EVERY_NAME
) -> bytes:
    return make_statement(rotation(old, new, names), [old, new])


def with_payload(payload: bytes, *keys: PrivateKey) -> bytes:
    return sign_payload(media_types.ROTATION_PAYLOAD, payload, keys or (ALICE, BOB))


def payload_with(**fields: Any) -> bytes:
    whole = {**json.loads(payload_of(rotation())), **fields}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def test_the_payload_is_canonical_json() -> None:
    payload = payload_of(rotation(names=["demo*", "other"]))
    whole = json.loads(payload)
    assert whole == {
        "schema": 1,
        "old": ALICE.public.fingerprint,
        "new": BOB.public.line,
        "names": ["demo*", "other"],
    }
    # RFC 8785 for texts of ASCII without anything to escape
    assert payload == json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def test_a_statement_is_a_dsse_envelope_of_its_own_type() -> None:
    document = json.loads(statement())
    assert document["payloadType"] == "application/vnd.vmpack.key-rotation.v1+json"
    assert base64.b64decode(document["payload"]) == payload_of(rotation())
    message = pre_authentication_encoding(document["payloadType"], payload_of(rotation()))
    signers = {one["keyid"]: one for one in document["signatures"]}
    for key in (ALICE, BOB):
        raw = base64.b64decode(signers[key.public.fingerprint]["sig"])
        assert key.public.verifies(raw, message)


@pytest.mark.parametrize("new", EVERY_KIND[1:], ids=lambda key: key.public.algorithm)
def test_every_kind_of_key_can_follow_every_other(new: PrivateKey) -> None:
    for old, following in ((ALICE, new), (new, ALICE)):
        opened = open_statement(statement(old, following))
        assert opened.rotation == rotation(old, following)
        assert opened.proven_by(old.public)
        assert opened.lacking == ()


def test_it_is_proven_by_both_keys_and_by_no_other() -> None:
    opened = open_statement(statement())
    assert opened.proven_by(ALICE.public)
    assert not opened.proven_by(BOB.public)
    assert not opened.proven_by(CAROL.public)


@pytest.mark.parametrize(("signer", "lacking"), [(ALICE, BOB), (BOB, ALICE)])
def test_one_signature_is_not_enough(signer: PrivateKey, lacking: PrivateKey) -> None:
    opened = open_statement(make_statement(rotation(), [signer]))
    assert not opened.proven_by(ALICE.public)
    assert opened.lacking == (lacking.public.fingerprint,)


def test_the_second_signature_can_be_added_elsewhere() -> None:
    for first, second in ((ALICE, BOB), (BOB, ALICE)):
        data = countersign(make_statement(rotation(), [first]), [second])
        assert data == statement()
        assert open_statement(data).proven_by(ALICE.public)


def test_only_the_two_keys_sign_and_each_once() -> None:
    with pytest.raises(UsageError, match="neither the old nor the new"):
        make_statement(rotation(), [ALICE, CAROL])
    half = make_statement(rotation(), [ALICE])
    with pytest.raises(UsageError, match="neither the old nor the new"):
        countersign(half, [CAROL])
    with pytest.raises(UsageError, match="already"):
        countersign(half, [ALICE])


def test_a_forged_signature_proves_nothing() -> None:
    # Mallory writes that Alice's key is replaced by his, and claims to be Alice.
    forged = json.loads(make_statement(rotation(ALICE, CAROL), [CAROL]))
    mallory = dict(forged["signatures"][0])
    alice = {**mallory, "keyid": ALICE.public.fingerprint, "publicKey": ALICE.public.line}
    forged["signatures"] = [alice, mallory]
    opened = open_statement(json.dumps(forged).encode())
    assert not opened.proven_by(ALICE.public)
    assert opened.lacking == (ALICE.public.fingerprint,)


def test_a_stranger_cannot_be_made_an_heir_against_their_will() -> None:
    opened = open_statement(make_statement(rotation(ALICE, BOB), [ALICE]))
    assert not opened.agreed
    assert not opened.proven_by(ALICE.public)


def test_signatures_under_a_config_prove_no_statement_and_the_other_way_round() -> None:
    for payload_type in (media_types.SIGNED_PAYLOAD, "application/vnd.in-toto+json"):
        foreign = sign_payload(payload_type, payload_of(rotation()), [ALICE, BOB])
        with pytest.raises(InputError, match="payloadType"):
            open_statement(foreign)
        disguised = changed(foreign, payloadType=media_types.ROTATION_PAYLOAD)
        assert not open_statement(disguised).proven_by(ALICE.public)
    with pytest.raises(InputError, match="payloadType"):
        open_statement(sign(sha256(b"config"), [ALICE, BOB]))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload: expected JSON"),
        (b"[]", "payload: the whole text: expected `object`"),
        (b"{}", "payload: schema: missing"),
        (payload_with(schema=2), "schema: expected 1, found 2"),
        (payload_with(schema="1"), "schema: expected `int`"),
        (payload_with(names=[]), "names: expected `array` of length >= 1"),
        (payload_with(names=["a"] * (MAX_NAMES + 1)), "names: expected `array` of length <= 64"),
        (payload_with(names=["../x"]), r"names\[0\]: expected a pattern"),
        (payload_with(names=["x" * 129]), r"names\[0\]: expected a pattern"),
        (payload_with(names=["\x1b[2J"]), r"names\[0\]: expected a pattern"),
        (payload_with(names="demo"), "names: expected `array`"),
        (payload_with(old="SHA256:short"), "old: expected a fingerprint"),
        (payload_with(old=BOB.public.fingerprint), "new: expected another key"),
        (payload_with(new="ssh-ed25519 AAAA"), "new: expected an OpenSSH public key"),
        (payload_with(new=""), "new: expected 'ssh-ed25519"),
        (payload_with(new=BOB.public.line + " comment"), "another spelling"),
        (payload_with(extra=1), "another spelling"),
        (payload_of(rotation()) + b"\n", "another spelling"),
        (payload_of(rotation()).replace(b",", b", ", 1), "another spelling"),
        (json.dumps(json.loads(payload_of(rotation()))).encode(), "another spelling"),
        (payload_of(rotation()).replace(b'"*"', b'"\\u002a"'), "another spelling"),
        (b'{"names":["*"],' + payload_of(rotation())[1:], "another spelling"),
    ],
)
def test_a_payload_in_any_other_form_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_statement(with_payload(payload))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected JSON"),
        (b"{}", "payload: missing"),
        (b" " * (MAX_STATEMENT_BYTES + 1), f"at most {MAX_STATEMENT_BYTES} bytes"),
        (changed(statement(), signatures=[]), "signatures: expected `array` of length >= 1"),
        (changed(statement(), signatures=[{"sig": ""}] * 3), "signatures: expected at most two"),
        (resigned(statement(), sig="A" * 8000), "at most 4096 bytes"),
        (b"[" * 60_000, "expected JSON|nested"),
    ],
)
def test_what_is_no_statement_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_statement(data, "rotation.json")
    assert str(caught.value).startswith("rotation.json")


def test_a_truncated_statement_is_refused_wherever_it_ends() -> None:
    whole = statement().rstrip()
    for length in range(len(whole)):
        with pytest.raises(InputError):
            open_statement(whole[:length])


def test_a_thousand_flipped_bits_never_prove_another_rotation() -> None:
    whole = statement(names=["demo*"])
    chance = random.Random(20270630)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        try:
            opened = open_statement(bytes(damaged))
        except Error:
            refused += 1
            continue
        if opened.proven_by(ALICE.public):  # a key id, white space, a claim beside a signature
            assert opened.rotation == rotation(names=["demo*"])
        else:
            refused += 1
    assert refused > 700


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "expected 1 to 64"), (["x"] * 65, "expected 1 to 64"), (["Demo"], "pattern of pack")],
)
def test_a_rotation_for_impossible_names_is_not_written(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_statement(rotation(names=names), [ALICE])


def test_a_key_does_not_replace_itself() -> None:
    with pytest.raises(UsageError, match="nothing to replace"):
        make_statement(rotation(ALICE, ALICE), [ALICE])


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.text(alphabet="abz09._*?[]!-", min_size=1, max_size=128), min_size=1, max_size=MAX_NAMES
    )
)
def test_writing_and_reading_are_inverses(names: list[str]) -> None:
    opened = open_statement(statement(names=names))
    assert opened.rotation == rotation(names=names)
    assert opened.envelope.payload == payload_of(opened.rotation)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(InputError):
        open_statement(data)
    with pytest.raises(InputError):
        open_statement(with_payload(data))


def test_two_rsa_keys_of_the_largest_size_fit() -> None:
    payload = b"x" * (2800 + MAX_NAMES * 131)
    signature = {"keyid": "SHA256:" + "x" * 43, "sig": "A" * 2732, "publicKey": "x" * 2800}
    whole = {"payload": "A" * (len(payload) * 4 // 3), "signatures": [signature] * 2}
    assert len(json.dumps(whole, indent=2)) < MAX_STATEMENT_BYTES / 2


def test_what_travels_with_a_pack_is_finished_and_leads_to_a_signer() -> None:
    check_carried([], [])
    check_carried([statement(ALICE, BOB), statement(BOB, CAROL)], [CAROL.public])
    with pytest.raises(UsageError, match="not signed by " + BOB.public.fingerprint[:20]):
        check_carried([make_statement(rotation(), [ALICE])], [BOB.public])
    with pytest.raises(UsageError, match="lead to a key which signs"):
        check_carried([statement()], [ALICE.public])
    with pytest.raises(UsageError, match="at most 16"):
        check_carried([statement()] * 17, [BOB.public])
    with pytest.raises(InputError, match="statement 1"):
        check_carried([statement(), b"{}"], [BOB.public])


def test_a_file_that_is_no_statement_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rotation.json"
    path.write_bytes(statement())
    assert load_statement(path)[0].rotation == rotation()
    path.write_bytes(b" " * (MAX_STATEMENT_BYTES + 1))
    with pytest.raises(InputError, match="found more"):
        load_statement(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        load_statement(tmp_path / "pipe")
    with pytest.raises(InputError, match="cannot read"):
        load_statement(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_statement(tmp_path / "none")


def test_the_format_shows_the_payload() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
    payload = payload_of(rotation()).decode()
    shown = payload.replace(ALICE.public.fingerprint, "SHA256:…").replace(
        BOB.public.line, "ssh-ed25519 AAAA…"
    )
    assert f"    {shown}\n" in page
