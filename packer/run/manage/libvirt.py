"""A VM as a domain of libvirt: an overlay over a disk that a server of vmpack hands out.

The guest finds the machine that it has under `vmpack run`, each card in the same slot: names of
network cards follow from that, and Windows would look for drivers again. Reads that cannot be
answered pause the domain (`rerror_policy='stop'`). Pages that guests have in common may be merged
by the kernel (KSM), which is libvirt's default. Source: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as Xml

from packer.errors import Error, UsageError
from packer.run.manage.unit import Manager
from packer.run.qemu import programs
from packer.run.qemu.accelerator import Accelerator, find_accelerator
from packer.run.vm.command_line import RECONNECT_SECONDS, check_overlay, firmware_code
from packer.run.vm.vm import Vm

RECONNECTS_SINCE = (9, 2)
"""Earlier versions of libvirt do not know the element, and have no other way to say it."""

_DIGITS = 12
_VERSION = re.compile(r"([0-9]+)\.([0-9]+)")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Extensible Markup Language 1.0, section 2.2."""

_KINDS = {"kvm": "kvm", "tcg": "qemu", "hvf": "hvf"}
_NETWORK_MODELS = {"virtio-net-pci": "virtio", "e1000": "e1000"}


def domain_xml(vm: Vm, manager: Manager, socket: Path, *, reconnects: bool) -> str:
    """Return the domain of a VM whose disk is served at `socket`; its overlay gets a link.

    A VM that was detached has its own base below its overlay, and needs no socket.

    reconnects: whether this libvirt knows how long QEMU waits for a server that was started again;
    without, its death pauses the domain until somebody resumes it. Raises Error when this host
    lacks QEMU or firmware, UsageError for what XML cannot hold.
    """
    check_overlay(vm)
    record = vm.record
    program = programs.find(programs.EMULATOR)
    domain = Xml.Element("domain", type=_kind(record.accelerator or find_accelerator(program)))
    _add(domain, "name", record.name)
    _add(domain, "uuid", record.uuid)
    _add(domain, "description", f"{record.ref_name}, {record.config}")
    _add(domain, "memory", str(record.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(record.cpus))
    _add_firmware(domain, vm)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    cpu = _add(domain, "cpu", mode="maximum", check="none", migratable="off")
    _add(cpu, "topology", sockets="1", dies="1", cores=str(record.cpus), threads="1")
    _add(domain, "clock", offset=record.hardware.clock)
    _add_devices(domain, vm, program, socket, reconnects=reconnects)
    if manager.system:  # QEMU runs as the VM's owner, as it does under `vmpack run`
        label = _add(domain, "seclabel", type="static", model="dac", relabel="yes")
        _add(label, "label", f"+{manager.user}:+{manager.group}")
    _refuse_what_xml_cannot_hold(domain)
    Xml.indent(domain)
    return Xml.tostring(domain, encoding="unicode") + "\n"


def link_overlay(vm: Vm) -> Path:
    """Return the name under which a domain opens a VM's overlay, which is made.

    It is one for this base. A domain that was defined before the VM was given another one, and
    that would put what the guest writes over the wrong disk, does not find its overlay any more.
    """
    digest = vm.record.config.partition(":")[2][:_DIGITS]
    link = vm.overlay.with_name(f"{vm.overlay.stem}.{digest}{vm.overlay.suffix}")
    try:
        if not link.is_symlink() or os.readlink(link) != vm.overlay.name:  # noqa: PTH115
            link.unlink(missing_ok=True)
            link.symlink_to(vm.overlay.name)
    except OSError as error:
        raise Error(f"{link}: cannot be made: {error.strerror}") from error
    return link


def forget_domain(vm: Vm) -> None:
    """Let domains that were defined for a VM so far not find its overlay any more. Raises Error."""
    for link in vm.folder.glob(f"{vm.overlay.stem}.*{vm.overlay.suffix}"):
        try:
            if link.is_symlink():
                link.unlink(missing_ok=True)
        except OSError as error:
            raise Error(f"{link}: cannot be removed: {error.strerror}") from error


def libvirt_reconnects() -> bool:
    """Return whether this host's libvirt knows how long to wait for a server; yes without any."""
    virsh = shutil.which("virsh")
    if virsh is None:
        return True
    try:
        said = programs.ask(Path(virsh), "--version")
    except programs.QemuError:
        return True
    found = _VERSION.match(said)
    return found is None or (int(found[1]), int(found[2])) >= RECONNECTS_SINCE


def _kind(accelerator: Accelerator) -> str:
    if accelerator not in _KINDS:
        raise UsageError(f"libvirt knows no domains for the accelerator {accelerator}")
    return _KINDS[accelerator]


def _add(parent: Xml.Element, tag: str, text: str = "", /, **attributes: str) -> Xml.Element:
    child = Xml.SubElement(parent, tag, attributes)
    child.text = text or None
    return child


def _add_firmware(domain: Xml.Element, vm: Vm) -> None:
    hardware = vm.record.hardware
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch="x86_64", machine=hardware.machine)
    if hardware.firmware == "uefi":
        _add(system, "loader", str(firmware_code(vm)), readonly="yes", type="pflash")
        _add(system, "nvram", str(vm.variables))


def _add_devices(
    domain: Xml.Element, vm: Vm, program: Path, socket: Path, *, reconnects: bool
) -> None:
    """Add the cards in the order in which QEMU plugs those of `vmpack run`: see `command_line`."""
    record, hardware = vm.record, vm.record.hardware
    devices = _add(domain, "devices")
    _add(devices, "emulator", str(program))
    slot = 1 if "q35" in hardware.machine else 2  # below lie what the board itself has
    video = _add(devices, "video")
    _add(video, "model", type="vga", vram="16384", heads="1", primary="yes")
    _plug(video, slot)
    graphics = _add(devices, "graphics", type="vnc")
    _add(graphics, "listen", type="socket")  # no port that others on this host could come to
    if record.network == "user":
        slot += 1
        network = _add(devices, "interface", type="user")
        _add(network, "mac", address=record.mac)
        _add(network, "model", type=_NETWORK_MODELS[hardware.network])
        _plug(network, slot)
    disk = _add_disk(devices, vm, socket, reconnects=reconnects)
    if hardware.disk == "virtio":
        _plug(disk, slot + 1)
        balloon = _add(devices, "memballoon", model="virtio", freePageReporting="on")
        _plug(balloon, slot + 2)
    else:
        _add(disk, "address", type="drive", controller="0", bus="0", target="0", unit="0")
        _add(devices, "memballoon", model="none")
    serial = _add(devices, "serial", type="pty")
    _add(serial, "target", type="isa-serial", port="0")
    console = _add(devices, "console", type="pty")
    _add(console, "target", type="serial", port="0")
    _add(devices, "controller", type="usb", model="none")


def _plug(device: Xml.Element, slot: int) -> None:
    """Put a card into a slot of the board's own bus."""
    place = {"domain": "0x0000", "bus": "0x00", "slot": f"{slot:#04x}", "function": "0x0"}
    _add(device, "address", type="pci", **place)


def _add_disk(devices: Xml.Element, vm: Vm, socket: Path, *, reconnects: bool) -> Xml.Element:
    disk = _add(devices, "disk", type="file", device="disk")
    _add(
        disk,
        "driver",
        name="qemu",
        type="qcow2",
        error_policy="stop",
        rerror_policy="stop",
        discard="unmap",
        detect_zeroes="unmap",
    )
    _add(disk, "source", file=str(link_overlay(vm)))
    backing = _add(disk, "backingStore", type="network" if vm.base is None else "file")
    _add(backing, "format", type="raw")
    if vm.base is not None:
        _add(backing, "source", file=str(vm.base))
    else:
        source = _add(backing, "source", protocol="nbd")
        _add(source, "host", transport="unix", socket=str(socket))
        if reconnects:
            _add(source, "reconnect", delay=str(RECONNECT_SECONDS))
    _add(backing, "backingStore")  # nothing below: what a header names is not looked for
    if vm.record.hardware.disk == "virtio":
        _add(disk, "target", dev="vda", bus="virtio")
    elif "q35" in vm.record.hardware.machine:
        _add(disk, "target", dev="sda", bus="sata")
    else:
        _add(disk, "target", dev="hda", bus="ide")
    _add(disk, "boot", order="1")
    return disk


def _refuse_what_xml_cannot_hold(domain: Xml.Element) -> None:
    for element in domain.iter():
        for text in (element.text or "", *element.attrib.values()):
            if _NOT_IN_XML.search(text):
                raise UsageError(
                    f"{text!r:.200}: a domain of libvirt cannot be told this name",
                    hint="move it to a path without control characters, in UTF-8",
                )
