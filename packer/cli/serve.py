"""vmpack serve: the disk of a pack for NBD clients, brought from whoever has it as it is read."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import ssl
import sys
from pathlib import Path
from urllib.parse import quote

import msgspec

from packer.cli.listening import address_and_port, in_uri, is_loopback
from packer.cli.options import add_common, add_trust, add_verb, remember_use
from packer.cli.rebuild import Rebuild, add_origins, note_complaints, opened, print_supplied
from packer.errors import UsageError
from packer.progress import note
from packer.run.manage.unit import tell_systemd
from packer.run.nbd.server import server_tls
from packer.run.server.control_protocol import ServerStatus
from packer.run.server.serve import FOREIGN_HOLD_SECONDS, Listening, Served, serve
from packer.run.server.spec import nbd_uri, server_spec
from packer.run.sockets import own_folder, socket_path
from packer.text import format_bytes, printable
from packer.transport.nbd_wire import MAX_STRING_BYTES
from packer.unpack.gather import Supplied

MOST_SECONDS = 86_400 * 365


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "serve",
        "offer the disk of a pack to NBD clients, read-only",
        "vmpack serve stick/demo.vmpack --socket demo.sock",
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="Unix socket; default: one for this run"
    )
    parser.add_argument(
        "--tcp", type=address_and_port, metavar="ADDR:PORT", help="listen there; 10809 is usual"
    )
    parser.add_argument(
        "--name", type=_export, default="", metavar="EXPORT", help="what clients ask for"
    )
    _add_tls(parser)
    parser.add_argument(
        "--complete", action="store_true", help="fetch in the background what nobody has read yet"
    )
    parser.add_argument(
        "--idle-exit",
        type=_seconds,
        metavar="SECONDS",
        help="end when nobody was connected for so long",
    )
    parser.add_argument(
        "--hold",
        type=_seconds,
        default=FOREIGN_HOLD_SECONDS,
        metavar="SECONDS",
        help="how long a read waits for what nobody has before it fails; default: %(default)g",
    )
    add_origins(parser)
    add_trust(parser)
    parser.add_argument(
        "--identity",
        metavar="sha256:…",
        help="serve only the pack of this identity, whoever signed it: it was decided about before",
    )
    add_common(parser, jobs=False)
    parser.set_defaults(run=run, parser=parser)


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="serve TCP over TLS with this")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its key, if elsewhere")
    parser.add_argument(
        "--tls-client-ca", type=Path, metavar="PEM", help="only clients with a certificate of this"
    )
    parser.add_argument(
        "--no-tls", action="store_true", help="let others than this host read without TLS"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    tls = _tls(options)
    with opened(options) as rebuild, own_folder(_folder_name(options, rebuild)) as folder:
        listening = Listening(
            control=socket_path(folder, "control"),
            nbd=_socket(options, folder),
            tcp=options.tcp,
            tls=tls,
            plain=options.no_tls,
            export=options.name,
        )

        def started(port: int) -> None:
            remember_use(rebuild.verdict)
            _print_start(options, rebuild, listening, port)
            tell_systemd()

        assert rebuild.store is not None
        sources = [one for one in rebuild.sources if one is not rebuild.store]
        status = serve(
            Served(rebuild.pack, sources, rebuild.store),
            listening,
            complete=options.complete,
            idle_exit_seconds=options.idle_exit,
            hold_seconds=options.hold,
            started=started,
            asked=lambda status: print_status(options, status),
        )
    print_status(options, status)
    return 0


def _folder_name(options: argparse.Namespace, rebuild: Rebuild) -> str:
    assert rebuild.store is not None
    digest = rebuild.pack.config_digest
    return f"{server_spec(options.pack, digest, rebuild.store.folder).key}-{os.getpid()}"


def _socket(options: argparse.Namespace, folder: Path) -> Path | None:
    if options.socket is not None:
        path = options.socket.absolute()
        return socket_path(path.parent, path.name)
    return socket_path(folder, "nbd") if options.tcp is None else None


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    """Return what is needed for TLS. Raises UsageError."""
    given = [options.tls_cert, options.tls_key, options.tls_client_ca]
    if options.tcp is None and (any(given) or options.no_tls):
        options.parser.error("--tls-cert, --tls-key, --tls-client-ca and --no-tls need --tcp")
    if options.tls_cert is None:
        if any(given):
            options.parser.error("--tls-key and --tls-client-ca need --tls-cert")
        if options.tcp is not None and not options.no_tls and not is_loopback(options.tcp[0]):
            raise UsageError(
                f"{options.tcp[0]}: without TLS anybody on the way can read and change what is "
                "served",
                hint="name a certificate with --tls-cert, or say --no-tls",
            )
        return None
    if options.no_tls:
        options.parser.error("--no-tls contradicts --tls-cert")
    return server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)


# -- what is said --------------------------------------------------------------------------------


def addresses(listening: Listening, port: int) -> list[str]:
    """Return the URIs of what is served (the NBD URI specification)."""
    found, export = [], quote(listening.export, safe="")
    if listening.nbd is not None:
        found.append(nbd_uri(listening.nbd, listening.export))
    if listening.tcp is not None:
        scheme = "nbd" if listening.tls is None else "nbds"
        found.append(f"{scheme}://{in_uri(listening.tcp[0])}:{port}/{export}")
    return found


def _print_start(
    options: argparse.Namespace, rebuild: Rebuild, listening: Listening, port: int
) -> None:
    if listening.plain and listening.tcp is not None and not is_loopback(listening.tcp[0]):
        note("without TLS whoever reaches the port, or sees the line, can read the disk")
    config, uris = rebuild.pack.config, addresses(listening, port)
    size = rebuild.pack.map.size
    if options.json:
        print_line(
            {
                "pack": config.ref_name,
                "config": rebuild.pack.config_digest,
                "disk_bytes": size,
                "addresses": uris,
                "control": str(listening.control),
            }
        )
        return
    for uri in uris:
        print(f"{printable(config.ref_name)}  disk of {format_bytes(size)}, read-only, at {uri}")
    for line in examples(uris[0]):
        print(f"  {line}")
    sys.stdout.flush()


def examples(uri: str) -> list[str]:
    """Return commands that use what is served."""
    if uri.startswith("nbds:"):  # certificates are the reader's own: see the page about serving
        return [f"nbdinfo {shlex.quote(f'{uri}?tls-certificates=FOLDER')}"]
    doubled = uri.replace(",", ",,")  # QEMU's own quoting
    return [
        f"qemu-system-x86_64 -m 1G -snapshot -drive {shlex.quote(f'file={doubled},format=raw')}",
        f"qemu-img convert -p -O qcow2 {shlex.quote(uri)} demo.qcow2",
        f"nbdcopy --progress {shlex.quote(uri)} demo.raw",
    ]


def print_status(options: argparse.Namespace, status: ServerStatus) -> None:
    """Print what was read and whose bytes it was, and note what sources did wrong."""
    if options.json:
        print_line(msgspec.to_builtins(status))
        return
    supplied = [
        Supplied(one.source, one.content_bytes, one.fetched_bytes, list(one.complaints))
        for one in status.sources
    ]
    note_complaints(supplied)
    touched, whole = format_bytes(status.touched_bytes), format_bytes(status.disk_bytes)
    print(f"{touched} of {whole} were read, from:")
    print_supplied(supplied, 0, "")
    _print_missing(status)
    sys.stdout.flush()


def _print_missing(status: ServerStatus) -> None:
    """Print what clients asked for and nobody has, and where it was looked for."""
    for one in status.missing:
        place = printable(one.path) or "no file"
        print(f"  missing: {one.content}  {format_bytes(one.size_bytes)}  {place}")
        print(f"    looked in {', '.join(map(printable, one.looked_in))}")
    if more := status.missing_contents - len(status.missing):
        print(f"  and {more:,} more are missing")


def print_line(value: object) -> None:
    """Print one thing for machines: there are several, one a line."""
    print(json.dumps(value), flush=True)


def _export(text: str) -> str:
    if text != printable(text) or len(text.encode()) > MAX_STRING_BYTES:
        raise argparse.ArgumentTypeError(
            f"expected at most {MAX_STRING_BYTES} bytes and no control characters"
        )
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MOST_SECONDS:  # "nan" and "inf" are numbers to Python
        raise argparse.ArgumentTypeError(f"expected up to {MOST_SECONDS} seconds, found {text!r}")
    return seconds
