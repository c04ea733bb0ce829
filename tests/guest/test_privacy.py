"""What looks private: rules that find planted secrets, and leave alone what only resembles one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.guest.privacy import (
    MAX_LOOKED_BYTES,
    NOT_LOOKED,
    Finding,
    Review,
    _Table,
    advice,
    count_of,
    find_private,
    sift,
    summary,
)
from packer.guest.privacy_looks import ENCRYPTED, LOOK_BYTES, NOT_ENCRYPTED, Look
from packer.guest.privacy_rules import FREE_SPACE, RULES, UNREAD_VOLUME, Place, Rule
from packer.text import printable
from tests.guest import planted
from tests.guest.planted import HARMLESS, SECRETS

PLANTED = [(rule, path) for rule, files in SECRETS.items() for path in files]
ABOUT_FILES = [rule for rule in RULES if rule not in (UNREAD_VOLUME, FREE_SPACE)]
LOOKS: list[Look] = list(
    dict.fromkeys(place.look for rule in RULES for place in rule.places if place.look is not None)
)


def find(files: Mapping[str, bytes], sizes: Sequence[int] | None = None) -> list[Finding]:
    data = list(files.values())
    size = np.array([len(one) for one in data] if sizes is None else sizes, dtype=np.int64)
    return list(find_private(list(files), size, lambda row, most: data[row][:most]))


# --- what is found ---


@pytest.mark.parametrize(("rule", "path"), PLANTED, ids=[path for _, path in PLANTED])
@pytest.mark.parametrize("where", ["", "/var/lib/machines/inner", "/@"], ids=["", "chroot", "@"])
def test_a_planted_secret_is_found_under_its_rule(rule: str, path: str, where: str) -> None:
    data = SECRETS[rule][path]
    (found,) = find({where + path: data})
    assert (found.rule, found.path, found.size_bytes) == (rule, where + path, len(data))


@pytest.mark.parametrize(("rule", "path"), PLANTED, ids=[path for _, path in PLANTED])
def test_upper_and_lower_case_are_the_same(rule: str, path: str) -> None:
    """As they are on FAT and NTFS: a stick's SERVER.KEY, Windows XP's system32/config/SAM."""
    for spelling in (path.upper(), path.lower(), path.title()):
        assert [one.rule for one in find({spelling: SECRETS[rule][path]})] == [rule]


@pytest.mark.parametrize("path", HARMLESS)
def test_what_only_resembles_a_secret_is_left_alone(path: str) -> None:
    assert find({path: HARMLESS[path]}) == []
    assert find({path.upper(): HARMLESS[path]}) == []


def test_every_rule_about_files_has_a_planted_secret() -> None:
    assert set(SECRETS) == {rule.id for rule in ABOUT_FILES}


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (planted.OPENSSH_KEY, NOT_ENCRYPTED),
        (planted.LOCKED_OPENSSH_KEY, ENCRYPTED),
        (planted.PEM_KEY, NOT_ENCRYPTED),
        (planted.LOCKED_PEM_KEY, ENCRYPTED),
        (planted.RSA_KEY, NOT_ENCRYPTED),
        (planted.LOCKED_RSA_KEY, ENCRYPTED),
        (planted.DER_KEY, NOT_ENCRYPTED),
        (planted.PUTTY_KEY % b"none", NOT_ENCRYPTED),
        (planted.PUTTY_KEY % b"aes256-cbc", ENCRYPTED),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n!!!!\n", ""),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", ""),
    ],
    ids=[
        *("openssh", "openssh locked", "pkcs8", "pkcs8 locked", "pkcs1", "pkcs1 locked", "der"),
        *("putty", "putty locked", "openssh that is none", "openssh without a body"),
    ],
)
def test_a_key_is_said_to_be_encrypted_if_it_is(data: bytes, detail: str) -> None:
    (found,) = find({"/root/.ssh/key": data})
    assert (found.rule, found.detail) == ("private-key", detail)


def test_accounts_and_kinds_of_tokens_are_named() -> None:
    shadow = b"root:" + planted.HASH + b":1\neve:!" + planted.HASH + b":1\nbin:*:1\n"
    (found,) = find({"/etc/shadow": shadow})
    assert found.detail == "2 accounts"
    (found,) = find({"/root/.profile": planted.GITHUB + b"\n" + planted.AWS + b"\n"})
    assert found.detail == "GitHub, AWS"


def test_a_path_is_found_once_by_the_first_rule_that_agrees() -> None:
    key = {"/etc/wireguard/wg0.key": planted.PEM_KEY}  # the next rule would take it for TLS
    assert [one.rule for one in find(key)] == ["vpn"]
    typed = {"/root/.bash_history": b"export TOKEN=" + planted.GITHUB}
    assert [(one.rule, one.detail) for one in find(typed)] == [("token", "GitHub")]


def test_findings_come_by_rule_and_path() -> None:
    files = {path: data for one in SECRETS.values() for path, data in one.items()}
    backwards = dict(reversed(files.items()))
    found = find(backwards)
    assert found == find(files)
    order = [rule.id for rule in RULES]
    keys = [(order.index(one.rule), one.path) for one in found]
    assert keys == sorted(keys)


def test_an_empty_file_is_nothing() -> None:
    assert find({"/root/.bash_history": b"", "/etc/krb5.keytab": b""}) == []


# --- what is read ---


def test_only_the_first_bytes_are_read_and_only_where_a_look_needs_them() -> None:
    asked: list[tuple[int, int]] = []

    def read(row: int, most: int) -> bytes:
        asked.append((row, most))
        return b"x" * most

    paths = ["/srv/.bash_history", "/srv/large.pem", "/srv/other", "/root/.large"]
    find_private(paths, np.array([10, 1 << 40, 1 << 40, LOOK_BYTES + 1]), read)
    assert asked == [(1, LOOK_BYTES)]


def test_a_file_that_several_rules_look_into_is_read_once() -> None:
    asked: list[int] = []

    def read(row: int, most: int) -> bytes:
        asked.append(row)
        return b"nothing"

    path = "/home/eve/.ssh/cert.pem"  # of a key's ending and of a key's folder
    assert len(list(_Table(RULES).fitting(path))) > 1
    assert find_private([path], np.array([7]), read) == ()
    assert asked == [0]


def test_what_is_too_much_to_look_into_counts_as_found() -> None:
    many = 2 * MAX_LOOKED_BYTES // LOOK_BYTES
    read_bytes = 0

    def read(row: int, most: int) -> bytes:
        nonlocal read_bytes
        read_bytes += most
        return b"x" * most

    paths = [f"/srv/{row}.pem" for row in range(many)]
    found = find_private(paths, np.full(many, 1 << 30, dtype=np.int64), read)
    assert MAX_LOOKED_BYTES <= read_bytes <= MAX_LOOKED_BYTES + LOOK_BYTES
    assert 0 < len(found) < many
    assert {one.detail for one in found} == {NOT_LOOKED}


def test_a_file_that_cannot_be_read_from_its_start_is_no_finding_of_a_look() -> None:
    assert find_private(["/srv/a.pem"], np.array([9]), lambda row, most: b"") == ()


# --- the patterns ---


def as_expression(pattern: str) -> re.Pattern[str]:
    """The same by the field's usual way: one expression for the whole path."""
    words = {"*": "[^/]*", "**": ".+"}
    parts = [
        words[part] if part == "**" else re.escape(part).replace(r"\*", words["*"])
        for part in pattern.lower().split("/")
    ]
    return re.compile("(?s:(?:.*/)?" + "/".join(parts) + r")\Z")


PATTERNS = sorted({place.pattern for rule in RULES for place in rule.places})
EXPRESSIONS = {pattern: as_expression(pattern) for pattern in PATTERNS}
NAMES = sorted(set(chain.from_iterable(pattern.split("/") for pattern in PATTERNS)))
names = st.sampled_from(NAMES).map(lambda name: name.replace("*", "a")) | st.text(
    st.characters(exclude_characters="/", exclude_categories=()), min_size=1, max_size=8
)
paths = st.lists(names, min_size=1, max_size=6).map(lambda parts: "/" + "/".join(parts))
likely_paths = st.builds(
    lambda before, pattern, fill: (
        before + "/" + pattern.replace("**", f"{fill}/{fill}").replace("*", fill)
    ),
    paths,
    st.sampled_from(PATTERNS),
    st.sampled_from(["a", "x.y", "ä", "\n"]),
)


@settings(max_examples=300, deadline=None)
@given(paths | likely_paths)
def test_looking_patterns_up_by_name_finds_what_comparing_them_all_would(path: str) -> None:
    found = {place.pattern for _, place in _Table(RULES).fitting(path)}
    lower = path[1:].lower()
    expected = {pattern for pattern, expression in EXPRESSIONS.items() if expression.match(lower)}
    assert found == expected


def test_every_pattern_can_be_found_by_a_name() -> None:
    with pytest.raises(ValueError):
        _Table([Rule("x", "x", (Place("*/**"),))])
    with pytest.raises(ValueError):
        _Table([Rule("x", "x", (Place("a*"),))])
    for pattern in PATTERNS:
        path = "/somewhere/" + pattern.replace("**", "a/b").replace("*", "a")
        assert pattern in {place.pattern for _, place in _Table(RULES).fitting(path)}


def test_rules_have_an_id_a_meaning_and_at_least_one_place() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in ABOUT_FILES:
        assert re.fullmatch("[a-z]+(-[a-z]+)*", rule.id)
        assert rule.what
        assert rule.places


def test_the_page_about_packing_lists_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "packing.md").read_text("utf-8")
    _, found, rest = page.partition(
        "<!-- privacy-rules: checked by tests/guest/test_privacy.py -->\n"
    )
    assert found
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in rest.split("\n\n", 1)[0].splitlines()[2:]
    ]
    assert [(row[0].strip("`"), row[1]) for row in rows] == [(one.id, one.what) for one in RULES]


# --- what the author allows ---

FOUND = [
    Finding("/etc/machine-id", "machine-id", "", 33),
    Finding("/home/demo/.ssh/id_rsa", "private-key", "", 1704),
    Finding("/etc/ssl/private/a.key", "private-key", "", 1704),
]


@pytest.mark.parametrize(
    ("patterns", "left", "idle"),
    [
        ([], [0, 1, 2], []),
        (["machine-id"], [1, 2], []),
        (["private-*"], [0], []),
        (["/home/demo/*"], [0, 2], []),
        (["*.key"], [0, 1], []),
        (["/etc/ssl/private/a.key", "/etc/machine-id"], [1], []),
        (["*"], [], []),
        (["/etc/ssl/privat/*", "machne-id"], [0, 1, 2], ["/etc/ssl/privat/*", "machne-id"]),
        (["mail"], [0, 1, 2], []),  # a rule that found nothing today is not mistyped
        (["[", "/etc/machine-id"], [1, 2], ["["]),
    ],
)
def test_a_pattern_allows_paths_or_rules(
    patterns: list[str], left: list[int], idle: list[str]
) -> None:
    review = sift(FOUND, patterns)
    assert list(review.findings) == [FOUND[row] for row in left]
    assert sorted((*review.findings, *review.allowed), key=FOUND.index) == FOUND
    assert list(review.idle) == idle


@given(st.lists(st.sampled_from(FOUND)), st.lists(st.text(max_size=12), max_size=4))
def test_no_pattern_loses_a_finding(found: list[Finding], patterns: list[str]) -> None:
    review = sift(found, patterns)
    assert len(review.findings) + len(review.allowed) == len(found)
    assert set(review.idle) <= set(patterns)


# --- what is said ---


def test_a_summary_has_a_line_for_each_rule() -> None:
    text = summary(FOUND)
    assert [line.split()[0] for line in text.splitlines()] == ["machine-id", "private-key"]
    assert "3.4 kB" in text
    assert "/home/demo/.ssh/id_rsa, …" in text
    assert (count_of(FOUND), count_of(FOUND[:1])) == ("3 things look", "1 thing looks")
    assert "--clean=identity takes" in advice(FOUND)
    assert "--clean" not in advice(FOUND[1:])
    assert Review() == sift([], [])


HOSTILE = [
    "/home/\x1b]0;evil\x07/.bash_history",
    "/home/a\nvmpack: note: all is well/.bash_history",
    "/home/\udcff\udcfe/.bash_history",
    "/" + "a/" * 2040 + ".bash_history",
    "/" + "b" * 4080 + "/.bash_history",
    "/\u202eevil/.bash_history",
]


@pytest.mark.parametrize("path", HOSTILE, ids=["escape", "line", "bytes", "deep", "long", "turned"])
def test_a_hostile_name_is_found_and_neither_breaks_lines_nor_the_terminal(path: str) -> None:
    (found,) = find({path: b"ls\n"})
    assert (found.path, found.rule) == (path, "history")
    text = summary([found])
    assert text == printable(text)
    assert len(text) < 160


# --- what it costs ---


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
def test_no_bytes_make_a_look_slow(look: Look) -> None:
    """An expression that tracks back from each byte takes minutes for 64 KiB of the right one."""
    pieces = [bytes([byte]) for byte in range(256)]
    pieces += [b"a:", b"a=", b'": ', b"://a:", b"TOKEN_", b"-----BEGIN ", b"PRIVATE KEY", b"ghp_"]
    pieces += [
        b"sk-",
        b"xoxb-",
        b"password",
        b"psk ",
        b"a:$",
        b"a:!!",
        b"Value:  ",
        b" \n",
        b"\n\t",
    ]
    for piece in pieces:
        started = time.perf_counter()
        look((piece * LOOK_BYTES)[:LOOK_BYTES])
        assert time.perf_counter() - started < 2, piece


def test_a_hundred_thousand_files_take_a_moment() -> None:
    paths = [
        f"/usr/lib/x86_64-linux-gnu/package-{row % 977}/file-{row}.so" for row in range(90_000)
    ]
    paths += [f"/home/user-{row}/.ssh/known_hosts" for row in range(10_000)]
    started = time.perf_counter()
    found = find_private(paths, np.ones(len(paths), dtype=np.int64), lambda row, most: b"")
    assert len(found) == 10_000
    assert time.perf_counter() - started < 5


def test_a_pattern_of_many_stars_does_not_hang_on_long_names() -> None:
    found = [Finding("/" + "ab" * 2040, "history", "", 1)] * 1000
    started = time.perf_counter()
    review = sift(found, ["*a*b" * 50 + "*c", "*?" * 100 + "c"])
    assert len(review.findings) == 1000
    assert time.perf_counter() - started < 20
