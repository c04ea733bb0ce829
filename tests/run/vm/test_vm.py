"""What is written down about a VM, and who may use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from packer.errors import Error, InputError, InUseError, UsageError
from packer.run.manage.remove import remove_left_behind
from packer.run.qemu.hardware import Hardware, usual_memory_mib
from packer.run.qemu.processes import Process, boot_id, identify, is_alive, open_process
from packer.run.vm.folder import prepare_folder, publish, remove_folder
from packer.run.vm.record import Record, Running, VmMissingError
from packer.run.vm.vm import (
    DamagedVm,
    Vm,
    all_vms,
    check_name,
    find_vm,
    new_mac,
    the_vm,
)

RECORD = Record(
    name="demo",
    pack="/packs/demo.vmpack",
    config="sha256:" + "0" * 64,
    ref_name="demo:1",
    disk_bytes=1 << 20,
    store="/store",
    uuid="3bb41a5f-0a1f-4d0c-9d8c-3f2f6c0c2b0e",
    mac="52:54:00:01:02:03",
    hardware=Hardware(
        machine="pc-i440fx-7.2",
        firmware="bios",
        disk="virtio",
        network="virtio-net-pci",
        clock="utc",
    ),
    memory_mib=256,
    cpus=1,
)


def made(state: Path, record: Record = RECORD, *, number: bool = False) -> Vm:
    return publish(prepare_folder(state), record, number=number)


@pytest.fixture
def ended() -> Process:
    """A process that has ended, whose id no other has taken yet."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = identify(child.pid)
        child.communicate(b"\n")
    assert found is not None
    return found


def running_as(process: Process) -> Running:
    return Running(process=process, runtime="/r", accelerator="tcg", console_start=0, started=0.0)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    vm = made(tmp_path)
    assert find_vm("demo", tmp_path) == vm
    assert vm.record == RECORD
    changed = vm.changed(memory_mib=512)
    assert the_vm("demo", tmp_path).record == changed.record
    assert changed.record.memory_mib == 512


def test_a_taken_name_is_refused_or_numbered(tmp_path: Path) -> None:
    first = made(tmp_path)
    with pytest.raises(InUseError, match="a VM demo already"):
        made(tmp_path)
    assert [made(tmp_path, number=True).name for _ in range(2)] == ["demo-2", "demo-3"]
    assert [vm.name for vm in all_vms(tmp_path)] == ["demo", "demo-2", "demo-3"]
    assert find_vm("demo", tmp_path) == first


def test_a_vm_that_is_being_made_or_removed_is_not_seen(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path)
    (folder / "vm.json").write_bytes(msgspec.json.encode(RECORD))
    assert list(all_vms(tmp_path)) == []
    vm = made(tmp_path)
    remove_folder(vm.folder)
    remove_folder(vm.folder)
    assert find_vm("demo", tmp_path) is None


@pytest.mark.parametrize("name", ["", ".", "..", "-x", ".hidden", "a/b", "a b", "ä", "a" * 65])
def test_a_name_is_that_of_a_lease(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a name of a VM"):
        check_name(name)
    assert find_vm(name, tmp_path) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2),
        ("memory_mib", -1),
        ("memory_mib", "much"),
        ("disk_bytes", 0),
        ("accelerator", "--help"),
        ("network", "tap,script=/bin/sh"),
        ("hardware", {"machine": "pc"}),
        ("hardware", {**msgspec.to_builtins(RECORD.hardware), "machine": "pc,pflash0=code"}),
        ("uuid", None),
        ("uuid", RECORD.uuid + ",x=y"),
        ("mac", RECORD.mac + ",guestfwd=tcp:10.0.2.100:1-cmd:/bin/sh"),
        ("mac", RECORD.mac + "\n"),
        ("name", "../../leases/other"),
        ("config", "sha256:../../x"),
        ("ref_name", "demo\x1b[2J:1"),
        ("ref_name", "demo:one"),
        ("store", "store"),
        ("store", "/store\0"),
        ("pack", "/packs/\0"),
        ("sources", ["dir:/\0"]),
    ],
)
def test_a_record_that_cannot_be_is_one_clear_error(
    tmp_path: Path, key: str, value: object
) -> None:
    path = made(tmp_path).folder / "vm.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(Error, match=key):
        find_vm("demo", tmp_path)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000, b"null"])
def test_a_damaged_record_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    path = made(tmp_path).folder / "vm.json"
    path.write_bytes(data)
    with pytest.raises(Error, match=r"vm\.json"):
        find_vm("demo", tmp_path)


@pytest.mark.parametrize("name", ["console.log", "overlay.qcow2", "vm.json", "supervisor.old", "x"])
def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """Somebody else's stick: its guest would write to files of this host's user."""
    vm = made(tmp_path / "state")
    other = tmp_path / "other"
    other.write_bytes(b"of the user")
    (vm.folder / name).unlink(missing_ok=True)
    (vm.folder / name).symlink_to(other)
    with pytest.raises(InputError, match=name):
        find_vm("demo", tmp_path / "state")
    assert other.read_bytes() == b"of the user"


@pytest.mark.parametrize("target", ["..", "vm.json"])
def test_a_link_that_vmpack_does_not_lay_is_refused(tmp_path: Path, target: str) -> None:
    (made(tmp_path).folder / "console.old").symlink_to(target)
    with pytest.raises(InputError, match=r"console\.old"):
        find_vm("demo", tmp_path)


def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    vm = made(tmp_path)
    (vm.folder / "vm.json").unlink()
    os.mkfifo(vm.folder / "vm.json")
    with pytest.raises(InputError, match=r"vm\.json"):
        find_vm("demo", tmp_path)


def test_a_name_that_a_domain_has_for_the_overlay_may_stay(tmp_path: Path) -> None:
    vm = made(tmp_path)
    (vm.folder / "overlay.0123.qcow2").symlink_to("overlay.qcow2")
    assert find_vm("demo", tmp_path) == vm


def test_a_lock_that_was_waited_for_is_not_that_of_a_vm_removed_meanwhile(tmp_path: Path) -> None:
    vm = made(tmp_path)
    fd = vm.lock()
    assert fd is not None
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(vm.lock, seconds=20.0)
        time.sleep(0.5)
        remove_folder(vm.folder)
        made(tmp_path)
        os.close(fd)
        with pytest.raises(VmMissingError, match="removed meanwhile"):
            waiting.result()


def test_who_holds_a_vm_sees_what_was_written_down_last(tmp_path: Path) -> None:
    vm = made(tmp_path)
    vm.changed(memory_mib=512)
    with vm.held() as now:
        assert now is not None
        assert now.record.memory_mib == 512
        with vm.held() as other:
            assert other is None
    remove_folder(vm.folder)
    made(tmp_path, msgspec.structs.replace(RECORD, uuid=RECORD.uuid.replace("3", "4")))
    with pytest.raises(VmMissingError, match="another is called so"), vm.held():
        pass


def spoil(vm: Vm, how: str) -> None:
    path = vm.folder / "vm.json"
    path.unlink()
    if how == "no JSON":
        path.write_bytes(b"{")
    elif how == "a folder":
        path.mkdir()


@pytest.mark.parametrize("how", ["no JSON", "a folder", "missing"])
def test_a_damaged_vm_is_passed_over_where_others_are_meant(tmp_path: Path, how: str) -> None:
    made(tmp_path)
    bad = made(tmp_path, msgspec.structs.replace(RECORD, name="bad"))
    spoil(bad, how)
    (bad.folder.parent / "notes").write_text("no folder is no VM")
    damaged: list[DamagedVm] = []
    assert [vm.name for vm in all_vms(tmp_path, damaged=damaged)] == ["demo"]
    assert [one.folder for one in damaged] == [bad.folder]
    with pytest.raises(Error, match="bad"):
        list(all_vms(tmp_path))
    remove_left_behind(tmp_path)  # nor does it keep others from being started
    assert bad.folder.exists()


def test_one_process_at_a_time_has_the_lock(tmp_path: Path) -> None:
    vm = made(tmp_path)
    fd = vm.lock()
    assert fd is not None
    assert vm.lock() is None
    os.close(fd)
    fd = vm.lock()
    assert fd is not None
    os.close(fd)


def test_a_qemu_is_known_while_it_lives(tmp_path: Path, ended: Process) -> None:
    vm = made(tmp_path)
    own = identify(os.getpid())
    assert own is not None
    vm.note_running(running_as(own))
    found = vm.running()
    assert found is not None
    assert found.process == own
    for other in (
        ended,
        msgspec.structs.replace(own, started=own.started + 1),  # its id has another process now
        msgspec.structs.replace(own, boot="before"),
    ):
        vm.note_running(running_as(other))
        assert vm.running() is None
    vm.note_running(None)
    assert vm.running() is None


def test_a_note_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    vm = made(tmp_path)
    with (vm.folder / "running.json").open("wb") as file:
        file.truncate(1 << 42)
    assert vm.running() is None


def test_what_cannot_be_locked_is_one_clear_error(tmp_path: Path) -> None:
    vm = made(tmp_path)
    (vm.folder / "lock").mkdir()
    with pytest.raises(Error, match="lock: Is a directory"):
        vm.lock()


def test_who_finds_a_vm_busy_is_told_why(tmp_path: Path) -> None:
    vm = made(tmp_path)
    with vm.idle() as now:
        assert now == vm
        with (
            pytest.raises(InUseError, match="another vmpack starts or changes the VM demo"),
            vm.idle(),
        ):
            pass
        own = identify(os.getpid())
        assert own is not None
        vm.note_running(running_as(own))
        with pytest.raises(InUseError, match="the VM demo runs"), vm.idle():
            pass
    with pytest.raises(InUseError, match="the VM demo runs"), vm.idle():
        pass


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"process": 1}', b"\xff" * 100, b'{"x": ' + b"[" * 100_000]
)
def test_a_damaged_note_means_that_nothing_runs(tmp_path: Path, data: bytes) -> None:
    vm = made(tmp_path)
    (vm.folder / "running.json").write_bytes(data)
    assert vm.running() is None


def test_a_descriptor_of_a_process_is_only_had_of_that_one(ended: Process) -> None:
    own = identify(os.getpid())
    assert own is not None
    assert own.boot == boot_id() != ""
    fd = open_process(own)
    assert fd is not None
    os.close(fd)
    assert open_process(ended) is None
    assert open_process(msgspec.structs.replace(own, started=1)) is None
    assert not is_alive(ended)


def test_a_zombie_does_not_live() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = identify(child.pid)
        assert found is not None
        assert is_alive(found)
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(found)


def test_hardware_addresses_differ_and_are_local() -> None:
    found = {new_mac() for _ in range(50)}
    assert len(found) == 50
    assert all(int(mac.split(":")[0], 16) & 3 == 2 for mac in found)  # local, not multicast


@pytest.mark.parametrize(("host_gib", "mib"), [(64, 2048), (8, 2048), (4, 1024), (0.25, 128)])
def test_a_guest_gets_a_part_of_the_memory_at_most(host_gib: float, mib: int) -> None:
    assert usual_memory_mib(int(host_gib * (1 << 30))) == mib
