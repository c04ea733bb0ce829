"""Lists and fillings that were damaged or forged: refused, or of no effect; never a wrong disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from packer.artifact.index import Index, encode_index
from packer.artifact.keys import load_private
from packer.artifact.opened import OpenedPack
from packer.artifact.signature import sign
from packer.artifact.want import encode_want, wanted_rows
from packer.artifact.zstd import compress
from packer.sources.open import open_layout_at
from tests.hostile.refusal import INPUT, MISSING, TRUST, refused
from tests.hostile.test_interruption import names
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.layouts import (
    blob_path,
    config_digest,
    config_of,
    copy_of,
    drop_layer,
    flip,
    layer,
    manifest_of,
    replace_config,
    replace_layer,
)
from tests.round_trip.packs import author_key, trusting_host
from tests.round_trip.small import pack_small

MIB = 1 << 20


class Packs:
    """Small packs of one author: version 1, its boot set and the list of the rest; two others."""

    def __init__(self, folder: Path) -> None:
        author = Vmpack(author_key().parents[1])
        self.pack = pack_small(author, folder / "small")
        self.other = pack_small(author, folder / "other", seed=2)
        self.newer = pack_small(author, folder / "newer", seed=2, version=2)
        self.boot = folder / "boot.vmpack"
        author.good("copy", self.pack, "--boot", self.boot)
        self.want = folder / "want"
        write_list(trusting_host(folder / "home"), self.boot, f"{self.want}/")


def write_list(host: Vmpack, boot: Path, want: Path | str) -> None:
    """Write what a machine lacks that has no file of the guest."""
    done = host("unpack", boot, "--dry-run", "--from", "store:", "--want", want)
    assert done.returncode == MISSING, done.stderr


class Scene:
    """A machine without a network, one that has it, and a list on the way between them."""

    def __init__(self, folder: Path, packs: Packs, offline: Vmpack) -> None:
        self.folder = folder
        self.offline = offline
        self.online = trusting_host(folder / "online")
        self.pack, self.boot = packs.pack, packs.boot
        self.want = copy_of(packs.want, folder / "want")
        self.disk = folder / "rebuilt.raw"

    def refuses(self, code: int, *words: str) -> None:
        """Nobody fills the list, and nothing is written."""
        output, before = self.folder / "filled.vmpack", names(self.folder)
        done = self.online("fill", self.want, "-o", output, "--from", f"pack:{self.pack}")
        refused(done, code, str(self.want), *words, output=output)
        assert names(self.folder) == before

    def filled(self, name: str) -> Path:
        """What fills the list, as a folder; all that this machine has."""
        made = self.folder / name
        self.online.good("fill", self.want, "-o", f"{made}/", "--from", f"pack:{self.pack}")
        return made

    def rows(self) -> np.ndarray:
        with OpenedPack(open_layout_at(str(self.want))) as opened:
            return wanted_rows(opened)

    def completes(self, *fillings: Path) -> dict[str, object]:
        """The disk is right in the end, whatever was tried before."""
        named = [word for one in fillings for word in ("--from", f"pack:{one}")]
        report = self.offline.json("unpack", self.boot, "-o", self.disk, *named)
        assert self.offline.json("verify", self.disk, self.pack, "--exact")["right"]
        return report

    def lacks(self, filling: Path, *words: str) -> None:
        """A filling alone does not complete the disk."""
        done = self.offline("unpack", self.boot, "-o", self.disk, "--from", f"pack:{filling}")
        refused(done, MISSING, "nobody has", "/srv/", *words, output=self.disk)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    return Packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture
def scene(packs: Packs, run_vmpack: Vmpack, tmp_path: Path) -> Scene:
    return Scene(tmp_path, packs, run_vmpack)


def test_a_good_list_is_filled(scene: Scene) -> None:
    """So that the refusals below are for what they say."""
    scene.completes(scene.filled("filled"))


@pytest.mark.parametrize("part", ["config", "envelope", "map", "index", "hints", "want"])
def test_one_flipped_bit_in_a_list_is_refused(scene: Scene, part: str) -> None:
    descriptor = manifest_of(scene.want)["config"] if part == "config" else layer(scene.want, part)
    path = blob_path(scene.want, descriptor["digest"])
    flip(path, path.stat().st_size // 2)
    scene.refuses(INPUT, f"sha256:{path.name}", "expected", "found")


def test_a_list_cut_short_is_refused(scene: Scene) -> None:
    scene.want = scene.folder / "short.want"
    write_list(scene.offline, scene.boot, scene.want)
    data = scene.want.read_bytes()
    for share in (0, 0.1, 0.6, 0.9):
        scene.want.write_bytes(data[: int(len(data) * share)])
        scene.refuses(INPUT)


def _forged(config: str, width: int, count: int, planes: bytes, schema: int = 1) -> bytes:
    return msgspec.msgpack.encode(
        {"schema": schema, "config": config, "content_step": [width, count, planes]}
    )


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ((1, 1, b"\xff"), "past the last of"),
        ((8, 1, b"\xff" * 7 + b"\x7f"), "past the last of"),
        ((0, 0, b""), "rows, found 0"),
        ((0, 1 << 25, b""), "rows, found 33554432"),
        ((1, 3, b"\0"), "expected 3 bytes, found 1"),
    ],
)
def test_rows_that_cannot_be_are_refused(
    scene: Scene, column: tuple[int, int, bytes], words: str
) -> None:
    """With manifest and index.json made to agree, as a forger would."""
    forged = _forged(config_digest(scene.want), *column)
    replace_layer(scene.want, "want", compress(forged, 3))
    scene.refuses(INPUT, "want-list", words)


def test_the_list_of_another_pack_is_refused(scene: Scene, packs: Packs) -> None:
    theirs = compress(encode_want(config_digest(packs.other), scene.rows()), 3)
    replace_layer(scene.want, "want", theirs)
    scene.refuses(INPUT, "config", f"expected this pack's, {config_digest(scene.want)}")


def test_a_list_twice_is_refused(scene: Scene) -> None:
    path = scene.want / "index.json"
    index, manifest = json.loads(path.read_text()), manifest_of(scene.want)
    manifest["layers"].append(layer(scene.want, "want"))
    data = json.dumps(manifest).encode()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blob_path(scene.want, digest).write_bytes(data)
    index["manifests"][0] |= {"digest": digest, "size": len(data)}
    path.write_text(json.dumps(index))
    scene.refuses(INPUT, "layers", "expected one", "found two")


def test_a_list_of_the_future_is_refused(scene: Scene) -> None:
    data = _forged(config_digest(scene.want), 1, 1, b"\0", schema=2)
    replace_layer(scene.want, "want", compress(data, 3))
    scene.refuses(INPUT, "expected schema 1, found 2")


def test_a_pack_without_a_list_is_refused(scene: Scene) -> None:
    drop_layer(scene.want, "want")
    scene.refuses(INPUT, "expected a want-list")


def test_a_list_whose_signature_was_taken_off_is_refused(scene: Scene) -> None:
    drop_layer(scene.want, "envelope")
    scene.refuses(TRUST, "not signed")


def test_a_list_of_a_strangers_pack_is_refused(scene: Scene) -> None:
    """Not even asked: his pack could name files that he wants to know of."""
    stranger = Vmpack(scene.folder / "stranger")
    stranger.good("key", "generate")
    key = load_private(stranger.home / "config" / "id_ed25519")
    replace_layer(scene.want, "envelope", sign(config_digest(scene.want), [key]))
    scene.refuses(TRUST, key.public.fingerprint, "--signer")


def test_a_list_with_another_packs_signature_is_refused(scene: Scene, packs: Packs) -> None:
    stolen = blob_path(packs.other, layer(packs.other, "envelope")["digest"]).read_bytes()
    replace_layer(scene.want, "envelope", stolen)
    scene.refuses(TRUST, "belongs to another pack")


def test_a_list_with_another_config_is_refused(scene: Scene) -> None:
    """So the mirrors that are asked are those that the author named."""
    changed = {**config_of(scene.want), "sources": ["https://mirror.example/"]}
    replace_config(scene.want, changed)
    scene.refuses(TRUST, "config was changed")


def test_a_list_with_another_map_is_refused(scene: Scene, packs: Packs) -> None:
    theirs = blob_path(packs.other, layer(packs.other, "map")["digest"]).read_bytes()
    replace_layer(scene.want, "map", theirs)
    scene.refuses(INPUT, "map")


def test_a_list_that_asks_for_something_else_gets_nothing_but_contents_of_its_pack(
    scene: Scene,
) -> None:
    """Whoever carries it can do that, and it costs another journey."""
    asked = scene.rows()
    other = encode_want(config_digest(scene.want), asked[2:5])
    replace_layer(scene.want, "want", compress(other, 3))
    filled = scene.filled("filled")
    scene.lacks(filled)
    scene.want = scene.folder / "again"
    write_list(scene.offline, scene.boot, f"{scene.want}/")
    scene.completes(filled, scene.filled("second"))


@pytest.mark.parametrize("where", [0.5, 1])
def test_a_flipped_bit_in_a_filling_is_told_and_cured_by_another(
    scene: Scene, where: float
) -> None:
    good = scene.filled("good")
    bad = copy_of(good, scene.folder / "bad")
    path = blob_path(bad, layer(bad, "private")["digest"])
    flip(path, int((path.stat().st_size - 1) * where))
    scene.lacks(bad)
    report = scene.completes(bad, good)
    assert 0 < content_bytes(report, f"pack:{good}") < 5 * MIB


def shifted(index: Index) -> Index:
    """Every content one byte further on in its frame, where that is possible."""
    return replace(index, offset=np.where(index.offset > 0, index.offset - 1, 0))


def test_an_index_that_lies_about_a_filling_leads_to_no_wrong_byte(scene: Scene) -> None:
    good = scene.filled("good")
    bad = copy_of(good, scene.folder / "bad")
    with OpenedPack(open_layout_at(str(good))) as opened:
        lie = shifted(opened.index)
        assert (lie.offset != opened.index.offset).sum() > 3
    replace_layer(bad, "index", compress(encode_index(lie), 3))
    scene.lacks(bad)
    scene.completes(bad, good)


def test_a_damaged_index_of_a_filling_is_named(scene: Scene) -> None:
    bad = scene.filled("bad")
    path = blob_path(bad, layer(bad, "index")["digest"])
    flip(path, path.stat().st_size // 2)
    done = scene.offline("unpack", scene.boot, "-o", scene.disk, "--from", f"pack:{bad}")
    refused(done, INPUT, str(bad), f"sha256:{path.name}", output=scene.disk)
    scene.completes(scene.filled("good"))


def test_a_damaged_half_is_not_filled_further_with_its_damage(scene: Scene) -> None:
    half = scene.filled("half")
    path = blob_path(half, layer(half, "private")["digest"])
    flip(path, path.stat().st_size // 2)
    scene.want = half
    done = scene.online("fill", half, "-o", scene.folder / "more.vmpack", "--from", "store:")
    assert done.returncode == MISSING, done.stderr
    assert "nobody has" in done.stdout
    more = scene.folder / "more.vmpack"
    scene.lacks(more)
    scene.completes(more, scene.filled("whole"))


def test_a_filling_needs_nobodys_signature(scene: Scene) -> None:
    """Every content is proven by the pack at hand; who carried it does not matter."""
    filled = scene.filled("filled")
    drop_layer(filled, "envelope")
    scene.completes(filled)


def test_an_older_list_than_a_host_has_used_is_refused(scene: Scene, packs: Packs) -> None:
    scene.online.good("unpack", packs.newer, "-o", scene.folder / "new.raw", "--from", "store:")
    scene.refuses(TRUST, "version 1", "--allow-older")
    more = ["--from", f"pack:{scene.pack}", "--allow-older"]
    scene.online.good("fill", scene.want, "-o", scene.folder / "filled.vmpack", *more)


def test_a_filling_is_no_use_of_a_pack(scene: Scene, packs: Packs) -> None:
    """Who fills the list of a new version can go on using the old one."""
    want = scene.folder / "newer.want"
    boot = scene.folder / "newer.vmpack"
    scene.offline.good("copy", packs.newer, "--boot", boot)
    write_list(scene.offline, boot, want)
    scene.online.good("fill", want, "-o", scene.folder / "new", "--from", f"pack:{packs.newer}")
    scene.online.good("unpack", packs.pack, "-o", scene.disk, "--from", "store:")
