"""Sign a pack that exists already: the same copy, to the byte, with a longer envelope.

Nothing but the envelope changes (and the statements about replaced keys, if some are added), so
people in several places can sign one pack after the other: a rule that asks for two of three keys
needs no place where two of them are. The order does not matter to the bytes of the envelope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.artifact import manifest as manifests
from packer.artifact.config import Config
from packer.artifact.keys import PrivateKey
from packer.artifact.layout.base import Layout, read_blob
from packer.artifact.layout.open import create_layout
from packer.artifact.manifest import MAX_MANIFEST_BYTES, Blob, Entry
from packer.artifact.opened import OpenedPack
from packer.artifact.rotation import check_carried
from packer.artifact.signature import open_envelope, sign
from packer.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class SignReport:
    """What was written. signers, signed_now: fingerprints; of those before, as the pack says."""

    output: Path
    identity: str
    config: Config
    signers: tuple[str, ...]
    signed_now: tuple[str, ...]


def countersign_pack(
    pack: OpenedPack,
    keys: Sequence[PrivateKey],
    output: str | Path,
    *,
    statements: Sequence[bytes] = (),
    replace: bool = False,
    progress: Progress | None = None,
) -> SignReport:
    """Write the layout of a pack anew, with the pack signed by these keys as well.

    Other packs of the layout come along as they are. statements: about replaced keys, to travel
    with the pack. Raises UsageError when a key has signed already or a statement makes no sense
    beside the pack; InputError when the pack is damaged; Error when the output cannot be written.
    """
    progress = progress or Silent()
    config, envelope = pack.config, _envelope(pack, keys)
    signers = open_envelope(envelope, pack.config_digest).claimed_signers()
    added = [data for data in dict.fromkeys(statements) if data not in pack.rotations]
    if added:
        check_carried([*pack.rotations, *added], signers)
    with create_layout(output, replace=replace) as writer:
        layers = [writer.add(data) for data in added]
        manifest = manifests.signed_anew(pack.manifest, writer.add(envelope), layers)
        entries = [
            Entry(manifest, one.ref_name or config.ref_name)
            if one.manifest == pack.manifest
            else one
            for one in _entries(pack.layout)
        ]
        named = {blob.digest: blob for one in entries for blob in one.manifest.blobs()}
        here = {blob.digest for blob in layers} | {manifest.layers[0].digest}
        blobs = [Blob(one.digest, one.size) for one in named.values() if one.digest not in here]
        with progress.stage("copying", sum(blob.size for blob in blobs)) as advance:
            for blob in blobs:
                writer.copy(pack.layout, blob, advance)
        writer.finish(entries)
    return SignReport(
        Path(output),
        pack.config_digest,
        config,
        tuple(sorted(key.fingerprint for key in signers)),
        tuple(sorted(key.public.fingerprint for key in keys)),
    )


def _envelope(pack: OpenedPack, keys: Sequence[PrivateKey]) -> bytes:
    """Return the envelope of a pack with more signatures in it."""
    if pack.envelope is None:
        return sign(pack.config_digest, keys)
    where = f"{pack.layout.location}: signature"
    return open_envelope(pack.envelope, pack.config_digest, where).countersigned(keys)


def _entries(layout: Layout) -> list[Entry]:
    """Return all packs of a layout, as it lists them."""
    where = layout.location
    return [
        Entry(manifests.decode(read_blob(layout, blob.digest, MAX_MANIFEST_BYTES), where), ref_name)
        for ref_name, blob in manifests.decode_index(layout.index(), f"{where}: index.json")
    ]
