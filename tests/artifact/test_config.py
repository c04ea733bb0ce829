from __future__ import annotations

import json
from datetime import date

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packer.artifact.config import (
    MAX_CONFIG_BYTES,
    MAX_ENTRIES,
    MAX_TEXT_CHARACTERS,
    Boots,
    Config,
    Disk,
    Dropped,
    Guest,
    HintsRef,
    Total,
    Totals,
    decode,
    digest,
    encode,
    printable,
    printable_warnings,
)
from packer.errors import Error, InputError
from tests.artifact.fake_packs import sha256, small_config

FULL = Config(
    name="demo-server.v2",
    version=12,
    expires="2027-06-30",
    guest=Guest("linux", "debian", "12", "Debian GNU/Linux 12 (bookworm), é", "x86_64", "bios"),
    disks=(
        Disk(1 << 30, 512, sha256(b"first"), 1000),
        Disk(1 << 20, 4096, sha256(b"second"), 10),
    ),
    hints=HintsRef(sha256(b"hints"), 77),
    sources=("https://host/dir/", "apt:", "oci://registry/name:tag"),
    dropped=(Dropped("swap", 1 << 29, "its pages die with the power"),),
    totals=Totals(Total(3, 30), Total(2, 20), Total(1, 10)),
    warnings=("the clock was wrong",),
    boots=Boots("proven", "login:", 0, 2, 99 << 16),
)

texts = st.text(max_size=12).map(printable)
counts = st.integers(0, (1 << 63) - 1)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
totals = st.builds(Total, counts, counts)
configs = st.builds(
    Config,
    name=st.lists(st.sampled_from(["demo", "7", "a0b"]), min_size=1, max_size=5).flatmap(
        lambda parts: st.sampled_from(".-_").map(lambda between: between.join(parts))
    ),
    version=st.integers(1, (1 << 53) - 1),
    expires=st.just("")
    | st.dates(date(2000, 1, 1), date(9999, 12, 31)).map(lambda day: day.isoformat()),
    guest=st.builds(Guest, *[texts] * 6),
    disks=st.lists(
        st.builds(
            Disk,
            size=st.integers(1, 1 << 50).map(lambda sectors: sectors * 4096),
            sector_size=st.sampled_from([512, 4096]),
            map=digests,
            map_size=st.integers(1, 1 << 30),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    hints=st.builds(HintsRef, digests, st.integers(1, 1 << 30)),
    dropped=st.lists(st.builds(Dropped, texts, counts, texts), max_size=3).map(tuple),
    totals=st.builds(Totals, totals, totals, totals),
    warnings=st.lists(texts, max_size=3).map(tuple),
    boots=st.just(msgspec.UNSET) | st.builds(Boots, texts, texts, counts, counts, counts),
)


def changed(**keys: object) -> bytes:
    """Return a config's JSON with top-level keys replaced; None removes one."""
    document = json.loads(encode(FULL))
    document.update(keys)
    kept = {key: value for key, value in document.items() if value is not None}
    return json.dumps(kept).encode()


def disk(**keys: object) -> list[dict[str, object]]:
    first = json.loads(encode(FULL))["disks"][0]
    return [{**first, **keys}]


def test_what_is_decoded_is_what_was_encoded() -> None:
    assert decode(encode(FULL)) == FULL


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(configs)
def test_encode_and_decode_are_inverses(config: Config) -> None:
    data = encode(config)
    assert decode(data) == config
    assert encode(decode(data)) == data


def test_bytes_are_for_people_and_always_the_same() -> None:
    data = encode(FULL)
    assert data.startswith(b'{\n  "schema": 1,\n  "name": "demo-server.v2",\n  "version": 12,\n')
    assert data.endswith(b"}\n")
    assert "é".encode() in data
    assert list(json.loads(data)) == [
        "schema", "name", "version", "expires", "guest", "disks", "hints",
        "sources", "dropped", "totals", "warnings", "boots",
    ]  # fmt: skip
    assert digest(encode(small_config())) == (
        "sha256:030266f0fc743d206d1e1ba17291c304d4de86701321b6797a2ddaf7d25e9fa6"
    )


def test_a_pack_that_nobody_profiled_says_nothing_of_boots() -> None:
    assert "boots" not in json.loads(encode(small_config()))
    assert decode(changed(boots={"level": "proven"})).boots == Boots("proven")
    with pytest.raises(InputError, match=r"config: boots\.touched_bytes: expected"):
        decode(changed(boots={"level": "proven", "touched_bytes": -1}))


def test_a_last_day_is_over_when_the_next_one_has_begun() -> None:
    assert not FULL.expired(date(2027, 6, 30))
    assert FULL.expired(date(2027, 7, 1))
    assert not FULL.expired(date(1970, 1, 1))  # a clock that was never set says nothing
    assert not small_config().expired(date.max)


def test_a_config_without_a_last_day_is_read() -> None:
    assert decode(changed(expires=None)) == msgspec.structs.replace(FULL, expires="")


def test_unknown_keys_are_passed_over() -> None:
    assert decode(changed(colour="blue")) == FULL
    assert decode(changed(disks=disk(colour="blue"))).disks[0] == FULL.disks[0]


def test_a_newer_schema_is_refused_before_anything_else_is_looked_at() -> None:
    with pytest.raises(InputError, match="schema: expected 1, found 2") as caught:
        decode(b'{"schema": 2, "name": ["in", "another", "shape"]}')
    assert caught.value.hint == "a newer vmpack wrote this"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(schema=None), "config: schema: missing"),
        (changed(schema="1"), "config: schema: expected `int`, got `str`"),
        (changed(schema=0), "config: schema: expected 1, found 0"),
        (changed(name="../x"), "config: name: expected .*, found '../x'"),
        (changed(name="Demo"), "config: name: "),
        (changed(name="demo\n"), "config: name: "),
        (changed(name="a" * 129), "config: name: expected `str` of length <= 128"),
        (changed(version=0), "config: version: expected `int` >= 1, found 0"),
        (changed(version=1 << 53), "config: version: "),
        (changed(version=1.5), "config: version: "),
        (changed(expires="2027-02-30"), "config: expires: expected a day .*, found '2027-02-30'"),
        (changed(expires="1999-12-31"), "config: expires: "),
        (changed(expires="10000-01-01"), "config: expires: "),
        (changed(expires="2027-6-30"), "config: expires: "),
        (changed(expires="20270630"), "config: expires: "),
        (changed(expires="2027-W26-3"), "config: expires: "),
        (changed(expires="2027-06-30\n"), "config: expires: "),
        (changed(expires="2027-06-30T00:00:00Z"), "config: expires: "),
        (changed(expires="\u0662027-06-30"), "config: expires: "),
        (changed(expires=1814400000), "config: expires: "),
        (changed(disks=[]), "config: disks: expected `array` of length >= 1"),
        (changed(disks=disk() * 65), "config: disks: expected `array` of length <= 64"),
        (changed(disks=disk(size=0)), r"config: disks\[0\].size: expected `int` >= 1, found 0"),
        (changed(disks=disk(size=-512)), r"config: disks\[0\].size: "),
        (changed(disks=disk(size=(1 << 62) + 512)), r"config: disks\[0\].size: "),
        (changed(disks=disk(size=10**40)), r"config: disks\[0\].size: "),
        (changed(disks=disk(size=513)), r"disks\[0\].size: expected a multiple .* found 513"),
        (changed(disks=disk(sector_size=0)), r"disks\[0\].sector_size: expected 512 or 4096"),
        (changed(disks=disk(map="sha256:00")), r"disks\[0\].map: .* found 'sha256:00'"),
        (changed(disks=disk(map="../../etc")), r"disks\[0\].map: "),
        (changed(disks=disk(map=sha256(b"") + "\n")), r"disks\[0\].map: "),
        (changed(disks=disk(map_size=1 << 40)), r"disks\[0\].map_size: "),
        (changed(hints={"digest": "x", "size": 1}), "hints.digest: "),
        (changed(hints={"digest": sha256(b"")}), "hints.size: missing"),
        (changed(sources=["no scheme"]), r"sources\[0\]: "),
        (changed(sources=["apt:"] * (MAX_ENTRIES + 1)), "sources: "),
        (changed(warnings=["\x1b[2Jgone"]), r"warnings\[0\]: "),
        (changed(warnings=["x" * (MAX_TEXT_CHARACTERS + 1)]), r"warnings\[0\]: "),
        (changed(guest={"name": "\u202eevil"}), "guest.name: "),
        (changed(totals={"boot": {"count": -1}}), "totals.boot.count: "),
        (b"[]", "the whole text: expected `object`, got `array`"),
        (b"", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b'{"schema": 1, "x": ' + b"[" * 100_000, "nested too deeply"),
        (b" " * (MAX_CONFIG_BYTES + 1), f"expected at most {MAX_CONFIG_BYTES} bytes"),
    ],
)
def test_errors_name_the_key(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(data)


def test_nothing_is_encoded_that_could_not_be_decoded() -> None:
    with pytest.raises(InputError, match="name"):
        encode(msgspec.structs.replace(FULL, name="No"))
    with pytest.raises(InputError, match="at most"):
        encode(msgspec.structs.replace(FULL, warnings=("é" * 1000,) * 1024))


def test_every_flipped_byte_is_an_error_or_another_identity() -> None:
    data = encode(small_config())
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            assert digest(bytes(damaged)) != digest(data)
            try:
                config = decode(bytes(damaged))
            except Error:
                continue
            assert decode(encode(config)) == config


def test_every_truncation_is_an_error() -> None:
    data = encode(small_config())
    for length in range(len(data) - 2):
        with pytest.raises(InputError):
            decode(data[:length])


def test_text_from_a_guest_becomes_text_that_a_config_may_hold() -> None:
    nasty = ["\x1b[31mred", "a\x00b", "\udce4", "x" * 5000, "\u202e"]
    config = msgspec.structs.replace(FULL, warnings=printable_warnings(nasty * 500))
    assert len(config.warnings) == MAX_ENTRIES
    assert config.warnings[-1] == "… and 1477 more"
    assert decode(encode(config)) == config
