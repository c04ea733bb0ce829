"""The policy's word on real guests, held against the field's own tools."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fixtures.guests import build
from formats.ranges import total
from packer.guest.judge import judge
from packer.guest.model import Judgement
from packer.guest.tree import Tree
from packer.survey.model import Survey
from tests.guest.material import DirectExaminer, surveyed
from tests.host import ROOT, run

pytestmark = [pytest.mark.guest, *ROOT]

SWAP_HEADER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Judged:
    """A real guest, our word on it, and its root mounted by this host's kernel."""

    survey: Survey
    tree: Tree
    judgement: Judgement
    mount: Path

    def names(self, rows: list[int]) -> set[str]:
        """Every guest path of the given streams."""
        wanted = set(rows)
        streams = self.survey.name_stream.tolist()
        return {self.judgement.path[row] for row, one in enumerate(streams) if one in wanted}

    def boot(self) -> set[str]:
        return self.names(np.flatnonzero(self.judgement.boot >= 0).tolist())


@pytest.fixture(scope="module", params=["debian-bios", "debian-uefi", "busybox"])
def judged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Judged]:
    folder = tmp_path_factory.mktemp(request.param)
    image, mount = folder / "disk.raw", folder / "mount"
    # A mount makes an image count as in use, and others may want to use the one that was built.
    run("cp", "--sparse=always", build(request.param), image)
    survey, source = surveyed(image)
    root = Tree(survey, source)
    assert root.root is not None
    place = survey.volumes[root.root]
    options = f"ro,noload,loop,offset={place.start},sizelimit={place.end - place.start}"
    mount.mkdir()
    run("mount", "-o", options, image, mount)
    try:
        yield Judged(survey, root, judge(survey, source, DirectExaminer(survey, source)), mount)
    finally:
        run("umount", mount)
        image.unlink()


def test_every_file_is_listed_under_its_path(judged: Judged) -> None:
    on_disk = {
        "/" + str(Path(folder, name).relative_to(judged.mount))
        for folder, _, names in os.walk(judged.mount)
        for name in names
        if not Path(folder, name).is_symlink() and Path(folder, name).is_file()
    }
    root = judged.survey.volume[judged.survey.name_stream] == judged.tree.root
    ours = {judged.judgement.path[row] for row in np.flatnonzero(root).tolist()}
    assert ours == on_disk


def test_what_md5sum_finds_unchanged_is_what_we_call_a_packages(judged: Judged) -> None:
    """md5sum checks dpkg's records in the mounted guest; inodes are compared, not names."""
    info = judged.mount / "var/lib/dpkg/info"
    records = b"".join(path.read_bytes() for path in sorted(info.glob("*.md5sums")))
    if records:
        stanzas = run("dpkg-query", f"--root={judged.mount}", "-W", "-f", "${Conffiles}\n")
        for line in stanzas.splitlines():
            words = line.split()
            if len(words) == 2:
                records += f"{words[1]}  {words[0].lstrip('/')}\n".encode()
    checked = subprocess.run(
        ["md5sum", "--check", "-"],
        input=records,
        cwd=judged.mount,
        capture_output=True,
        check=False,
    )
    good = [line[:-4] for line in checked.stdout.split(b"\n") if line.endswith(b": OK")]
    theirs = {(judged.mount / os.fsdecode(path)).stat().st_ino for path in good}

    ours = set()
    for stream, md5 in enumerate(judged.judgement.expected):
        size = int(judged.survey.file_size[stream])
        if md5 is not None:
            data = judged.tree.read_stream(stream, size, "")
            if hashlib.md5(data).digest() == md5:
                ours.add(int(judged.survey.inode[stream]))
    assert ours == theirs


def test_the_boot_set_is_boot_and_esp_and_nothing_else(judged: Judged) -> None:
    esp = {path for path in judged.judgement.path if path.startswith("/boot/efi/")}
    on_disk = {
        "/" + str(path.relative_to(judged.mount))
        for path in (judged.mount / "boot").rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert judged.boot() == on_disk | esp
    is_uefi = judged.judgement.guest.firmware == "uefi"
    assert bool(esp) == is_uefi


def test_a_clean_guest_gives_no_cause_for_words_and_loses_only_swap(judged: Judged) -> None:
    swap = [one for one in judged.survey.volumes if one.kind == "swap"]
    pages = sum(one.end - one.start - SWAP_HEADER_BYTES for one in swap)
    assert sum(total(one.ranges) for one in judged.judgement.dropped) == pages
    assert (judged.judgement.refusals, judged.judgement.warnings) == ((), ())


def test_almost_all_of_a_debian_is_a_packages(judged: Judged) -> None:
    judgement, survey = judged.judgement, judged.survey
    assert judgement.guest.family == "linux"
    assert judgement.guest.architecture == "x86_64"
    if not judgement.packages:
        assert judgement.guest.id == ""
        return
    assert (judgement.guest.id, judgement.guest.release) == ("debian", "12")
    stored = np.zeros(len(survey.inode), dtype=np.int64)
    np.add.at(stored, survey.stream, survey.length)
    rest = stored[(judgement.package < 0) & (judgement.boot < 0)].sum()
    assert rest < 0.08 * stored.sum()
