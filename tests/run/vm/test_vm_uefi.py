"""A guest with UEFI firmware, and one that hears its power button."""

from __future__ import annotations

from pathlib import Path

import pytest

from packer.run.manage.session import stop_vm
from tests.round_trip.packs import packed
from tests.run.vms import BOOT_S, VmHost, boot_to, job_file, reports, vm_host

__all__ = ["vm_host"]

HEARS_S = 200.0
LISTEN = """\
modprobe button; modprobe evdev; udevadm settle
for one in /dev/input/event*; do
    systemd-run --quiet sh -c "head -c 24 $one > /dev/null; systemctl poweroff"
done
"""
"""The fixtures lack D-Bus, without which systemd-logind does not run, which is who listens."""


@pytest.mark.guest
@pytest.mark.slow
def test_a_uefi_guest_boots_from_its_pack_and_shuts_down_when_told(
    vm_host: VmHost, tmp_path: Path
) -> None:
    """Its variables are its own: what firmware and guest wrote there stays with the VM."""
    pack = packed("debian-uefi")
    vm = vm_host.vm(pack.full).changed(memory_mib=512, cpus=2)
    fresh = vm.variables.read_bytes()
    assert vm.record.hardware.machine.startswith("pc-q35-")
    with boot_to(vm, "uefi", stay=True, job=job_file(tmp_path, LISTEN)) as running:
        assert running.wait_for("VMPACK-JOB status=0", 3 * BOOT_S), running.console[-1000:]
        assert reports(running, "uefi"), running.console[-1000:]
    assert stop_vm(vm, HEARS_S).how == "guest"
    assert vm.variables.read_bytes() != fresh
