"""The names that a pack's blobs carry in OCI descriptors.

Types that end in "+zstd" are one zstd frame of MessagePack; a bundle is a row of zstd frames and
has no suffix because decompressing all of it at once is never meant. The envelope's type is the
one that Sigstore and in-toto use for DSSE (in-toto/attestation, spec/v1/envelope.md).
"""

from __future__ import annotations

ARTIFACT = "application/vnd.vmpack.pack.v1"
CONFIG = "application/vnd.vmpack.config.v1+json"
MAP = "application/vnd.vmpack.map.v1+zstd"
HINTS = "application/vnd.vmpack.hints.v1+zstd"
FRAME_INDEX = "application/vnd.vmpack.index.v1+zstd"
DELTAS = "application/vnd.vmpack.deltas.v1"
DELTA_TABLE = "application/vnd.vmpack.delta-table.v1+zstd"
WANT = "application/vnd.vmpack.want.v1+zstd"
BUNDLE = "application/vnd.vmpack.bundle.v1"
SIGNATURE = "application/vnd.dsse.envelope.v1+json"
ROTATION = "application/vnd.vmpack.rotation.v1+json"
"""A DSSE envelope as well, around a statement that a key is replaced."""

SIGNED_PAYLOAD = "application/vnd.vmpack.config-digest.v1+json"
"""DSSE payloadType: a JSON object that names the digest of a config."""

ROTATION_PAYLOAD = "application/vnd.vmpack.key-rotation.v1+json"
"""DSSE payloadType: a JSON object that names an old key and the new one in its place."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

TITLE = "org.opencontainers.image.title"
"""Annotation of a bundle's descriptor: "boot", "private", "shared-000", …"""

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of a manifest's descriptor in index.json: "demo:3"."""

DISK = "org.vmpack.disk"
"""Annotation of a map's descriptor: which disk of the config it describes, "0", "1", …"""
