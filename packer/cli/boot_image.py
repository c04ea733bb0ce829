"""vmpack boot-image: a disk with what a guest starts from, and nothing else."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from packer.cli.options import (
    accept,
    add_common,
    add_trust,
    add_verb,
    jobs_of,
    own_store,
    print_json,
    progress_of,
    remember_use,
)
from packer.cli.write import ask_before_overwriting
from packer.errors import UsageError
from packer.media.boot_image import (
    FORMATS,
    QCOW2,
    RAW,
    BootImageReport,
    boot_device,
    boot_image,
)
from packer.media.device import look_at
from packer.media.write import refuse
from packer.progress import note
from packer.sources.open import open_pack
from packer.text import format_bytes, printable

_URI = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]+")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "boot-image",
        "write a disk that holds only what a guest starts from",
        "vmpack boot-image demo.vmpack -o boot.qcow2 --backing nbd://192.0.2.7:10809/",
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument(
        *("--output", "-o"), required=True, metavar="DISK", help="new image file, or block device"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of the file")
    parser.add_argument(
        "--backing",
        metavar="URI",
        help="where 'vmpack serve' has the whole disk; a qcow2 image reads the rest from there",
    )
    parser.add_argument("--force", action="store_true", help="replace the file")
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before what is on a device is lost"
    )
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write."""
    started = time.monotonic()
    device = look_at(options.output)
    container = options.format or (QCOW2 if device.path.suffix == ".qcow2" else RAW)
    backing = _backing(options.backing, container)
    if device.is_block_device and container != RAW:
        raise UsageError(f"{device.path}: a device holds no {container} image, but the disk itself")
    with open_pack(options.pack) as pack:
        verdict = accept(pack, options)
        jobs, progress = jobs_of(options), progress_of(options)
        if device.is_block_device:
            refuse(pack, device, [], own_store(None))
            if not options.yes:
                ask_before_overwriting(device, pack.map.size)
            report = boot_device(pack, device, jobs=jobs, progress=progress)
        else:
            report = boot_image(
                pack,
                Path(options.output),
                container=container,
                backing=backing,
                replace=options.force,
                jobs=jobs,
                progress=progress,
            )
    remember_use(verdict)
    for text in report.notes:
        note(text)
    if options.json:
        print_json(_as_json(report, backing))
    else:
        _print(report, backing, time.monotonic() - started)
    return 0


def _backing(uri: str | None, container: str) -> str:
    """Return what the image reads the rest from, "" for nothing. Raises UsageError."""
    if container == RAW:
        if uri is not None:
            raise UsageError("--backing: only a qcow2 image can name where the rest is")
        return ""
    if uri is None:
        raise UsageError(
            "a qcow2 image needs --backing: its guest would take the rest of its disk for zeros",
            hint="run 'vmpack serve' and name the address that it prints",
        )
    # QEMU would take a name without a scheme for a file beside the image.
    if not _URI.fullmatch(uri):
        raise UsageError(f"--backing: expected a URI such as nbd://host:10809/, found {uri!r}")
    return uri


def _as_json(report: BootImageReport, backing: str) -> dict[str, object]:
    return {
        "output": str(report.output),
        "disk_bytes": report.disk_bytes,
        "boot_bytes": report.boot_bytes,
        "own_bytes": report.own_bytes,
        "backing": backing,
    }


def _print(report: BootImageReport, backing: str, seconds: float) -> None:
    boot = format_bytes(report.boot_bytes)
    print(
        f"{printable(str(report.output))}  boot set of {boot} on a disk of "
        f"{format_bytes(report.disk_bytes)}, every content proven, {seconds:.1f} s"
    )
    if backing:
        print(f"  {format_bytes(report.own_bytes)} its own, the rest from {printable(backing)}")
    else:
        print("  everything else reads as zeros: the guest must have its root from elsewhere")
