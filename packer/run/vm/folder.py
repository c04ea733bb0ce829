"""The folder of a VM while it has no name: it is being made, or removed.

    STATE/vms/.new-…/lock   held by who makes it; it is the lock of the VM, once that has its name
                    vm.json names its lease in the store, before there is one
    STATE/vms/.gone-…       what nobody has removed yet, vm.json with it as long as there is a lease

A VM has its lease before it has its name, and its name no more before it loses the lease. So
whoever is killed leaves a VM that is whole, or a folder that `remove_unnamed` knows to be none.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from packer.errors import Error, InputError, InUseError
from packer.run.vm.record import (
    MAX_VM_NAME,
    Record,
    VmMissingError,
    read_record,
    write_record,
)
from packer.run.vm.vm import STATE_HINT, Vm, lock_vm, vms_folder
from packer.sources.store import Store

NEW_PREFIX, GONE_PREFIX = ".new-", ".gone-"
UNLOCKED_SECONDS = 3600.0
"""How long a folder without a lock stays: who makes one may be about to lock it."""

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextmanager
def being_made(state: Path | None) -> Iterator[Path]:
    """Give a new folder for a VM, locked; at the end it is gone, unless it was given a name."""
    folder, lock = _locked_folder(state)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def prepare_folder(state: Path | None) -> Path:
    """Return a new folder in which a VM is made; nobody has locked it yet. Raises Error."""
    place = vms_folder(state)
    folder = _unnamed(place, NEW_PREFIX)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise Error(f"{place}: cannot be written: {error.strerror}", hint=STATE_HINT) from error
    return folder


def _unnamed(place: Path, prefix: str) -> Path:
    """Return a path at which nothing lies."""
    return place / f"{prefix}{secrets.token_hex(8)}"


def _locked_folder(state: Path | None) -> tuple[Path, int]:
    while True:
        folder = prepare_folder(state)
        with suppress(VmMissingError):  # somebody tidied up before it was locked
            lock = lock_vm(folder)
            if lock is not None:
                return folder, lock


def publish(folder: Path, record: Record, *, number: bool) -> Vm:
    """Give a VM that was prepared in a folder its name, and return it.

    number: whether NAME-2, NAME-3, … will do where the name is taken. Raises InUseError, Error.
    """
    name, tried = record.name, 1
    while True:
        named = msgspec.structs.replace(record, name=name)
        write_record(folder, named)
        final = folder.with_name(name)
        try:
            folder.rename(final)  # no folder replaces one that holds something
            return Vm(final, named)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise Error(f"{final}: cannot be made: {error.strerror}") from error
        if not number:
            raise InUseError(
                f"there is a VM {name} already", hint="--new makes another, --name calls it"
            )
        tried += 1
        name = f"{record.name[: MAX_VM_NAME - 8]}-{tried}"


def remove_folder(folder: Path) -> None:
    """Remove a VM: first its name, so that nobody meets half of one, then its lease, then the rest.

    The caller holds its lock, and it does not run. Raises Error.
    """
    gone = _unnamed(folder.parent, GONE_PREFIX)
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Error(f"{folder}: cannot be removed: {error.strerror}") from error
    _clear(gone)


def remove_unnamed(state: Path | None) -> None:
    """Remove what killed processes have left of VMs that they were making or removing."""
    place = vms_folder(state)
    for folder in (*place.glob(f"{GONE_PREFIX}*"), *place.glob(f"{NEW_PREFIX}*")):
        with suppress(Error, OSError):  # it stays for the next one
            if not folder.is_symlink() and not _is_new(folder):
                _remove_if_free(folder)


def _is_new(folder: Path) -> bool:
    """Return whether a folder may be about to be locked by who has just made it."""
    unlocked = folder.name.startswith(NEW_PREFIX) and not (folder / "lock").exists()
    return unlocked and time.time() - folder.stat().st_mtime < UNLOCKED_SECONDS


def _remove_if_free(folder: Path) -> None:
    lock = lock_vm(folder)
    if lock is None:
        return
    try:
        _clear(folder)
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    """Remove a folder without a name, and before it the lease that is noted there. Raises Error."""
    try:
        with suppress(VmMissingError, InputError):
            record = read_record(folder)
            Store(Path(record.store)).leases.release(record.uuid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
