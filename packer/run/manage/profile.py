"""Find the boot class by booting, and prove it by booting without anything else.

The guest is booted several times from the pack and its sources, and what it reads up to a goal is
noted. The next version's boot class holds that. Then the boot copy of it is booted with no source,
no store and no network; where boots differ and something is missing, that is added, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from formats.ranges import Ranges, empty_ranges, total, union
from packer.artifact.config import PROFILED, PROVEN, Boots
from packer.artifact.contents import Class
from packer.artifact.copy import Extent, copy_packs
from packer.artifact.keys import PrivateKey
from packer.artifact.layout.open import create_layout
from packer.artifact.opened import OpenedPack
from packer.pack.earlier import keeps_free, recalled
from packer.pack.issue import Issued, issue
from packer.pack.pack import PackOptions, pack
from packer.progress import Progress, Silent
from packer.run.manage.trial import (
    Bench,
    Goal,
    GoalMissedError,
    Trial,
    bench,
    ignore_line,
    temporary_folder,
)
from packer.run.vm.create import DiskOrigin, Wishes
from packer.sources.open import open_pack
from packer.sources.store import Store
from packer.text import format_bytes
from packer.transport.registry_reference import is_reference

PROOFS = 4
"""How often the proof is tried; before each further one, the guest is watched once more."""


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What an author says about a profile.

    version: of the pack that is written. boots: how many are watched. arguments: for QEMU, from
    the folder `directory`. rotations: statements about replaced keys that travel with it.
    told: called with a line about each boot.
    """

    goal: Goal
    version: int
    boots: int = 2
    wishes: Wishes | None = None
    arguments: tuple[str, ...] = ()
    directory: str = "/"
    rotations: Sequence[bytes] = ()
    replace: bool = False
    jobs: int = 1
    told: Callable[[str], None] = ignore_line


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What was found and written.

    boot_bytes: of the boot class; touched_bytes: of the disk, that boots have read, in blocks of
    64 KiB. stored_boot_bytes: of the boot bundles. proven: whether the boot copy alone reached the
    goal. boots, proofs: how each went. shortfall: why it is not proven, or "".
    """

    issued: Issued
    boot_bytes: int
    touched_bytes: int
    stored_boot_bytes: int
    boots: tuple[Trial, ...]
    proofs: tuple[Trial, ...]

    @property
    def proven(self) -> bool:
        """Return whether the boot copy has reached the goal with nothing beside it."""
        return self.proofs[-1].reached

    @property
    def shortfall(self) -> str:
        """Return why the boot copy alone did not reach the goal, "" if it did."""
        return self.proofs[-1].why


def profile(
    base: OpenedPack,
    served: DiskOrigin,
    output: str | Path,
    keys: Sequence[PrivateKey],
    options: ProfileOptions,
    progress: Progress | None = None,
) -> ProfileReport:
    """Write the next version of a pack, whose boot class is what its guest reads to boot.

    base: a pack whose use was decided; served: where its disk comes from. The other contents are
    those of the base, in its bundles as far as they go on. Raises GoalMissedError when the guest
    does not come to the goal, and what packing raises. A guest that comes there only with more
    than its boot copy gives a pack, too: see ProfileReport.proven.
    """
    progress = progress or Silent()
    with (
        temporary_folder(".vmpack-profile-", _beside(output)) as work,
        bench(
            base,
            served,
            options.wishes,
            options.arguments,
            directory=options.directory,
            told=options.told,
        ) as watched,
    ):
        return _Profiler(base, watched, work, output, keys, options, progress).run()


def _beside(output: str | Path) -> Path | None:
    """Return the folder for drafts, which may be large: where the pack will lie."""
    folder = Path(output).absolute().parent
    return folder if not is_reference(str(output)) and folder.is_dir() else None


@dataclass(frozen=True, slots=True)
class _Profiler:
    base: OpenedPack
    watched: Bench
    work: Path
    output: str | Path
    keys: Sequence[PrivateKey]
    options: ProfileOptions
    progress: Progress

    def run(self) -> ProfileReport:
        boots = [self._watch(number) for number in range(self.options.boots)]
        touched = union(empty_ranges(), *(one.touched for one in boots))
        proofs: list[Trial] = []
        for number in range(PROOFS):
            draft = self.work / f"draft-{number}"
            self._write(draft, touched, len(boots))
            proofs.append(self._prove(draft, number))
            if proofs[-1].reached or number == PROOFS - 1:
                break
            # What it lacked was read, too; and another boot finds more than one thing at a time.
            boots.append(self._watch(len(boots)))
            touched = union(touched, proofs[-1].touched, boots[-1].touched)
            shutil.rmtree(draft)
        with open_pack(str(draft)) as written:
            return self._issue(written, touched, boots, proofs)

    def _watch(self, number: int) -> Trial:
        with self.progress.stage(f"boot {number + 1}", 0):
            trial = self.watched.boot(self.options.goal)
        if not trial.reached:
            raise GoalMissedError(self.options.goal, trial)
        self.options.told(
            f"boot {number + 1}: {trial.seconds:.1f} s, read {format_bytes(total(trial.touched))}"
        )
        return trial

    def _write(self, draft: Path, touched: Ranges, boots: int) -> None:
        config, goal = self.base.config, self.options.goal
        found = Boots(PROFILED, goal.marker, int(goal.idle_seconds), boots, total(touched))
        options = PackOptions(
            config.name,
            self.options.version,
            config.expires,
            config.sources,
            base=self.base,
            on_base=True,
            touched=touched,
            boots=found,
            keep_free=keeps_free(self.base.map),
            incomplete=True,
            resolve=recalled(self.base.hints.packages),
            jobs=self.options.jobs,
        )
        pack(self.watched.uri, f"{draft}/", options, [], self.progress)

    def _prove(self, draft: Path, number: int) -> Trial:
        """Boot the boot copy of a draft with every source cut off."""
        alone = self.work / f"boot-{number}.vmpack"
        with open_pack(str(draft)) as written, create_layout(alone) as writer:
            copy_packs([written], writer, Extent.BOOT, progress=self.progress)
        store = Store(self.work / f"nothing-{number}")
        served = DiskOrigin(str(alone), store, (f"store:{store.folder}",), offline=True)
        options = self.options
        with (
            open_pack(str(alone)) as copy,
            bench(
                copy, served, options.wishes, options.arguments, directory=options.directory
            ) as bare,
            self.progress.stage(f"proof {number + 1}", 0),
        ):
            trial = bare.boot(options.goal, strict=True)
        how = "reached" if trial.reached else f"not reached: {trial.why}"
        options.told(f"proof {number + 1}: {trial.seconds:.1f} s, {options.goal} {how}")
        return trial

    def _issue(
        self, draft: OpenedPack, touched: Ranges, boots: list[Trial], proofs: list[Trial]
    ) -> ProfileReport:
        contents, config = draft.map.contents, draft.config
        found = config.boots
        assert isinstance(found, Boots)
        level = PROVEN if proofs[-1].reached else PROFILED
        issued = issue(
            draft,
            self.output,
            msgspec.structs.replace(config, boots=msgspec.structs.replace(found, level=level)),
            self.keys,
            rotations=self.options.rotations,
            replace=self.options.replace,
            progress=self.progress,
        )
        titles = draft.manifest.bundles()
        return ProfileReport(
            issued,
            int(contents.size[contents.classes == Class.BOOT].sum()),
            total(touched),
            sum(one.size for title, one in titles.items() if title.startswith("boot")),
            tuple(boots),
            tuple(proofs),
        )
