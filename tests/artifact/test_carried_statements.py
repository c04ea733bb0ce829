"""Statements about replaced keys travel with a pack, through every copy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from packer.artifact.copy import Extent, copy_packs
from packer.artifact.layout.base import read_blob
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.manifest import MAX_ROTATIONS
from packer.artifact.opened import OpenedPack
from packer.artifact.rotation import MAX_STATEMENT_BYTES
from packer.artifact.trust import Rule, judge
from packer.errors import InputError, TrustError
from tests.artifact.real_packs import write_pack
from tests.artifact.test_rotation import statement
from tests.artifact.test_signature import ALICE, BOB, CAROL
from tests.unpack.simulated import CLASSES, DATA

STATEMENTS = (statement(ALICE, BOB), statement(BOB, CAROL))
RULE = Rule(("demo",), (ALICE.public,))


@pytest.fixture
def pack(tmp_path: Path) -> OpenedPack:
    return write_pack(tmp_path / "demo.vmpack", DATA, CLASSES, keys=[CAROL], rotations=STATEMENTS)


def opened(place: str | Path) -> OpenedPack:
    return OpenedPack(open_layout(place))


def accepted(pack: OpenedPack) -> bool:
    verdict = judge(pack.config_bytes, pack.envelope, [RULE], {}, statements=pack.rotations)
    return verdict.signers == {CAROL.public} and len(verdict.rotations) == 2


@pytest.mark.parametrize("form", ["copy.vmpack", "copy/"])
@pytest.mark.parametrize("extent", list(Extent))
def test_every_copy_carries_them(
    pack: OpenedPack, tmp_path: Path, extent: Extent, form: str
) -> None:
    assert accepted(pack)
    with create_layout(f"{tmp_path}/{form}") as writer:
        copy_packs([pack], writer, extent)
    copy = opened(tmp_path / form)
    assert copy.rotations == STATEMENTS
    assert accepted(copy)
    with create_layout(f"{tmp_path}/again-{form}") as writer:
        copy_packs([copy], writer, extent)
    assert opened(tmp_path / f"again-{form}").rotations == STATEMENTS


def test_skopeo_copies_them(pack: OpenedPack, tmp_path: Path) -> None:
    """Other people's tools know nothing of them, and keep every layer."""
    for source, target in (
        (f"oci-archive:{tmp_path}/demo.vmpack", f"oci:{tmp_path}/folder:demo"),
        (f"oci:{tmp_path}/folder:demo", f"oci-archive:{tmp_path}/back.tar:demo"),
    ):
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", source, target],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    for place in ("folder", "back.tar"):
        assert opened(tmp_path / place).rotations == STATEMENTS
        assert accepted(opened(tmp_path / place))


def test_without_them_the_pack_is_a_strangers(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "bare.vmpack", DATA, CLASSES, keys=[CAROL])
    with pytest.raises(TrustError, match="does not trust"):
        accepted(pack)


def test_they_come_right_after_the_signature(pack: OpenedPack) -> None:
    assert [layer.media_type for layer in pack.manifest.layers[:4]] == [
        "application/vnd.dsse.envelope.v1+json",
        "application/vnd.vmpack.rotation.v1+json",
        "application/vnd.vmpack.rotation.v1+json",
        "application/vnd.vmpack.map.v1+zstd",
    ]


def test_more_than_a_pack_may_carry_are_refused(tmp_path: Path) -> None:
    many = [statement(ALICE, BOB, [f"demo{row}"]) for row in range(MAX_ROTATIONS + 1)]
    most = write_pack(tmp_path / "most.vmpack", DATA, CLASSES, rotations=many[:-1])
    assert len(most.rotations) == MAX_ROTATIONS
    more = write_pack(tmp_path / "more.vmpack", DATA, CLASSES, rotations=many)
    with pytest.raises(InputError, match="at most 16 statements"):
        more.manifest  # noqa: B018


def test_one_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    huge = b" " * (MAX_STATEMENT_BYTES + 1)
    pack = write_pack(tmp_path / "huge.vmpack", DATA, CLASSES, rotations=[huge])
    with pytest.raises(InputError, match=f"at most {MAX_STATEMENT_BYTES} bytes"):
        pack.rotations  # noqa: B018


def test_a_manifest_without_any_is_as_before(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "bare.vmpack", DATA, CLASSES, keys=[ALICE])
    assert pack.rotations == ()
    data = read_blob(
        pack.layout, json.loads(pack.layout.index())["manifests"][0]["digest"], 1 << 20
    )
    assert b"rotation" not in data
