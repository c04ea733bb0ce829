"""The OCI side of a pack: manifest, index.json and oci-layout.

Each copy of a pack has its own manifest, which lists only the bundles that this copy holds: one
that names absent blobs is refused by registries and by copying tools. Nothing here is signed; a
manifest is a table of contents, and whatever it names is believed by digest only. References:
OCI image-spec 1.1, manifest.md ("Guidelines for Artifact Usage"), image-index.md,
image-layout.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from packer.artifact import media_types, strict_json
from packer.artifact.contents import Class
from packer.errors import InputError

MAX_MANIFEST_BYTES = 4 << 20
"""Upper bound of a manifest, and of index.json: what registries accept."""

MAX_ROTATIONS = 16
"""How many statements about replaced keys may travel with a copy."""

MAX_PACKS = 1024
"""How many packs a layout may hold: each one is opened to be looked at."""

MAX_BLOB_BYTES = 1 << 62
"""Upper bound of a size that a descriptor may claim."""

OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}\n'
"""The bytes of the file oci-layout (image-layout.md, "oci-layout file")."""

_TITLE = re.compile(r"(?:boot|private)(?:-[0-9]{3,9})?|shared-[0-9]{3,9}")
_DISK = re.compile(r"0|[1-9][0-9]{0,3}")
_VERSION = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)

MAX_SHOWN = 8
"""How many of a layout's packs an error names."""

Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB_BYTES)]
MediaType = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]{1,255}\Z")]


@dataclass(frozen=True, slots=True)
class Blob:
    """An immutable byte string in a layout: its name "sha256:…" and its size in bytes."""

    digest: str
    size: int


class Descriptor(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """What an OCI document says of a blob (descriptor.md); size in bytes."""

    media_type: MediaType
    digest: Digest
    size: Size
    artifact_type: str = ""
    annotations: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An OCI image manifest whose artifactType is a pack."""

    schema_version: int = 2
    media_type: str = media_types.OCI_MANIFEST
    artifact_type: str = media_types.ARTIFACT
    config: Descriptor
    layers: tuple[Descriptor, ...]

    def maps(self) -> tuple[Descriptor, ...]:
        """Return the maps, in the order of the config's disks."""
        found = self._of_type(media_types.MAP)
        return tuple(sorted(found, key=lambda layer: int(layer.annotations[media_types.DISK])))

    def hints(self) -> Descriptor | None:
        """Return the hints, if this copy carries them."""
        return self._only(media_types.HINTS)

    def frame_index(self) -> Descriptor | None:
        """Return the table of where in which bundle a content lies."""
        return self._only(media_types.FRAME_INDEX)

    def signature(self) -> Descriptor | None:
        """Return the signature envelope, or None for an unsigned copy."""
        return self._only(media_types.SIGNATURE)

    def rotations(self) -> tuple[Descriptor, ...]:
        """Return the statements about replaced keys that travel with this copy."""
        return self._of_type(media_types.ROTATION)

    def deltas(self) -> tuple[Descriptor, Descriptor] | None:
        """Return (table, patches) of the deltas against a predecessor, if this copy has them."""
        table, patches = self._only(media_types.DELTA_TABLE), self._only(media_types.DELTAS)
        return (table, patches) if table and patches else None

    def want(self) -> Descriptor | None:
        """Return the list of wanted contents, if this is a want-list or what fills one."""
        return self._only(media_types.WANT)

    def bundles(self) -> dict[str, Descriptor]:
        """Return {title: bundle} of the bundles in this copy: "boot", "private", "shared-000"."""
        found = self._of_type(media_types.BUNDLE)
        return {layer.annotations[media_types.TITLE]: layer for layer in found}

    def kept(self) -> tuple[Descriptor, ...]:
        """Return what every copy of the pack carries as it is, the config first."""
        single = (self.signature(), self.hints())
        found = (self.config, *self.rotations(), *self.maps(), *(one for one in single if one))
        return tuple({blob.digest: blob for blob in found}.values())

    def blobs(self) -> tuple[Descriptor, ...]:
        """Return config and layers in manifest order, each digest once."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())

    def _of_type(self, media_type: str) -> tuple[Descriptor, ...]:
        return tuple(layer for layer in self.layers if layer.media_type == media_type)

    def _only(self, media_type: str) -> Descriptor | None:
        return next(iter(self._of_type(media_type)), None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A pack as a layout lists it: its manifest, and how it is called there ("demo:3")."""

    manifest: Manifest
    ref_name: str


class _Index(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    schema_version: int = 2
    media_type: str = media_types.OCI_INDEX
    manifests: tuple[Descriptor, ...]


class _ReadIndex(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    manifests: tuple[Descriptor, ...]


class _LayoutFile(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


def class_of(title: str) -> Class:
    """Return with the contents of which class a bundle of this title travels."""
    return Class[title.partition("-")[0].upper()]


def build(
    *,
    config: Blob,
    maps: Sequence[Blob],
    hints: Blob | None = None,
    frame_index: Blob | None = None,
    signature: Blob | None = None,
    rotations: Sequence[Blob] = (),
    deltas: tuple[Blob, Blob] | None = None,
    want: Blob | None = None,
    bundles: Mapping[str, Blob],
) -> Manifest:
    """Return the manifest of a copy that holds these blobs, layers in their fixed order.

    The order is the one in which a reader needs them (signature, rotations, maps, index, hints,
    deltas, want-list, then the bundles boot, private, shared-000, …), and a tar file keeps it.
    maps: in the order of the config's disks. deltas: (table, patches). bundles: by title. Raises
    ValueError for a title that is not legal.
    """
    layers: list[Descriptor] = []
    if signature is not None:
        layers.append(_describe(media_types.SIGNATURE, signature))
    layers.extend(_describe(media_types.ROTATION, blob) for blob in rotations)
    for disk, blob in enumerate(maps):
        layers.append(_describe(media_types.MAP, blob, {media_types.DISK: str(disk)}))
    if frame_index is not None:
        layers.append(_describe(media_types.FRAME_INDEX, frame_index))
    if hints is not None:
        layers.append(_describe(media_types.HINTS, hints))
    if deltas is not None:
        kinds = (media_types.DELTA_TABLE, media_types.DELTAS)
        layers.extend(_describe(kind, blob) for kind, blob in zip(kinds, deltas, strict=True))
    if want is not None:
        layers.append(_describe(media_types.WANT, want))
    for title in sorted(bundles, key=_title_order):
        if not _TITLE.fullmatch(title):
            raise ValueError(f"not a bundle title: {title!r}")
        layers.append(_describe(media_types.BUNDLE, bundles[title], {media_types.TITLE: title}))
    return Manifest(config=_describe(media_types.CONFIG, config), layers=tuple(layers))


def copy_of(
    manifest: Manifest,
    frame_index: Blob,
    bundles: Mapping[str, Blob],
    *,
    deltas: tuple[Blob, Blob] | None = None,
    want: Blob | None = None,
) -> Manifest:
    """Return the manifest of another copy of the same pack, with its own index and bundles."""

    def same(layer: Descriptor | None) -> Blob | None:
        return Blob(layer.digest, layer.size) if layer else None

    return build(
        config=Blob(manifest.config.digest, manifest.config.size),
        maps=[Blob(layer.digest, layer.size) for layer in manifest.maps()],
        hints=same(manifest.hints()),
        frame_index=frame_index,
        signature=same(manifest.signature()),
        rotations=[Blob(layer.digest, layer.size) for layer in manifest.rotations()],
        deltas=deltas,
        want=want,
        bundles=bundles,
    )


def signed_anew(manifest: Manifest, signature: Blob, rotations: Sequence[Blob]) -> Manifest:
    """Return the manifest of the same copy with another envelope and further statements."""
    others = [
        layer
        for layer in manifest.layers
        if layer.media_type not in (media_types.SIGNATURE, media_types.ROTATION)
    ]
    added = (_describe(media_types.ROTATION, blob) for blob in rotations)
    layers = (_describe(media_types.SIGNATURE, signature), *manifest.rotations(), *added, *others)
    return Manifest(config=manifest.config, layers=layers)


def encode(manifest: Manifest) -> bytes:
    """Return a manifest's bytes; the same manifest always gives the same ones.

    Raises InputError when it is larger than MAX_MANIFEST_BYTES: no reader would take it.
    """
    data = strict_json.encode(manifest)
    if len(data) > MAX_MANIFEST_BYTES:
        raise InputError(
            f"manifest: expected at most {MAX_MANIFEST_BYTES} bytes, found {len(data)}",
            hint=f"{len(manifest.layers):,} layers are more than any vmpack writes; fetch the "
            "pack from somewhere else",
        )
    return data


def decode(data: bytes, what: str = "manifest") -> Manifest:
    """Return the manifest that these bytes are.

    what: names it in errors. Layers of unknown type are kept and mean nothing. Raises InputError
    with the key path of what is wrong ("layers[3].digest").
    """
    manifest = strict_json.decode(data, Manifest, what, MAX_MANIFEST_BYTES)
    if manifest.schema_version != 2:
        raise strict_json.invalid(what, "schemaVersion", "2", manifest.schema_version)
    _expect(what, "mediaType", media_types.OCI_MANIFEST, manifest.media_type)
    if manifest.artifact_type != media_types.ARTIFACT:
        raise InputError(
            f"{what}: artifactType: expected {media_types.ARTIFACT!r}, "
            f"found {strict_json.show(manifest.artifact_type)}",
            hint="this is some other OCI image or artifact, or a newer vmpack wrote it",
        )
    _expect(what, "config.mediaType", media_types.CONFIG, manifest.config.media_type)
    _check_layers(manifest, what)
    return manifest


def encode_index(named: Sequence[tuple[str, Blob]]) -> bytes:
    """Return the bytes of an index.json.

    named: (how a pack is called in this layout, "demo:3"; its manifest).
    """
    return strict_json.encode(
        _Index(
            manifests=tuple(
                Descriptor(
                    media_type=media_types.OCI_MANIFEST,
                    digest=manifest.digest,
                    size=manifest.size,
                    artifact_type=media_types.ARTIFACT,
                    annotations={media_types.REF_NAME: ref_name},
                )
                for ref_name, manifest in named
            )
        )
    )


def decode_index(data: bytes, what: str = "index.json") -> tuple[tuple[str, Blob], ...]:
    """Return the packs that an index.json names: (how it is called here, its manifest).

    A pack that has no name there is called "". Raises InputError when the bytes are no index, or
    name more than MAX_PACKS.
    """
    index = strict_json.decode(data, _ReadIndex, what, MAX_MANIFEST_BYTES)
    if index.schema_version != 2:
        raise strict_json.invalid(what, "schemaVersion", "2", index.schema_version)
    named = tuple(
        (entry.annotations.get(media_types.REF_NAME, ""), Blob(entry.digest, entry.size))
        for entry in index.manifests
        if entry.media_type == media_types.OCI_MANIFEST
        and entry.artifact_type in ("", media_types.ARTIFACT)
    )
    if len(named) > MAX_PACKS:
        raise InputError(
            f"{what}: manifests: expected at most {MAX_PACKS} packs, found {len(named)}"
        )
    return named


def choose(
    named: Sequence[tuple[str, Blob]], ref_name: str | None = None, what: str = "index.json"
) -> tuple[str, Blob]:
    """Return which of the packs of a layout is meant.

    ref_name: "demo:3", or "demo" for its highest version; None where there is only one. Raises
    InputError when none fits, or several do.
    """
    fitting = [one for one in named if ref_name in (None, one[0])]
    if not fitting and ref_name is not None:
        fitting = _highest_version(named, ref_name)
    if len({blob.digest for _, blob in fitting}) == 1:
        return fitting[0]
    wanted = "one pack" if ref_name is None else f"one pack called {ref_name!r}"
    names = ", ".join(sorted(name or "?" for name, _ in named)[:MAX_SHOWN])
    raise InputError(
        f"{what}: manifests: expected {wanted}, found {len(fitting)}",
        hint=f"there are {strict_json.show(names)}; name one after a '#': PACK#NAME:VERSION"
        if named
        else "",
    )


def _highest_version(named: Sequence[tuple[str, Blob]], name: str) -> list[tuple[str, Blob]]:
    """Return the packs that are called NAME:VERSION with the highest version of that name."""
    versions: dict[int, list[tuple[str, Blob]]] = {}
    for one in named:
        own_name, _, version = one[0].rpartition(":")
        if own_name == name and _VERSION.fullmatch(version):
            versions.setdefault(int(version), []).append(one)
    return versions[max(versions)] if versions else []


def check_oci_layout(data: bytes, what: str = "oci-layout") -> None:
    """Raise InputError unless these bytes are the oci-layout file of a version 1 layout."""
    version = strict_json.decode(data, _LayoutFile, what, 4096).image_layout_version
    if not re.fullmatch(r"1\.[0-9]{1,4}\.[0-9]{1,4}", version):
        raise strict_json.invalid(what, "imageLayoutVersion", "1.x.y", version)


def _describe(media_type: str, blob: Blob, annotations: dict[str, str] | None = None) -> Descriptor:
    return Descriptor(
        media_type=media_type,
        digest=blob.digest,
        size=blob.size,
        annotations=annotations or {},
    )


def _title_order(title: str) -> tuple[str, int]:
    kind, _, number = title.partition("-")  # numbers beyond 999 must not sort as text
    return kind, int(number or 0)


def _expect(what: str, path: str, expected: str, found: str) -> None:
    if found != expected:
        raise strict_json.invalid(what, path, repr(expected), found)


def _check_layers(manifest: Manifest, what: str) -> None:
    """Raise InputError unless each part is there as often as it may be, under a legal name, and
    each blob has one size.
    """
    seen: set[tuple[str, str]] = set()
    disks: set[int] = set()
    sizes = {manifest.config.digest: manifest.config.size}
    for row, layer in enumerate(manifest.layers):
        path = f"{what}: layers[{row}]"
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise InputError(
                f"{path}: expected one size of {layer.digest}, found {sizes[layer.digest]} "
                f"and {layer.size}"
            )
        part = _part(layer, path)
        if part is None:
            continue
        if part in seen:
            raise InputError(f"{path}: expected one {part[0]} {part[1]}".rstrip() + ", found two")
        seen.add(part)
        if layer.media_type == media_types.MAP:
            disks.add(int(part[1]))
    if len(manifest.rotations()) > MAX_ROTATIONS:
        raise InputError(
            f"{what}: layers: expected at most {MAX_ROTATIONS} statements about replaced keys, "
            f"found {len(manifest.rotations())}"
        )
    if disks != set(range(len(disks))) or not disks:
        raise InputError(
            f"{what}: layers: expected maps of the disks 0, 1, … without gaps, "
            f"found {sorted(disks)[:8]}"
        )


_NAMED = {
    media_types.MAP: (media_types.DISK, _DISK),
    media_types.BUNDLE: (media_types.TITLE, _TITLE),
}
_SINGLE = (
    media_types.HINTS,
    media_types.FRAME_INDEX,
    media_types.SIGNATURE,
    media_types.DELTA_TABLE,
    media_types.DELTAS,
    media_types.WANT,
)


def _part(layer: Descriptor, path: str) -> tuple[str, str] | None:
    """Return (media type, name) of a layer that must be unique, or None for an unknown type."""
    if layer.media_type in _NAMED:
        key, legal = _NAMED[layer.media_type]
        name = layer.annotations.get(key, "")
        if not legal.fullmatch(name):
            raise strict_json.invalid(path, f"annotations.{key}", legal.pattern, name)
        return layer.media_type, name
    return (layer.media_type, "") if layer.media_type in _SINGLE else None
