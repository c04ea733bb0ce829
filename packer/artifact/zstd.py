"""zstd with every bound in place: what comes out is as long as was said, or an error."""

from __future__ import annotations

import hashlib

import pyzstd

from packer.errors import InputError

WINDOW_LOG_MAX = 27
"""A reader never reserves more than 2^27 bytes for a window, whatever a frame asks for."""

MAX_OVERHEAD_BYTES = 1 << 16
"""A frame is never longer than what it holds by more than this and a 64th."""

QUICK_LEVEL = 1
SLOW_LEVEL = 9
"""From here on it pays to try the quick level first; below, the trial of all that can be compressed
takes longer than what it saves on the rest, through which zstd hurries by itself.
"""
HOPELESS = 0.97
"""Data that a fast level leaves this much of is compressed already."""


def compress(data: bytes | memoryview, level: int) -> bytes:
    """Return `data` as one frame that records its size; the same bytes on every host.

    The checksum is left out: what comes out is compared with a SHA-256.
    """
    return pyzstd.compress(
        data,
        {
            pyzstd.CParameter.compressionLevel: level,
            pyzstd.CParameter.contentSizeFlag: 1,
            pyzstd.CParameter.checksumFlag: 0,
            pyzstd.CParameter.nbWorkers: 0,
        },
    )


def compress_within_reason(data: bytes, level: int) -> bytes:
    """Return `data` as one frame, at a fast level if a slow one has nothing to gain.

    Kernels, initramfs and pictures are compressed already: level 19 would try for seconds to take
    off a thousandth.
    """
    if level < SLOW_LEVEL:
        return compress(data, level)
    quick = compress(data, QUICK_LEVEL)
    return quick if len(quick) > HOPELESS * len(data) else compress(data, level)


def decompress(frame: bytes | memoryview, size_bytes: int, what: str) -> bytes:
    """Return the `size_bytes` that one frame holds.

    what: names the frame in errors. Raises InputError when it is no zstd frame, holds more or
    less than `size_bytes`, asks for a window above 2^27 bytes, or is followed by other bytes.
    """
    decompressor = pyzstd.ZstdDecompressor(option={pyzstd.DParameter.windowLogMax: WINDOW_LOG_MAX})
    try:
        # One byte more than expected: a frame that holds more shows itself without being unpacked.
        data = decompressor.decompress(frame, max_length=size_bytes + 1)
    except pyzstd.ZstdError as error:
        raise InputError(f"{what}: not a readable zstd frame ({error})") from error
    if len(data) > size_bytes or (len(data) == size_bytes and not decompressor.eof):
        raise InputError(f"{what}: the frame holds more than the {size_bytes} bytes it should")
    if len(data) < size_bytes:
        raise InputError(f"{what}: expected {size_bytes} bytes, the frame holds {len(data)}")
    if decompressor.unused_data:
        raise InputError(f"{what}: {len(decompressor.unused_data)} bytes follow the frame")
    return data


def most_stored(size_bytes: int) -> int:
    """Return how long a frame that holds `size_bytes` may be; a longer one is not worth reading.

    zstd's own bound (ZSTD_compressBound) is lower; it leaves room for other encoders.
    """
    return size_bytes + size_bytes // 64 + MAX_OVERHEAD_BYTES


def recorded_size(frame: bytes, what: str) -> int:
    """Return how many bytes a frame says it holds: a claim, to be bounded before it is used.

    Raises InputError when it is no zstd frame or does not say.
    """
    try:
        size = pyzstd.get_frame_info(frame).decompressed_size
    except pyzstd.ZstdError as error:
        raise InputError(f"{what}: not a zstd frame ({error})") from error
    if size is None:
        raise InputError(f"{what}: a zstd frame that does not say how much it holds")
    return int(size)


def decompress_proven(frame: bytes, size_bytes: int, digest: str, what: str) -> bytes:
    """Return what a frame holds after comparing it with its "sha256:…" digest."""
    data = decompress(frame, size_bytes, what)
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != digest:
        raise InputError(f"{what}: expected {digest}, found {found}")
    return data
