"""What these tests ask of the host they run on; where it lacks that they are skipped and say so."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from tests.round_trip.layouts import config_of
from tests.round_trip.packs import Packed

CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN = 2, 21
"""linux/capability.h"""


def needs_mirrors(room: Path) -> None:
    """Skip where apt itself cannot fetch a small package; fail where CI promises that it can."""
    asked = subprocess.run(
        ["apt-get", "download", "base-files"], cwd=room, check=False, capture_output=True, text=True
    )
    if asked.returncode:
        reason = f"apt's mirrors cannot be reached: {asked.stderr[-200:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def needs_release_of(pack: Packed) -> None:
    """Skip where the host is of another release than a guest, and so lacks its files."""
    guest = config_of(pack.full)["guest"]
    wanted = (guest["id"], guest["release"])
    found = platform.freedesktop_os_release()
    own = (found.get("ID", ""), found.get("VERSION_ID", ""))
    if own != wanted:
        pytest.skip(f"dir:/ has the files of {' '.join(own)}, the guest is {' '.join(wanted)}")


def missing_capabilities() -> list[str]:
    """Those of CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN that this process has not."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    effective = int(found[1], 16)
    wanted = {"CAP_DAC_READ_SEARCH": CAP_DAC_READ_SEARCH, "CAP_SYS_ADMIN": CAP_SYS_ADMIN}
    return [name for name, bit in wanted.items() if not effective >> bit & 1]
