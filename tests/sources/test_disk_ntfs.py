"""disk: with NTFS inside, filled by ntfs-3g: names, compressed files, tails of zeros."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.filesystem.model import STORED
from packer.sources.against import holds
from packer.sources.disk import DiskSource
from tests.host import ROOT
from tests.sources.asking import whole_files
from tests.sources.ntfs_volume import ntfs_3g
from tests.sources.test_disk import fetched

pytestmark = [*ROOT]

NTDLL = b"MZ" + bytes(range(256)) * 300
HEAD = b"head" * 1250
LONG_BYTES = 300_000
TEXT = b"compressible text " * 20_000
STREAM = b"stream" * 3000
COMPRESSED = (0x810).to_bytes(4, "big")  # FILE_ATTRIBUTE_COMPRESSED | DIRECTORY


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ntfs")
    (folder / "mount").mkdir()
    image = folder / "volume.raw"
    options = ("compression", "streams_interface=windows")
    with ntfs_3g(image, folder / "mount", *options) as volume:
        system = volume / "Windows" / "System32"
        system.mkdir(parents=True)
        (system / "ntdll.dll").write_bytes(NTDLL)
        (system / "ntdll.dll:zone").write_bytes(STREAM)
        (system / "long.dat").write_bytes(HEAD)
        os.truncate(system / "long.dat", LONG_BYTES)
        packed = volume / "Packed"
        packed.mkdir()
        os.setxattr(packed, "system.ntfs_attrib_be", COMPRESSED)
        (packed / "text.txt").write_bytes(TEXT)
    return image


@pytest.fixture
def source(image: Path) -> Iterator[DiskSource]:
    source = DiskSource(str(image))
    yield source
    source.close()


@pytest.mark.parametrize("prefix", ["", "/C:"])
def test_names_are_found_in_any_case(source: DiskSource, prefix: str) -> None:
    files = {
        f"{prefix}/WINDOWS/system32/NTDLL.DLL": NTDLL,
        f"{prefix}/windows/System32/ntdll.dll:ZONE": STREAM,
        f"{prefix}/Windows/System32/other.dll": NTDLL[::-1],
    }
    wanted = whole_files(files)
    rows = source.find(wanted, deep=False).rows
    assert rows.tolist() == [0, 1]
    assert fetched(source, rows, wanted) == {0: NTDLL, 1: STREAM}


def test_what_was_never_written_reads_as_zeros(source: DiskSource) -> None:
    data = HEAD + bytes(LONG_BYTES - len(HEAD))
    wanted = whole_files({"/Windows/System32/long.dat": data})
    rows = source.find(wanted, deep=False).rows
    assert fetched(source, rows, wanted) == {0: data}


def stored(source: DiskSource) -> bytes:
    """What lies on the disk of the compressed file."""
    source.find(whole_files({"/x": b"x"}), deep=False)
    assert source._opened is not None
    table = source._opened.survey
    (stream,) = [one for one in range(len(table.form)) if table.form[one] == STORED]
    places = table.extents_of(stream)
    image = Path(source.uri.removeprefix("disk:")).read_bytes()
    pieces = zip(table.disk_offset[places], table.length[places], strict=True)
    return b"".join(image[offset : offset + length] for offset, length in pieces)


@pytest.mark.parametrize("deep", [False, True])
def test_a_compressed_file_is_no_source_of_what_a_reader_sees(
    source: DiskSource, deep: bool
) -> None:
    wanted = whole_files({"/Packed/text.txt": TEXT})
    assert source.find(wanted, deep=deep).rows.tolist() == []
    same_size = TEXT[: len(stored(source))]
    assert len(holds(source, whole_files({"/Packed/text.txt": same_size}), deep=deep)) == 0


@pytest.mark.parametrize("path", ["/packed/TEXT.txt", "/elsewhere"])
def test_a_compressed_file_is_a_source_of_what_lies_on_the_disk(
    source: DiskSource, path: str
) -> None:
    data = stored(source)
    assert len(data) < len(TEXT) / 2
    wanted = whole_files({path: data})
    rows = source.find(wanted, deep=path == "/elsewhere").rows
    assert fetched(source, rows, wanted) == {0: data}
