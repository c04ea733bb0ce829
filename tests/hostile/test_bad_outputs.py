"""Outputs that cannot be written, and names that are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.refusal import FAILED, USAGE, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import needs_root, tool
from tests.round_trip.small import pack_small

Files = set[str]


@pytest.fixture
def pack(author: Vmpack, tmp_path: Path) -> Path:
    return pack_small(author, tmp_path)


@contextmanager
def medium(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    tool("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield folder
    finally:
        tool("umount", folder)


def names(folder: Path) -> Files:
    return {path.name for path in folder.iterdir()}


@pytest.mark.root
@needs_root
def test_a_full_disk_stops_an_unpack_which_goes_on_when_there_is_room(
    run_vmpack: Vmpack, pack: Path, tmp_path: Path
) -> None:
    with medium(tmp_path / "full", "size=2m") as folder:
        disk = folder / "rebuilt.raw"
        done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
        refused(done, FAILED, str(disk), "No space left", "run the same command again",
                output=disk)  # fmt: skip
        tool("mount", "-o", "remount,size=64m", folder)
        report = run_vmpack.json("unpack", pack, "-o", disk, "--from", "store:")
        assert report["resumed_bytes"] > 0
        assert run_vmpack.json("verify", disk, pack, "--exact")["right"]
        assert names(folder) == {"rebuilt.raw"}


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("ending", ["", "/"])
def test_a_full_disk_stops_a_pack_which_leaves_nothing(
    author: Vmpack, pack: Path, tmp_path: Path, ending: str
) -> None:
    with medium(tmp_path / "full", "size=2m") as folder:
        output = folder / "new"
        image = pack.parent / "small-1.raw"
        done = author("pack", image, "-o", f"{output}{ending}", "--no-packages")
        refused(done, FAILED, str(output), "No space left", output=output)
        assert names(folder) == set()
        done = author("copy", pack, f"{output}{ending}")  # which knows beforehand what it needs
        refused(done, FAILED, str(output), "MB are needed there", "the medium is full",
                output=output)  # fmt: skip
        assert names(folder) == set()


@pytest.mark.root
@needs_root
def test_a_full_disk_stops_an_output_in_another_container(
    run_vmpack: Vmpack, pack: Path, tmp_path: Path
) -> None:
    """The raw disk fits, the second copy of it does not."""
    with medium(tmp_path / "full", "size=5m") as folder:
        disk = folder / "rebuilt.qcow2"
        command: list[str | Path] = ["unpack", pack, "-o", disk, "--from", "store:"]
        command += ["--format", "qcow2"]
        done = run_vmpack(*command)
        refused(done, FAILED, str(disk), output=disk)
        assert names(folder) == {"rebuilt.qcow2.partial"}
        tool("mount", "-o", "remount,size=64m", folder)
        run_vmpack.good(*command)
        assert names(folder) == {"rebuilt.qcow2"}
        tool("qemu-img", "check", disk)


@pytest.mark.root
@needs_root
def test_a_read_only_medium_is_refused(run_vmpack: Vmpack, pack: Path, tmp_path: Path) -> None:
    with medium(tmp_path / "closed", "size=2m,ro") as folder:
        disk = folder / "rebuilt.raw"
        done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
        refused(done, FAILED, str(disk), "Read-only", output=disk)
        done = run_vmpack("copy", pack, folder / "copy.vmpack")
        refused(
            done, FAILED, str(folder / "copy.vmpack"), "ead-only", output=folder / "copy.vmpack"
        )


def test_a_folder_that_is_not_there_is_refused(
    run_vmpack: Vmpack, pack: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "absent" / "rebuilt.raw"
    done = run_vmpack("unpack", pack, "-o", disk, "--from", "store:")
    refused(done, FAILED, str(disk), "No such file", output=disk)


@pytest.mark.parametrize(
    "command",
    [
        lambda pack, name: ["unpack", pack, "-o", name, "--from", "store:"],
        lambda pack, name: ["copy", pack, name],
        lambda pack, name: ["pack", pack.parent / "small-1.raw", "-o", name, "--no-packages"],
    ],
    ids=["unpack", "copy", "pack"],
)
def test_a_name_that_is_taken_is_refused_and_left_as_it_is(
    author: Vmpack, pack: Path, tmp_path: Path, command: Callable[..., list[str | Path]]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    before = names(tmp_path)
    refused(author(*command(pack, taken)), USAGE, str(taken), "--force")
    assert taken.read_text() == "precious"
    assert names(tmp_path) == before
    author.good(*command(pack, taken), "--force")
    assert taken.stat().st_size > 1_000_000
