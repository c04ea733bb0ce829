"""What iPXE is told, and what whoever runs the DHCP server must tell it.

Sources: https://ipxe.org/scripting, /cmd/kernel, /cmd/initrd; dnsmasq(8), "dhcp-boot"; Debian's
nbd-client, `/usr/share/initramfs-tools/scripts/local-top/nbd` (`nbdroot=`, `nbddev=`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SCRIPT = "boot.ipxe"
KERNEL = "vmlinuz"
BIOS_LOADER, UEFI_LOADER = "undionly.kpxe", "snponly.efi"
"""iPXE for a network card that firmware has a driver for, as Debian's package ipxe has them."""

IPXE_ENCAPSULATION = 175
"""The DHCP option that iPXE sends of itself (https://ipxe.org/howto/dhcpd)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where clients find us. address: of this host as they see it. export: the disk's name."""

    address: str
    http_port: int
    tftp_port: int
    nbd_port: int
    export: str

    @property
    def script_uri(self) -> str:
        """Return where the script is had over HTTP."""
        return f"http://{self.address}:{self.http_port}/{SCRIPT}"

    @property
    def tftp_uri(self) -> str:
        """Return where the script is had over TFTP."""
        return f"tftp://{self.address}:{self.tftp_port}/{SCRIPT}"

    @property
    def nbd_uri(self) -> str:
        """Return where the disk is (the NBD URI specification)."""
        return f"nbd://{self.address}:{self.nbd_port}/{self.export}"

    @property
    def root_arguments(self) -> tuple[str, ...]:
        """Return the kernel arguments by which an initramfs finds its root, as Debian's does."""
        nbdroot = f"nbdroot={self.address}:{self.nbd_port}/{self.export}"
        return "ip=dhcp", "nbddev=/dev/nbd0", nbdroot


def initrd_name(number: int) -> str:
    """Return what the initramfs archive of that number, from 0, is called here."""
    return f"initrd{number}.img"


def ipxe_script(what: str, initrds: int, arguments: Sequence[str]) -> bytes:
    """Return the script. what: a line of words about it. initrds: how many archives there are.

    Files are named relative to where the script came from, by HTTP or TFTP.
    """
    names = [initrd_name(number) for number in range(initrds)]
    words = [*(f"initrd={name}" for name in names), *arguments]
    lines = [
        "#!ipxe",
        f"# {what}",
        " ".join([f"kernel {KERNEL}", *words]),
        *(f"initrd {name}" for name in names),
        "boot",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def dnsmasq_lines(place: Place, loaders: Sequence[str]) -> list[str]:
    """Return a configuration of dnsmasq for clients that have iPXE in them, and those that load it.

    loaders: what of iPXE is served over TFTP, UNDI or UEFI.
    """
    lines = [
        f"dhcp-match=set:ipxe,{IPXE_ENCAPSULATION}",
        f"dhcp-boot=tag:ipxe,{place.script_uri}",
    ]
    if loaders:
        lines.append("dhcp-match=set:uefi,option:client-arch,7")
    for tag, loader in (("!uefi", BIOS_LOADER), ("uefi", UEFI_LOADER)):
        if loader in loaders:
            lines.append(f"dhcp-boot=tag:!ipxe,tag:{tag},{loader},,{place.address}")
    return lines
