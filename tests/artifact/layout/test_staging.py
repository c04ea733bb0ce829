"""What killed runs leave beside a pack goes with the next run; what lives or is whole stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from packer.artifact.layout.directory import DirectoryWriter
from packer.artifact.layout.left_behind import take_left_behind, temporary_name
from packer.artifact.layout.tar import TarWriter
from tests.artifact.fake_packs import write_pack

ROOT = Path(__file__).parents[3]
Writer = Callable[..., DirectoryWriter | TarWriter]
both = pytest.mark.parametrize("writer", [DirectoryWriter, TarWriter])

WRITE_AND_WAIT = """
import sys
from pathlib import Path
from packer.artifact.layout import directory, tar
writer = (directory.DirectoryWriter if sys.argv[2] == "DirectoryWriter" else tar.TarWriter)(
    Path(sys.argv[1])
)
writer.add(b"x" * 100_000)
print("written", flush=True)
sys.stdin.read()
"""


def start(final: Path, writer: Writer) -> subprocess.Popen[str]:
    """Start a process that stands in the middle of writing a layout."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(final), writer.__name__],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate(timeout=30)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@both
def test_what_a_killed_run_left_goes_with_the_next_run_of_that_name(
    tmp_path: Path, writer: Writer
) -> None:
    end(start(tmp_path / "demo", writer), signal.SIGKILL)
    (left,) = names(tmp_path)
    assert left.startswith("demo.")
    with writer(tmp_path / "demo"):
        (mine,) = names(tmp_path)
        assert mine != left
    assert names(tmp_path) == []


@both
def test_what_a_living_run_writes_stays(tmp_path: Path, writer: Writer) -> None:
    process = start(tmp_path / "demo", writer)
    try:
        before = names(tmp_path)
        with writer(tmp_path / "demo"):
            assert len(names(tmp_path)) == 2
        assert names(tmp_path) == before
    finally:
        end(process, signal.SIGKILL)


def test_only_folders_that_a_run_could_have_made_are_removed(tmp_path: Path) -> None:
    final = tmp_path / "demo"
    (tmp_path / "demo.partial").mkdir()
    (tmp_path / "demo.vmpack.0123456789ab.partial").mkdir()
    (tmp_path / "demo.0123456789AB.partial").mkdir()
    (tmp_path / "demo.aaaaaaaaaaaa.partial").write_bytes(b"a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "demo.bbbbbbbbbbbb.partial").symlink_to(tmp_path / "elsewhere")
    before = names(tmp_path)
    (temporary_name(final) / "blobs" / "sha256").mkdir(parents=True)
    take_left_behind(final, tmp_path / "kept")
    assert names(tmp_path) == before


def test_a_layout_that_was_killed_just_before_it_got_its_name_is_removed(tmp_path: Path) -> None:
    final = tmp_path / "demo"
    left = temporary_name(final)
    (left / "blobs" / "sha256").mkdir(parents=True)
    (left / "oci-layout").write_bytes(b"{}")
    take_left_behind(final, tmp_path / "kept")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a folder of another owner")
def test_what_another_user_left_stays(tmp_path: Path) -> None:
    left = temporary_name(tmp_path / "demo")
    left.mkdir()
    os.chown(left, 1, 1)
    take_left_behind(tmp_path / "demo", tmp_path / "kept")
    assert names(tmp_path) == [left.name]


@both
def test_a_writer_that_is_done_holds_nothing_open(tmp_path: Path, writer: Writer) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with writer(tmp_path / "given up") as one:
        one.add(b"something")
    with writer(tmp_path / "demo") as one:
        write_pack(one)
    assert names(tmp_path) == ["demo"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_name_of_any_length_can_be_staged_beside(tmp_path: Path) -> None:
    final = tmp_path / ("\u00fc" * 120)
    with TarWriter(final):
        (name,) = names(tmp_path)
        assert len(os.fsencode(name)) <= 255
