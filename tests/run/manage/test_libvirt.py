"""A VM under libvirt: what virsh accepts boots, and comes back after a reboot of the host."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from packer.errors import UsageError
from packer.run.manage.libvirt import domain_xml, forget_domain
from packer.run.manage.unit import (
    Manager,
    lasting_socket,
    manager_of,
    served_name,
    systemd_unit,
    unit_word,
)
from packer.run.qemu import programs
from packer.run.qemu.firmware import find_uefi
from packer.run.qemu.hardware import Hardware
from packer.run.qemu.programs import pinned_machine
from packer.run.vm import command_line
from packer.run.vm.vm import Vm
from tests.host import run
from tests.round_trip.packs import Packed
from tests.run.manage.libvirt import (
    Console,
    Libvirt,
    Unit,
    directives,
    libvirt,
    started,
    tell_guest,
)
from tests.run.serving import wait_until
from tests.run.vms import BOOT_S, VmHost, job_file, kill, vm_host

__all__ = ["vm_host"]

MACHINES = ["bios", "uefi", "windows", "windows-uefi"]
PROGRAM = ("/usr/bin/vmpack",)


def hardware(kind: str) -> Hardware:
    uefi, windows = kind.endswith("uefi"), kind.startswith("windows")
    emulator = programs.find(programs.EMULATOR)
    return Hardware(
        machine=pinned_machine(emulator, "q35" if uefi else "pc"),
        firmware="uefi" if uefi else "bios",
        disk="ide" if windows else "virtio",
        network="e1000" if windows else "virtio-net-pci",
        clock="localtime" if windows else "utc",
    )


@pytest.fixture
def vm(vm_host: VmHost, busybox: Packed) -> Vm:
    return vm_host.vm(busybox.full)


def of_kind(vm: Vm, kind: str) -> Vm:
    """The VM, with another machine."""
    changed = vm.changed(hardware=hardware(kind))
    if changed.record.hardware.firmware == "uefi":
        shutil.copyfile(find_uefi().variables, changed.variables)
    return changed


def user_of(vm: Vm) -> Manager:
    return manager_of(vm, system=False)


def define(vm_host: VmHost, vm: Vm, kind: str, folder: Path) -> Path:
    """The file that the command writes into a folder."""
    said = vm_host.vmpack.good("define", vm.name, kind, "--no-system", "-o", folder)
    return Path(said.strip())


# -- domains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [False, True], ids=["session", "system"])
@pytest.mark.parametrize("kind", MACHINES)
def test_a_domain_is_one_by_the_schema_of_libvirt(
    vm: Vm, kind: str, system: bool, tmp_path: Path
) -> None:
    one = of_kind(vm, kind)
    manager = manager_of(one, system=system)
    file = tmp_path / "demo.xml"
    file.write_text(domain_xml(one, manager, lasting_socket(one, manager), reconnects=False))
    run("virt-xml-validate", file, "domain")  # fails for anything else
    assert "defined" in run("virsh", "-c", "test:///default", "define", "--validate", file)


def test_a_newer_libvirt_is_told_how_long_to_wait_for_a_server(vm: Vm) -> None:
    manager = user_of(vm)
    socket_path = lasting_socket(vm, manager)
    known = Xml.fromstring(domain_xml(vm, manager, socket_path, reconnects=True))
    unknown = Xml.fromstring(domain_xml(vm, manager, socket_path, reconnects=False))
    where = "devices/disk/backingStore/source/reconnect"
    assert [one.get("delay") for one in known.iterfind(where)] == [
        str(command_line.RECONNECT_SECONDS)
    ]
    assert unknown.find(where) is None


def test_a_domain_of_the_system_runs_as_the_owner_of_the_vm(vm: Vm) -> None:
    manager = manager_of(vm, system=True)
    domain = Xml.fromstring(domain_xml(vm, manager, lasting_socket(vm, manager), reconnects=False))
    owner = vm.folder.stat()
    assert domain.findtext("seclabel/label") == f"+{owner.st_uid}:+{owner.st_gid}"
    user = Xml.fromstring(
        domain_xml(vm, user_of(vm), lasting_socket(vm, manager), reconnects=False)
    )
    assert user.find("seclabel") is None  # libvirt of a user refuses it


def test_names_that_xml_cannot_hold_are_refused(vm: Vm) -> None:
    for name in ("\x01", "\udcff"):
        with pytest.raises(UsageError, match="cannot be told"):
            domain_xml(vm, user_of(vm), Path(f"/run/{name}/nbd"), reconnects=False)
    odd = domain_xml(vm, user_of(vm), Path('/run/<&"é/nbd'), reconnects=False)
    host = Xml.fromstring(odd).find("devices/disk/backingStore/source/host")
    assert host is not None
    assert host.get("socket") == '/run/<&"é/nbd'


@contextmanager
def empty_disk(vm: Vm, path: Path) -> Iterator[None]:
    """Something to start a QEMU with, whose guest does not run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["nbdkit", "-f", "-U", path, "null", str(vm.record.disk_bytes)]) as one:
        try:
            wait_until(path.is_socket)
            yield
        finally:
            one.terminate()


CARD = re.compile(r"Bus +0, device +(\d+), function 0:\s+.*?PCI device (\w+:\w+)", re.DOTALL)


def cards(pci: str) -> dict[int, str]:
    """What lies in the slots of the board's own bus, by QEMU's "info pci"; no ports of the board
    that are empty.
    """
    port = "1b36:000c"  # docs/specs/pci-ids.rst: a PCIe root port
    return {int(slot): kind for slot, kind in CARD.findall(pci) if kind != port}


def cards_of_run(vm: Vm, nbd: Path, folder: Path) -> dict[int, str]:
    """The cards that `vmpack run` gives the guest."""
    line = command_line.command(
        vm, command_line.Wiring(nbd, folder, "tcg"), ("-S", "-monitor", "stdio")
    )
    return cards(run(*line, stdin="info pci\nquit\n"))


@pytest.mark.guest
def test_the_guest_finds_the_cards_of_vmpack_run_in_the_same_slots(
    vm: Vm, vm_host: VmHost, short_folder: Path
) -> None:
    manager = user_of(vm)
    nbd = lasting_socket(vm, manager)
    with libvirt(short_folder / "libvirt") as one:
        for kind in MACHINES:
            made = of_kind(vm, kind)
            file = short_folder / "demo.xml"
            with empty_disk(made, nbd):
                here = cards_of_run(made, nbd, short_folder)
                file.write_text(domain_xml(made, manager, nbd, reconnects=False))
                forget_domain(made)
                there = cards_in(one, made, file, nbd)
            nbd.unlink(missing_ok=True)
            assert len(here) >= (4 if kind.startswith("windows") else 5)
            assert here == there, kind


def cards_in(one: Libvirt, vm: Vm, file: Path, nbd: Path) -> dict[int, str]:
    """The cards of a domain. Its disk is not what matters: libvirt's user has none of ours."""
    tree = Xml.parse(file)
    disk = tree.find("devices/disk")
    assert disk is not None
    for name in ("source", "backingStore"):
        found = disk.find(name)
        assert found is not None
        disk.remove(found)
    empty = one.folder / "empty.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", empty, str(vm.record.disk_bytes))
    Xml.SubElement(disk, "source", file=str(empty))
    nvram = tree.find("os/nvram")
    if nvram is not None:
        nvram.text = str(one.folder / "variables.fd")
        shutil.copyfile(vm.variables, nvram.text)
    tree.write(file)
    one.give(one.folder)
    one.virsh("define", "--validate", file)
    one.virsh("start", "--paused", vm.name)
    try:
        return cards(one.virsh("qemu-monitor-command", vm.name, "--hmp", "info pci"))
    finally:
        one.virsh("destroy", vm.name)
        one.virsh("undefine", "--keep-nvram", vm.name)


@pytest.mark.guest
def test_a_guest_under_libvirt_survives_its_server_and_a_reboot_of_the_host(
    vm: Vm, vm_host: VmHost, short_folder: Path
) -> None:
    """Killed: the server alone, then everything at once. The same unit brings both back."""
    unit = Unit(define(vm_host, vm, "--systemd", short_folder).read_text(), short_folder)
    domain = define(vm_host, vm, "--libvirt", short_folder)
    nonce = secrets.token_hex(8)
    job = job_file(short_folder, "echo it was kept > /root/kept; sync")
    job.chmod(0o644)
    with libvirt(short_folder / "libvirt") as one, started(unit):
        tell_guest(domain, {"nonce": nonce, "stay": "yes"}, job)
        console = start(one, vm, domain, short_folder)
        wait_until(lambda: console.has("Linux version"), BOOT_S)
        unit.kill()
        unit.start()
        one.give(short_folder / "vmpack-serve")
        wait_until(lambda: goes_on(one, vm, console, f"nonce={nonce} digests=ok"), BOOT_S)
        console.close()
        kill(one.pid_of(vm.name))
        one.kill()
        unit.kill()

        nonce = secrets.token_hex(8)
        job.write_text('[ "$(cat /root/kept)" = "it was kept" ]')
        unit.start()
        one.start()
        tell_guest(domain, {"nonce": nonce}, job)
        console = start(one, vm, domain, short_folder)
        wait_until(lambda: console.has(f"nonce={nonce} digests=ok"), BOOT_S)
        assert console.has("VMPACK-JOB status=0")
        console.close()
        wait_until(lambda: "shut off" in one.virsh("domstate", vm.name), BOOT_S)
        assert unit.stop() == 0


def start(one: Libvirt, vm: Vm, domain: Path, runtime: Path) -> Console:
    """Start what was written, and hear what it says from its first word on."""
    one.give(vm.folder)
    one.give(runtime / "vmpack-serve")
    domain.chmod(0o644)
    assert "defined" in one.virsh("define", "--validate", domain)
    one.virsh("start", "--paused", vm.name)
    console = Console(Path(one.virsh("ttyconsole", vm.name).strip()))
    one.virsh("resume", vm.name)
    return console


def goes_on(one: Libvirt, vm: Vm, console: Console, words: str) -> bool:
    """Whether it has said so; a domain that was paused for want of its disk is resumed."""
    if not console.has(words) and "paused" in one.virsh("domstate", vm.name):
        one.virsh("resume", vm.name)
    return console.has(words)


# -- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_finds_nothing_wrong_with_a_unit(
    vm: Vm, vm_host: VmHost, tmp_path: Path, system: bool
) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here: package systemd")
    option = "--system" if system else "--no-system"
    said = vm_host.vmpack.good("define", vm.name, "--systemd", option, "-o", tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--system" if system else "--user", said.strip()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_example_of_a_unit_for_packs_is_one(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here: package systemd")
    example = Path(__file__).parents[3] / "examples" / "systemd" / "vmpack-serve@.service"
    assert "ExecStart=/usr/local/bin/vmpack serve" in example.read_text()
    there = tmp_path / example.name
    there.write_text(example.read_text().replace("/usr/local/bin/vmpack", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", there], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_unit_serves_what_the_vm_was_made_of(vm: Vm) -> None:
    manager = user_of(vm)
    path = lasting_socket(vm, manager)
    lines = directives(systemd_unit(vm, manager, path, PROGRAM))
    words = lines["ExecStart"].split()
    assert words[:3] == ["/usr/bin/vmpack", "serve", vm.record.pack]
    assert words[words.index("--identity") + 1] == vm.record.config
    assert words[words.index("--socket") + 1] == str(path)
    assert path == manager.runtime / lines["RuntimeDirectory"] / "nbd"
    assert lines["WantedBy"] == "default.target"
    assert "User" not in lines


def test_vms_of_one_pack_share_a_unit_and_others_do_not(vm_host: VmHost, busybox: Packed) -> None:
    first, second = vm_host.vm(busybox.full), vm_host.vm(busybox.full)
    assert first.name != second.name
    assert served_name(first) == served_name(second)
    assert served_name(vm_host.vm(busybox.thin)) != served_name(first)


def test_a_unit_of_the_system_is_of_the_owner_and_comes_before_libvirt(vm: Vm) -> None:
    manager = Manager(system=True, user=65534, group=65534, runtime=Path("/run"))
    lines = directives(systemd_unit(vm, manager, lasting_socket(vm, manager), PROGRAM))
    assert lines["User"] == "nobody"
    assert lines["WantedBy"] == "multi-user.target"
    assert "libvirtd.service" in lines["Before"]
    assert vm.record.store in lines["RequiresMountsFor"]
    assert lines["After"] == "network-online.target"
    odd = directives(systemd_unit(vm.changed(store="/srv/$1"), manager, Path("/run/nbd"), PROGRAM))
    assert "$1" in odd["RequiresMountsFor"]
    assert "$$" not in odd["RequiresMountsFor"]  # there it is no command
    alone = vm.changed(offline=True)
    assert "After" not in directives(systemd_unit(alone, manager, Path("/run/nbd"), PROGRAM))


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/srv/demo.vmpack", "/srv/demo.vmpack"),
        ("a b", '"a b"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ('say "x"', '"say \\"x\\""'),
        ("a\\b", '"a\\\\b"'),
        ("two\nlines", '"two\\nlines"'),
        ("", '""'),
        (";", '";"'),
        ("pack.vmpack#demo:1", '"pack.vmpack#demo:1"'),
    ],
)
def test_words_mean_themselves_in_a_unit(word: str, written: str) -> None:
    assert unit_word(word) == written


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        unit_word("/srv/\udcff")


def test_a_unit_needs_no_trust_and_serves_no_other_pack(
    vm: Vm, vm_host: VmHost, busybox: Packed, short_folder: Path
) -> None:
    """Its pack was decided about when the VM was made; nothing else is at that identity."""
    text = define(vm_host, vm, "--systemd", short_folder).read_text()
    (vm_host.vmpack.home / "config" / "trust.json").unlink()
    with started(Unit(text, short_folder)) as unit:
        assert lasting_socket(vm, user_of(vm)).is_socket()
        assert unit.stop() == 0
    other = f"sha256:{'0' * 64}"
    done = vm_host.vmpack("serve", busybox.full, "--identity", other, "--offline")
    assert done.returncode == 4
    assert other in done.stderr
