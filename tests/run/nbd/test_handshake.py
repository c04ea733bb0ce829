"""The options of a client, without any I/O."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.run.nbd.handshake import CONTEXT_ID, Handshake, Step
from packer.run.nbd.limits import ProtocolError
from packer.transport import nbd_wire as wire
from tests.run.nbd.exports import PatternExport

DISK, OTHER = PatternExport(1 << 40, 4096), PatternExport(12345, 512)
FLAGS = wire.FLAG_HAS_FLAGS | wire.FLAG_READ_ONLY | wire.FLAG_CAN_MULTI_CONN | wire.FLAG_SEND_CACHE
ALLOCATION = wire.U32.pack(CONTEXT_ID) + b"base:allocation"


def handshake(*, tls: bool = False) -> Handshake:
    one = Handshake({"": DISK, "käse": OTHER}, tls=tls)
    one.begin(3)
    return one


def replies(option: int, data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        magic, answered, kind, length = wire.OPTION_REPLY.unpack_from(data)
        assert (magic, answered) == (wire.OPTION_REPLY_MAGIC, option)
        end = wire.OPTION_REPLY.size + length
        found.append((kind, data[wire.OPTION_REPLY.size : end]))
        data = data[end:]
    return found


def ask(one: Handshake, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
    reply, step = one.answer(option, data)
    assert step is Step.OPTION
    return replies(option, reply)


def contexts(name: bytes, *queries: bytes) -> bytes:
    return wire.string(name) + wire.U32.pack(len(queries)) + b"".join(map(wire.string, queries))


def go(name: bytes, *infos: int) -> bytes:
    return wire.string(name) + wire.U16.pack(len(infos)) + b"".join(map(wire.U16.pack, infos))


def test_an_export_is_chosen_with_all_that_was_agreed() -> None:
    one = handshake()
    assert ask(one, wire.OPT_STRUCTURED_REPLY) == [(wire.REP_ACK, b"")]
    query = contexts("käse".encode(), b"base:allocation", b"other:thing")
    found = [(wire.REP_META_CONTEXT, ALLOCATION), (wire.REP_ACK, b"")]
    assert ask(one, wire.OPT_SET_META_CONTEXT, query) == found
    reply, step = one.answer(wire.OPT_GO, go("käse".encode(), wire.INFO_BLOCK_SIZE, 99))
    flags = FLAGS | wire.FLAG_SEND_DF
    assert step is Step.TRANSMISSION
    assert replies(wire.OPT_GO, reply) == [
        (wire.REP_INFO, wire.EXPORT_INFO.pack(wire.INFO_EXPORT, 12345, flags)),
        (wire.REP_INFO, wire.BLOCK_SIZE_INFO.pack(wire.INFO_BLOCK_SIZE, 1, 4096, 32 << 20)),
        (wire.REP_ACK, b""),
    ]
    assert one.terms is not None
    assert one.terms.export is OTHER
    assert one.terms.structured
    assert one.terms.allocation


def test_an_old_client_gets_simple_terms_and_zeros_unless_it_forgoes_them() -> None:
    for flags, zeros in [(1, 124), (3, 0)]:
        one = Handshake({"": DISK}, tls=False)
        one.begin(flags)
        reply, step = one.answer(wire.OPT_EXPORT_NAME, b"")
        assert step is Step.TRANSMISSION
        assert reply == wire.U64.pack(1 << 40) + wire.U16.pack(FLAGS) + bytes(zeros)
        assert one.terms is not None
        assert not one.terms.structured
        assert not one.terms.allocation


def test_a_context_belongs_to_the_export_it_was_asked_for() -> None:
    one = handshake()
    ask(one, wire.OPT_STRUCTURED_REPLY)
    ask(one, wire.OPT_SET_META_CONTEXT, contexts("käse".encode(), b"base:allocation"))
    one.answer(wire.OPT_GO, go(b""))
    assert one.terms is not None
    assert not one.terms.allocation


def test_a_later_choice_of_contexts_replaces_the_earlier_one_even_if_it_fails() -> None:
    for later in (contexts(b""), contexts(b"nobody", b"base:allocation"), b"?"):
        one = handshake()
        ask(one, wire.OPT_STRUCTURED_REPLY)
        ask(one, wire.OPT_SET_META_CONTEXT, contexts(b"", b"base:allocation"))
        ask(one, wire.OPT_SET_META_CONTEXT, later)
        one.answer(wire.OPT_GO, go(b""))
        assert one.terms is not None
        assert not one.terms.allocation


def test_contexts_are_listed_by_wildcard_and_selected_by_name() -> None:
    one = handshake()
    ask(one, wire.OPT_STRUCTURED_REPLY)
    listed = [(wire.REP_META_CONTEXT, bytes(4) + b"base:allocation"), (wire.REP_ACK, b"")]
    for queries in ((), (b"base:",), (b"x:y", b"base:allocation")):
        assert ask(one, wire.OPT_LIST_META_CONTEXT, contexts(b"", *queries)) == listed
    none = [(wire.REP_ACK, b"")]
    assert ask(one, wire.OPT_LIST_META_CONTEXT, contexts(b"", b"qemu:")) == none
    for queries in ((), (b"base:",), (b"base:other",)):
        assert ask(one, wire.OPT_SET_META_CONTEXT, contexts(b"", *queries)) == none


def test_contexts_need_structured_replies() -> None:
    found = ask(handshake(), wire.OPT_SET_META_CONTEXT, contexts(b"", b"base:allocation"))
    assert found == [(wire.REP_ERR_INVALID, b"")]


def test_exports_are_listed() -> None:
    assert ask(handshake(), wire.OPT_LIST) == [
        (wire.REP_SERVER, wire.string(b"")),
        (wire.REP_SERVER, wire.string("käse".encode())),
        (wire.REP_ACK, b""),
    ]


def test_an_unknown_export_is_an_error_and_options_go_on() -> None:
    one = handshake()
    for option in (wire.OPT_INFO, wire.OPT_GO):
        assert ask(one, option, go(b"nobody"))[0][0] == wire.REP_ERR_UNKNOWN
    assert one.terms is None
    with pytest.raises(ProtocolError):
        one.answer(wire.OPT_EXPORT_NAME, b"nobody")


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (wire.OPT_LIST, b"x"),
        (wire.OPT_STRUCTURED_REPLY, b"x"),
        (wire.OPT_GO, b""),
        (wire.OPT_GO, wire.U32.pack(1 << 31) + b"x"),
        (wire.OPT_GO, wire.string(b"") + wire.U16.pack(2) + bytes(2)),
        (wire.OPT_INFO, wire.string(b"") + wire.U16.pack(0) + b"x"),
        (wire.OPT_SET_META_CONTEXT, wire.string(b"") + wire.U32.pack(0xFFFFFFFF)),
        (wire.OPT_LIST_META_CONTEXT, wire.string(b"") + wire.U32.pack(1) + b"\xff\xff\xff\xff"),
    ],
)
def test_malformed_data_are_refused_and_options_go_on(option: int, data: bytes) -> None:
    one = handshake()
    if option in (wire.OPT_SET_META_CONTEXT, wire.OPT_LIST_META_CONTEXT):
        ask(one, wire.OPT_STRUCTURED_REPLY)
    assert ask(one, option, data) == [(wire.REP_ERR_INVALID, b"")]
    assert ask(one, wire.OPT_LIST)[-1] == (wire.REP_ACK, b"")


def test_unknown_options_are_unsupported() -> None:
    for option in (0, 4, 11, 0xFFFFFFFF):
        assert ask(handshake(), option, b"anything") == [(wire.REP_ERR_UNSUP, b"")]
    assert ask(handshake(), wire.OPT_STARTTLS) == [(wire.REP_ERR_UNSUP, b"")]


@pytest.mark.parametrize("flags", [0, 2, 4, 7, 1 << 31])
def test_flags_that_were_not_offered_end_it(flags: int) -> None:
    with pytest.raises(ProtocolError):
        Handshake({"": DISK}, tls=False).begin(flags)


def test_goodbye_is_answered() -> None:
    for tls in (False, True):
        reply, step = handshake(tls=tls).answer(wire.OPT_ABORT, b"whatever")
        assert step is Step.END
        assert replies(wire.OPT_ABORT, reply) == [(wire.REP_ACK, b"")]


def test_without_tls_nothing_is_told_where_it_is_required() -> None:
    one = handshake(tls=True)
    for option in (wire.OPT_LIST, wire.OPT_INFO, wire.OPT_GO, wire.OPT_STRUCTURED_REPLY, 99):
        assert ask(one, option, go(b""))[0][0] == wire.REP_ERR_TLS_REQD
    assert one.terms is None
    with pytest.raises(ProtocolError):
        one.answer(wire.OPT_EXPORT_NAME, b"")


def test_tls_begins_once_and_what_was_said_before_does_not_count() -> None:
    one = handshake(tls=True)
    assert ask(one, wire.OPT_STARTTLS, b"x") == [(wire.REP_ERR_INVALID, b"")]
    reply, step = one.answer(wire.OPT_STARTTLS, b"")
    assert step is Step.TLS
    assert replies(wire.OPT_STARTTLS, reply) == [(wire.REP_ACK, b"")]
    one.secured()
    assert ask(one, wire.OPT_STARTTLS) == [(wire.REP_ERR_INVALID, b"")]
    assert ask(one, wire.OPT_SET_META_CONTEXT, contexts(b"", b"base:allocation")) == [
        (wire.REP_ERR_INVALID, b"")
    ]
    assert one.answer(wire.OPT_GO, go(b""))[1] is Step.TRANSMISSION


@settings(deadline=None)
@given(st.integers(0, 12), st.binary(max_size=64))
def test_whatever_an_option_holds_it_is_answered_or_ends_it(option: int, data: bytes) -> None:
    one = handshake()
    ask(one, wire.OPT_STRUCTURED_REPLY)
    try:
        reply, step = one.answer(option, data)
    except ProtocolError:
        assert option == wire.OPT_EXPORT_NAME
        return
    if option != wire.OPT_EXPORT_NAME:
        last = replies(option, reply)[-1][0]
        assert last == wire.REP_ACK or last & wire.REP_ERROR
    assert (step is Step.TRANSMISSION) == (one.terms is not None)
