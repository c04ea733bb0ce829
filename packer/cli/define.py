"""vmpack define: a VM for libvirt, and for systemd what serves its disk in every boot."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from packer.artifact.small_files import write_small_file
from packer.cli.options import add_verb
from packer.cli.vms import add_state
from packer.errors import UsageError
from packer.run.manage.libvirt import domain_xml, libvirt_reconnects
from packer.run.manage.unit import Manager, lasting_socket, manager_of, served_name, systemd_unit
from packer.run.sockets import socket_path
from packer.run.vm.vm import Vm, the_vm
from packer.survey.frozen import is_frozen


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "define",
        "describe a VM to libvirt, and to systemd what serves its disk",
        "vmpack define demo --libvirt -o demo.xml",
    )
    parser.add_argument("vm", metavar="VM", help="name of a VM")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--libvirt", action="store_true", help="a domain, for 'virsh define'")
    wanted.add_argument(
        "--systemd", action="store_true", help="a unit that serves its disk after each boot"
    )
    parser.add_argument(
        "--output", "-o", type=Path, metavar="PATH", help="file or folder; default: print it"
    )
    parser.add_argument(
        "--system",
        action=argparse.BooleanOptionalAction,
        default=os.geteuid() == 0,
        help="for qemu:///system and units of the system, not of this user; default: if root asks",
    )
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="where the disk is served; the same for both"
    )
    add_state(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Define."""
    vm = the_vm(options.vm, options.state)
    if options.systemd and vm.base is not None:
        raise UsageError(f"the VM {vm.name} was detached: its disk needs no server")
    manager = manager_of(vm, system=options.system)
    socket = _socket(options, vm, manager)
    if options.libvirt:
        text = domain_xml(vm, manager, socket, reconnects=libvirt_reconnects())
        name = f"{vm.name}.xml"
    else:
        text = systemd_unit(vm, manager, socket, program_words())
        name = f"{served_name(vm)}.service"
    if options.output is None:
        sys.stdout.write(text)
        return 0
    path = options.output / name if options.output.is_dir() else options.output
    write_small_file(path, text.encode(), replace=True)
    print(path)
    return 0


def program_words() -> list[str]:
    """Return the words that start this vmpack, from any folder. Raises UsageError."""
    if is_frozen():
        return [sys.executable]  # one file, as media carry it
    beside = Path(sys.executable).with_name("vmpack")
    found = str(beside) if beside.is_file() else shutil.which("vmpack")
    if found is None:
        raise UsageError("there is no command vmpack here that systemd could start")
    return [str(Path(found).absolute())]


def _socket(options: argparse.Namespace, vm: Vm, manager: Manager) -> Path:
    if options.socket is None:
        return lasting_socket(vm, manager)
    path = options.socket.absolute()
    return socket_path(path.parent, path.name)
