"""vmpack netboot: a machine without a disk starts the guest of a pack over its network card."""

from __future__ import annotations

import argparse
import os
import sys
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from packer.cli.options import add_common, add_trust, add_verb, progress_of, remember_use
from packer.cli.rebuild import add_origins, opened
from packer.cli.serve import print_line, print_status
from packer.errors import UsageError
from packer.progress import note
from packer.run.netboot.script import Place, dnsmasq_lines
from packer.run.netboot.service import (
    NetworkBoot,
    NetworkBootServer,
    Offer,
    loaders_in,
    network_boot,
)
from packer.run.server.serve import FOREIGN_HOLD_SECONDS, Listening, Served, serve
from packer.run.server.spec import server_spec
from packer.run.sockets import own_folder, socket_path
from packer.text import format_bytes, printable

LOOPBACK = IPv4Address("127.0.0.1")
QEMU_NAME_OF_HOST = "10.0.2.2"
"""What a guest of QEMU's user network calls the loopback of its host."""

HTTP_PORT, TFTP_PORT, NBD_PORT = 8080, 6969, 10809
LOADERS = Path("/usr/lib/ipxe")
"""Where Debian's package ipxe has them."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "netboot",
        "start machines without a disk from a pack, over the network",
        "vmpack netboot demo.vmpack --listen 192.0.2.7",
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument(
        "--listen",
        type=_address,
        default=LOOPBACK,
        metavar="ADDRESS",
        help="IPv4 address of this host, or 0.0.0.0; default: %(default)s, for QEMU on this host",
    )
    parser.add_argument(
        "--address",
        type=_address,
        metavar="ADDRESS",
        help="what clients call it, if something else",
    )
    for name, port in (("http", HTTP_PORT), ("tftp", TFTP_PORT), ("nbd", NBD_PORT)):
        parser.add_argument(
            f"--{name}-port", type=_port, default=port, metavar="N", help="default: %(default)s"
        )
    parser.add_argument(
        "--entry", metavar="TITLE", help="line of the guest's boot menu, or its number from 1"
    )
    parser.add_argument(
        "--append", default="", metavar="WORDS", help="more arguments for the kernel"
    )
    parser.add_argument(
        "--loaders",
        type=Path,
        default=LOADERS,
        metavar="FOLDER",
        help="has undionly.kpxe and snponly.efi of iPXE, served too; default: %(default)s",
    )
    add_origins(parser)
    add_trust(parser)
    add_common(parser, jobs=False)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    address = _address_for_clients(options)
    appended = _appended(options.append)
    with opened(options) as rebuild:
        pack, store = rebuild.pack, rebuild.store
        assert store is not None
        boot = network_boot(pack, options.entry, progress_of(options))
        loaders = loaders_in(options.loaders)
        offer = Offer(
            *(str(options.listen), str(address), options.http_port, options.tftp_port),
            *(pack.config.name, appended),
        )
        key = server_spec(options.pack, pack.config_digest, store.folder).key
        with own_folder(f"{key}-{os.getpid()}") as folder:
            listening = Listening(
                control=socket_path(folder, "control"),
                tcp=(str(options.listen), options.nbd_port),
                plain=not options.listen.is_loopback,
                export=pack.config.name,
            )

            def started(place: Place) -> None:
                remember_use(rebuild.verdict)
                _print_start(options, boot, place, sorted(loaders), listening)

            status = serve(
                Served(pack, [one for one in rebuild.sources if one is not store], store),
                listening,
                hold_seconds=FOREIGN_HOLD_SECONDS,
                beside=NetworkBootServer(boot, loaders, offer, started),
                started=lambda _: None,
                asked=lambda status: print_status(options, status),
            )
    print_status(options, status)
    return 0


def _address_for_clients(options: argparse.Namespace) -> IPv4Address:
    if options.address is not None:
        named: IPv4Address = options.address
        return named
    if options.listen.is_unspecified:
        options.parser.error(f"--listen {options.listen} needs --address: what do clients call it?")
    return IPv4Address(QEMU_NAME_OF_HOST) if options.listen.is_loopback else options.listen


def _appended(words: str) -> tuple[str, ...]:
    """Return the words to append. Raises UsageError for what no line of a script can hold."""
    if not words.isprintable():
        raise UsageError(f"--append: expected words of one line, found {words!r}")
    return tuple(words.split())


def _print_start(
    options: argparse.Namespace,
    boot: NetworkBoot,
    place: Place,
    loaders: list[str],
    listening: Listening,
) -> None:
    if boot.start.left_out:
        words = " ".join(boot.start.left_out)
        note(f"left out of the kernel's arguments, as iPXE would not hand them on: {words}")
    if not options.listen.is_loopback:
        note(
            "nothing of this is encrypted: whoever reaches these ports can read the guest's disk, "
            "whoever is on the way can change what clients start"
        )
    lines = dnsmasq_lines(place, loaders)
    if options.json:
        print_line(
            {
                "what": boot.what,
                "kernel": boot.start.kernel,
                "initrds": boot.start.initrds,
                "http": place.script_uri,
                "tftp": place.tftp_uri,
                "addresses": [place.nbd_uri],
                "control": str(listening.control),
                "dnsmasq": lines,
            }
        )
    else:
        _print_for_people(boot, place, lines)
    sys.stdout.flush()


def _print_for_people(boot: NetworkBoot, place: Place, lines: list[str]) -> None:
    start = boot.start
    size = format_bytes(sum(map(len, boot.files.values())))
    paths = ", ".join(map(printable, (start.kernel, *start.initrds)))
    print(f"{printable(boot.what)}: {paths}, {size}")
    print(f"  script  {place.script_uri}\n          {place.tftp_uri}")
    print(f"  disk    {place.nbd_uri}, read-only: the guest's initramfs must know NBD")
    if place.address == QEMU_NAME_OF_HOST:
        nic = f"user,model=virtio-net-pci,bootfile={place.script_uri}"
        print(f"  try     qemu-system-x86_64 -m 1G -nic {nic}")
    else:
        print("  for dnsmasq, which must be told:")
        print("\n".join(f"    {line}" for line in lines))


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise argparse.ArgumentTypeError(f"expected an IPv4 address, found {text!r}") from error


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"expected a port, 0 for any, found {text!r}")
    return int(text)
