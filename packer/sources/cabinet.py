"""Files in cabinets of their own ("ntdll.dl_"), expanded by the program cabextract.

No library that is alive and may be used reads all three kinds of compression (MSZIP, Quantum, LZX);
symbol stores have LZX. cabextract is on every distribution.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from subprocess import PIPE

from packer.sources.foreign import Bounds, running

SIGNATURE = b"MSCF"
"""What a cabinet begins with (MS-CAB, 2.1)."""

MISSING = "cabextract is not installed"
HINT = "install cabextract"

_CHUNK_BYTES = 1 << 18
_BOUNDS = Bounds(memory_bytes=1 << 30, cpu_seconds=600)


def find_cabextract() -> str | None:
    """Return the program on this host, None where there is none."""
    return shutil.which("cabextract")


def most_cabinet_bytes(size: int) -> int:
    """Return how large a cabinet with one file of `size` bytes may be.

    What does not compress is stored in blocks of 32 KiB with 8 bytes each, or a little more with
    MSZIP (MS-CAB, 2.4); headers, names and a signature take the rest.
    """
    return size + size // 16 + (1 << 16)


def expand(program: str, fd: int, size: int) -> Iterator[bytes]:
    """Yield the bytes of the one file in a cabinet, at most `size` of them, as they come.

    fd: of the cabinet, a file that can be opened again through /proc. One that is damaged, holds
    less or more just ends: whoever asked compares digests. Raises OSError.
    """
    # --single: no other cabinets, whatever names this one gives.
    command = [program, "--quiet", "--single", "--pipe", f"/proc/self/fd/{fd}"]
    with running(command, _BOUNDS, stdout=PIPE, pass_fds=(fd,)) as process:
        assert process.stdout is not None
        while size > 0 and (chunk := process.stdout.read(min(_CHUNK_BYTES, size))):
            size -= len(chunk)
            yield chunk


def expanded_bytes(head: bytes) -> int | None:
    """Return the size of the first file in a cabinet, None for what is none.

    head: how the cabinet begins. MS-CAB, 2.1 (CFHEADER.coffFiles at 16) and 2.3 (CFFILE.cbFile).
    """
    files = int.from_bytes(head[16:20], "little")
    if not head.startswith(SIGNATURE) or files + 4 > len(head):
        return None
    return int.from_bytes(head[files : files + 4], "little")
