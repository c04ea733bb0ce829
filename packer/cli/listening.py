"""Where a verb that serves listens, as people write it."""

from __future__ import annotations

import argparse
from ipaddress import ip_address


def address_and_port(text: str) -> tuple[str, int]:
    """Return (address, port) of ADDR:PORT; IPv6 addresses stand in brackets."""
    address, _, port = text.rpartition(":")
    bracketed = address.startswith("[") and address.endswith("]")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"expected ADDR:PORT, found {text!r}")
    if not address or (":" in address and not bracketed):
        raise argparse.ArgumentTypeError(f"expected ADDR:PORT or [ADDR]:PORT, found {text!r}")
    return address.strip("[]"), int(port)


def in_uri(address: str) -> str:
    """Return an address as it stands before the port of a URI."""
    return f"[{address}]" if ":" in address else address


def is_loopback(address: str) -> bool:
    """Return whether only this host can come to an address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
