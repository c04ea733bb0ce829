"""The numbers and layouts of the NBD protocol; everything is in network byte order.

Source: NetworkBlockDevice/nbd `doc/proto.md`, sections "Values" and "Protocol phases"; the names
are those of the specification without their prefix `NBD_`.
"""

from __future__ import annotations

from struct import Struct

DEFAULT_PORT = 10809
MAX_STRING_BYTES = 4096
"""Of an export's name, a message, a query ("Conventions")."""

MAX_READ_BYTES = 32 << 20
"""A client may not ask for more at once unless the server says so ("Block size constraints")."""

U16, U32, U64 = Struct(">H"), Struct(">I"), Struct(">Q")

# Handshake. The greeting is INIT_PASSWD, the option magic and the server's flags; each option
# begins with OPTION (magic, option, length), each reply to one with OPTION_REPLY (magic, option,
# reply type, length).
GREETING = Struct(">QQH")
OPTION = Struct(">QII")
OPTION_REPLY = Struct(">QIII")
INIT_PASSWD = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9

FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1, 2
RESERVED_BYTES = 124
"""Zeros after the answer to OPT_EXPORT_NAME, unless FLAG_NO_ZEROES was agreed."""

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS = 1, 2, 3, 5
OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 6, 7, 8
OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 9, 10

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERROR = 1 << 31
REP_ERR_UNSUP, REP_ERR_INVALID = REP_ERROR + 1, REP_ERROR + 3
REP_ERR_TLS_REQD, REP_ERR_UNKNOWN = REP_ERROR + 5, REP_ERROR + 6

INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
EXPORT_INFO = Struct(">HQH")
"""INFO_EXPORT, the size in bytes, the transmission flags."""

BLOCK_SIZE_INFO = Struct(">HIII")
"""INFO_BLOCK_SIZE, then the least, the preferred and the largest block in bytes."""

CONTEXT_ALLOCATION = b"base:allocation"

# Transmission flags.
FLAG_HAS_FLAGS, FLAG_READ_ONLY, FLAG_SEND_DF = 1 << 0, 1 << 1, 1 << 7
FLAG_CAN_MULTI_CONN, FLAG_SEND_CACHE = 1 << 8, 1 << 10

# Transmission. REQUEST is magic, flags, type, cookie, offset, length; SIMPLE_REPLY is magic, error,
# cookie; CHUNK, the head of a part of a structured reply, is magic, flags, type, cookie, length.
REQUEST = Struct(">IHHQQI")
SIMPLE_REPLY = Struct(">IIQ")
CHUNK = Struct(">IHHQI")
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

CMD_READ, CMD_WRITE, CMD_DISC, CMD_TRIM = 0, 1, 2, 4
CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 5, 6, 7
CMD_FLAG_DF, CMD_FLAG_REQ_ONE = 1 << 2, 1 << 3

REPLY_FLAG_DONE = 1
REPLY_TYPE_NONE, REPLY_TYPE_OFFSET_DATA, REPLY_TYPE_OFFSET_HOLE = 0, 1, 2
REPLY_TYPE_BLOCK_STATUS = 5
REPLY_TYPE_ERROR_BIT = 1 << 15
REPLY_TYPE_ERROR = REPLY_TYPE_ERROR_BIT + 1

STATE_HOLE, STATE_ZERO = 1, 2
"""Of `base:allocation`."""

EPERM, EIO, EINVAL = 1, 5, 22


def string(data: bytes) -> bytes:
    """Return a string as it stands in options: its length in 32 bits, then its bytes."""
    return U32.pack(len(data)) + data
