"""What the examiner says of programs, catalogs and manifests, each under its stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.windows import signing
from fixtures.windows.components import Component
from formats.filesystem.model import STORED
from packer.errors import InputError
from packer.survey.disk import Disk, open_disk
from packer.survey.examine import UNREADABLE, ChildExaminer
from packer.survey.limits import Limits
from packer.survey.records import Catalog, Manifest
from tests.formats.windows.make_pe import Form, program
from tests.guest.material import guest_in_memory

PROGRAM = program(Form())
CATALOG = signing.catalog({"a": b"a"}, "a")
MANIFEST = Component("Demo", "1.2.3.4", {"System32/a": b"a"}).manifest()
FILES = {
    "/compressed": signing.signed(PROGRAM),
    "/signed.dll": signing.signed(PROGRAM),
    "/unsigned.dll": PROGRAM,
    "/a.cat": CATALOG,
    "/a.manifest": MANIFEST,
}
COMPRESSED, DLL, UNSIGNED, CAT, XML = range(5)
MICROSOFT = ("Microsoft Corporation", "Microsoft Windows")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    _, source = guest_in_memory(FILES)
    path = tmp_path / "disk.raw"
    path.write_bytes(source.pread(0, source.size))
    return path


def examiner_of(opened: Disk, *, limits: Limits | None = None) -> ChildExaminer:
    survey, _ = guest_in_memory(FILES)
    form = survey.form.copy()
    form[COMPRESSED] = STORED
    return ChildExaminer(opened, replace(survey, form=form), limits=limits)


def test_each_stream_has_its_answer_and_compressed_ones_are_not_read(disk: Path) -> None:
    with open_disk(disk) as opened:
        examiner = examiner_of(opened)
        signers = examiner.signers([UNSIGNED, COMPRESSED, DLL, CAT, DLL])
        catalogs = examiner.catalogs([COMPRESSED, CAT])
        manifests = examiner.manifests([XML, COMPRESSED, CAT])
    assert signers == [("", ""), ("", ""), MICROSOFT, ("", ""), MICROSOFT]
    assert catalogs[0] == Catalog(error=UNREADABLE)
    assert (catalogs[1].organization, catalogs[1].common_name) == MICROSOFT
    assert manifests[0].files[0][0] == "a"
    assert manifests[1] == Manifest(error=UNREADABLE)
    assert manifests[2].error


def test_nothing_to_read_starts_no_child(disk: Path) -> None:
    with open_disk(disk) as opened:
        examiner = examiner_of(opened, limits=Limits(wall_seconds=0.0))
        assert examiner.signers([COMPRESSED]) == [("", "")]
        assert examiner.catalogs([]) == []
        assert examiner.manifests([]) == []
        with pytest.raises(InputError):
            examiner.signers([DLL])
