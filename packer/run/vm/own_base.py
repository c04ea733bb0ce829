"""A VM whose disk below the overlay is its own: what is written down of that, and what is let go.

Detaching goes step by step, and after each of them the VM works:

1. base.raw appears in its folder, every byte proven; the VM still reads from its server.
2. vm.json names it: each start from now on reads it. The same bytes lie below the overlay before
   and after, so it does not matter when somebody turns to the other.
3. A QEMU that runs turns to it (packer.run.supervisor.swap).
4. The lease in the store is released.
5. The overlay names it for other programs. While QEMU runs this cannot be done: what QEMU would
   write down then (change-backing-file) says that the base has the overlay's format, qcow2.

Whoever finds a VM between two steps does the rest: its supervisor, the next `run`, `stop`, `ps` or
`detach`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from formats.container.qcow2 import read_backing, read_header
from formats.errors import FormatError
from formats.source import FileSource
from packer.errors import Error, InputError, MismatchError
from packer.run.qemu import programs
from packer.run.vm.lease import release_lease
from packer.run.vm.record import BASE_FILE
from packer.run.vm.vm import Vm

_BASE_FORMAT = "raw"


def note_base(vm: Vm, config: str) -> Vm:
    """Write down that the base of a VM lies in its folder (step 2). The caller holds its lock.

    config: of the pack that it was made of. Raises MismatchError for another one than the VM's.
    """
    vm = vm.read_again()
    record, base = vm.record, vm.folder / BASE_FILE
    if record.config != config:
        raise MismatchError(
            f"the VM {vm.name} has another base meanwhile: expected {config}, "
            f"found {record.config}, {record.ref_name}",
            hint="the same command makes that one its own",
        )
    size = _size_of(base)
    if size != record.disk_bytes:
        raise MismatchError(f"{base}: expected {record.disk_bytes:,} bytes, found {size:,}")
    return vm.changed(base=BASE_FILE)


def name_base(vm: Vm) -> None:
    """Let the overlay name the base as it is (step 5), if it does not.

    The caller holds the VM's lock, and no QEMU runs. Raises InUseError if one does all the same.
    """
    if vm.base is None or _named_by(vm.overlay) == (vm.record.base, _BASE_FORMAT):
        return
    vm.refuse_if_in_use()
    programs.ask(
        programs.find(programs.IMAGE_TOOL),
        *("rebase", "-u", "-f", "qcow2", "-F", _BASE_FORMAT, "-b", vm.record.base),
        str(vm.overlay),
    )


def finish_left_behind(vms: Iterable[Vm]) -> None:
    """Do what is left for VMs that were detached and whose supervisor was killed."""
    for vm in vms:
        if vm.base is None:
            continue
        with suppress(Error), vm.idle() as now:  # a list of VMs is no place to fail for that
            release_lease(now)
            name_base(now)


def _named_by(overlay: Path) -> tuple[str, str]:
    """Return (name, format) of what an overlay says that lies below it."""
    try:
        source = FileSource(overlay)
        try:
            return read_backing(source, read_header(source))
        finally:
            source.close()
    except (FormatError, OSError) as error:
        raise InputError(f"{overlay}: {error}") from error


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise Error(f"{path}: {error.strerror}") from error
