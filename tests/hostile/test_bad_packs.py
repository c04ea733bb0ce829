"""Packs that were damaged, forged, or are not what this host may use."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import pyzstd

from packer.artifact.contents import Class
from packer.artifact.index import Index, encode_index
from packer.artifact.keys import load_private
from packer.artifact.opened import OpenedPack
from packer.artifact.signature import sign
from packer.artifact.zstd import compress
from packer.sources.open import open_layout_at
from tests.hostile.refusal import INPUT, MISSING, TRUST, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.layouts import (
    blob_path,
    config_of,
    copy_of,
    drop_layer,
    flip,
    layer,
    manifest_of,
    replace_config,
    replace_layer,
    store_blob,
)
from tests.round_trip.mirror import mirror
from tests.round_trip.small import pack_small

GIB = 1 << 30
BOMB_MEMORY = ("prlimit", f"--as={3 * GIB}", "--")
Damage = Callable[[Path], None]


@pytest.fixture
def pack(author: Vmpack, tmp_path: Path) -> Path:
    """A good pack, a folder, of a small disk."""
    return pack_small(author, tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "rebuilt.raw"


def unpack(run_vmpack: Vmpack, pack: Path | str, disk: Path, *more: str) -> None:
    run_vmpack.good("unpack", pack, "-o", disk, "--from", "store:", *more)


def original(pack: Path) -> bytes:
    return (pack.parent / "small-1.raw").read_bytes()


def test_a_good_pack_is_accepted(run_vmpack: Vmpack, pack: Path, disk: Path) -> None:
    """So that the refusals below are for what they say."""
    unpack(run_vmpack, pack, disk)
    assert run_vmpack.json("verify", disk, pack, "--exact")["right"]
    assert run_vmpack.json("verify", pack.parent / "small-1.raw", pack)["right"]


@pytest.mark.parametrize("where", [0, 0.35, 0.7, 1])
@pytest.mark.parametrize("part", ["manifest", "config", "envelope", "map", "hints", "index"])
def test_one_flipped_bit_in_what_describes_a_pack_is_refused(
    run_vmpack: Vmpack, pack: Path, disk: Path, part: str, where: float
) -> None:
    path = _path_of(pack, part)
    flip(path, int((path.stat().st_size - 1) * where))
    done = run_vmpack("unpack", pack, "-o", disk, "--from", _source_that_needs(part))
    refused(done, INPUT, str(pack), f"sha256:{path.name}", "expected", "found", output=disk)


def _source_that_needs(part: str) -> str:
    """Hints are read only for a source that goes by names."""
    return "dir:/usr" if part == "hints" else "store:"


def _path_of(pack: Path, part: str) -> Path:
    if part == "config":
        return blob_path(pack, manifest_of(pack)["config"]["digest"])
    if part == "manifest":
        named = {one["digest"] for one in manifest_of(pack)["layers"]}
        named.add(manifest_of(pack)["config"]["digest"])
        blobs = (pack / "blobs" / "sha256").iterdir()
        (found,) = [path for path in blobs if f"sha256:{path.name}" not in named]
        return found
    return blob_path(pack, layer(pack, part)["digest"])


def test_one_flipped_bit_in_the_index_of_the_layout_never_gives_another_disk(
    run_vmpack: Vmpack, pack: Path, disk: Path
) -> None:
    good = (pack / "index.json").read_bytes()
    chance = random.Random(3)
    refusals = 0
    for position in sorted(chance.sample(range(len(good)), 12)):
        (pack / "index.json").write_bytes(good)
        flip(pack / "index.json", position)
        done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:", "--force")
        if done.returncode:
            refused(done, INPUT, str(pack), output=disk)
            refusals += 1
        else:
            assert disk.read_bytes() == original(pack)
            disk.unlink()
    assert refusals >= 6


@pytest.mark.parametrize("where", [0, 0.5, 1])
@pytest.mark.parametrize("bundle", ["boot", "private"])
def test_one_flipped_bit_in_a_bundle_is_told_and_cured_by_another_source(
    run_vmpack: Vmpack, pack: Path, disk: Path, bundle: str, where: float
) -> None:
    good = copy_of(pack, pack.with_name("good"))
    path = _path_of(pack, bundle)
    flip(path, int((path.stat().st_size - 1) * where))
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, MISSING, str(pack), "nobody has", "sha256:", output=disk)
    with mirror(good) as other:
        unpack(run_vmpack, pack, disk, "--from", other.url)
        everything = sum(path.stat().st_size for path in (good / "blobs/sha256").iterdir())
        assert 0 < other.sent_bytes < everything * 0.75
    assert run_vmpack.json("verify", disk, good, "--exact")["right"]


def test_a_pack_cut_short_is_refused(run_vmpack: Vmpack, pack: Path, disk: Path) -> None:
    tar = pack.with_name("whole.vmpack")
    run_vmpack.good("copy", pack, tar)
    whole = tar.read_bytes()
    for share in (0, 0.0005, 0.3, 0.9):
        tar.write_bytes(whole[: int(len(whole) * share)])
        done = run_vmpack("unpack", tar, "-o", disk, "--from", "store:")
        refused(done, INPUT, str(tar), output=disk)


def test_a_tar_whose_member_points_elsewhere_is_refused(
    run_vmpack: Vmpack, pack: Path, disk: Path
) -> None:
    tar, digest = pack.with_name("link.vmpack"), layer(pack, "private")["digest"]
    with tarfile.open(tar, "w") as file:
        for path in sorted(path for path in pack.rglob("*") if path.is_file()):
            entry = file.gettarinfo(path, str(path.relative_to(pack)))
            if path == blob_path(pack, digest):
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, str(path), 0
                file.addfile(entry)
            else:
                with path.open("rb") as data:
                    file.addfile(entry, data)
    done = run_vmpack("unpack", tar, "-o", disk, "--from", "store:")
    refused(done, INPUT, str(tar), output=disk)


def test_a_blob_that_is_a_link_to_a_file_of_this_host_is_not_followed(
    run_vmpack: Vmpack, pack: Path, disk: Path
) -> None:
    path = _path_of(pack, "private")
    path.rename(pack.parent / "moved")
    path.symlink_to(pack.parent / "moved")
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, INPUT, str(pack), output=disk)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A frame of 4 GiB of zeros that says it holds as much."""
    made = pyzstd.ZstdCompressor(1)
    made._set_pledged_input_size(4 * GIB)
    piece = bytes(64 << 20)
    return b"".join(made.compress(piece) for _ in range(64)) + made.flush()


def test_damaged_hints_are_named_where_they_are_needed_and_hinder_nobody_else(
    run_vmpack: Vmpack, pack: Path, disk: Path
) -> None:
    path = _path_of(pack, "hints")
    flip(path, path.stat().st_size // 2)
    refused(run_vmpack("inspect", pack), INPUT, str(pack), f"sha256:{path.name}")
    unpack(run_vmpack, pack, disk)
    assert run_vmpack.json("verify", disk, pack)["right"]


@pytest.mark.parametrize("part", ["map", "hints", "index"])
def test_a_part_that_unpacks_to_more_than_was_said_is_refused(
    run_vmpack: Vmpack, pack: Path, disk: Path, bomb: bytes, part: str
) -> None:
    replace_layer(pack, part, bomb)
    command: list[str | Path] = ["unpack", pack, "-o", disk, "--from", _source_that_needs(part)]
    done = run_vmpack(*command, before=BOMB_MEMORY)
    refused(done, INPUT, str(pack), output=disk)


def test_a_frame_that_unpacks_to_more_than_the_index_says_is_not_unpacked(
    run_vmpack: Vmpack, pack: Path, disk: Path, bomb: bytes
) -> None:
    _replace_a_frame(pack, bomb)
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:", before=BOMB_MEMORY)
    refused(done, MISSING, "nobody has 1 contents", output=disk)


def _replace_a_frame(pack: Path, frame: bytes) -> None:
    """Put another frame in the place of the first that holds one private content alone."""
    opened = OpenedPack(open_layout_at(str(pack)))
    index, contents = opened.index, opened.map.contents
    bundle = index.bundles.index(layer(pack, "private")["digest"])
    lone = [
        int(first)
        for content, first in zip(index.content.tolist(), index.first_frame.tolist(), strict=True)
        if contents.classes[content] == Class.PRIVATE and contents.size[content] >= 128 << 10
        and contents.size[content] > 1 << 20
    ]  # fmt: skip
    number = lone[0]
    old = blob_path(pack, index.bundles[bundle]).read_bytes()
    start = int(index.frame_offset[number])
    data = old[:start] + frame + old[start + int(index.stored_bytes[number]) :]
    stored = index.stored_bytes.copy()
    stored[number] = len(frame)
    opened.close()
    digest = replace_layer(pack, "private", data)
    bundles = tuple(digest if row == bundle else one for row, one in enumerate(index.bundles))
    changed = Index(bundles, index.bundle, index.frame_offset, stored, index.frame_bytes,
                    index.content, index.first_frame, index.offset)  # fmt: skip
    replace_layer(pack, "index", compress(encode_index(changed), 3))


def test_a_pack_that_nobody_signed_is_refused(run_vmpack: Vmpack, pack: Path, disk: Path) -> None:
    drop_layer(pack, "envelope")
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, TRUST, str(pack), "not signed", "--allow-unsigned", output=disk)
    unpack(run_vmpack, pack, disk, "--allow-unsigned")


def test_a_signature_by_somebody_else_is_refused(
    run_vmpack: Vmpack, stranger: Vmpack, pack: Path, disk: Path, tmp_path: Path
) -> None:
    stranger.good("key", "generate")
    forged = pack_small(stranger, tmp_path / "elsewhere")
    done = run_vmpack("unpack", forged, "-o", disk, "--from", "store:")
    refused(done, TRUST, str(forged), "SHA256:", "--signer", output=disk)
    # And with the stranger's signature on the author's config.
    key = load_private(stranger.home / "config" / "id_ed25519")
    replace_layer(pack, "envelope", sign(manifest_of(pack)["config"]["digest"], [key]))
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, TRUST, str(pack), key.public.fingerprint, output=disk)


def test_a_signature_that_does_not_fit_is_refused(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, disk: Path, tmp_path: Path
) -> None:
    other = pack_small(author, tmp_path / "other", seed=2)
    stolen = _path_of(other, "envelope").read_bytes()
    replace_layer(pack, "envelope", stolen)
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, TRUST, str(pack), "belongs to another pack", output=disk)


def test_a_signature_with_other_bits_is_refused(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, disk: Path
) -> None:
    envelope = _path_of(pack, "envelope").read_bytes()
    start = envelope.index(b'"sig"') + 10
    letter = b"A" if envelope[start : start + 1] != b"A" else b"B"
    replace_layer(pack, "envelope", envelope[:start] + letter + envelope[start + 1 :])
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, TRUST, str(pack), "bad signature", output=disk)


def test_a_host_that_trusts_nobody_refuses_and_says_whose_key_it_is(
    stranger: Vmpack, pack: Path, disk: Path
) -> None:
    done = stranger("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, TRUST, str(pack), "SHA256:", output=disk)
    fingerprint = next(word for word in done.stderr.split() if word.startswith("SHA256:"))
    unpack(stranger, pack, disk, "--signer", fingerprint)


def test_a_changed_config_is_refused(run_vmpack: Vmpack, pack: Path, disk: Path) -> None:
    replace_config(pack, {**config_of(pack), "version": 7})
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, TRUST, str(pack), "config was changed", output=disk)


def test_an_older_version_than_this_host_has_used_is_refused(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, disk: Path, tmp_path: Path
) -> None:
    newer = pack_small(author, tmp_path / "newer", seed=2, version=2)
    unpack(run_vmpack, pack, disk)
    unpack(run_vmpack, newer, tmp_path / "new.raw")
    older = tmp_path / "older.raw"
    done = run_vmpack("unpack", pack, "-o", older, "--from", "store:")
    refused(done, TRUST, str(pack), "version 1", "2", "--allow-older", output=older)
    unpack(run_vmpack, pack, older, "--allow-older")
    done = run_vmpack("unpack", pack, "-o", tmp_path / "again.raw", "--from", "store:")
    refused(done, TRUST, str(pack), "version 1", output=tmp_path / "again.raw")


def test_looking_at_a_version_is_not_using_it(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, disk: Path, tmp_path: Path
) -> None:
    newer = pack_small(author, tmp_path / "newer", seed=2, version=2)
    run_vmpack.good("inspect", newer)
    run_vmpack.good("unpack", newer, "--dry-run", "--from", "store:")
    unpack(run_vmpack, pack, disk)


def test_another_pack_under_the_same_version_is_refused(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, disk: Path, tmp_path: Path
) -> None:
    other = pack_small(author, tmp_path / "other", seed=2)
    unpack(run_vmpack, pack, disk)
    second = tmp_path / "second.raw"
    done = run_vmpack("unpack", other, "-o", second, "--from", "store:")
    refused(done, TRUST, str(other), "another version 1", output=second)


def test_a_schema_of_the_future_is_refused_even_from_a_trusted_author(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, disk: Path
) -> None:
    digest = replace_config(pack, {**config_of(pack), "schema": 2})
    key = load_private(author.home / "config" / "id_ed25519")
    replace_layer(pack, "envelope", sign(digest, [key]))
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, INPUT, str(pack), "schema", "expected 1", "found 2", output=disk)


def test_a_config_that_names_another_map_is_refused_even_from_a_trusted_author(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, disk: Path
) -> None:
    config = config_of(pack)
    config["disks"][0]["map"] = config["hints"]["digest"]
    digest = replace_config(pack, config)
    key = load_private(author.home / "config" / "id_ed25519")
    replace_layer(pack, "envelope", sign(digest, [key]))
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, INPUT, str(pack), "map", output=disk)


def test_another_kind_of_artifact_is_refused(
    run_vmpack: Vmpack, pack: Path, disk: Path, tmp_path: Path
) -> None:
    for name, files in {
        "no-layout": {},
        "other": {"oci-layout": '{"imageLayoutVersion":"9.0.0"}'},
        "empty": {"oci-layout": '{"imageLayoutVersion":"1.0.0"}', "index.json": "{}"},
    }.items():
        place = tmp_path / name
        (place / "blobs" / "sha256").mkdir(parents=True)
        for file, text in files.items():
            (place / file).write_text(text)
        refused(run_vmpack("unpack", place, "-o", disk), INPUT, str(place), output=disk)
    shutil.rmtree(pack / "blobs")
    refused(run_vmpack("unpack", pack, "-o", disk), INPUT, str(pack), output=disk)


def test_what_nobody_has_is_listed(run_vmpack: Vmpack, pack: Path, disk: Path) -> None:
    boot = pack.with_name("boot.vmpack")
    run_vmpack.good("copy", pack, "--boot", boot)
    done = run_vmpack("unpack", boot, "-o", disk, "--from", "store:")
    refused(done, MISSING, str(boot), "nobody has 10 contents", "/srv/big/000", "--from",
            output=disk)  # fmt: skip
    plan = run_vmpack("unpack", boot, "--dry-run", "--from", "store:")
    assert plan.returncode == MISSING
    assert plan.stdout.count("sha256:") == 10
    unpack(run_vmpack, boot, disk, "--from", f"pack:{pack}")
    assert run_vmpack.json("verify", disk, pack, "--exact")["right"]


def test_a_blob_that_nothing_names_does_no_harm(run_vmpack: Vmpack, pack: Path, disk: Path) -> None:
    store_blob(pack, b"stray")
    unpack(run_vmpack, pack, disk)


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_bundle_cut_short_is_told_and_cured_by_another_source(
    run_vmpack: Vmpack, pack: Path, disk: Path, share: float
) -> None:
    good = copy_of(pack, pack.with_name("good"))
    path = _path_of(pack, "private")
    os.truncate(path, int(path.stat().st_size * share))
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, MISSING, str(pack), "nobody has", "/srv/big/", output=disk)
    unpack(run_vmpack, pack, disk, "--from", f"pack:{good}")
    assert run_vmpack.json("verify", disk, good, "--exact")["right"]
