"""The boot set that was seen is enough: the boot copy alone comes as far."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import numpy as np
import pytest

from fixtures.boot import guest_arguments
from packer.artifact.config import PROVEN, Boots
from packer.artifact.contents import Class
from packer.artifact.opened import OpenedPack
from packer.errors import MismatchError
from packer.run.manage.profile import ProfileOptions, ProfileReport, profile
from packer.run.manage.trial import Goal, GoalMissedError
from packer.run.vm.create import DiskOrigin, Wishes
from packer.sources.open import open_pack
from packer.sources.store import Store
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import differences
from tests.round_trip.packs import Packed
from tests.run.vms import BOOT_S, MEMORY, VmHost, job_file, vm_host

__all__ = ["vm_host"]

pytestmark = pytest.mark.guest

OWN = "/srv/vmpack/own-data"
HERE = "the guest is here"
PIECE = f"dd if={OWN} of=/dev/null bs=65536 skip=16 count=4"
ALL = f"cat {OWN} > /dev/null"
SAY = f"\necho '{HERE}' > /dev/console\nsleep 5\n"
"""The files are checked after that, all of which are read then."""

WISHES = Wishes(memory_mib=int(MEMORY), cpus=1, accelerator="tcg", network="none")


def pieces_of(pack: OpenedPack, path: str) -> list[tuple[int, int, Class]]:
    """(first byte in the file, size, class) of each content of a file."""
    hints, contents = pack.hints, pack.map.contents
    rows = [row for row, one in enumerate(hints.path) if one == path]
    return sorted(
        (
            int(hints.file_offset[row]),
            int(contents.size[hints.content[row]]),
            Class(int(contents.classes[hints.content[row]])),
        )
        for row in rows
    )


def profiled(vm_host: VmHost, pack: Path, output: Path, options: ProfileOptions) -> ProfileReport:
    store = Store(vm_host.vmpack.home / "data" / "store")
    with open_pack(str(pack)) as base:
        return profile(base, DiskOrigin(str(pack), store, ("store:",)), output, [], options)


@pytest.mark.timeout(900)
def test_boots_that_differ_are_watched_until_the_boot_copy_is_enough(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    """The first boot reads a piece of a file, all later ones read all of it."""
    job = job_file(tmp_path, PIECE + SAY)
    said: list[str] = []

    def told(line: str) -> None:
        said.append(line)
        job.write_text(ALL + SAY)

    output = tmp_path / "profiled.vmpack"
    arguments = tuple(guest_arguments("x", job_file=job))
    goal = Goal(HERE, timeout_seconds=BOOT_S)
    report = profiled(
        vm_host,
        busybox.full,
        output,
        ProfileOptions(goal, 2, boots=1, wishes=WISHES, arguments=arguments, told=told),
    )
    assert [one.reached for one in report.proofs] == [False, True]
    assert report.proofs[0].missing
    assert [line.partition(":")[0] for line in said] == ["boot 1", "proof 1", "boot 2", "proof 2"]
    assert report.proven
    assert report.boot_bytes <= 1.2 * report.touched_bytes
    with open_pack(str(busybox.full)) as base, open_pack(str(output)) as found:
        assert found.config.boots == Boots(PROVEN, HERE, 0, 2, report.touched_bytes)
        assert found.config.ref_name == "busybox:2"
        assert found.config.guest == base.config.guest
        assert found.config.dropped == base.config.dropped
        assert pieces_of(found, OWN) == [(0, 5_000_000, Class.BOOT)]
        # In the boot folder, and nobody reads it: it need not be in every copy.
        unread = "/boot/grub/i386-pc/grub-bios-setup"
        assert [one for _, _, one in pieces_of(base, unread)] == [Class.BOOT]
        assert max(pieces_of(found, unread), key=lambda piece: piece[1])[2] == Class.PRIVATE
    assert not list(tmp_path.glob(".vmpack-profile-*"))
    assert not vm_host.vms()
    same_disk(vm_host.vmpack, busybox.full, output, tmp_path)


def same_disk(vmpack: Vmpack, before: Path, after: Path, folder: Path) -> None:
    """Both packs rebuild the same disk."""
    for pack, name in ((before, "before.raw"), (after, "after.raw")):
        vmpack.good(
            "unpack", pack, "-o", folder / name, "--allow-unsigned", "--no-store", "-q",
            "--from", f"pack:{pack}",
        )  # fmt: skip
    assert differences(folder / "before.raw", folder / "after.raw") == []


@pytest.mark.timeout(600)
def test_the_verb_cuts_files_and_signs_what_it_has_proven(
    author: Vmpack, vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    job = job_file(tmp_path, PIECE + SAY)
    output = tmp_path / "profiled.vmpack"
    arguments = guest_arguments("x", job_file=job)
    said = author.good(
        "profile", "--json", busybox.full, "-o", output, "--boots", "1", "--marker", HERE,
        "--accel", "tcg", "--memory", MEMORY, "--cpus", "1", "--net", "none",
        "--timeout", str(BOOT_S), "--from", "store:", "--", *arguments,
    )  # fmt: skip
    report = json.loads(said)
    assert report["proven"]
    assert report["proofs"][-1]["missing"] == []
    suppliers = {one["source"].partition(":")[0] for one in report["proofs"][-1]["supplied"]
                 if one["content_bytes"]}  # fmt: skip
    assert suppliers == {"pack"}
    assert report["signers"]
    with open_pack(str(output)) as found:
        pieces = pieces_of(found, OWN)
        assert [one for _, _, one in pieces] == [Class.PRIVATE, Class.BOOT, Class.PRIVATE]
        # Four blocks of 64 KiB were read from 1 MiB on, and what the kernel reads ahead.
        start, size, _ = pieces[1]
        assert start <= 1 << 20 < (1 << 20) + (4 << 16) <= start + size
        assert size <= 1 << 20
        boot = found.map.contents.classes == Class.BOOT
        assert int(found.map.contents.size[boot].sum()) == report["boot_bytes"]
        bundles = found.manifest.bundles()
        held = found.index.only([bundles["boot"].digest], found.map.contents).content
        assert held.tolist() == np.flatnonzero(boot).tolist()
    assert author("inspect", output).returncode == 0


@pytest.mark.timeout(600)
def test_an_idle_disk_is_a_goal_too(vm_host: VmHost, busybox: Packed, tmp_path: Path) -> None:
    job = job_file(tmp_path, "sleep 600\n")
    arguments = tuple(guest_arguments("x", job_file=job))
    goal = Goal(idle_seconds=6.0, timeout_seconds=BOOT_S)
    options = ProfileOptions(goal, 2, boots=1, wishes=WISHES, arguments=arguments)
    report = profiled(vm_host, busybox.full, tmp_path / "idle.vmpack", options)
    assert report.proven
    with open_pack(str(tmp_path / "idle.vmpack")) as found:
        assert found.config.boots == Boots(PROVEN, "", 6, len(report.boots), report.touched_bytes)
        assert {one for _, _, one in pieces_of(found, OWN)} == {Class.PRIVATE}


def test_where_nothing_can_be_written_no_guest_is_started(vm_host: VmHost, busybox: Packed) -> None:
    done = vm_host.vmpack(
        "profile", busybox.full, "-o", "/proc/next", "--unsigned", "--marker", "x"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vmpack: /proc: cannot be written: ")


def test_a_guest_that_does_not_come_to_the_marker_gives_no_pack(
    vm_host: VmHost, busybox: Packed, tmp_path: Path
) -> None:
    goal = Goal(secrets.token_hex(8), timeout_seconds=5.0)
    options = ProfileOptions(goal, 2, boots=1, wishes=WISHES)
    with pytest.raises(GoalMissedError, match="no more patience") as caught:
        profiled(vm_host, busybox.full, tmp_path / "none.vmpack", options)
    assert isinstance(caught.value, MismatchError)
    assert list(tmp_path.iterdir()) == [vm_host.vmpack.home]
    assert not vm_host.vms()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thin_debian_needs_no_source_after_its_profile(
    author: Vmpack, vm_host: VmHost, pack_guest: type, tmp_path: Path
) -> None:
    """Of a thin pack with this host's files as sources; then its boot copy is all there is."""
    debian: Packed = pack_guest("debian-bios")
    output = tmp_path / "debian-2.vmpack"
    said = author.good(
        "profile", "--json", debian.thin, "-o", output, "--boots", "1", "--marker", "nonce=slow",
        "--accel", "tcg", "--memory", "512", "--net", "none", "--timeout", "600",
        "--from", f"pack:{debian.full}", "--", *guest_arguments("slow"),
    )  # fmt: skip
    report = json.loads(said)
    assert report["proven"]
    assert report["boot_bytes"] <= 1.2 * report["touched_bytes"]
    with open_pack(str(output)) as found, open_pack(str(debian.thin)) as base:
        assert not any(title.startswith("shared") for title in found.manifest.bundles())
        cut = [path for path in set(found.hints.path) if len(pieces_of(found, path)) > 1]
        assert len(found.map.contents) > len(base.map.contents)
        assert cut
