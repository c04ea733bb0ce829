"""What packing an image would mean, before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packer.artifact.contents import Class
from packer.errors import InputError
from packer.inspect.image import inspect_image
from packer.pack.pack import PackOptions, pack
from tests.survey.disks import DISK_BYTES, FILES, SWAP, whole_disk

MIB = 1 << 20


def test_an_image_is_described_as_it_would_be_packed(tmp_path: Path) -> None:
    disk = whole_disk(tmp_path, raw=b"private to this machine" * 5000)
    before = disk.read_bytes()
    report = inspect_image(disk, jobs=2)
    assert (report.container, report.table, report.size) == ("raw", "gpt", DISK_BYTES)
    assert [volume.kind for volume in report.volumes] == ["ext4", "vfat", "swap", "raw"]
    assert [what for what, _, _ in report.dropped]
    assert 0 < report.dropped[0][1] <= SWAP.size
    assert report.unused_bytes > 40 * MIB
    assert report.zero_bytes > 0
    assert sum(size for _, _, size in report.private) <= report.totals["private"][1]
    assert any(folder == "/folder" for folder, _, _ in report.private)
    assert disk.read_bytes() == before

    written = pack(disk, tmp_path / "a.vmpack", PackOptions(name="demo"), [])
    totals = written.config.totals
    for one, total in zip(Class, (totals.boot, totals.private, totals.shared), strict=True):
        assert report.totals[one.name.lower()] == (total.count, total.bytes)
    weighed = sum(size for title, size in written.bundles.items() if title in ("boot", "private"))
    assert 0.7 * weighed < report.thin_bytes < 1.5 * weighed
    assert (report.unused_bytes, report.zero_bytes) == (written.unused_bytes, written.zero_bytes)
    assert report.totals["private"][1] >= sum(map(len, FILES.values()))


def test_a_disk_of_zeros_weighs_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.raw").touch()
    os.truncate(tmp_path / "empty.raw", 8 * MIB)
    report = inspect_image(tmp_path / "empty.raw")
    assert (report.thin_bytes, report.zero_bytes) == (0, 8 * MIB)
    assert report.private == ()


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        inspect_image(tmp_path / "none.raw")
