"""Every kind of writer into local media, and how a test makes one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from packer.artifact import manifest as manifests
from packer.artifact.layout.base import LayoutWriter
from packer.artifact.layout.directory import DirectoryWriter
from packer.artifact.layout.in_place import InPlaceWriter
from packer.artifact.layout.iso_writer import IsoWriter
from packer.artifact.layout.tar import TarWriter

MakeWriter = Callable[[Path], LayoutWriter]


@dataclass(frozen=True)
class Kind:
    """make: a writer of what must not be there. replace: one that may replace what is there."""

    name: str
    make: MakeWriter
    replace: MakeWriter


KINDS = (
    Kind("folder", DirectoryWriter, lambda path: InPlaceWriter(path, replace=True)),
    Kind("tar", TarWriter, lambda path: TarWriter(path, replace=True)),
    Kind("iso", IsoWriter, lambda path: IsoWriter(path, replace=True)),
)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def fill(writer: LayoutWriter, bundle_bytes: int) -> None:
    """Write a pack with a boot bundle of noise."""
    with writer.stream() as stream:
        for _ in range(bundle_bytes >> 16):
            stream.write(os.urandom(1 << 16))
        boot = stream.finish()
    config, disk_map = writer.add(b"config"), writer.add(b"map")
    manifest = manifests.build(config=config, maps=[disk_map], bundles={"boot": boot})
    writer.finish([manifests.Entry(manifest, "demo:1")])
