"""The partial file: one writer, nothing under the final name before it is right; resumed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from formats.ranges import total
from packer.errors import Error, InUseError, UsageError
from packer.unpack.output import Output
from tests.artifact.layout.media import file_size_limit, small_medium

MIB = 1 << 20


def test_the_name_appears_with_commit_and_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with Output(path, 10_000) as output:
        output.pwrite(5_000, b"data")
        assert not path.exists()
        output.commit()
    assert path.read_bytes() == bytes(5_000) + b"data" + bytes(4_996)
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk.raw"]


def test_without_commit_the_partial_file_stays_and_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with Output(path, 10_000) as output:
        assert not output.resumed
        output.pwrite(100, b"done")
    assert not path.exists()
    with Output(path, 10_000) as output:
        assert output.resumed
        assert output.pread(100, 4) == b"done"


@pytest.mark.parametrize("size", [1, 4096, 100_000])
def test_a_partial_file_of_another_size_is_cut_or_grown(tmp_path: Path, size: int) -> None:
    (tmp_path / "disk.partial").write_bytes(b"x" * 10_000)
    with Output(tmp_path / "disk", size) as output:
        assert output.resumed
        assert os.fstat(output.fd).st_size == size


def test_discard_removes_the_partial_file(tmp_path: Path) -> None:
    with Output(tmp_path / "disk", 10_000) as output:
        output.discard()
    assert list(tmp_path.iterdir()) == []


def test_another_file_can_get_the_name_instead(tmp_path: Path) -> None:
    finished = tmp_path / "disk.qcow2.partial"
    with Output(tmp_path / "disk", 10_000) as output:
        finished.write_bytes(b"converted")
        output.commit_other(finished)
    assert (tmp_path / "disk").read_bytes() == b"converted"
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk"]


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_folder_is_no_name_for_a_disk(name: str) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        Output(Path(name), 10_000)


def test_an_existing_file_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already") as caught:
        Output(path, 10_000)
    assert "--force" in caught.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk"]


def test_with_force_an_existing_file_is_replaced_only_by_commit(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    with Output(path, 10, force=True) as output:
        output.pwrite(0, b"0123456789")
        assert path.read_bytes() == b"precious"
        output.commit()
    assert path.read_bytes() == b"0123456789"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_never_replaced(tmp_path: Path, force: bool) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        Output(tmp_path, 10_000, force=force)


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Error, match="cannot write: No such file"):
        Output(tmp_path / "nowhere" / "disk", 10_000)


def test_a_folder_in_place_of_the_partial_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "disk.partial").mkdir()
    with pytest.raises(Error, match="cannot write"):
        Output(tmp_path / "disk", 10_000)


def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    """In a folder that others may write, it would point at a file of the user's."""
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "disk.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(Error, match="cannot write"):
        Output(tmp_path / "disk", 3)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with Output(path, 10_000) as output:
        output.pwrite(0, b"mine")
        with pytest.raises(InUseError, match="another vmpack is writing it"):
            Output(path, 20)
        code = (
            "import sys; from pathlib import Path; from packer.errors import InUseError\n"
            "from packer.unpack.output import Output\n"
            "try: Output(Path(sys.argv[1]), 20)\n"
            "except InUseError as error: sys.exit(error.exit_code)"
        )
        other = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
        assert other.returncode == InUseError.exit_code
        assert os.fstat(output.fd).st_size == 10_000
        assert output.pread(0, 4) == b"mine"
    with Output(path, 10_000) as output:
        assert output.pread(0, 4) == b"mine"


COMMIT_WHILE_ANOTHER_OPENS = """
import sys
from pathlib import Path
from packer.errors import Error
from packer.unpack.output import Output

path, force = Path(sys.argv[1]), sys.argv[2] == "True"
first = [Output(path, 8192)]
first[0].pwrite(0, b"finished" * 1024)

def commit_now(event, arguments):
    # Python tells its auditors before it asks for the lock: the partial file is open by then.
    if event == "fcntl.flock" and first:
        output = first.pop()
        output.commit()
        output.close()

sys.addaudithook(commit_now)
try:
    Output(path, 100, force=force)
except Error as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("force", [False, True])
def test_a_writer_that_comes_just_when_another_commits_does_not_touch_the_finished_disk(
    tmp_path: Path, force: bool
) -> None:
    """What it has opened as the partial file has got the final name meanwhile."""
    path = tmp_path / "disk"
    done = subprocess.run(
        [sys.executable, "-c", COMMIT_WHILE_ANOTHER_OPENS, str(path), str(force)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert path.read_bytes() == b"finished" * 1024
    assert done.stdout == "InUseError\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk"]


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (100, 4096), (4096, 8192), (5000, 13_000), (4095, 4097), (0, 3 * MIB)],
)
def test_clear_makes_any_range_zero_and_no_byte_more(tmp_path: Path, start: int, end: int) -> None:
    size = 3 * MIB
    with Output(tmp_path / "disk", size) as output:
        output.pwrite(0, b"\xff" * size)
        output.clear(start, end)
        found = output.pread(0, size)
        assert found == b"\xff" * start + bytes(end - start) + b"\xff" * (size - end)
        assert os.fstat(output.fd).st_size == size


def test_clear_gives_the_space_back(tmp_path: Path) -> None:
    with Output(tmp_path / "disk", 4 * MIB) as output:
        output.pwrite(0, b"x" * 4 * MIB)
        os.fsync(output.fd)
        before = os.fstat(output.fd).st_blocks
        output.clear(100, 4 * MIB - 100)
        assert before >= 4 * MIB // 512
        assert os.fstat(output.fd).st_blocks <= 32


def test_the_parts_that_are_not_holes_are_known(tmp_path: Path) -> None:
    with Output(tmp_path / "disk", 8 * MIB) as output:
        assert len(output.data_ranges()) == 0
        output.pwrite(MIB, b"x" * 4096)
        output.pwrite(8 * MIB - 4096, b"y" * 4096)
        found = output.data_ranges()
        assert total(found) == 8192
        assert found[:, 0].tolist() == [MIB, 8 * MIB - 4096]


@pytest.mark.root
def test_a_full_file_system_is_an_error_with_a_hint_and_leaves_no_final_name(
    tmp_path: Path,
) -> None:
    with small_medium(tmp_path / "small", MIB) as folder:
        with Output(folder / "disk", 4 * MIB) as output:
            output.pwrite(0, b"x" * (MIB // 2))
            with pytest.raises(Error, match="No space left") as caught:
                output.pwrite(MIB // 2, b"x" * MIB)
            assert "run the same command again" in caught.value.hint
        assert [entry.name for entry in folder.iterdir()] == ["disk.partial"]
        with Output(folder / "disk", 4 * MIB) as output:
            assert output.resumed
            assert output.pread(0, 1000) == b"x" * 1000


@pytest.mark.root
def test_a_read_only_file_system_is_an_error(tmp_path: Path) -> None:
    with (
        small_medium(tmp_path / "small", MIB, read_only=True) as folder,
        pytest.raises(Error, match="Read-only"),
    ):
        Output(folder / "disk", MIB)


def test_a_file_system_that_takes_no_such_large_file_is_an_error_with_a_hint(
    tmp_path: Path,
) -> None:
    with file_size_limit(MIB), pytest.raises(Error, match="cannot write") as caught:
        Output(tmp_path / "disk", 2 * MIB)
    assert "file of this size" in caught.value.hint
    with Output(tmp_path / "disk", 2 * MIB) as output:  # nothing is left locked
        output.commit()


def test_blocks_of_another_file_system_are_not_shared_but_that_is_no_error(tmp_path: Path) -> None:
    with Output(tmp_path / "disk", MIB) as output, open("/proc/self/exe", "rb") as file:  # noqa: PTH123
        answers = {output.clone(file.fileno(), 0, 0, 4096) for _ in range(3)}
        assert answers <= {True, False}
        if True not in answers:
            assert output.pread(0, 4096) == bytes(4096)


def test_an_error_of_the_system_keeps_its_number_as_cause(tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        Output(tmp_path / "nowhere" / "disk", 10)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOENT


def test_a_disk_that_got_the_name_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with Output(path, 4096) as output:
        path.write_bytes(b"another one's")
        with pytest.raises(UsageError, match="exists already"):
            output.commit()
    assert path.read_bytes() == b"another one's"
