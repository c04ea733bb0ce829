"""Files in Windows images (install.wim, .esd, split ones in .swm), by the program wimlib-imagex.

All images of a file are listed with paths, sizes and SHA-1; what is wanted is extracted to a
temporary folder, in the order in which it lies in the file, some at a time. Nothing is believed:
whoever asked compares SHA-256.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from packer.sources.base import SourceError
from packer.sources.foreign import Bounds, running
from packer.sources.memory import stamp_of
from packer.sources.tree import Opener, Tree
from packer.text import printable

SIGNATURES = (b"MSWIM\0\0\0", b"WLPWM\0\0\0")
"""What such a file begins with; the second kind can be read from a pipe."""

MISSING = "wimlib-imagex is not installed"
HINT = (
    "install wimlib-imagex (package wimtools on Debian and Ubuntu, wimlib-utils on Fedora), or "
    "leave this source out"
)

MAX_IMAGES = 64
"""Editions in one file; media of Windows 11 have 11."""

MAX_LINE_BYTES = 1 << 18
"""A path has at most 32,767 characters."""

MAX_LISTED_BYTES = 4 << 30
"""What is read of one image's list: about 700 bytes for each file."""

BATCH_BYTES = 256 << 20
"""What is extracted at a time; the temporary folder may lie in memory."""

BATCH_FILES = 20_000
STALL_SECONDS = 600.0
"""Extraction that brings nothing for so long is given up."""

_POLL_SECONDS = 0.05
_SLACK_BYTES = 1 << 20
_FOLDER_BYTES = 1 << 16
"""The most that an entry of a folder may add to its size, or a new folder have."""

_DONT_CARE = 1 << 62

_LIST_BOUNDS = Bounds(cpu_seconds=600)
_EXTRACT_CPU_SECONDS = 4 * 3600
_IMAGES = re.compile(rb"^Image Count: +(\d{1,9})$", re.MULTILINE)
_NUMBER = re.compile(rb"(\d{1,18}) bytes")
_SOLID = re.compile(rb"\d+ => \d+ bytes @ offset (\d{1,18})")


@dataclass(frozen=True, slots=True)
class WimFile:
    """A regular file of an image. sha1: as the list says, hex digits.

    order: where its bytes lie: part, offset of what they are compressed with, offset in that.
    """

    image: int
    path: str
    size: int
    sha1: str
    order: tuple[int, int, int]


def find_wimlib() -> str:
    """Return the program on this host. Raises SourceError when there is none."""
    program = shutil.which("wimlib-imagex")
    if program is None:
        raise SourceError(MISSING, hint=HINT)
    return program


class Wim:
    """A Windows image file on this host.

    path: of the file, or of the first part of a split one. Raises SourceError when wimlib-imagex is
    not there or cannot read it.
    """

    def __init__(self, path: Path) -> None:
        self._program = find_wimlib()
        self._path = str(path.absolute())  # no word of a command line begins with a dash by itself
        references = _references_of(path.absolute())
        self._references = [f"--ref={references}"] if references else []

    def files(self) -> Iterator[WimFile]:
        """Yield the regular files of all images."""
        with self._running(["info", self._path]) as process:
            assert process.stdout is not None
            found = _IMAGES.search(process.stdout.read(_SLACK_BYTES))
        images = int(found[1]) if found else 0
        if images > MAX_IMAGES:
            raise SourceError(f"expected at most {MAX_IMAGES} images, found {images}")
        for image in range(1, images + 1):
            command = ["dir", self._path, str(image), "--detailed", *self._references]
            with self._running(command) as process:
                assert process.stdout is not None
                yield from _listed(_lines(process.stdout), image)

    def extract(self, files: Sequence[WimFile]) -> Iterator[tuple[WimFile, int]]:
        """Yield each file with a descriptor that is good until the next one is asked for.

        Of what the program complained about, all that came out is yielded, whole or not. Raises
        SourceError with its first complaint at the end.
        """
        complaint: SourceError | None = None
        for batch in _batches(files):
            with _temporary_folder() as folder:
                try:
                    self._extract(batch, folder)
                except SourceError as error:
                    complaint = complaint or error
                yield from _extracted(batch, folder / "files")
        if complaint is not None:
            raise complaint

    def _extract(self, batch: Sequence[WimFile], folder: Path) -> None:
        paths = "".join(f"{one.path}\n" for one in batch)
        try:
            (folder / "list").write_text(paths, "utf-8", "surrogateescape")
        except OSError as error:
            raise SourceError(f"{folder}: {error.strerror or error}") from error
        command = ["extract", self._path, str(batch[0].image), f"@{folder / 'list'}"]
        command += [f"--dest-dir={folder / 'files'}", "--no-acls", "--no-globs", "--quiet"]
        largest = max(one.size for one in batch)
        bounds = Bounds(cpu_seconds=_EXTRACT_CPU_SECONDS, file_bytes=largest)
        folders = sum(one.path.count("/") for one in batch)
        most_bytes = sum(one.size for one in batch) + folders * _FOLDER_BYTES + _SLACK_BYTES
        with self._running([*command, *self._references], bounds) as process:
            _watch(process, folder / "files", most_bytes)

    @contextmanager
    def _running(
        self, command: Sequence[str], bounds: Bounds = _LIST_BOUNDS
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the program; raise SourceError with its first complaint when it fails."""
        with tempfile.TemporaryFile() as complaints:
            try:
                with running(
                    [self._program, *command],
                    bounds,
                    stdout=subprocess.PIPE if command[0] != "extract" else subprocess.DEVNULL,
                    stderr=complaints,
                ) as process:
                    yield process
                    if process.stdout is not None:
                        process.stdout.close()
                    process.wait()
            except OSError as error:
                raise SourceError(f"wimlib-imagex: {error.strerror or error}") from error
            if process.returncode:
                complaints.seek(0)
                raise SourceError(f"wimlib-imagex: {_reason(complaints, process.returncode)}")


def _reason(complaints: IO[bytes], code: int) -> str:
    for line in complaints.read(_SLACK_BYTES).decode("utf-8", "replace").splitlines():
        if line.startswith("[ERROR]"):
            return printable(line.removeprefix("[ERROR]").strip())[:300]
    return f"ended with code {code}"


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a list. Raises SourceError for one that has no end."""
    read = 0
    while line := stream.readline(MAX_LINE_BYTES):
        read += len(line)
        if read > MAX_LISTED_BYTES or not line.endswith(b"\n"):
            raise SourceError("the list of an image's files is longer than any")
        yield line.rstrip(b"\n")


def _listed(lines: Iterable[bytes], image: int) -> Iterator[WimFile]:
    """Yield the regular files of what `wimlib-imagex dir --detailed` prints of an image."""
    path, regular, unnamed = b"", False, False
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b"=")
        name, value = name.strip(), value.strip()
        if name == b"Full Path":
            path, regular, unnamed = value[1:-1], True, False
        elif name in (b"FILE_ATTRIBUTE_DIRECTORY is set", b"FILE_ATTRIBUTE_REPARSE_POINT is set"):
            regular = False
        elif line.startswith(b"\t"):
            unnamed, fields = name == b"Unnamed data stream:", {}
        elif regular and unnamed:
            fields[name] = value
            if name == b"Flags" and (one := _file(image, path, fields)) is not None:
                yield one


def _file(image: int, path: bytes, fields: dict[bytes, bytes]) -> WimFile | None:
    """Return a listed file, None for an empty one or one whose name no list of names can hold."""
    size = _NUMBER.fullmatch(fields.get(b"Uncompressed size", b""))
    text = path.decode("utf-8", "surrogateescape")
    if size is None or not int(size[1]) or not text.startswith("/"):
        return None
    if text != text.strip() or any(ord(letter) < ord(" ") for letter in text):
        return None
    solid = _SOLID.fullmatch(fields.get(b"Solid resource", b""))
    inside = fields.get(b"Solid offset" if solid else b"Offset in WIM", b"")
    offset = _NUMBER.fullmatch(inside)
    part = fields.get(b"Part Number", b"")
    order = (
        int(part) if part.isdigit() and len(part) < 9 else _DONT_CARE,
        int(solid[1]) if solid else 0,
        int(offset[1]) if offset else _DONT_CARE,
    )
    sha1 = fields.get(b"Hash", b"").decode("ascii", "replace")
    return WimFile(image, text, int(size[1]), sha1, order)


def _batches(files: Iterable[WimFile]) -> Iterator[list[WimFile]]:
    """Yield files of one image that are extracted together, in the order in which they lie."""
    batch: list[WimFile] = []
    filled = 0
    for one in sorted(files, key=lambda file: (file.image, file.order)):
        full = filled + one.size > BATCH_BYTES or len(batch) == BATCH_FILES
        if batch and (full or one.image != batch[0].image):
            yield batch
            batch, filled = [], 0
        batch.append(one)
        filled += one.size
    if batch:
        yield batch


def _watch(process: subprocess.Popen[bytes], folder: Path, most_bytes: int) -> None:
    """Wait for an extraction. Raises SourceError when it writes too much, or nothing any more.

    A list that lies can name a folder where it says file, and what comes out then has no bounds.
    """
    reached, since = 0, time.monotonic()
    pause = _POLL_SECONDS
    ended = False
    while not ended:
        try:
            process.wait(pause)
            ended = True
        except subprocess.TimeoutExpired:
            pause = min(2 * pause, 1.0)
        written = _bytes_below(folder)
        if written != reached:
            reached, since = written, time.monotonic()
        if written > most_bytes:
            raise SourceError(f"wimlib-imagex wrote {written} bytes, expected {most_bytes} at most")
        if time.monotonic() - since > STALL_SECONDS:
            raise SourceError(f"wimlib-imagex wrote nothing for {STALL_SECONDS:.0f} s")


def _bytes_below(folder: Path) -> int:
    """Return the bytes of all files and folders, of a file with several names once."""
    sizes: dict[int, int] = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                status = os.lstat(Path(root, name))
            except FileNotFoundError:
                continue
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a folder with a folder "files" in it, which vanishes with the block.

    Raises SourceError where there is no room for it.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="vmpack-wim-", ignore_cleanup_errors=True)
        folder = Path(made.name)
        (folder / "files").mkdir()
    except OSError as error:
        raise SourceError(f"{tempfile.gettempdir()}: {error.strerror or error}") from error
    with made:
        yield folder


def _extracted(batch: Sequence[WimFile], folder: Path) -> Iterator[tuple[WimFile, int]]:
    """Yield what came out of a batch, with descriptors.

    A name with line feeds can make the list say any path, and links may have come out: paths are
    looked up like those of a pack, so that none leads out of the folder.
    """
    tree = Tree(folder, explicit=True, public=True)
    opener = Opener(tree)
    try:
        for one in batch:
            found = tree.look_up(one.path)
            fd = opener.open(found[0], stamp_of(found[1])) if found else None
            if fd is None:
                continue
            try:
                yield one, fd
            finally:
                os.close(fd)
    finally:
        opener.close()
        tree.close()


def _references_of(first: Path) -> str:
    """Return the pattern of all parts of a split image, "" for one that is whole."""
    if first.suffix.lower() != ".swm":
        return ""
    stem = glob.escape(str(first.with_suffix("")))
    return f"{stem}*{glob.escape(first.suffix)}"
