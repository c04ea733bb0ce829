"""A pack that gets another signature stays the same copy, to the byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from packer.artifact import media_types
from packer.artifact.copy import Extent, copy_packs
from packer.artifact.countersign import countersign_pack
from packer.artifact.keys import PrivateKey
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.manifest import Manifest
from packer.artifact.opened import OpenedPack
from packer.artifact.rotation import make_statement
from packer.artifact.signature import open_envelope, sign
from packer.errors import Error, InputError, UsageError
from tests.artifact.real_packs import write_pack
from tests.artifact.test_rotation import rotation, statement
from tests.artifact.test_signature import ALICE, BOB, CAROL, ed25519_key
from tests.unpack.simulated import CLASSES, DATA

FORMS = ["pack.vmpack", "pack/", "pack.iso"]


def packed(place: str, *keys: PrivateKey, rotations: Sequence[bytes] = ()) -> OpenedPack:
    return write_pack(place, DATA, CLASSES, keys=keys, rotations=rotations)


def opened(place: str | Path, ref_name: str | None = None) -> OpenedPack:
    return OpenedPack(open_layout(place), ref_name)


def signers(pack: OpenedPack) -> frozenset[str]:
    assert pack.envelope is not None
    claimed = open_envelope(pack.envelope, pack.config_digest).claimed_signers()
    return frozenset(key.fingerprint for key in claimed)


def but_the_envelope(manifest: Manifest) -> list[object]:
    return [one for one in manifest.layers if one.media_type != media_types.SIGNATURE]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("output", FORMS)
def test_a_signature_is_added_and_nothing_else_changes(
    tmp_path: Path, form: str, output: str
) -> None:
    pack = packed(f"{tmp_path}/{form}", ALICE)
    report = countersign_pack(pack, [BOB], f"{tmp_path}/signed-{output}")
    signed = opened(f"{tmp_path}/signed-{output}")
    assert signed.config_bytes == pack.config_bytes
    assert but_the_envelope(signed.manifest) == but_the_envelope(pack.manifest)
    assert signed.envelope == sign(pack.config_digest, [ALICE, BOB])  # as if at one place
    assert signers(signed) == set(report.signers)
    assert report.signed_now == (BOB.public.fingerprint,)
    assert report.identity == pack.config_digest
    pack.close()
    signed.close()


@pytest.mark.parametrize("form", FORMS)
def test_a_pack_is_signed_where_it_lies_only_when_asked(tmp_path: Path, form: str) -> None:
    place = f"{tmp_path}/{form}"
    pack = packed(place, ALICE)
    disk = pack.map.end.tolist()
    with pytest.raises(UsageError, match="exists already"):
        countersign_pack(pack, [BOB], place)
    assert signers(opened(place)) == {ALICE.public.fingerprint}
    countersign_pack(pack, [BOB], place, replace=True)
    again = opened(place)
    assert signers(again) == {ALICE.public.fingerprint, BOB.public.fingerprint}
    assert again.map.end.tolist() == disk
    assert [path.name for path in tmp_path.iterdir()] == [form.rstrip("/")]


def test_three_people_sign_in_three_places_in_any_order(tmp_path: Path) -> None:
    one = packed(f"{tmp_path}/1.vmpack", ALICE)
    countersign_pack(one, [BOB], tmp_path / "2.vmpack")
    countersign_pack(opened(tmp_path / "2.vmpack"), [CAROL], tmp_path / "3.vmpack")
    countersign_pack(one, [CAROL], tmp_path / "2b.vmpack")
    countersign_pack(opened(tmp_path / "2b.vmpack"), [BOB], tmp_path / "3b.vmpack")
    assert (tmp_path / "3.vmpack").read_bytes() == (tmp_path / "3b.vmpack").read_bytes()
    assert len(signers(opened(tmp_path / "3.vmpack"))) == 3


@pytest.mark.parametrize("extent", [Extent.BOOT, Extent.THIN])
def test_a_copy_stays_as_thin_as_it_is(tmp_path: Path, extent: Extent) -> None:
    full = packed(f"{tmp_path}/full.vmpack", ALICE)
    with create_layout(tmp_path / "copy.vmpack") as writer:
        copy_packs([full], writer, extent)
    copy = opened(tmp_path / "copy.vmpack")
    countersign_pack(copy, [BOB], tmp_path / "signed.vmpack")
    signed = opened(tmp_path / "signed.vmpack")
    assert list(signed.manifest.bundles()) == list(copy.manifest.bundles())


def test_an_unsigned_pack_gets_its_first_signature(tmp_path: Path) -> None:
    pack = packed(f"{tmp_path}/a.vmpack")
    countersign_pack(pack, [ALICE, BOB], tmp_path / "b.vmpack")
    signed = opened(tmp_path / "b.vmpack")
    assert signed.envelope == sign(pack.config_digest, [ALICE, BOB])
    packed(f"{tmp_path}/c.vmpack", ALICE, BOB)
    assert (tmp_path / "b.vmpack").read_bytes() == (tmp_path / "c.vmpack").read_bytes()


def test_a_key_signs_once(tmp_path: Path) -> None:
    pack = packed(f"{tmp_path}/a.vmpack", ALICE, BOB)
    with pytest.raises(
        UsageError, match=f"signed by {ALICE.public.fingerprint} already".replace("+", r"\+")
    ):
        countersign_pack(pack, [CAROL, ALICE], tmp_path / "b.vmpack")
    assert [path.name for path in tmp_path.iterdir()] == ["a.vmpack"]


def test_there_is_room_for_64_signatures(tmp_path: Path) -> None:
    keys = [ed25519_key(seed) for seed in range(64)]
    pack = packed(f"{tmp_path}/a.vmpack", *keys)
    with pytest.raises(UsageError, match="at most 64 signatures"):
        countersign_pack(pack, [ed25519_key(99)], tmp_path / "b.vmpack")


def test_signatures_of_other_tools_are_kept(tmp_path: Path) -> None:
    pack = packed(f"{tmp_path}/pack/", ALICE)
    assert pack.envelope is not None
    document = json.loads(pack.envelope)
    foreign = {"keyid": "somebody", "sig": "AAAA"}
    document["signatures"].append(foreign)
    envelope = json.dumps(document).encode()
    more = open_envelope(envelope, pack.config_digest).countersigned([BOB])
    assert foreign in json.loads(more)["signatures"]
    assert len(json.loads(more)["signatures"]) == 3


def test_a_statement_can_begin_to_travel_with_it(tmp_path: Path) -> None:
    pack = packed(f"{tmp_path}/a.vmpack", ALICE)
    countersign_pack(pack, [BOB], tmp_path / "b.vmpack", statements=[statement(ALICE, BOB)])
    signed = opened(tmp_path / "b.vmpack")
    assert signed.rotations == (statement(ALICE, BOB),)
    more = [statement(ALICE, BOB), statement(BOB, CAROL)]
    countersign_pack(signed, [CAROL], tmp_path / "c.vmpack", statements=more)
    assert opened(tmp_path / "c.vmpack").rotations == tuple(more)  # none twice
    half = make_statement(rotation(ALICE, CAROL), [ALICE])
    for wrong in (half, statement(ALICE, CAROL)):  # Carol does not sign here
        with pytest.raises(UsageError):
            countersign_pack(pack, [BOB], tmp_path / "d.vmpack", statements=[wrong])
    assert not (tmp_path / "d.vmpack").exists()


def test_other_packs_of_the_layout_come_along(tmp_path: Path) -> None:
    packs = [
        write_pack(tmp_path / f"{name}.vmpack", DATA[: 2 + row], CLASSES[: 2 + row], name=name,
                   keys=[ALICE])
        for row, name in enumerate(["demo", "lab"])
    ]  # fmt: skip
    with create_layout(f"{tmp_path}/both/") as writer:
        copy_packs(packs, writer, Extent.FULL)
    before = opened(tmp_path / "both", "demo:1").manifest
    pack = opened(tmp_path / "both", "lab:1")
    countersign_pack(pack, [BOB], f"{tmp_path}/both/", replace=True)
    demo, lab = (opened(tmp_path / "both", name) for name in ("demo:1", "lab:1"))
    assert demo.envelope == packs[0].envelope
    assert demo.manifest == before
    assert signers(lab) == {ALICE.public.fingerprint, BOB.public.fingerprint}


def test_a_damaged_pack_is_not_signed(tmp_path: Path) -> None:
    pack = packed(f"{tmp_path}/pack/", ALICE)
    digest = pack.manifest.bundles()["private"].digest
    path = tmp_path / "pack" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(InputError, match="expected bytes with that SHA-256"):
        countersign_pack(pack, [BOB], tmp_path / "b.vmpack")
    assert [one.name for one in tmp_path.iterdir()] == ["pack"]


def test_an_envelope_of_another_pack_is_not_signed(tmp_path: Path) -> None:
    pack = packed(f"{tmp_path}/pack/", ALICE)
    pack.__dict__["envelope"] = sign("sha256:" + "0" * 64, [ALICE])
    with pytest.raises(Error, match="payload"):
        countersign_pack(pack, [BOB], tmp_path / "b.vmpack")
