"""Registry hives: keys and values, through libregf.

Two things are taken from the records themselves, to which libregf gives the offsets. It leaves out
what it cannot find (a list of subkeys or values outside the hive) and says so in a flag that is
also set for every key without values: a key's own counts are compared with what was listed. And of
values of one to three bytes it returns the wrong ones (20260526, libregf_value_key.c: it copies the
end of the field that holds them; in three real hives 532 of 2,750 such values).

libregf knows nothing of logs: give it what `hive_log.replay` returns.

Source: msuhanov/regf, "Windows registry file format specification" (2018), "Key node", "Key value",
"Data types".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyregf

from formats.errors import Corrupt
from formats.filesystem.libyal import FileObject
from formats.source import Memory

# Value types; many keys hold types of their own, with the high bits set
SZ = 1
EXPAND_SZ = 2
BINARY = 3
DWORD = 4
DWORD_BIG_ENDIAN = 5
LINK = 6
MULTI_SZ = 7
QWORD = 11

_TEXTS = (SZ, EXPAND_SZ, LINK)
_NUMBERS = {DWORD: (4, "little"), DWORD_BIG_ENDIAN: (4, "big"), QWORD: (8, "little")}
_KEY_NODE = struct.Struct("<2s18xI12xI")
# 0 "nk"; 20 number of subkeys; 36 number of values; "nk" is where libregf's offset points
_VALUE_KEY = struct.Struct("<2s2xI4sI")
# 0 "vk"; 4 size of the data, bytes, with the highest bit set if it lies in the next field, which is
# 8 where the data lies, or up to four bytes of it; 12 type; "vk" is where the offset points
_INLINE = 0x8000_0000
_INLINE_BYTES = 4
MAX_KEY_NAME = 255
MAX_VALUE_NAME = 16_383
"""Characters; Microsoft, "Registry Element Size Limits"."""
_MAX_REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it is stored. name: "" for a key's default value. type: see above."""

    name: str
    type: int
    data: bytes

    @property
    def text(self) -> str | None:
        """The string up to its terminator; None for a value that is no string."""
        return self._text().split("\0", 1)[0] if self.type in _TEXTS else None

    @property
    def texts(self) -> tuple[str, ...]:
        """The strings of a MULTI_SZ, up to the empty one; of a single string, that one."""
        if self.type in _TEXTS:
            return (self._text().split("\0", 1)[0],)
        if self.type != MULTI_SZ:
            return ()
        parts = self._text().split("\0")
        return tuple(parts[: parts.index("")] if "" in parts else parts)

    @property
    def number(self) -> int | None:
        """The integer; None for a value that is no integer or has another length."""
        size, order = _NUMBERS.get(self.type, (-1, "little"))
        if len(self.data) != size:
            return None
        return int.from_bytes(self.data, "big" if order == "big" else "little")

    def _text(self) -> str:
        return self.data[: len(self.data) & ~1].decode("utf-16-le", "replace")


class Hive:
    """An opened hive. Not for use by several threads.

    Every method of it, of its keys and of their iterators raises Corrupt for what is damaged.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._file = pyregf.file()
        with _converted("registry hive"):
            self._file.open_file_object(FileObject(Memory(data)))
            root = self._file.get_root_key()
        if root is None:
            raise Corrupt("registry hive", 0, "it has no root key")
        self.root = Key(data, root)

    def key(self, path: str) -> Key | None:
        """Return the key at a path, names joined by backslashes; "" is the root."""
        key: Key | None = self.root
        for name in path.split("\\") if path else ():
            key = key.subkey(name) if key is not None else None
        return key


class Key:
    """A key of a hive.

    path: from the root, as the names are written in the hive. entries: how long its lists are,
    which says what it has cost to load it.
    """

    def __init__(self, data: bytes, key: Any, path: str = "", above: tuple[int, ...] = ()) -> None:
        self._data = data
        self._key = key
        self.path = path
        with _converted(f"key {path!r}"):
            self._subkeys = int(key.number_of_sub_keys)
            self._values = int(key.number_of_values)
            self._offset = int(key.offset)
        self.entries = self._subkeys + self._values
        self._line = (*above, self._offset)
        if self._offset in above:
            raise Corrupt(f"key {path!r}", self._offset, "it lies below itself")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("\\")[2]

    def count_subkeys(self) -> int:
        """Return how many keys there are directly below."""
        return self._all(self._subkeys, 1, "subkeys")

    def count_values(self) -> int:
        """Return how many values the key has."""
        return self._all(self._values, 2, "values")

    def subkeys(self) -> Iterator[Key]:
        """Yield the keys directly below, in the order of the hive."""
        return (self.subkey_at(index) for index in range(self.count_subkeys()))

    def values(self) -> Iterator[Value]:
        """Yield the values, in the order of the hive."""
        return (self.value_at(index).read() for index in range(self.count_values()))

    def subkey(self, name: str) -> Key | None:
        """Return the key of this name directly below; case does not matter."""
        if self.count_subkeys() == 0:
            return None
        with _converted(f"key {self.path!r}"):
            key = self._key.get_sub_key_by_name(name)
            return self._below(key) if key is not None else None

    def subkey_at(self, index: int) -> Key:
        """Return one of the keys directly below; index: less than count_subkeys()."""
        with _converted(f"key {self.path!r}, subkey {index}"):
            return self._below(self._key.get_sub_key(index))

    def value_at(self, index: int) -> StoredValue:
        """Return one of the values, not yet read; index: less than count_values()."""
        with _converted(f"key {self.path!r}, value {index}"):
            value = self._key.get_value(index)
            name = str(value.name or "")
            if len(name) > MAX_VALUE_NAME:
                raise ValueError(f"a name of {len(name)} characters")
            return StoredValue(self._data, value, name, self.path)

    def _below(self, key: Any) -> Key:
        name = str(key.name or "")
        if not name or "\\" in name or len(name) > MAX_KEY_NAME:
            raise ValueError(f"a key cannot be called {name[:MAX_KEY_NAME]!r}")
        path = f"{self.path}\\{name}" if self.path else name
        return Key(self._data, key, path, self._line)

    def _all(self, found: int, field: int, what: str) -> int:
        """Return how many libregf lists, if the key itself says that it has as many."""
        at = self._offset
        if not 0 <= at <= len(self._data) - _KEY_NODE.size:
            raise Corrupt(f"key {self.path!r}", at, "outside the hive")
        fields = _KEY_NODE.unpack_from(self._data, at)
        if fields[0] != b"nk" or fields[field] != found:
            reason = f"expected {fields[field]} {what}, found {found}"
            raise Corrupt(f"key {self.path!r}", at, reason)
        return found


class StoredValue:
    """A value of a hive. name: "" for the default one. size: bytes of its data."""

    def __init__(self, data: bytes, value: Any, name: str, path: str) -> None:
        self.name = name
        self._value = value
        self._structure = f"value {name!r} of key {path!r}"
        self._offset = int(value.offset)
        if not 0 <= self._offset <= len(data) - _VALUE_KEY.size:
            raise Corrupt(self._structure, self._offset, "outside the hive")
        signature, size, self._field, self.type = _VALUE_KEY.unpack_from(data, self._offset)
        if signature != b"vk":
            raise Corrupt(self._structure, self._offset, f"expected b'vk', found {signature!r}")
        self._inline = bool(size & _INLINE)
        self.size = int(size & ~_INLINE)

    def read(self) -> Value:
        """Return the value with its data."""
        if self._inline and self.size <= _INLINE_BYTES:
            return Value(self.name, self.type, self._field[: self.size])
        with _converted(self._structure):
            data = bytes(self._value.data or b"")
            damaged = bool(self._value.is_corrupted())
        # Of a string libregf returns what precedes its terminator, and that.
        fits = len(data) == self.size or (self.type in _TEXTS and 0 < len(data) < self.size)
        if damaged or not fits:
            reason = f"expected {self.size} bytes, found {len(data)}"
            raise Corrupt(self._structure, self._offset, reason)
        return Value(self.name, self.type, data)


@contextmanager
def _converted(structure: str) -> Iterator[None]:
    """Turn what libregf raises into Corrupt; its messages list a call per line, the last cause."""
    try:
        yield
    except (OSError, ValueError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARACTERS]
        raise Corrupt(structure, 0, reason) from error
