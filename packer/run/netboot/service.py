"""Everything that a machine without a disk asks for before it has one: HTTP and TFTP.

The disk itself is served over NBD by packer.run.server.serve, beside which this runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packer.artifact.opened import OpenedPack
from packer.errors import Error, InputError
from packer.progress import Progress, Silent
from packer.run.netboot.guest_files import BootFiles
from packer.run.netboot.http import Files
from packer.run.netboot.linux import Start, choose, find_starts
from packer.run.netboot.script import (
    BIOS_LOADER,
    KERNEL,
    SCRIPT,
    UEFI_LOADER,
    Place,
    initrd_name,
    ipxe_script,
)
from packer.run.netboot.tftp import TftpServer
from packer.transport.http_server import HttpServer

MAX_BYTES = 1 << 30
"""Of a kernel with its initramfs archives; they are held in memory."""

MAX_LOADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class NetworkBoot:
    """What clients start: the menu's line, and its files by the names they have on the network."""

    what: str
    start: Start
    files: Mapping[str, bytes]

    @property
    def initrds(self) -> int:
        """Return how many initramfs archives there are."""
        return len(self.start.initrds)


def network_boot(
    pack: OpenedPack,
    entry: str | None = None,
    progress: Progress | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> NetworkBoot:
    """Return what starts a pack's guest over the network, read from the pack and proven.

    entry: the number or title of a line of its boot menu; None: the first. Raises InputError when
    the pack has none, or its files have more than `max_bytes`; UsageError when it has no such line.
    """
    files = BootFiles(pack)
    start = choose(find_starts(files), entry)
    names = {KERNEL: start.kernel}
    names |= {initrd_name(number): path for number, path in enumerate(start.initrds)}
    total = sum(map(files.size, names.values()))
    if total > max_bytes:
        raise InputError(
            f"{start.title}: expected a kernel and archives of at most {max_bytes:,} bytes, "
            f"found {total:,}"
        )
    with (progress or Silent()).stage("reading kernel and initramfs", total) as advance:
        found = {name: files.read(path, max_bytes, advance) for name, path in names.items()}
    return NetworkBoot(f"{pack.config.ref_name} {start.title}", start, found)


def loaders_in(folder: Path) -> dict[str, bytes]:
    """Return iPXE's programs for clients that have none, as far as they lie in a folder."""
    found = {}
    for name in (BIOS_LOADER, UEFI_LOADER):
        try:
            with (folder / name).open("rb") as file:
                found[name] = file.read(MAX_LOADER_BYTES + 1)
        except OSError:
            continue
        if len(found[name]) > MAX_LOADER_BYTES:
            raise InputError(f"{folder / name}: is larger than any boot loader")
    return found


@dataclass(frozen=True, slots=True)
class Offer:
    """Where all that is served, and as what.

    listen: an address of this host. address: the same as clients see it. http_port, tftp_port: 0
    for any. export: the disk's name. arguments: for the kernel, after those of the guest.
    """

    listen: str
    address: str
    http_port: int
    tftp_port: int
    export: str
    arguments: tuple[str, ...] = ()


class NetworkBootServer:
    """Serves a guest's start over HTTP and TFTP, beside its disk: a packer.run.server.serve.Beside.

    started: called with where clients find it, once they are taken.
    """

    def __init__(
        self,
        boot: NetworkBoot,
        loaders: Mapping[str, bytes],
        offer: Offer,
        started: Callable[[Place], None],
    ) -> None:
        self._boot = boot
        self._offer = offer
        self._started = started
        self._files = {**boot.files, **loaders}
        self._http = HttpServer(Files(self._files))
        self._tftp = TftpServer(self._files)

    async def start(self, nbd_port: int) -> None:
        """Listen. nbd_port: where the disk is served. Raises Error when somebody else does."""
        offer = self._offer
        http_port = await self._listen(self._http, "HTTP", offer.http_port)
        tftp_port = await self._listen(self._tftp, "TFTP", offer.tftp_port)
        place = Place(offer.address, http_port, tftp_port, nbd_port, offer.export)
        arguments = (*self._boot.start.arguments, *place.root_arguments, *offer.arguments)
        self._files[SCRIPT] = ipxe_script(self._boot.what, self._boot.initrds, arguments)
        self._started(place)

    async def stop(self) -> None:
        """Listen no more and cut what is open."""
        await self._http.stop()
        await self._tftp.stop()

    @property
    def sent_bytes(self) -> int:
        """Return how many bytes of files went to clients."""
        return self._http.served.sent_bytes + self._tftp.sent_bytes

    async def _listen(self, server: HttpServer | TftpServer, what: str, port: int) -> int:
        try:
            return await server.start(self._offer.listen, port)
        except OSError as error:
            raise Error(
                f"cannot listen for {what} at {self._offer.listen}, port {port}: "
                f"{error.strerror or error}",
                hint="name another port; those below 1024 are for root only",
            ) from error
