"""What a client and the server agree on before the first read: a state machine without I/O.

Source: NetworkBlockDevice/nbd `doc/proto.md`, sections "Fixed newstyle negotiation", "TLS support"
(NOTLS and FORCEDTLS), "Metadata querying" and "Option types".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from packer.run.disk.export import Export
from packer.run.nbd.limits import ProtocolError
from packer.transport import nbd_wire as wire

MAX_OPTION_BYTES = 16 << 10
"""Of the data of one option: two names and some queries; a longer one ends the connection."""

CONTEXT_ID = 1
"""Of `base:allocation`, the only context there is."""

PREFERRED_BLOCK_BYTES = 4096

_NAMESPACE = b"base:"
_IN_PLAIN = (wire.OPT_STARTTLS, wire.OPT_ABORT)

_FLAGS = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
_TRANSMISSION_FLAGS = (
    wire.FLAG_HAS_FLAGS | wire.FLAG_READ_ONLY | wire.FLAG_CAN_MULTI_CONN | wire.FLAG_SEND_CACHE
)

GREETING = wire.GREETING.pack(wire.INIT_PASSWD, wire.OPTION_MAGIC, _FLAGS)


class Step(Enum):
    """What comes after an answer."""

    OPTION = "another option"
    TLS = "the TLS handshake, then options again"
    TRANSMISSION = "requests"
    END = "nothing"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a connection is about: which disk, whether replies are structured, and whether
    `base:allocation` may be asked for.
    """

    export: Export
    structured: bool
    allocation: bool


class Handshake:
    """One client's options, in their order. `terms` stands once the step is TRANSMISSION.

    tls: whether everything but the wish for TLS is refused until `secured` was called.
    """

    def __init__(self, exports: Mapping[str, Export], *, tls: bool) -> None:
        self._exports = {name.encode(): export for name, export in exports.items()}
        self._tls = tls
        self._secure = False
        self._zeroes = True
        self._structured = False
        self._context_of: bytes | None = None
        self.terms: Terms | None = None

    def begin(self, flags: int) -> None:
        """Take the client's flags. Raises ProtocolError."""
        if flags & ~_FLAGS or not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise ProtocolError(f"client flags {flags:#x}")
        self._zeroes = not flags & wire.FLAG_NO_ZEROES

    def secured(self) -> None:
        """Go on over TLS; what was agreed in plain does not count ("NBD_OPT_STARTTLS")."""
        self._secure = True
        self._structured = False
        self._context_of = None

    def answer(self, option: int, data: bytes) -> tuple[bytes, Step]:
        """Return what is sent for an option. Raises ProtocolError when only silence is left."""
        if self._tls and not self._secure and option not in _IN_PLAIN:
            if option == wire.OPT_EXPORT_NAME:  # cannot be refused otherwise
                raise ProtocolError("an export without TLS")
            return _reply(option, wire.REP_ERR_TLS_REQD, b"TLS is required"), Step.OPTION
        try:
            return self._answer(option, _Data(data))
        except _MalformedError:
            return _reply(option, wire.REP_ERR_INVALID), Step.OPTION

    def _answer(self, option: int, data: _Data) -> tuple[bytes, Step]:
        match option:
            case wire.OPT_ABORT:
                return _reply(option, wire.REP_ACK), Step.END
            case wire.OPT_STARTTLS:
                return self._start_tls(data)
            case wire.OPT_EXPORT_NAME:
                return self._export_name(data)
            case wire.OPT_GO | wire.OPT_INFO:
                return self._info(option, data)
            case wire.OPT_LIST:
                return self._list(data), Step.OPTION
            case wire.OPT_STRUCTURED_REPLY:
                data.end()
                self._structured = True
                return _reply(option, wire.REP_ACK), Step.OPTION
            case wire.OPT_LIST_META_CONTEXT | wire.OPT_SET_META_CONTEXT:
                return self._contexts(option, data), Step.OPTION
        return _reply(option, wire.REP_ERR_UNSUP), Step.OPTION

    def _start_tls(self, data: _Data) -> tuple[bytes, Step]:
        data.end()
        if not self._tls:
            return _reply(wire.OPT_STARTTLS, wire.REP_ERR_UNSUP), Step.OPTION
        if self._secure:
            raise _MalformedError
        return _reply(wire.OPT_STARTTLS, wire.REP_ACK), Step.TLS

    def _list(self, data: _Data) -> bytes:
        data.end()
        names = [
            _reply(wire.OPT_LIST, wire.REP_SERVER, wire.string(name)) for name in self._exports
        ]
        return b"".join(names) + _reply(wire.OPT_LIST, wire.REP_ACK)

    def _export_name(self, data: _Data) -> tuple[bytes, Step]:
        name = data.rest()
        if name not in self._exports:  # cannot be refused otherwise
            raise ProtocolError("no such export")
        export = self._choose(name)
        zeroes = bytes(wire.RESERVED_BYTES) if self._zeroes else b""
        reply = wire.U64.pack(export.size) + wire.U16.pack(self._transmission_flags()) + zeroes
        return reply, Step.TRANSMISSION

    def _info(self, option: int, data: _Data) -> tuple[bytes, Step]:
        name = data.string()
        asked = {data.number(wire.U16) for _ in range(data.number(wire.U16))}
        data.end()
        if name not in self._exports:
            return _reply(option, wire.REP_ERR_UNKNOWN, b"no such export"), Step.OPTION
        size = self._exports[name].size
        info = wire.EXPORT_INFO.pack(wire.INFO_EXPORT, size, self._transmission_flags())
        reply = _reply(option, wire.REP_INFO, info)
        if wire.INFO_BLOCK_SIZE in asked:
            sizes = (1, PREFERRED_BLOCK_BYTES, wire.MAX_READ_BYTES)
            block = wire.BLOCK_SIZE_INFO.pack(wire.INFO_BLOCK_SIZE, *sizes)
            reply += _reply(option, wire.REP_INFO, block)
        if option == wire.OPT_GO:
            self._choose(name)
        step = Step.TRANSMISSION if option == wire.OPT_GO else Step.OPTION
        return reply + _reply(option, wire.REP_ACK), step

    def _contexts(self, option: int, data: _Data) -> bytes:
        """List or select contexts. A failed selection undoes the one before, too."""
        select = option == wire.OPT_SET_META_CONTEXT
        if select:
            self._context_of = None
        if not self._structured:
            raise _MalformedError
        name = data.string()
        queries = [data.string() for _ in range(data.number(wire.U32))]
        data.end()
        if name not in self._exports:
            return _reply(option, wire.REP_ERR_UNKNOWN, b"no such export")
        wildcard = not select and (not queries or _NAMESPACE in queries)
        if not wildcard and wire.CONTEXT_ALLOCATION not in queries:
            return _reply(option, wire.REP_ACK)
        if select:
            self._context_of = name
        number = wire.U32.pack(CONTEXT_ID if select else 0)
        context = _reply(option, wire.REP_META_CONTEXT, number + wire.CONTEXT_ALLOCATION)
        return context + _reply(option, wire.REP_ACK)

    def _choose(self, name: bytes) -> Export:
        export = self._exports[name]
        self.terms = Terms(export, self._structured, self._context_of == name)
        return export

    def _transmission_flags(self) -> int:
        return _TRANSMISSION_FLAGS | (wire.FLAG_SEND_DF if self._structured else 0)


class _MalformedError(Exception):
    """The data of an option are not what the option asks for, or it comes at a wrong time."""


class _Data:
    """The data of an option, read from its beginning; what is not there is malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, layout: Struct) -> int:
        number: int = layout.unpack(self._take(layout.size))[0]
        return number

    def string(self) -> bytes:
        return self._take(self.number(wire.U32))

    def rest(self) -> bytes:
        return self._take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise _MalformedError

    def _take(self, length: int) -> bytes:
        if length > len(self._data) - self._at:
            raise _MalformedError
        self._at += length
        return self._data[self._at - length : self._at]


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data
