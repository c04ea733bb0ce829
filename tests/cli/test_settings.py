"""The settings file: what it says counts, and what is wrong in it is said with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packer.cli.options import jobs_of
from packer.cli.settings import load_settings
from packer.errors import UsageError
from tests.cli.running import Run, image, run, signed

__all__ = ["image", "run", "signed"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    path = tmp_path / "home" / "config" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_without_a_file_there_are_no_settings(file: Path) -> None:
    found = load_settings()
    assert (found.sources, found.store, found.jobs) == ((), None, None)
    assert found.accelerator is None


def test_what_the_file_says_is_taken(file: Path) -> None:
    file.write_text(
        'sources = ["store:", "dir:/usr"]\nstore = "/srv/store"\njobs = 2\naccelerator = "tcg"\n'
    )
    found = load_settings()
    assert (found.sources, found.store, found.jobs) == (
        ("store:", "dir:/usr"),
        Path("/srv/store"),
        2,
    )
    assert found.accelerator == "tcg"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources = 3", "sources"),
        ("sources = [1]", "sources"),
        ("jobs = 'many'", "jobs"),
        ("accelerator = 'magic'", "accelerator"),
        ("jobs = -1", "jobs"),
        ("jobs = 100000", "jobs"),
        ("stroe = '/x'", "stroe"),
        ("not toml", "line 1"),
        ("store = '/a'\nstore = '/b'", "overwrite"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_settings()
    assert str(file) in caught.value.message


def test_a_file_that_is_no_text_is_an_error(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"config\.toml"):
        load_settings()


def test_a_folder_in_place_of_the_file_is_an_error(file: Path) -> None:
    file.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load_settings()


def test_a_bad_file_stops_a_verb_with_one_line(run: Run, signed: Path) -> None:
    (Path(os.environ["VMPACK_HOME"]) / "config" / "config.toml").write_text("jobs = []")
    run("unpack", signed, "-o", "disk").refused(2, "config.toml", "jobs")
    run("store", "list").refused(2, "config.toml", "jobs")


def test_the_command_line_goes_before_the_file(run: Run, signed: Path) -> None:
    home = Path(os.environ["VMPACK_HOME"])
    (home / "config" / "config.toml").write_text('sources = ["floppy:"]\njobs = 3\n')
    run("unpack", signed, "-o", "disk").refused(2, "floppy:")
    done = run("unpack", signed, "-o", "disk", "--from", "store:", "-q")
    assert done.code == 0, done.err

    class Options:
        jobs: int | None = None

    options = Options()
    assert jobs_of(options) == 3  # type: ignore[arg-type]
    options.jobs = 1
    assert jobs_of(options) == 1  # type: ignore[arg-type]
