"""What was learned about files of this host: which digest a range of a file had when last hashed.

The memory saves work and proves nothing: a file that changes without a trace in its stamp (a
store through a mapping that was made earlier) gives a wrong guess, which costs one wrong offer.
Losing it costs time only. So every failure of the database is a notice in the log, not an error.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import DIGEST_BYTES

STAMP_FIELDS = 5
Stamps = NDArray[np.int64]
"""int64[k, 5]: st_dev, st_ino, size in bytes, mtime and ctime in nanoseconds."""

RACY_NS = 2_000_000_000
"""A file that changed this recently may change again without a new time stamp (FAT counts in two
seconds, most kernels in ticks of up to 10 ms), so its digest is used and not remembered."""

MAX_ROWS = 1_000_000
"""About 130 MB of database; beyond, the quarter that was not used for longest is forgotten."""

HASH_STEP_BYTES = 1 << 20
_SCHEMA_VERSION = 1
_BUSY_SECONDS = 5.0
_OPEN_ATTEMPTS = 20
_INODES_A_QUERY = 500  # SQLite before 3.32 allows 999 parameters
_INODES_WORTH_A_SCAN = 20_000  # from here on reading the whole device is cheaper (measured)
_KEY_FIELDS = 7
_DAY_SECONDS = 86_400
_REFRESH_DAYS = 7
_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Row = tuple[Any, ...]  # as in the table below, but SQLite keeps any type in any column

_TABLE = """
CREATE TABLE IF NOT EXISTS file (
    device INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    start INTEGER NOT NULL,    -- the range that was hashed, bytes
    length INTEGER NOT NULL,
    size INTEGER NOT NULL,     -- the file at that time
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL CHECK (typeof(digest) = 'blob' AND length(digest) = 32), -- SHA-256
    used_day INTEGER NOT NULL, -- days since 1970 when it last helped, to about a week
    PRIMARY KEY (device, inode, start, length)
) WITHOUT ROWID
"""


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return what tells one state of a file from another; see Stamps.

    Device and inode numbers of 2^63 and more (overlay, network file systems) wrap to negative.
    """
    return (
        _signed(status.st_dev),
        _signed(status.st_ino),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def as_stamps(values: array[int]) -> Stamps:
    """Return stamps that were appended one after the other as int64[k, 5]."""
    return np.array(values, dtype=np.int64).reshape(-1, STAMP_FIELDS)


def find_rows(table: NDArray[np.generic], wanted: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return, for each row of `wanted`, the number of an equal row of `table`, or -1.

    Both are two-dimensional, of one type and width; the order of rows does not matter.
    """
    if len(table) == 0 or len(wanted) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    keys, questions = _as_keys(table), _as_keys(wanted)
    order = np.argsort(keys)
    keys = keys[order]
    place = np.minimum(np.searchsorted(keys, questions), len(keys) - 1)
    return np.where(keys[place] == questions, order[place], -1)


def _as_keys(rows: NDArray[np.generic]) -> NDArray[np.void]:
    whole = np.ascontiguousarray(rows)
    return whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize))).reshape(-1)


def hash_range(fd: int, offset: int, length: int) -> bytes | None:
    """Return the SHA-256 of `length` bytes of an open file, or None when it ends before that.

    Raises OSError when reading fails.
    """
    hasher = hashlib.sha256()
    end = offset + length
    while offset < end:
        data = os.pread(fd, min(HASH_STEP_BYTES, end - offset), offset)
        if not data:
            return None
        hasher.update(data)
        offset += len(data)
    return hasher.digest()


class Memory:
    """The remembered digests in one SQLite file; safe for several threads and processes."""

    def __init__(self, path: Path, *, max_rows: int = MAX_ROWS, racy_ns: int = RACY_NS) -> None:
        self.path = path
        self._max_rows = max_rows
        self._racy_ns = racy_ns
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._wrote = False
        with self._lock:
            self._open()

    def recall(
        self, stamps: Stamps, start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return (digest uint8[k, 32], known bool[k]) of ranges of files with these stamps.

        A range counts as known only when the file's whole stamp is the remembered one.
        """
        wanted = np.column_stack([stamps[:, :2], start, length, stamps[:, 2:]])
        nothing: list[_Row] = []
        found = self._attempt(lambda database: _select(database, wanted), nothing)
        digest = np.zeros((len(stamps), DIGEST_BYTES), dtype=np.uint8)
        known = np.zeros(len(stamps), dtype=bool)
        if found:
            fields = list(zip(*found, strict=True))
            keys = np.array([np.array(one, dtype=np.int64) for one in fields[:_KEY_FIELDS]]).T
            digests = np.frombuffer(b"".join(fields[_KEY_FIELDS]), dtype=np.uint8)
            place = find_rows(keys, wanted)
            known = place >= 0
            digest[known] = digests.reshape(-1, DIGEST_BYTES)[place[known]]
            day = np.array(fields[_KEY_FIELDS + 1], dtype=np.int64)
            self._refresh(keys[place[known]], day[place[known]])
        return digest, known

    def remember(
        self,
        stamps: Stamps,
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        digest: NDArray[np.uint8],
    ) -> None:
        """Note the SHA-256 (uint8[k, 32]) of ranges of files that had these stamps throughout."""
        settled = np.flatnonzero(stamps[:, 4] < time.time_ns() - self._racy_ns)
        if len(settled) == 0:
            return
        today = _today()
        whole = digest[settled].tobytes()
        columns = np.column_stack([stamps[:, :2], start, length, stamps[:, 2:]])[settled].tolist()
        values = [
            (*column, whole[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES], today)
            for row, column in enumerate(columns)
        ]

        def write(database: sqlite3.Connection) -> None:
            with _transaction(database):
                database.executemany(
                    "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values
                )

        self._wrote = True
        self._attempt(write, None)

    def close(self) -> None:
        """Forget what was not used for longest, if there is too much, and close the file."""
        if self._wrote:
            self._attempt(self._prune, None)
        with self._lock:
            self._disconnect()

    def _refresh(self, keys: NDArray[np.int64], day: NDArray[np.int64]) -> None:
        today = _today()
        stale = keys[day < today - _REFRESH_DAYS, :4].tolist()
        if not stale:
            return

        def write(database: sqlite3.Connection) -> None:
            with _transaction(database):
                database.executemany(
                    f"UPDATE file SET used_day = {today}"
                    " WHERE device = ? AND inode = ? AND start = ? AND length = ?",
                    stale,
                )

        self._attempt(write, None)

    def _prune(self, database: sqlite3.Connection) -> None:
        (rows,) = database.execute("SELECT count(*) FROM file").fetchone()
        if rows <= self._max_rows:
            return
        surplus = rows - self._max_rows * 3 // 4
        with _transaction(database):
            database.execute(
                "DELETE FROM file WHERE (device, inode, start, length) IN"
                " (SELECT device, inode, start, length FROM file ORDER BY used_day LIMIT ?)",
                (surplus,),
            )

    def _attempt(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Do something with the database; `otherwise` is the answer when it cannot be used."""
        with self._lock:
            for _ in range(2):
                if self._connection is None:
                    break
                try:
                    return work(self._connection)
                except sqlite3.DatabaseError as error:
                    if _is_busy(error):
                        _log.info("%s: used by another process for long; going on", self.path)
                        break
                    self._recover(error)
        return otherwise

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = _connect(self.path)
        except OSError as error:
            _log.warning("%s: digests are not remembered: %s", self.path, error)
        except sqlite3.DatabaseError as error:
            self._recover(error)

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Begin anew when the file is damaged; go on without it when it cannot be used."""
        self._disconnect()
        if not _is_damage(error):
            _log.warning("%s: digests are not remembered: %s", self.path, error)
            return
        _log.warning("%s: damaged (%s); it is begun anew", self.path, error)
        try:
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._connection = _connect(self.path)
        except (OSError, sqlite3.DatabaseError) as second:
            _log.warning("%s: digests are not remembered: %s", self.path, second)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT, so that waiting for another writer happens at the beginning."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    """Return the opened database. Raises DatabaseError when it is damaged or cannot be used."""
    database = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        for attempt in range(_OPEN_ATTEMPTS):
            try:
                _prepare(database)
                return database
            except sqlite3.OperationalError as error:
                # The change to WAL mode does not wait for other processes by itself.
                if not _is_busy(error) or attempt + 1 == _OPEN_ATTEMPTS:
                    raise
                time.sleep(0.05)
        raise AssertionError("the last attempt returns or raises")
    except sqlite3.DatabaseError:
        database.close()
        raise


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")  # a power cut loses news, not the database
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == _SCHEMA_VERSION:
        return
    with _transaction(database):
        if version:
            database.execute("DROP TABLE IF EXISTS file")
        database.execute(_TABLE)
        database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def _select(database: sqlite3.Connection, wanted: NDArray[np.int64]) -> list[_Row]:
    """Return the rows of the table that speak of the wanted inodes, and maybe others."""
    found: list[_Row] = []
    for device in np.unique(wanted[:, 0]).tolist():
        inodes = np.unique(wanted[wanted[:, 0] == device, 1]).tolist()
        if len(inodes) >= _INODES_WORTH_A_SCAN:
            found += database.execute("SELECT * FROM file WHERE device = ?", (device,)).fetchall()
            continue
        for first in range(0, len(inodes), _INODES_A_QUERY):
            part = inodes[first : first + _INODES_A_QUERY]
            query = f"SELECT * FROM file WHERE device = ? AND inode IN ({_marks(len(part))})"
            found += database.execute(query, (device, *part)).fetchall()
    # The schema checks types and lengths on the way in; a damaged page may hold anything.
    return found if all(map(_is_sound, found)) else list(filter(_is_sound, found))


def _is_sound(row: _Row) -> bool:
    return type(row[_KEY_FIELDS]) is bytes and len(row[_KEY_FIELDS]) == DIGEST_BYTES


def _marks(count: int) -> str:
    return ",".join("?" * count)


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Say whether a new file would help. SQLITE_ERROR: the tables are not ours."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _code(error: sqlite3.DatabaseError) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _today() -> int:
    return int(time.time()) // _DAY_SECONDS


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
