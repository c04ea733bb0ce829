"""What killed processes leave of VMs that they were making or removing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from packer.errors import InputError
from packer.run.manage.remove import remove_left_behind
from packer.run.qemu.processes import Process, identify
from packer.run.vm.folder import UNLOCKED_SECONDS, being_made, prepare_folder, remove_folder
from packer.run.vm.record import Record
from packer.run.vm.vm import all_vms, find_vm, vms_folder
from packer.sources.store import Store
from tests.run.vm.test_vm import RECORD, ended, made

__all__ = ["ended"]

NOTHING = np.zeros((0, 32), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def kept_by(store: Store, record: Record = RECORD) -> Record:
    return msgspec.structs.replace(record, store=str(store.folder))


def left_in(state: Path) -> list[str]:
    return sorted(path.name for path in vms_folder(state).iterdir())


def test_a_vm_that_is_being_made_is_nobody_elses_business(tmp_path: Path) -> None:
    with being_made(tmp_path) as folder:
        remove_left_behind(tmp_path)
        assert folder.is_dir()
    assert left_in(tmp_path) == []


_KILLED_WHILE_IT_MAKES = """
import os, signal, sys
from pathlib import Path
import msgspec, numpy
from packer.run.vm.folder import being_made, publish
from packer.run.vm.record import Record, write_record
from packer.sources.store import Store

record = msgspec.json.decode(sys.argv[2], type=Record)
with being_made(Path(sys.argv[1])) as folder:
    write_record(folder, record)
    Store(Path(record.store)).leases.lease(record.uuid, numpy.zeros((0, 32), dtype=numpy.uint8))
    if sys.argv[3] == "named":
        publish(folder, record, number=False)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["named", "not yet"])
def test_whose_maker_was_killed_is_whole_or_goes_with_its_lease(
    tmp_path: Path, store: Store, when: str
) -> None:
    told = msgspec.json.encode(kept_by(store)).decode()
    line = [sys.executable, "-c", _KILLED_WHILE_IT_MAKES, str(tmp_path), told, when]
    assert subprocess.run(line, check=False, timeout=60).returncode == -signal.SIGKILL
    assert store.leases.has(RECORD.uuid)
    remove_left_behind(tmp_path)
    there = when == "named"
    assert left_in(tmp_path) == (["demo"] if there else [])
    assert store.leases.has(RECORD.uuid) == there


def test_a_folder_without_a_lock_stays_until_nobody_can_be_about_to_lock_it(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path)
    remove_left_behind(tmp_path)
    assert folder.is_dir()
    then = time.time() - UNLOCKED_SECONDS - 1
    os.utime(folder, (then, then))
    remove_left_behind(tmp_path)
    assert left_in(tmp_path) == []


def test_a_lock_that_somebody_tidied_away_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its being made and its being locked."""
    real = fcntl.flock
    tidied: list[Path] = []

    def flock(fd: int, how: int) -> None:
        if not tidied:
            tidied.append(Path(f"/proc/self/fd/{fd}").readlink())
            tidied[0].unlink()
            tidied[0].parent.rmdir()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with being_made(tmp_path) as folder:
        assert tidied
        assert tidied[0].parent != folder
        assert (folder / "lock").exists()


def test_who_removes_a_vm_and_is_killed_leaves_the_rest_to_the_next(
    tmp_path: Path, store: Store
) -> None:
    vm = made(tmp_path, kept_by(store))
    store.leases.lease(vm.lease, NOTHING)
    vm.folder.rename(vm.folder.with_name(".gone-0123"))
    remove_left_behind(tmp_path)
    assert left_in(tmp_path) == []
    assert not store.leases.has(vm.lease)


def test_what_is_named_as_if_it_were_left_behind_and_leads_elsewhere_is_not_touched(
    tmp_path: Path, store: Store
) -> None:
    """Somebody else's stick must not take from this host's VMs what they rely on."""
    own = made(tmp_path / "state", kept_by(store))
    store.leases.lease(own.lease, NOTHING)
    stick = vms_folder(tmp_path / "stick")
    stick.mkdir(parents=True)
    for name in (".gone-0123", ".new-0123", "demo"):
        (stick / name).symlink_to(own.folder)
    remove_left_behind(tmp_path / "stick")
    assert store.leases.has(own.lease)
    assert sorted(path.name for path in own.folder.iterdir()) == ["vm.json"]
    with pytest.raises(InputError, match="leads elsewhere"):
        find_vm("demo", tmp_path / "stick")


def test_an_ephemeral_vm_stays_while_its_maker_may_start_it(tmp_path: Path, ended: Process) -> None:
    own = identify(os.getpid())
    for maker, left in ((own, ["demo"]), (ended, []), (None, [])):
        made(tmp_path, msgspec.structs.replace(RECORD, ephemeral=True, maker=maker))
        remove_left_behind(tmp_path)
        assert left_in(tmp_path) == left
        for vm in all_vms(tmp_path):
            remove_folder(vm.folder)


def test_a_vm_that_is_no_more_loses_its_lease(tmp_path: Path, store: Store) -> None:
    vm = made(tmp_path, kept_by(store))
    store.leases.lease(vm.lease, NOTHING)
    remove_folder(vm.folder)
    assert not store.leases.has(vm.lease)
