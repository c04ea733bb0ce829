"""What the verbs share that name VMs."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_state(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where private areas of VMs lie."""
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER", help="private areas lie there, on a stick too"
    )


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the names of VMs."""
    parser.add_argument("vms", nargs="+", metavar="VM", help="name of a VM")
