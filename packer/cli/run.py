"""vmpack run: start a VM from its pack, or take up one that is known."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from packer.artifact.trust import Verdict
from packer.cli.options import accept, add_trust, add_verb, own_store, remember_use
from packer.cli.rebuild import add_origins, note_complaints
from packer.cli.settings import load_settings
from packer.cli.vms import add_state
from packer.errors import UsageError
from packer.progress import for_terminal, note
from packer.run.manage.console import on_terminal, relay, wait_until_started
from packer.run.manage.detach import detach
from packer.run.manage.detach_process import DetachProcess
from packer.run.manage.remove import remove_left_behind
from packer.run.manage.session import GRACE_SECONDS, Session
from packer.run.qemu.accelerator import ACCELERATORS, Accelerator
from packer.run.qemu.hardware import LEAST_MEMORY_MIB
from packer.run.qemu.programs import QemuError
from packer.run.supervisor.link import Start
from packer.run.vm.create import DiskOrigin, Wishes, create_vm, known_vm
from packer.run.vm.vm import Vm, find_vm
from packer.sources.open import is_pack, open_pack

MAX_CPUS = 1024
_MEMORY = re.compile(r"([0-9]{1,9})([MG]?)")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "run",
        "start a VM straight from its pack, or take up one that is known",
        "vmpack run stick/demo.vmpack --memory 1G -- -device virtio-rng-pci",
    )
    parser.add_argument("vm", help="file, folder or URL of a pack, or the name of a VM")
    parser.add_argument("--name", metavar="NAME", help="of the VM; default: the pack's")
    parser.add_argument("--new", action="store_true", help="make another VM if there is one")
    parser.add_argument("--ephemeral", action="store_true", help="remove the VM when it ends")
    parser.add_argument("--background", action="store_true", help="return once it runs")
    parser.add_argument(
        "--detach",
        action="store_true",
        help="make it independent of its pack while it runs, as vmpack detach does",
    )
    parser.add_argument("--window", action="store_true", help="show its screen")
    add_wishes(parser)
    add_state(parser)
    parser.add_argument(
        "--complete",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="fetch in the background what the guest has not read",
    )
    add_origins(parser)
    add_trust(parser)
    parser.set_defaults(run=run, parser=parser, passed=())


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a VM has."""
    parser.add_argument(
        "--memory", type=_memory, metavar="SIZE", help="MiB, or 2G; default: 2G at most"
    )
    parser.add_argument("--cpus", type=_cpus, metavar="N", help="default: 2 at most")
    parser.add_argument(
        "--accel",
        choices=("auto", *ACCELERATORS),
        help="default: as the settings say, or the first under which a guest really runs",
    )
    parser.add_argument("--net", choices=("user", "none"), help="default: user, a NAT of QEMU's")


def run(options: argparse.Namespace) -> int:
    """Run."""
    if options.detach and options.ephemeral:
        raise UsageError("--detach and --ephemeral contradict each other")
    remove_left_behind(options.state)
    vm, verdict = _vm(options)
    beside = ExitStack()

    def started() -> None:
        if verdict is not None:
            remember_use(verdict)
        if options.detach and not options.background:
            beside.enter_context(DetachProcess(vm))

    start = Start(tuple(options.passed), str(Path.cwd()), options.window)
    with Session(vm, start) as session, beside:
        if options.background:
            ended = wait_until_started(session)
            started()
        else:
            if on_terminal():
                note(f"{vm.name} starts; Ctrl-] leaves it running")
            ended = relay(session, GRACE_SECONDS, started)
    if ended is None:
        if options.background:
            print(vm.name)
        else:
            note(f"{vm.name} goes on: vmpack run {vm.name} attaches, vmpack stop {vm.name} ends it")
    elif ended.how == "lost":
        raise QemuError(f"{vm.name}: {ended.text}", hint=f"see {vm.folder / 'qemu.log'}")
    sys.stdout.flush()
    if options.detach:
        _detach(vm)
    return 0


def _detach(vm: Vm) -> None:
    """Detach a VM, or finish what a process beside its console has begun."""
    report = detach(vm, jobs=load_settings().jobs, progress=for_terminal(quiet=False))
    note_complaints(report.supplied)
    note(f"{vm.name} is detached from its pack")


def _vm(options: argparse.Namespace) -> tuple[Vm, Verdict | None]:
    """Return the VM that is meant, made now if need be, and what trust says of its pack if new."""
    known = find_vm(options.vm, options.state)
    another = options.new or options.ephemeral
    if known is not None and not another:
        if options.name is not None or options.sources or options.store is not None:
            raise UsageError(
                f"{options.vm} is a VM: --name, --from and --store need its pack",
                hint=f"a pack of that name in this folder is ./{options.vm}",
            )
        return _as_wished(known, options), None
    location = options.vm if known is None else known.record.pack
    if known is None and not is_pack(location):
        raise UsageError(
            f"{location}: neither a VM of this host nor a pack", hint="vmpack ps lists the VMs"
        )
    with open_pack(location) as pack:
        verdict = accept(pack, options)
        served = DiskOrigin(
            location,
            own_store(options.store),
            options.sources,
            options.offline,
            bool(options.complete),
        )
        if not another:
            known = known_vm(
                pack,
                served,
                name=options.name,
                state=options.state,
                usual=load_settings().sources,
            )
            if known is not None:
                return _as_wished(known, options), verdict
        made = create_vm(
            pack,
            replace(served, sources=options.sources or load_settings().sources),
            wishes_of(options),
            name=options.name,
            state=options.state,
            another=another,
            ephemeral=options.ephemeral,
        )
    return made, verdict


def _as_wished(vm: Vm, options: argparse.Namespace) -> Vm:
    """Return a known VM with what the user wants otherwise now, which it keeps."""
    with vm.held() as now:
        if now is not None and now.running() is None:
            facts = wishes_of(options).facts()
            if options.offline:
                facts["offline"] = True
            if options.complete is not None:
                facts["complete"] = options.complete
            return now.changed(**facts)
    wished = (options.memory, options.cpus, options.accel, options.net, options.complete)
    if options.offline or any(one is not None for one in wished):
        note(f"{vm.name} runs already: what it has stays as it is")
    return vm


def wishes_of(options: argparse.Namespace) -> Wishes:
    """Return what a VM is to have."""
    named: Accelerator | Literal["auto"] | None = options.accel or load_settings().accelerator
    accelerator: Accelerator | Literal[""] | None = "" if named == "auto" else named
    return Wishes(
        memory_mib=options.memory,
        cpus=options.cpus,
        accelerator=accelerator,
        network=options.net,
    )


def _memory(text: str) -> int:
    """Return MiB."""
    found = _MEMORY.fullmatch(text)
    mib = int(found[1]) * (1024 if found[2] == "G" else 1) if found else 0
    if not LEAST_MEMORY_MIB <= mib <= 1 << 30:
        raise argparse.ArgumentTypeError(
            f"expected at least {LEAST_MEMORY_MIB} MiB, such as 512, 512M or 2G, found {text!r}"
        )
    return mib


def _cpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_CPUS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_CPUS}, found {text!r}")
    return int(text)
