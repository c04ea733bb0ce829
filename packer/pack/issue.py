"""Give out a draft: the same map and bundles under another config, signed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.artifact import config as configs
from packer.artifact import manifest as manifests
from packer.artifact.config import Config
from packer.artifact.keys import PrivateKey
from packer.artifact.layout.open import create_layout
from packer.artifact.manifest import Blob, Descriptor, Entry
from packer.artifact.opened import OpenedPack
from packer.artifact.rotation import check_carried
from packer.artifact.signature import sign
from packer.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class Issued:
    """What was written. identity: the digest of the config. stored_bytes: of all blobs."""

    output: Path
    identity: str
    config: Config
    stored_bytes: int
    signers: tuple[str, ...]


def issue(
    draft: OpenedPack,
    output: str | Path,
    config: Config,
    keys: Sequence[PrivateKey],
    *,
    rotations: Sequence[bytes] = (),
    replace: bool = False,
    progress: Progress | None = None,
) -> Issued:
    """Write the blobs of a draft as another pack.

    config: names the draft's map and hints. Raises InputError when the draft is damaged, UsageError
    for rotations that make no sense beside the keys, Error when the output cannot be written.
    """
    progress = progress or Silent()
    check_carried(rotations, [key.public for key in keys])
    frame_index, hints = draft.manifest.frame_index(), draft.manifest.hints()
    assert frame_index is not None
    assert hints is not None
    maps = [_blob(layer) for layer in draft.manifest.maps()]
    bundles = {title: _blob(layer) for title, layer in draft.manifest.bundles().items()}
    copied = dict.fromkeys([*maps, _blob(frame_index), _blob(hints), *bundles.values()])
    with create_layout(output, replace=replace) as writer:
        writer.check_room(list(copied))
        with progress.stage("copying", sum(blob.size for blob in copied)) as advance:
            for blob in copied:
                writer.copy(draft.layout, blob, advance)
        named = writer.add(configs.encode(config))
        manifest = manifests.build(
            config=named,
            maps=maps,
            hints=_blob(hints),
            frame_index=_blob(frame_index),
            signature=writer.add(sign(named.digest, keys)) if keys else None,
            rotations=[writer.add(data) for data in rotations],
            bundles=bundles,
        )
        writer.finish([Entry(manifest, config.ref_name)])
    return Issued(
        Path(output),
        named.digest,
        config,
        sum(blob.size for blob in manifest.blobs()),
        tuple(key.public.fingerprint for key in keys),
    )


def _blob(layer: Descriptor) -> Blob:
    return Blob(layer.digest, layer.size)
