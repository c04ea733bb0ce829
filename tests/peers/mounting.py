"""Images mounted by Linux: by this kernel, or where it lacks the file system, by another one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

LAUNCH_S = 300
"""A libguestfs appliance takes a quarter of a minute to start without KVM."""


@contextmanager
def mounted(
    image: Path, kind: str, folder: Path, *, options: str = "", writable: bool = False
) -> Iterator[Path]:
    """An image of a file system of some kind, mounted at a new folder.

    Not every kernel has iso9660, vfat and exfat. The one that libguestfs boots in an appliance
    has; it is reached through FUSE then.
    """
    if os.geteuid():
        pytest.skip("mounts need root")
    folder.mkdir()
    words = ",".join(filter(None, ["rw" if writable else "ro", options]))
    own = ["mount", "-t", kind, "-o", f"loop,{words}", str(image), str(folder)]
    if subprocess.run(own, check=False, capture_output=True).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        with _in_an_appliance(image, f"/dev/sda:/:{words}:{kind}", folder, writable=writable):
            yield folder


@contextmanager
def _in_an_appliance(image: Path, mount: str, folder: Path, *, writable: bool) -> Iterator[None]:
    process = subprocess.Popen(
        ["guestmount", "--no-fork", "--format=raw", *([] if writable else ["--ro"]),
         "-a", str(image), "-m", mount, str(folder)],
        env={**os.environ, "LIBGUESTFS_BACKEND": "direct",
             "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + LAUNCH_S
        while not folder.is_mount():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"not mounted within {LAUNCH_S} s"
            time.sleep(0.1)
        yield
    finally:
        with suppress(subprocess.CalledProcessError):  # it may never have been mounted
            subprocess.run(["fusermount", "-u", str(folder)], check=True, capture_output=True)
        try:
            process.wait(60)  # what was written reaches the image when it ends
        finally:
            process.kill()
            process.communicate()
