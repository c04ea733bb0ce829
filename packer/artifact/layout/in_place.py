"""A layout written into a folder that exists: a stick, with whatever else lies on it.

A mount point cannot be replaced by a rename, so blobs grow in blobs/sha256 under temporary names,
each gets its own when it is whole and durable, and index.json comes last. Until then the folder
holds what it held before; a run that is killed leaves blobs that nothing names, which the next run
takes up or removes. What else lies in the folder is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from packer.artifact.layout.base import Layout
from packer.artifact.layout.directory import folder_bytes, with_page
from packer.artifact.layout.extras import PAGE_NAME, Extra, Page
from packer.artifact.layout.left_behind import lock_folder
from packer.artifact.layout.staging import StagedBlob, StagedWriter, Staging, writing
from packer.artifact.manifest import Blob, Entry
from packer.durable import sync_directory
from packer.errors import InUseError, UsageError
from packer.progress import Advance, ignore

INDEX = "index.json"
NEW = ".partial"
"""What follows the name of a file that is not whole yet."""

_OURS = re.compile(r"([0-9a-f]{64}|incoming-[0-9]+)(\.partial)?")
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class InPlaceWriter(StagedWriter):
    """Writes a layout into a folder that exists.

    page, extras: files beside the layout. replace: whether a layout that lies there may be
    replaced. Raises UsageError when one does and may not, or when files would be overwritten that
    are no layout's; InUseError while another run writes there.
    """

    def __init__(
        self,
        path: Path,
        *,
        replace: bool = False,
        extras: Sequence[Extra] = (),
        page: Page | None = None,
    ) -> None:
        self._extras = tuple(extras)
        self._page = page
        _refuse(path, [PAGE_NAME] * (page is not None) + [one.name for one in extras], replace)
        super().__init__(path, replace=replace, durable=True, single_file=False, staging=_InPlace)

    def medium_bytes(self, blob_sizes: Sequence[int]) -> int:
        """Return what the layout takes at most on a medium with large clusters."""
        return folder_bytes(blob_sizes, self._extras, self._page)

    def finish(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Write manifests, extra files and at last index.json, each durable before the next."""
        staging = self._open_staging()
        assert isinstance(staging, _InPlace)
        blobs = staging.seal(packs)
        for extra in with_page(staging.root, self._extras, self._page, INDEX + NEW):
            staging.add_extra(extra)
        staging.publish()
        self._staging = None
        return blobs


def _refuse(path: Path, extras: Sequence[str], replace: bool) -> None:
    layout = os.path.lexists(path / "oci-layout")
    if os.path.lexists(path / INDEX):
        if not layout:
            raise UsageError(
                f"{path} holds an index.json of something else", hint="choose another folder"
            )
        if not replace:
            raise UsageError(
                f"{path} holds a layout, which exists already",
                hint="choose another folder, or replace it with --force",
            )
    taken = next((name for name in extras if os.path.lexists(path / name)), None)
    if taken and not layout and not replace:
        raise UsageError(
            f"{path / taken} exists already and belongs to no layout",
            hint="choose another folder, or replace it with --force",
        )


class _InPlace(Staging):
    """The folder itself: what is not whole has a name that ends in NEW."""

    def __init__(self, final: Path, *, durable: bool) -> None:
        self.final = final
        self.root = final
        self.durable = durable
        self.blobs = {}
        self._streams = []
        self._created: list[Path] = []
        self._fetches = False
        self._folder = final / "blobs" / "sha256"
        with writing(final):
            self._lock = _lock(final)
            try:
                self._make_folder(self._folder)
                held = set(self._ours()) if (final / INDEX).exists() else set()
            except BaseException:
                self.unlock()
                raise
        self._kept = held
        """What the layout that lies here may need: it goes only when another is complete."""

    def stream(self, place: Path | None = None) -> StagedBlob:
        """Begin a blob; or go on with what lies at `place`, which then stays when it fails."""
        if place is None:
            incoming = self._folder / f"incoming-{len(self._streams)}{NEW}"
            incoming.unlink(missing_ok=True)
        blob = StagedBlob(self, place or incoming, keep=place is not None)
        self._streams.append(blob)
        return blob

    def copy(self, layout: Layout, blob: Blob, advance: Advance = ignore) -> Blob:
        """Store a blob of another layout, unless it lies here whole, from an earlier run."""
        if blob.digest not in self.blobs and self._is_whole(blob):
            self.blobs[blob.digest] = blob
        return super().copy(layout, blob, advance)

    def there_bytes(self, blob: Blob) -> int:
        """Return how many bytes of a blob lie here already."""
        path = self.path(blob.digest)
        return sum(one.lstat().st_size for one in (path, _new(path)) if os.path.lexists(one))

    def publish(self) -> None:
        """Give index.json its name, when all that it names is durable; remove what it does not."""
        with writing(self.final):
            for folder in (*self.folders(), self.root):
                sync_directory(folder)
            _new(self.root / INDEX).replace(self.root / INDEX)
            sync_directory(self.root)
        self._remove_all_but({name.removeprefix("sha256:") for name in self.blobs})

    def folders(self) -> Iterator[Path]:
        """Yield the folders that the layout and its extra files lie in, innermost first."""
        own = {self._folder, *(path.parent for path in self._created)}
        inner = {one for path in own for one in (path, *path.parents) if self.root in one.parents}
        yield from sorted(inner, key=lambda path: -len(path.parts))

    def give_up(self) -> None:
        """Remove what this run has written, unless it came over the network."""
        if not self._fetches:
            self.remove()
            return
        for stream in self._streams:
            stream.discard()
        self.unlock()

    def remove(self) -> None:
        """Remove what this run and killed ones have written; a layout that was here stays."""
        for stream in self._streams:
            stream.discard()
        self._remove_all_but(self._kept)
        for path in (_new(self.root / INDEX), *self._created):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for folder in self.folders():
            with contextlib.suppress(OSError):  # something else lies there
                folder.rmdir()
        self.unlock()

    def _place(self, layout: Layout, blob: Blob) -> Path:
        self._fetches |= layout.remote
        place = _new(self.path(blob.digest))
        if os.path.lexists(place):
            found = place.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                place.unlink()  # a stranger's medium must not make us write elsewhere
        return place

    def _write(self, path: Path, source: BinaryIO, *, executable: bool = False) -> None:
        new = _new(path)
        with writing(self.final):
            self._make_folder(path.parent)
            new.unlink(missing_ok=True)
        if not os.path.lexists(path):
            self._created.append(path)
        super()._write(new, source, executable=executable)
        if path != self.root / INDEX:
            with writing(self.final):
                new.replace(path)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder below the root; raise UsageError when a link leads elsewhere."""
        below = [one for one in (folder, *folder.parents) if self.root in one.parents]
        for one in reversed(below):
            if one.is_symlink():
                raise UsageError(f"{one} is a symbolic link", hint="remove it")
            one.mkdir(exist_ok=True)

    def _is_whole(self, blob: Blob) -> bool:
        """Say whether a blob lies here under its name, and make sure that it is durable."""
        try:
            fd = os.open(self.path(blob.digest), _OPEN_FILE)
        except OSError:
            return False
        with os.fdopen(fd, "rb") as file, writing(self.final):
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size != blob.size:
                return False
            os.fsync(fd)
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == blob.digest

    def _ours(self) -> Iterator[str]:
        """Yield the names in blobs/sha256 that are blobs', whole or not."""
        for entry in os.scandir(self._folder):
            if _OURS.fullmatch(entry.name):
                yield entry.name

    def _remove_all_but(self, kept: set[str]) -> None:
        with contextlib.suppress(OSError):
            for name in set(self._ours()) - kept:
                (self._folder / name).unlink()


def _lock(folder: Path) -> int | None:
    """Return the lock of a folder; None where folders cannot be locked."""
    try:
        return lock_folder(folder)
    except BlockingIOError as error:
        raise InUseError(
            f"{folder}: another run of vmpack writes there", hint="wait until it has ended"
        ) from error
    except NotADirectoryError as error:
        raise UsageError(f"{folder} is no folder") from error
    except OSError:
        return None


def _new(path: Path) -> Path:
    return path.with_name(path.name + NEW)
