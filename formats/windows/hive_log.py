"""Transaction logs of a registry hive, replayed on a copy in memory.

A hive whose sequence numbers differ, or whose checksum is wrong, was being written. What belongs
into it lies in its logs, and Windows takes it from there when it loads the hive, as is done here:
from a vector of dirty sectors (`.LOG`, `.LOG1`, `.LOG2` until Windows 8) or from numbered entries
(`.LOG1`, `.LOG2` since Windows 8.1). Readers like libregf and hivex look at the hive alone.

Source: msuhanov/regf, "Windows registry file format specification" (2018), "Format of transaction
log files", "Dirty state of a hive", "Multiple transaction log files".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from formats.errors import Corrupt, FormatError, Unsupported
from formats.windows.base_block import (
    NEW_LOG,
    OLD_LOGS,
    PRIMARY,
    SECTOR_BYTES,
    BaseBlock,
    check_bins,
    first_bin_written,
    read_base_block,
    settle,
)
from formats.windows.hive_log_entries import apply_entry, read_entries
from formats.windows.hive_log_sectors import apply_sectors

MAX_HIVE_BYTES = 256 << 20
"""The largest hive that is read; SOFTWARE and COMPONENTS of old systems reach 100 to 200 MiB."""

MAX_LOG_BYTES = 64 << 20
"""The largest log that is read: checking that many bytes of entries takes ten seconds."""

CLEAN = "clean"
REPLAYED = "replayed"
STALE = "stale"


@dataclass(frozen=True, slots=True)
class Replay:
    """A hive as Windows sees it once it is loaded.

    data: the hive; sequence numbers and checksum fit. state: CLEAN (the bytes are as given),
    REPLAYED (its logs are in it), STALE (it was being written and no log says what: some of it may
    be old, some new). done: what was applied, a sentence for each log. warnings: which logs were
    not applied, or not to their end, and why.
    """

    data: bytes
    state: str
    done: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Log:
    """A log whose base block can be trusted. name: "log 1" is the first that was given."""

    name: str
    data: bytes
    head: BaseBlock


def replay(primary: bytes, logs: Sequence[bytes]) -> Replay:
    """Return the hive with what its logs hold for it.

    logs: the bytes of `.LOG`, `.LOG1` and `.LOG2`, in this order, as many as there are; empty ones
    do no harm.

    Raises Truncated, Corrupt or Unsupported when the bytes are no hive with or without its logs.
    """
    if len(primary) > MAX_HIVE_BYTES:
        reason = f"{len(primary)} bytes, at most {MAX_HIVE_BYTES} are read"
        raise Unsupported("registry hive", 0, reason)
    head = read_base_block(primary)
    if head.sound and head.file_type != PRIMARY:
        raise Corrupt("base block", 28, f"file type {head.file_type}: a log, not a hive")
    if head.settled:
        check_bins(primary, head.bins_size)
        return Replay(primary, CLEAN)
    warnings: list[str] = []
    found = _sound_logs(logs, warnings)
    # A system that was upgraded may keep a log of the old format beside those that it writes.
    by_entries = [log for log in found if log.head.file_type == NEW_LOG]
    by_sectors = [log for log in found if log.head.file_type in OLD_LOGS]
    hive, done = _replay_entries(primary, head, by_entries, warnings)
    if not done:
        hive, done = _replay_sectors(primary, head, by_sectors, warnings)
    if not done:
        return _stale(primary, head, warnings)
    return Replay(bytes(hive), REPLAYED, tuple(done), tuple(warnings))


def _sound_logs(given: Sequence[bytes], warnings: list[str]) -> list[_Log]:
    logs: list[_Log] = []
    for number, data in enumerate(given, 1):
        if not any(data[:SECTOR_BYTES]):
            continue  # Windows makes logs in pairs, and one of them may never have been used
        doubt = _doubt(data)
        if doubt:
            warnings.append(f"log {number} is not applied: {doubt}")
        else:
            logs.append(_Log(f"log {number}", data, read_base_block(data)))
    return logs


def _doubt(log: bytes) -> str:
    if not SECTOR_BYTES <= len(log) <= MAX_LOG_BYTES:
        return f"it has {len(log)} bytes"
    head = read_base_block(log)
    if not head.sound:
        return "the checksum of its base block is wrong"
    if head.file_type not in (NEW_LOG, *OLD_LOGS):
        return f"its file type is {head.file_type}"
    if head.primary_sequence != head.secondary_sequence:
        return "it was being written itself"
    return ""


def _replay_entries(
    primary: bytes, head: BaseBlock, logs: list[_Log], warnings: list[str]
) -> tuple[bytearray, list[str]]:
    """Return the hive with the entries of its logs, and what was applied: nothing if in vain.

    The log with the earlier entries comes first, and the next one has to go on where it ends.
    Where the hive's own base block is damaged, only the log with the latest entries counts.
    """
    hive, done = bytearray(primary), list[str]()
    logs = sorted(logs, key=lambda log: log.head.primary_sequence)
    earliest = head.secondary_sequence
    if not head.sound and logs:
        logs = logs[-1:]
        earliest = logs[0].head.primary_sequence
        hive[:SECTOR_BYTES] = logs[0].data[:SECTOR_BYTES]
    expected = -1  # any number that is not before `earliest`
    for log in logs:
        first = log.head.primary_sequence
        if first < earliest or expected not in (-1, first):
            wanted = f"{expected}" if expected >= 0 else f"{earliest} or later"
            warnings.append(f"{log.name} is not applied: it begins at {first}, expected {wanted}")
            continue
        last = _apply_entries(hive, log, warnings)
        if last >= first:
            done.append(f"{log.name}: entries {first} to {last} applied")
            expected = last + 1
    return hive, done if _is_hive(hive, done, warnings) else []


def _apply_entries(hive: bytearray, log: _Log, warnings: list[str]) -> int:
    """Return the number of the last entry that was applied, before the log's first if none was."""
    first = log.head.primary_sequence
    last = first - 1
    try:
        for entry in read_entries(log.data, first, MAX_HIVE_BYTES):
            apply_entry(hive, log.data, entry)
            settle(hive, entry.sequence, entry.bins_size, entry.flags)
            last = entry.sequence
    except FormatError as error:
        warnings.append(f"{log.name} is applied only up to entry {last}: {error}")
    return last


def _replay_sectors(
    primary: bytes, head: BaseBlock, logs: list[_Log], warnings: list[str]
) -> tuple[bytearray, list[str]]:
    """Return the hive with the dirty sectors of the first log that belongs to this state of it.

    So does the boot loader; the kernel also weighs which of two logs is the newer one.
    """
    written = head.last_written if head.sound else first_bin_written(primary)
    for log in logs:
        if log.head.last_written != written:
            warnings.append(
                f"{log.name} is not applied: it belongs to the hive as of {log.head.last_written}, "
                f"expected {written}"
            )
            continue
        hive = bytearray(primary)
        try:
            count = apply_sectors(hive, log.data, log.head, MAX_HIVE_BYTES)
        except FormatError as error:
            warnings.append(f"{log.name} is not applied: {error}")
            continue
        settle(hive, log.head.primary_sequence, log.head.bins_size)
        done = [f"{log.name}: {count} sectors applied"]
        if _is_hive(hive, done, warnings):
            return hive, done
    return bytearray(), []


def _is_hive(hive: bytearray, done: list[str], warnings: list[str]) -> bool:
    """Say whether what was applied has led to a hive, which the log of another one does not."""
    if not done:
        return False
    try:
        check_bins(hive, read_base_block(hive).bins_size)
    except FormatError as error:
        warnings.append(f"{'; '.join(done)}; but that makes no hive: {error}")
        return False
    return True


def _stale(primary: bytes, head: BaseBlock, warnings: list[str]) -> Replay:
    if not head.sound and primary[:4] != b"regf":
        raise Corrupt("base block", 0, f"expected b'regf', found {primary[:4]!r}")
    check_bins(primary, head.bins_size)
    hive = bytearray(primary)
    settle(hive, head.primary_sequence, head.bins_size)
    found = f"sequence numbers {head.primary_sequence} and {head.secondary_sequence}"
    why = found if head.sound else "the checksum of its base block is wrong"
    warnings.append(f"the hive was being written ({why}) and no log of it can be applied")
    return Replay(bytes(hive), STALE, (), tuple(warnings))
