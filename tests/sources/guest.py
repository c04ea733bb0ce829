"""A made-up guest: which contents lie at which paths and which packages ship them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from packer.artifact.contents import BLOCK_BYTES
from packer.artifact.hints import NO_PACKAGE, Hints, Package
from packer.sources.base import Bytes, Piece, Wanted
from tests.artifact.make import contents_of


@dataclass
class Guest:
    """Files are added; `wanted` asks for all of their contents."""

    packages: list[Package] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    places: list[tuple[int, str, int, int, int]] = field(default_factory=list)

    def package(self, package: Package) -> int:
        self.packages.append(package)
        return len(self.packages) - 1

    def file(
        self,
        path: str,
        data: bytes,
        package: int = NO_PACKAGE,
        cuts: Iterable[tuple[int, int]] | None = None,
    ) -> list[int]:
        """Add a file whose data lies in `cuts`, [start, end); the rows of its contents."""
        rows = []
        for start, end in cuts or [(0, len(data))]:
            part = data[start:end]
            if part not in self.contents:
                self.contents.append(part)
            row = self.contents.index(part)
            self.places.append((row, path, len(data), start, package))
            rows.append(row)
        return rows

    def wanted(self, rows: Iterable[int] | None = None) -> Wanted:
        contents = contents_of(self.contents)
        places = sorted(self.places)
        column = [np.array([place[n] for place in places], dtype=np.int64) for n in (0, 2, 3, 4)]
        hints = Hints(
            column[0], [p[1] for p in places], column[1], column[2], column[3], tuple(self.packages)
        )
        asked = range(len(contents)) if rows is None else sorted(rows)
        return Wanted(contents, np.array(list(asked), dtype=np.int64), hints)

    def check(self, pieces: Iterable[Piece], rows: Iterable[int]) -> None:
        """Every piece is right, none comes twice, together they are exactly these contents."""
        found: dict[int, dict[int, bytes]] = {}
        for piece in pieces:
            assert isinstance(piece, Bytes)
            start = piece.block * BLOCK_BYTES
            data = bytes(piece.data)
            assert data == self.contents[piece.row][start : start + BLOCK_BYTES]
            assert piece.block not in found.setdefault(piece.row, {})
            found[piece.row][piece.block] = data
        whole = {row: b"".join(found[row][n] for n in sorted(found[row])) for row in found}
        assert whole == {row: self.contents[row] for row in rows}


def build_deb(
    folder: Path,
    files: dict[str, bytes],
    *,
    name: str = "demo",
    version: str = "1.0",
    architecture: str = "all",
    compressor: str = "none",
    scripts: dict[str, bytes] | None = None,
) -> Path:
    """Build a package with dpkg-deb and return it under the name that apt would give it."""
    tree = folder / f"tree-{name}-{version}-{compressor}".replace(":", "_")
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: made for a test\n"
    )
    for script, data in (scripts or {}).items():
        (tree / "DEBIAN" / script).write_bytes(data)
        (tree / "DEBIAN" / script).chmod(0o755)
    for path, data in files.items():
        place = tree / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    deb = folder / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", f"-Z{compressor}", "-b", str(tree), str(deb)],
        check=True,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    return deb


def read_deb(deb: Path, folder: Path) -> dict[str, bytes]:
    """Return {path: data} of a package's files as dpkg-deb unpacks them."""
    subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], check=True)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {"/" + str(path.relative_to(folder)): path.read_bytes() for path in files}
