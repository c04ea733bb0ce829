"""QEMU takes what it is told, runs what it should, and is found by trying."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from packer.artifact.config import Guest
from packer.errors import Error, InputError
from packer.run.qemu import accelerator, firmware, programs
from packer.run.qemu.accelerator import find_accelerator, runs
from packer.run.qemu.firmware import FirmwareMissingError, find_uefi
from packer.run.qemu.hardware import Hardware, choose_hardware
from packer.run.qemu.processes import identify
from packer.run.qemu.programs import QemuError
from packer.run.qemu.qmp import Event, Monitor, MonitorError, Shutdown
from packer.run.vm import command_line
from packer.run.vm.record import BASE_FILE
from packer.run.vm.vm import Vm
from tests.run.serving import wait_until
from tests.run.vm.test_vm import RECORD, made

EMULATOR = programs.find(programs.EMULATOR)


# -- accelerators ----------------------------------------------------------------------------------


def standing_in(folder: Path, script: str) -> tuple[Path, Path]:
    """A program in QEMU's place, and the list of its calls."""
    calls, program = folder / "calls", folder / "qemu"
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{script}\n')
    program.chmod(0o755)
    return program, calls


HANGS_UNDER_KVM = f"""case "$*" in *"-accel kvm"*) exec sleep 60;; esac
exec {EMULATOR} "$@\""""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(accelerator, "TRY_SECONDS", 20.0)
    return tmp_path


def test_a_guest_runs_under_emulation(home: Path) -> None:
    assert runs(EMULATOR, "tcg")


@pytest.mark.parametrize("script", ["exit 1", "exit 0", "kill -ABRT $$"])
def test_a_qemu_whose_guest_does_not_calculate_does_not_count(home: Path, script: str) -> None:
    program, _ = standing_in(home, script)
    assert not runs(program, "kvm")


def test_an_accelerator_that_hangs_is_passed_over_in_time(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "TRY_SECONDS", 1.0)
    program, _ = standing_in(home, HANGS_UNDER_KVM)
    began = time.monotonic()
    assert find_accelerator(program) == "tcg"
    assert time.monotonic() - began < 15


def test_what_was_found_is_remembered_for_this_qemu_and_this_boot(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, calls = standing_in(home, "exit 85")  # a host where kvm works
    assert find_accelerator(program) == "kvm"
    assert find_accelerator(program) == "kvm"
    assert len(calls.read_text().splitlines()) == 1

    monkeypatch.setattr(accelerator, "boot_id", lambda: "the next one")
    assert find_accelerator(program) == "kvm"
    assert len(calls.read_text().splitlines()) == 2

    program, calls = standing_in(home, "exit 1")  # replaced by another, under which nothing works
    assert find_accelerator(program) == "tcg"


def test_a_memory_that_is_damaged_is_no_memory(home: Path) -> None:
    program, calls = standing_in(home, "exit 85")
    assert find_accelerator(program) == "kvm"
    for path in (home / "home" / "cache" / "accelerators").iterdir():
        path.write_text('{"accelerator": "magic"}')
    assert find_accelerator(program) == "kvm"
    assert len(calls.read_text().splitlines()) == 2


# -- firmware --------------------------------------------------------------------------------------


def described(
    folder: Path, name: str, *, size: int = 64, other: dict[str, object] | None = None
) -> Path:
    """A description of firmware as in QEMU's docs/interop/firmware.json, and its two files."""
    folder.mkdir(exist_ok=True)
    code, variables = folder / f"{name}.code", folder / f"{name}.variables"
    code.write_bytes(bytes(1024))
    variables.write_bytes(bytes(size))
    description = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(variables), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": [],
        **(other or {}),
    }
    (folder / f"{name}.json").write_text(json.dumps(description))
    return code


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The two folders of descriptions, the administrator's first; nothing is known otherwise."""
    folders = tmp_path / "etc", tmp_path / "usr"
    monkeypatch.setattr(firmware, "DESCRIPTIONS", folders)
    monkeypatch.setattr(firmware, "KNOWN", ())
    return folders


def test_this_host_has_firmware() -> None:
    found = find_uefi()
    assert found.code.stat().st_size > 1 << 20
    assert find_uefi(variables_bytes=found.variables.stat().st_size) == found


def test_the_first_that_fits_is_taken(places: tuple[Path, Path]) -> None:
    _, usr = places
    described(usr, "40-secure", other={"features": ["secure-boot", "requires-smm"]})
    described(usr, "45-arm", other={"targets": [{"architecture": "aarch64"}]})
    described(usr, "46-bios", other={"interface-types": ["bios"]})
    expected = described(usr, "50-plain")
    described(usr, "60-later")
    (usr / "10-damaged.json").write_text("{")
    assert find_uefi().code == expected


def test_the_administrator_hides_what_the_distribution_describes(
    places: tuple[Path, Path],
) -> None:
    etc, usr = places
    described(usr, "50-plain")
    expected = described(usr, "60-later")
    etc.mkdir()
    (etc / "50-plain.json").write_text("")
    assert find_uefi().code == expected


def test_variables_are_only_given_to_code_of_their_size(places: tuple[Path, Path]) -> None:
    _, usr = places
    described(usr, "50-small", size=64)
    expected = described(usr, "60-large", size=128)
    assert find_uefi(variables_bytes=128).code == expected
    with pytest.raises(FirmwareMissingError, match="for variables of 256 bytes"):
        find_uefi(variables_bytes=256)


def test_where_there_is_none_it_is_said_what_to_install(places: tuple[Path, Path]) -> None:
    with pytest.raises(FirmwareMissingError, match="no UEFI firmware here") as caught:
        find_uefi()
    assert "ovmf" in caught.value.hint


# -- machines --------------------------------------------------------------------------------------


def test_a_machine_is_pinned_to_its_version() -> None:
    found = choose_hardware(Guest(family="linux", firmware="uefi"), EMULATOR, "demo")
    assert found.machine.startswith("pc-q35-")
    assert found.machine != "pc-q35-"
    assert found.disk == "virtio"
    found = choose_hardware(Guest(family="windows", firmware="bios"), EMULATOR, "demo")
    assert found.machine.startswith("pc-i440fx-")
    assert (found.disk, found.network, found.clock) == ("ide", "e1000", "localtime")


@pytest.mark.parametrize(
    ("line", "machine"),
    [
        ("pc  Ubuntu 24.04 PC (i440FX + PIIX, 1996) (alias of pc-i440fx-noble)", "pc-i440fx-noble"),
        ("pc  RHEL 7.6.0 PC (i440FX) (alias of pc-i440fx-rhel7.6.0)", "pc-i440fx-rhel7.6.0"),
        ("pc  Ubuntu PC (HPB) (alias of pc-i440fx-jammy-hpb)", "pc-i440fx-jammy-hpb"),
    ],
)
def test_distributions_number_machines_in_their_own_way(
    tmp_path: Path, line: str, machine: str
) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho '{line}'\n")
    program.chmod(0o755)
    assert programs.pinned_machine(program, "pc") == machine


def test_a_guest_of_another_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="found aarch64"):
        choose_hardware(Guest(architecture="aarch64"), EMULATOR, "demo")


def test_a_program_that_is_not_there_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QemuError, match="no qemu-img here") as caught:
        programs.find(programs.IMAGE_TOOL)
    assert "qemu-utils" in caught.value.hint


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def odd_folder(short_folder: Path) -> Path:
    """With what separates options in QEMU's and in JSON's syntax."""
    folder = short_folder / 'a,b "c"'
    folder.mkdir()
    return folder


def hardware(guest: Guest) -> Hardware:
    return choose_hardware(guest, EMULATOR, "demo")


def ready(state: Path, guest: Guest) -> Vm:
    vm = made(state, msgspec.structs.replace(RECORD, hardware=hardware(guest)))
    command_line.make_overlay(vm.overlay, vm.record.disk_bytes, "nbd+unix:///?socket=/nowhere")
    if vm.record.hardware.firmware == "uefi":
        shutil.copyfile(find_uefi().variables, vm.variables)
    return vm


@pytest.fixture
def nbd(short_folder: Path) -> Iterator[Path]:
    """A server of a disk of zeros."""
    path = short_folder / "no,server"
    command = ["nbdkit", "--foreground", "--readonly", "--unix", str(path), "null", "size=1M"]
    with subprocess.Popen(command) as server:
        try:
            wait_until(path.exists)
            yield path
        finally:
            server.terminate()


@pytest.mark.parametrize("family", ["linux", "windows"])
@pytest.mark.parametrize("kind", ["bios", "uefi"])
def test_qemu_takes_its_command_line(
    odd_folder: Path, nbd: Path, short_folder: Path, family: str, kind: str
) -> None:
    """It builds the machine, opens its disk, and answers at its monitor."""
    vm = ready(odd_folder, Guest(family=family, firmware=kind)).changed(
        network="none" if family == "windows" else "user"
    )
    wiring = command_line.Wiring(nbd, odd_folder, "tcg")
    log = short_folder / "log"
    noted: list[int] = []
    child = command_line.launch(
        command_line.command(vm, wiring, ("-S",)), log, short_folder, noted.append
    )
    try:
        assert asyncio.run(status_of(wiring.monitor)) == "prelaunch", log.read_text()
        assert noted == [child.pid]
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()


def test_a_qemu_gives_up_what_no_guest_needs(odd_folder: Path, short_folder: Path) -> None:
    """By proc_pid_status(5): 2 is a filter of system calls."""
    vm = ready(odd_folder, Guest()).changed(base=BASE_FILE)
    assert vm.base is not None
    vm.base.write_bytes(bytes(vm.record.disk_bytes))
    wiring = command_line.Wiring(None, odd_folder, "tcg")
    log = short_folder / "log"
    for more, filters in ((), "2"), (("-sandbox", "off"), "0"):
        line = command_line.command(vm, wiring, ("-S", *more))
        child = command_line.launch(line, log, short_folder, lambda _: None)
        try:
            asyncio.run(Monitor(lambda _: None).connect(wiring.monitor))
            status = Path(f"/proc/{child.pid}/status").read_text()
            assert f"\nSeccomp:\t{filters}\n" in status, log.read_text()
        finally:
            child.kill()
            child.wait()
    with_window = command_line.command(vm, replace(wiring, window=True))
    assert "-sandbox" not in with_window  # its libraries may start programs


def test_a_qemu_without_a_sandbox_is_not_asked_for_one(tmp_path: Path) -> None:
    program, _ = standing_in(tmp_path, "exit 1")
    assert not programs.has_sandbox(program)
    assert programs.has_sandbox(EMULATOR)


_KILLED_WHILE_IT_NOTES = """
import os, signal, sys
from pathlib import Path
from packer.run.vm import command_line

def note(pid):
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

command_line.launch(["/bin/touch", "began"], Path("log"), Path.cwd(), note)
"""


def test_who_is_killed_before_a_qemu_is_noted_has_started_none(tmp_path: Path) -> None:
    line = [sys.executable, "-c", _KILLED_WHILE_IT_NOTES]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    wait_until(lambda: identify(pid) is None)
    assert not (tmp_path / "began").exists()


def test_a_qemu_that_cannot_be_noted_is_not_started(tmp_path: Path) -> None:
    def note(_pid: int) -> None:
        raise Error("no room")

    with pytest.raises(Error, match="no room"):
        command_line.launch(["/bin/touch", "began"], tmp_path / "log", tmp_path, note)
    assert not (tmp_path / "began").exists()


def test_an_overlay_that_names_another_file_for_its_data_is_refused(tmp_path: Path) -> None:
    """QEMU would let the guest write to it; a stick of somebody else's may hold one."""
    vm = ready(tmp_path, Guest())
    command_line.check_overlay(vm)
    vm.overlay.unlink()
    other = f"data_file={tmp_path / 'other'}"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", other, str(vm.overlay), "1M"]
    subprocess.run(command, check=True)
    with pytest.raises(InputError, match="external data file"):
        command_line.check_overlay(vm)


async def status_of(path: Path) -> str:
    """What QEMU says of its guest; it is ended then."""
    heard: list[Event] = []
    monitor = Monitor(heard.append)
    await monitor.connect(path)
    status = await monitor.status()
    with pytest.raises(MonitorError, match="no-such-command"):
        await monitor.ask("no-such-command")
    await monitor.ask("quit")
    await asyncio.wait_for(monitor.ended(), 20)
    await monitor.close()
    assert Shutdown(guest=False, reason="host-qmp-quit") in heard
    return status


def test_a_monitor_that_is_not_there_is_an_error_after_a_while(short_folder: Path) -> None:
    async def connect() -> None:
        await Monitor(lambda _: None).connect(short_folder / "none", 0.2)

    with pytest.raises(MonitorError, match="does not answer"):
        asyncio.run(connect())


def test_arguments_of_the_user_come_last(odd_folder: Path) -> None:
    vm = ready(odd_folder, Guest())
    wiring = command_line.Wiring(odd_folder / "nbd", odd_folder, "tcg")
    assert command_line.command(vm, wiring, ("-m", "64"))[-2:] == ["-m", "64"]
    assert "-display" in command_line.command(vm, wiring)
    assert "-display" not in command_line.command(vm, replace(wiring, window=True))


def test_an_overlay_is_small_and_writes_of_one_block_stay_so(tmp_path: Path) -> None:
    """4 KiB of a guest take no 64 KiB, and read nothing of what lies below."""
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"x" * (8 << 20))
    command_line.make_overlay(overlay, 8 << 20, str(base))
    empty = overlay.stat().st_blocks
    for block in range(0, 64, 2):
        write = f"write -P 1 {block * 4096} 4096"
        subprocess.run(["qemu-io", "-c", write, overlay], check=True, capture_output=True)
    mapped = subprocess.run(
        ["qemu-img", "map", "--output=json", overlay], check=True, capture_output=True
    )
    own = sum(one["length"] for one in json.loads(mapped.stdout) if one["depth"] == 0)
    assert own == 32 * 4096
    assert (overlay.stat().st_blocks - empty) * 512 < 32 * 4096 + (256 << 10)
    subprocess.run(["qemu-img", "check", "-q", overlay], check=True)
