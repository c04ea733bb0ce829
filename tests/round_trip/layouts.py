"""Read and change the documents of a pack that lies in a folder, with nothing but JSON."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

BLOBS = Path("blobs/sha256")


def blob_path(pack: Path, digest: str) -> Path:
    return pack / BLOBS / digest.removeprefix("sha256:")


def manifest_of(pack: Path) -> dict[str, Any]:
    index = json.loads((pack / "index.json").read_text())
    found: dict[str, Any] = json.loads(blob_path(pack, index["manifests"][0]["digest"]).read_text())
    return found


def config_digest(pack: Path) -> str:
    return str(manifest_of(pack)["config"]["digest"])


def config_of(pack: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(blob_path(pack, config_digest(pack)).read_text())
    return found


def layer(pack: Path, part: str) -> dict[str, Any]:
    """A layer's descriptor, by the middle of its media type ("map") or a bundle's title."""
    for one in manifest_of(pack)["layers"]:
        titles = one.get("annotations", {}).values()
        if part in titles or f".{part}." in one["mediaType"]:
            return dict(one)
    raise KeyError(part)


def copy_of(pack: Path, target: Path) -> Path:
    shutil.copytree(pack, target)
    return target


def flip(path: Path, position: int) -> None:
    """Invert the lowest bit of one byte."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def store_blob(pack: Path, data: bytes) -> dict[str, Any]:
    """Add a blob; its digest and size."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blob_path(pack, digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def replace_layer(pack: Path, part: str, data: bytes) -> str:
    """Put other bytes in the place of a layer, with manifest and index.json made to agree."""
    old, new = layer(pack, part)["digest"], store_blob(pack, data)
    document = manifest_of(pack)
    for one in document["layers"]:
        if one["digest"] == old:
            one.update(new)
    _name_manifest(pack, document)
    return str(new["digest"])


def drop_layer(pack: Path, part: str) -> None:
    """Leave a layer out, as somebody would who strips a signature."""
    old = layer(pack, part)["digest"]
    document = manifest_of(pack)
    document["layers"] = [one for one in document["layers"] if one["digest"] != old]
    _name_manifest(pack, document)


def replace_config(pack: Path, document: dict[str, Any]) -> str:
    """Put another config in its place, with manifest and index.json made to agree."""
    data = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    new, manifest = store_blob(pack, data), manifest_of(pack)
    manifest["config"].update(new)
    _name_manifest(pack, manifest)
    return str(new["digest"])


def _name_manifest(pack: Path, document: dict[str, Any]) -> None:
    index = json.loads((pack / "index.json").read_text())
    index["manifests"][0].update(store_blob(pack, json.dumps(document).encode()))
    (pack / "index.json").write_text(json.dumps(index))
