"""A blob that comes over the network grows where a later run finds it, whatever came between."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from packer.artifact import manifest as manifests
from packer.artifact.layout.base import COPY_BYTES, LayoutWriter
from packer.artifact.layout.directory import DirectoryWriter
from packer.artifact.layout.iso_writer import IsoWriter
from packer.artifact.layout.left_behind import temporary_name
from packer.artifact.layout.open import open_layout
from packer.artifact.layout.tar import TarWriter
from packer.artifact.manifest import Blob
from packer.errors import Error, InputError
from packer.transport.response import TransportError
from tests.artifact.layout.media import small_medium

MIB = 1 << 20
DATA = random.Random(1).randbytes(2 * COPY_BYTES + 12_345)
Found = Iterator[tuple[int, bytes]]
every_writer = pytest.mark.parametrize("kind", [TarWriter, DirectoryWriter, IsoWriter])
MakeWriter = Callable[[Path], LayoutWriter]


def blob_of(data: bytes) -> Blob:
    return Blob("sha256:" + hashlib.sha256(data).hexdigest(), len(data))


class Far:
    """A layout on the network that holds some blobs. `twist` changes what it sends of each.

    sent_bytes: by read_many. told: the names of the blobs that were asked for.
    """

    location = "https://far/"
    remote = True

    def __init__(self, *blobs: bytes, twist: Callable[[Found], Found] = lambda found: found):
        self._blobs = {blob_of(data).digest: data for data in blobs}
        self._twist = twist
        self.sent_bytes = 0

    def index(self) -> bytes:
        raise NotImplementedError

    def blob_size(self, digest: str) -> int | None:
        return len(self._blobs[digest]) if digest in self._blobs else None

    def read(self, digest: str, offset: int, length: int) -> bytes:
        return self._blobs[digest][offset : offset + length]

    def read_many(self, digest: str, ranges: Sequence[tuple[int, int]]) -> Found:
        for row, data in self._twist(self._honest(digest, ranges)):
            self.sent_bytes += len(data)
            yield row, data

    def _honest(self, digest: str, ranges: Sequence[tuple[int, int]]) -> Found:
        for row, (offset, length) in enumerate(ranges):
            yield row, self._blobs[digest][offset : offset + length]

    def close(self) -> None:
        pass


def broken_after(count: int) -> Callable[[Found], Found]:
    """Return what ends a connection after so many pieces."""

    def twist(found: Found) -> Found:
        for row, data in found:
            if row == count:
                raise TransportError("the server has gone away")
            yield row, data

    return twist


def write(writer: LayoutWriter, layout: Far, *blobs: Blob, told: list[int] | None = None) -> None:
    """Write a layout with these blobs of another one."""
    with writer:
        for blob in blobs:
            writer.copy(layout, blob, (told if told is not None else []).append)
        bundles = {f"shared-{number:03d}": blob for number, blob in enumerate(blobs)}
        manifest = manifests.build(config=blobs[0], maps=[blobs[0]], bundles=bundles)
        writer.finish([manifests.Entry(manifest, "demo:1")])


def left(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def interrupted(kind: MakeWriter, place: Path) -> Path:
    """Write two of the three pieces of DATA and lose the connection; return where they are."""
    with pytest.raises(TransportError):
        write(kind(place), Far(DATA, twist=broken_after(2)), blob_of(DATA))
    (kept,) = left(place.parent)
    assert kept.read_bytes() == DATA[: 2 * COPY_BYTES]
    return kept


def check(place: Path, *datas: bytes) -> None:
    """Assert that a layout holds these blobs and that nothing else lies beside it."""
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    with contextlib.closing(open_layout(place)) as layout:
        for data in datas:
            blob = blob_of(data)
            assert layout.read(blob.digest, 0, blob.size) == data


@every_writer
def test_the_next_run_fetches_what_the_last_one_has_not(tmp_path: Path, kind: MakeWriter) -> None:
    place = tmp_path / "demo"
    interrupted(kind, place)
    far, told = Far(DATA), list[int]()
    write(kind(place), far, blob_of(DATA), told=told)
    check(place, DATA)
    assert (far.sent_bytes, sum(told)) == (12_345, len(DATA))


@every_writer
def test_what_was_damaged_meanwhile_is_fetched_anew_at_once(
    tmp_path: Path, kind: MakeWriter
) -> None:
    """A power cut can leave zeros in a file. The server is not to blame, and asked once more."""
    place = tmp_path / "demo"
    kept = interrupted(kind, place)
    with kept.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(4096))
    far, told = Far(DATA), list[int]()
    write(kind(place), far, blob_of(DATA), told=told)
    check(place, DATA)
    assert (far.sent_bytes, sum(told)) == (12_345 + len(DATA), len(DATA))


def test_what_is_longer_than_the_blob_is_fetched_anew(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    with interrupted(TarWriter, place).open("ab") as file:
        file.write(bytes(len(DATA)))
    far = Far(DATA)
    write(TarWriter(place), far, blob_of(DATA))
    check(place, DATA)
    assert far.sent_bytes == len(DATA)


def test_a_server_that_sends_other_bytes_is_named_with_them_and_not_asked_for_ever(
    tmp_path: Path,
) -> None:
    place, wrong = tmp_path / "demo", bytes(len(DATA))

    def lie(found: Found) -> Found:
        yield from ((row, bytes(len(data))) for row, data in found)

    interrupted(TarWriter, place)
    for times in (2, 1):  # what it had sent before is doubted first, then it
        far = Far(DATA, twist=lie)
        with pytest.raises(InputError, match=f"found {blob_of(wrong).digest}"):
            write(TarWriter(place), far, blob_of(DATA))
        assert far.sent_bytes == (times - 1) * 12_345 + len(DATA)
    write(TarWriter(place), Far(DATA), blob_of(DATA))
    check(place, DATA)


def test_what_came_of_a_blob_that_ends_early_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "demo"

    def lose_the_last(found: Found) -> Found:
        yield from ((row, data) for row, data in found if len(data) == COPY_BYTES)

    with pytest.raises(InputError, match=f"expected {len(DATA)} bytes, {2 * COPY_BYTES} came"):
        write(TarWriter(place), Far(DATA, twist=lose_the_last), blob_of(DATA))
    far = Far(DATA)
    write(TarWriter(place), far, blob_of(DATA))
    check(place, DATA)
    assert far.sent_bytes == 12_345


@pytest.mark.parametrize("order", [[2, 1, 0], [0, 0, 1, 1, 2, 2], [1, 0, 1, 0, 2], [1, 1, 2, 2, 0]])
def test_pieces_may_come_in_any_order_and_twice(tmp_path: Path, order: list[int]) -> None:
    def shuffle(found: Found) -> Found:
        pieces = dict(found)
        yield from ((row, pieces[row]) for row in order)

    write(DirectoryWriter(tmp_path / "demo"), Far(DATA, twist=shuffle), blob_of(DATA))
    check(tmp_path / "demo", DATA)


@pytest.mark.root
def test_a_medium_without_room_for_what_comes_too_early_is_one_clear_error(tmp_path: Path) -> None:
    def last_first(found: Found) -> Found:
        yield from reversed(list(found))

    with small_medium(tmp_path / "stick", 3 * MIB) as stick:
        with pytest.raises(Error, match="No space left") as caught:
            write(TarWriter(stick / "demo"), Far(DATA, twist=last_first), blob_of(DATA))
        assert "full" in caught.value.hint
        assert list(stick.iterdir()) == []


def test_nothing_is_left_of_a_copy_of_which_nothing_came(tmp_path: Path) -> None:
    with pytest.raises(TransportError):
        write(TarWriter(tmp_path / "demo"), Far(DATA, twist=broken_after(0)), blob_of(DATA))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", [TarWriter, IsoWriter])
def test_what_was_fetched_outlives_a_file_that_cannot_be_put_together(
    tmp_path: Path, kind: MakeWriter
) -> None:
    """Three blobs fit, and not one of them a second time beside the others."""
    blobs = [random.Random(n).randbytes(12 * MIB) for n in range(3)]
    with small_medium(tmp_path / "stick", 41 * MIB) as stick:
        place = stick / "demo"
        with pytest.raises(Error, match="No space left"):
            write(kind(place), Far(*blobs), *map(blob_of, blobs))
        kept = sum(path.stat().st_size for path in left(stick))
        assert kept >= 24 * MIB
        (tmp_path / "again").mkdir()
        for path in stick.iterdir():
            subprocess.run(["cp", "-a", path, tmp_path / "again"], check=True)
    far = Far(*blobs)
    write(kind(tmp_path / "again" / "demo"), far, *map(blob_of, blobs))
    check(tmp_path / "again" / "demo", *blobs)
    assert far.sent_bytes <= 36 * MIB - kept


KILLED = """
import os, signal, sys
from pathlib import Path
from packer.artifact.layout import tar
from tests.artifact.layout.test_taken_up import Far, blob_of, write
import random
blobs = [random.Random(n).randbytes(1 << 20) for n in range(3)]
append = tar._append
def dying(file, name, path):
    append(file, name, path)
    if name.startswith("blobs/") and path.name == blob_of(blobs[0]).digest[7:]:
        os.kill(os.getpid(), signal.SIGKILL)
tar._append = dying
write(tar.TarWriter(Path("demo")), Far(*blobs), *map(blob_of, blobs))
"""


def test_what_was_fetched_outlives_a_run_that_is_killed_while_it_puts_the_file_together(
    tmp_path: Path,
) -> None:
    blobs = [random.Random(n).randbytes(MIB) for n in range(3)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    assert not (tmp_path / "demo").exists()
    far = Far(*blobs)
    write(TarWriter(tmp_path / "demo"), far, *map(blob_of, blobs))
    check(tmp_path / "demo", *blobs)
    assert far.sent_bytes == MIB, "the one that was in the file already"


def left_behind(final: Path) -> Path:
    """Return the folder of blobs that a killed run was fetching."""
    folder = temporary_name(final) / "fetched"
    folder.mkdir(parents=True)
    return folder


def test_of_two_beginnings_the_longer_one_is_taken_up(tmp_path: Path) -> None:
    place, blob = tmp_path / "demo", blob_of(DATA)
    for length in (5000, 700_000, 6000):
        (left_behind(place) / blob.digest[7:]).write_bytes(DATA[:length])
    far = Far(DATA)
    write(TarWriter(place), far, blob)
    check(place, DATA)
    assert far.sent_bytes == len(DATA) - 700_000


def test_what_is_no_beginning_of_a_blob_is_neither_taken_up_nor_written_to(tmp_path: Path) -> None:
    """A link out of the folder, a folder, a pipe: nobody else may choose what is written to."""
    place, blob = tmp_path / "out" / "demo", blob_of(DATA)
    place.parent.mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(DATA[:1000])
    name = blob.digest[7:]
    for make in (
        lambda path: path.symlink_to(precious),
        lambda path: path.hardlink_to(precious),
        lambda path: path.mkdir(),
        os.mkfifo,
    ):
        make(left_behind(place) / name)
    (left_behind(place) / "notes").write_bytes(b"mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name).write_bytes(DATA[:2000])
    linked = temporary_name(place)
    linked.mkdir()
    (linked / "fetched").symlink_to(elsewhere)
    far = Far(DATA)
    write(TarWriter(place), far, blob)
    check(place, DATA)
    assert far.sent_bytes == len(DATA)
    assert precious.read_bytes() == DATA[:1000]
    assert (elsewhere / name).read_bytes() == DATA[:2000]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a folder of another owner")
def test_what_another_user_has_fetched_is_left_alone(tmp_path: Path) -> None:
    place, blob = tmp_path / "demo", blob_of(DATA)
    folder = left_behind(place)
    (folder / blob.digest[7:]).write_bytes(DATA[:1000])
    os.chown(folder.parent, 1, 1)
    far = Far(DATA)
    write(TarWriter(place), far, blob)
    assert far.sent_bytes == len(DATA)
    assert (folder / blob.digest[7:]).read_bytes() == DATA[:1000]


def test_two_runs_at_once_do_not_take_from_each_other(tmp_path: Path) -> None:
    place, blob = tmp_path / "demo", blob_of(DATA)
    (left_behind(place) / blob.digest[7:]).write_bytes(DATA[:COPY_BYTES])
    first, second = Far(DATA, twist=broken_after(1)), Far(DATA)
    with TarWriter(place) as one:
        with pytest.raises(TransportError):
            one.copy(first, blob)
        write(TarWriter(place), second, blob)
        assert second.sent_bytes == len(DATA)
    assert first.sent_bytes == COPY_BYTES
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert [path.stat().st_size for path in left(folder)] == [2 * COPY_BYTES]


def test_a_large_blob_takes_little_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "demo")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 10 * COPY_BYTES


LARGE = """
import hashlib, resource, sys
from pathlib import Path
from packer.artifact.layout.directory import DirectoryWriter
from packer.artifact.manifest import Blob
from tests.artifact.layout.test_taken_up import Far, write

class Zeros(Far):
    def blob_size(self, digest):
        return 1 << 30
    def read_many(self, digest, ranges):
        for row in [*range(1, len(ranges)), 0]:  # the first one is slow
            yield row, bytes(ranges[row][1])

hasher = hashlib.sha256()
for _ in range(256):
    hasher.update(bytes(4 << 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write(DirectoryWriter(Path(sys.argv[1])), Zeros(), Blob("sha256:" + hasher.hexdigest(), 1 << 30))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""
