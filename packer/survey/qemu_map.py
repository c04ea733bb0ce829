"""Run `qemu-img map` and keep one number of its answer, which may have millions of pieces."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import BinaryIO, NoReturn

import msgspec

_STDOUT = 1
_PIECE_BYTES = 1 << 10
"""More than qemu-img writes on a line, which is one piece."""


class _Piece(msgspec.Struct, frozen=True):
    length: int
    offset: int | None = None


_decoder = msgspec.json.Decoder(_Piece)


def exec_map(command: list[str]) -> NoReturn:
    """Become the command, whose standard output a fork of this process sums up.

    So whoever started this process kills qemu-img, and gets its exit code and its complaints; the
    fork ends with its input. It answers nothing when the pieces are not what they should be.
    """
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pieces:
            answer = reach(_lines(pieces))
        os.write(_STDOUT, str(answer).encode())
        os._exit(0)
    os.dup2(write_end, _STDOUT)
    # Python ignores it, and what is ignored stays so: qemu-img would talk on to nobody.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execv(command[0], command)


def reach(lines: Iterable[bytes]) -> int:
    """Return the end of the last byte of a file that the map's JSON, piece by piece, refers to.

    Raises msgspec.MsgspecError.
    """
    pieces = (_decoder.decode(text) for line in lines if (text := line.strip(b"[], \n")))
    return max((one.offset + one.length for one in pieces if one.offset is not None), default=0)


def _lines(file: BinaryIO) -> Iterable[bytes]:
    return iter(lambda: file.readline(_PIECE_BYTES), b"")
