"""Small real disks: file systems that mke2fs, mkfs.fat and mkswap made of the files given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from formats.errors import FormatError
from formats.filesystem.model import DATA, plain
from formats.ranges import empty_ranges
from formats.source import Memory, Source
from formats.windows.hive_query import View, Wanted
from packer.errors import InputError
from packer.guest.judge import judge
from packer.guest.model import Judgement
from packer.guest.tree import Tree
from packer.survey import hive_reader, program_reader, record_reader, wire
from packer.survey.disk import open_disk
from packer.survey.hives import believe_hive
from packer.survey.model import Survey, Volume
from packer.survey.opening import pack_files
from packer.survey.programs import Program, believe_programs
from packer.survey.records import Catalog, Manifest, believe_catalogs, believe_manifests
from packer.survey.runs import runs_of
from packer.survey.survey import survey
from tests.host import run

MIB = 1 << 20
NO_OPENING = wire.PlainFile(-1)
"""For requests that are answered in this process, from a source."""

ROOT_UUID = "0a0a0a0a-1111-2222-3333-444444444444"
LINUX, ESP, SWAP, BIOS_BOOT = (
    "0fc63daf-8483-4772-8e79-3d69d8477de4",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f",
    "21686148-6449-6e6f-744e-656564454649",
)


def write_tree(folder: Path, files: Mapping[str, bytes], links: Mapping[str, str]) -> Path:
    """Write files and symbolic links (path -> target) below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, target in links.items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for path, data in files.items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder


def ext4(image: Path, tree: Path, *, mib: int = 16, uuid: str = ROOT_UUID, label: str = "") -> Path:
    run("mke2fs", "-q", "-t", "ext4", "-U", uuid, "-L", label, "-d", tree, image, f"{mib}M")
    return image


def fat(image: Path, tree: Path, *, mib: int = 40) -> Path:
    """mtools copy the files: no mount, no root."""
    image.touch()
    os.truncate(image, mib * MIB)
    run("mkfs.fat", "-F", "32", "-i", "ABCD1234", image)
    tops = sorted(tree.iterdir())
    if tops:
        run("mcopy", "-s", "-i", image, *tops, "::")
    return image


def swap(image: Path, *, mib: int = 4) -> Path:
    image.write_bytes(os.urandom(mib * MIB))
    run("mkswap", image)
    return image


@dataclass(frozen=True, slots=True)
class Part:
    type: str
    image: Path
    name: str = ""


def gpt_disk(disk: Path, parts: list[Part]) -> Path:
    """Join file systems to one disk with a GPT; each begins at a whole MiB."""
    lines, start = ["label: gpt", "unit: sectors"], 1
    offsets = []
    for part in parts:
        size_mib = -(-part.image.stat().st_size // MIB)
        name = f', name="{part.name}"' if part.name else ""
        lines.append(f"start={start * 2048}, size={size_mib * 2048}, type={part.type}{name}")
        offsets.append(start * MIB)
        start += size_mib
    disk.touch()
    os.truncate(disk, (start + 1) * MIB)
    run("sfdisk", "-q", disk, stdin="\n".join(lines) + "\n")
    with disk.open("r+b") as file:
        for part, offset in zip(parts, offsets, strict=True):
            file.seek(offset)
            file.write(part.image.read_bytes())
    return disk


def surveyed(image: Path) -> tuple[Survey, Source]:
    """Survey a disk as the tool does."""
    disk = open_disk(image)
    return survey(disk), disk.source


def tree_of(image: Path) -> Tree:
    """Survey a disk as the tool does, and open the guest's tree on it."""
    return Tree(*surveyed(image))


class DirectExaminer:
    """Reads hives and programs in this process, with what the tool has children run."""

    def __init__(
        self, survey: Survey, source: Source, small: Mapping[str, bytes] | None = None
    ) -> None:
        """small: files that lie within the metadata of every volume, by path in lower case."""
        self.survey = survey
        self.source = source
        self.small = small or {}

    def hive(self, primary: int, logs: Sequence[int], wanted: Sequence[Wanted]) -> View:
        asked = [
            (one.path, one.depth, None if one.values is None else list(one.values))
            for one in wanted
        ]
        request = wire.ReadHive(NO_OPENING, self._files([primary, *logs]), asked)
        try:
            return believe_hive(hive_reader.answer(request, self.source))
        except FormatError as error:
            raise InputError(str(error)) from error

    def programs(self, streams: Sequence[int]) -> list[Program]:
        return self._programs(streams, with_signers=False)

    def signers(self, streams: Sequence[int]) -> list[tuple[str, str]]:
        found = self._programs(streams, with_signers=True)
        return [(one.organization, one.common_name) for one in found]

    def catalogs(self, streams: Sequence[int]) -> list[Catalog]:
        request = wire.ReadCatalogs(NO_OPENING, self._files(streams))
        reply = record_reader.answer_catalogs(request, self.source)
        return believe_catalogs(reply, len(streams))

    def manifests(self, streams: Sequence[int]) -> list[Manifest]:
        request = wire.ReadManifests(NO_OPENING, self._files(streams))
        reply = record_reader.answer_manifests(request, self.source)
        return believe_manifests(reply, len(streams))

    def small_files(self, volume: int, paths: Sequence[str]) -> dict[str, bytes]:
        assert 0 <= volume < len(self.survey.volumes)
        return {path: self.small[key] for path in paths if (key := path.casefold()) in self.small}

    def _programs(self, streams: Sequence[int], *, with_signers: bool) -> list[Program]:
        request = wire.ReadPrograms(NO_OPENING, self._files(streams), with_signers)
        return believe_programs(program_reader.answer(request, self.source), len(streams))

    def _files(self, streams: Sequence[int]) -> wire.FileRuns:
        sizes = self.survey.file_size[np.array(streams, dtype=np.int64)].tolist()
        runs = [runs_of(self.survey, *one) for one in zip(streams, sizes, strict=True)]
        return pack_files([one for one in runs if one is not None])


def judged(survey: Survey, source: Source, **options: bool) -> Judgement:
    """Judge a guest without children."""
    return judge(survey, source, DirectExaminer(survey, source), **options)


def volume(
    number: int,
    *,
    kind: str = "ext4",
    partition_type: str = LINUX,
    uuid: str = "",
    label: str = "",
    partition_uuid: str = "",
    partition_label: str = "",
    state: str = "clean",
    reason: str = "",
    note: str = "",
) -> Volume:
    """A volume of one MiB, the number'th of its disk."""
    return Volume(
        number=number,
        start=number * MIB,
        end=(number + 1) * MIB,
        partition_type=partition_type,
        partition_uuid=partition_uuid,
        partition_label=partition_label,
        kind=kind,
        block_size=4096,
        label=label,
        uuid=uuid,
        state=state,
        state_reason=reason,
        note=note,
        unread=(),
    )


def survey_of_volumes(
    volumes: Sequence[Volume],
    *,
    table: str = "gpt",
    table_identifier: str = "",
    names: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
) -> Survey:
    """A survey of volumes; the names are empty files of the first one, each its own stream."""
    rows = np.arange(len(names), dtype=np.int64)
    none = np.empty(0, dtype=np.int64)
    return Survey(
        size=(len(volumes) + 2) * MIB,
        sector_size=512,
        container="raw",
        table=table,
        table_identifier=table_identifier,
        volumes=tuple(volumes),
        free=empty_ranges(),
        held=(),
        snapshots=(),
        dropped=(),
        volume=np.zeros(len(names), dtype=np.int64),
        inode=rows + 12,
        file_size=np.zeros(len(names), dtype=np.int64),
        valid_size=np.zeros(len(names), dtype=np.int64),
        form=plain(len(names)),
        stream=none,
        file_offset=none,
        disk_offset=none,
        length=none,
        kind=np.empty(0, dtype=np.uint8),
        name_stream=rows,
        name=list(names),
        symlinks=tuple((0, path, target) for path, target in (links or {}).items()),
        warnings=(),
    )


def survey_of_names(names: Sequence[str], links: Mapping[str, str]) -> Survey:
    """A survey of one volume that holds these names and links."""
    return survey_of_volumes([volume(1)], names=names, links=links)


def guest_in_memory(
    files: Mapping[str, bytes], links: Mapping[str, str] | None = None
) -> tuple[Survey, Source]:
    """A survey of one volume with these files and links, and the disk it speaks of."""
    survey = survey_of_volumes([volume(1)], names=list(files), links=links)
    sizes = np.array([len(data) for data in files.values()], dtype=np.int64)
    lengths = -(-sizes // 4096) * 4096
    starts = MIB + np.cumsum(lengths) - lengths
    some = sizes > 0
    disk = bytearray(int(MIB + lengths.sum()))
    for start, data in zip(starts.tolist(), files.values(), strict=True):
        disk[start : start + len(data)] = data
    survey = replace(
        survey,
        size=len(disk),
        file_size=sizes,
        valid_size=sizes,
        stream=np.flatnonzero(some),
        file_offset=np.zeros(int(some.sum()), dtype=np.int64),
        disk_offset=starts[some],
        length=lengths[some],
        kind=np.full(int(some.sum()), DATA, dtype=np.uint8),
    )
    return survey, Memory(bytes(disk))
