"""Keys and values of hives, alone and by query."""

from __future__ import annotations

import struct

import pytest

from fixtures.windows.hive import (
    Form,
    Key,
    Value,
    binary,
    dword,
    expand_sz,
    hive,
    multi_sz,
    qword,
    sz,
)
from formats.errors import Corrupt, Unsupported
from formats.windows.hive import BINARY, DWORD_BIG_ENDIAN, LINK, SZ, Hive
from formats.windows.hive import Value as Found
from formats.windows.hive_log import replay
from formats.windows.hive_query import MAX_WARNINGS, Bounds, View, Wanted, query
from formats.windows.names import fold
from tests.formats.windows import hivex
from tests.formats.windows.corpus import corpus, dirty_logs, needs_corpus
from tests.formats.windows.make_hive import at_rest, in_the_middle, new_log, with_services

FORM = Form(5, "TEST", 1)


def made(root: Key) -> bytes:
    return hive("ROOT", root, FORM)


def boot_start(view: View, services: str) -> list[str]:
    starts = {name: view.value(f"{services}\\{name}", "Start") for name in view.subkeys(services)}
    return [name for name, start in starts.items() if start is not None and start.number == 0]


class TestValues:
    @pytest.fixture
    def hive(self) -> Hive:
        root = Key()
        root.put(
            "Types",
            Text=sz("Grüße"),
            Path=expand_sz("%SystemRoot%\\x"),
            List=multi_sz(["one", "two"]),
            Number=dword(7),
            Long=qword(1 << 40),
            Bytes=binary(b"\x01\x02\x03\x04\x05"),
            Nothing=binary(b""),
            Link=Value(6, "\\Registry\\Machine\\X".encode("utf-16-le")),
            Big=binary(bytes(range(256)) * 200),
            Odd=Value(0xFFFF0012, b"abc"),
        )
        root.key("Types").values[""] = sz("default")
        return Hive(made(root))

    def value(self, hive: Hive, name: str) -> Found:
        key = hive.key("types")
        assert key is not None
        return next(value for value in key.values() if value.name == name)

    def test_of_every_type(self, hive: Hive) -> None:
        assert self.value(hive, "Text").text == "Grüße"
        assert self.value(hive, "Path").text == "%SystemRoot%\\x"
        assert self.value(hive, "List").texts == ("one", "two")
        assert self.value(hive, "Number").number == 7
        assert self.value(hive, "Long").number == 1 << 40
        assert self.value(hive, "Bytes").data == b"\x01\x02\x03\x04\x05"
        assert self.value(hive, "Bytes").type == BINARY
        assert self.value(hive, "Nothing").data == b""
        assert self.value(hive, "Link").type == LINK
        assert self.value(hive, "Link").text == "\\Registry\\Machine\\X"
        assert self.value(hive, "").text == "default"
        assert self.value(hive, "Odd") == Found("Odd", 0xFFFF0012, b"abc")

    @pytest.mark.parametrize("size", range(6))
    @pytest.mark.parametrize("kind", [SZ, BINARY, 4, 0xFFFF0012])
    def test_of_a_few_bytes(self, size: int, kind: int) -> None:
        """libregf by itself returns others of the first three sizes."""
        root = Key()
        root.put("Few", Value=Value(kind, b"abcdef"[:size]))
        found = query(made(root), [], [Wanted("Few")]).value("Few", "Value")
        assert found == Found("Value", kind, b"abcdef"[:size])

    def test_of_several_segments(self, hive: Hive) -> None:
        assert self.value(hive, "Big").data == bytes(range(256)) * 200

    @pytest.mark.parametrize("name", ["Text", "Number", "Bytes", "Odd"])
    def test_of_another_type_is_none(self, hive: Hive, name: str) -> None:
        value = self.value(hive, name)
        assert (value.text is None) == (name != "Text")
        assert (value.number is None) == (name != "Number")

    def test_a_string_ends_at_its_terminator(self) -> None:
        assert Found("", SZ, "a\0b\0".encode("utf-16-le")).text == "a"
        assert Found("", SZ, b"a\0b").text == "a"
        assert Found("", SZ, b"\x00\xd8").text == "\N{REPLACEMENT CHARACTER}"

    def test_a_list_ends_at_the_empty_string(self) -> None:
        assert Found("", 7, "a\0b\0\0c\0".encode("utf-16-le")).texts == ("a", "b")
        assert Found("", 7, "a\0b".encode("utf-16-le")).texts == ("a", "b")
        assert Found("", 7, b"").texts == ()
        assert Found("", SZ, "a\0".encode("utf-16-le")).texts == ("a",)
        assert Found("", BINARY, b"a\0").texts == ()

    def test_an_integer_of_a_wrong_length_is_none(self) -> None:
        assert Found("", 4, b"\1\0\0").number is None
        assert Found("", DWORD_BIG_ENDIAN, b"\0\0\0\1").number == 1


class TestNames:
    def test_are_found_in_any_case(self) -> None:
        key = Hive(at_rest()).key("controlset001\\SERVICES\\Driver3")
        assert key is not None
        assert key.path == "ControlSet001\\Services\\driver3"
        assert key.name == "driver3"

    def test_that_are_not_there_are_none(self) -> None:
        assert Hive(at_rest()).key("ControlSet001\\Nothing\\Driver3") is None
        assert Hive(at_rest()).key("") is not None

    def test_are_compared_letter_by_letter(self) -> None:
        assert fold("Straße") == "STRAßE"
        assert fold("élan") == "ÉLAN"


class TestQuery:
    def test_one_key_with_its_values(self) -> None:
        view = query(at_rest(), [], [Wanted("select")])
        assert [key.path for key in view.keys] == ["Select"]
        assert [value.name for value in view.keys[0].values] == ["Current", "Default"]

    def test_any_name_on_a_level(self) -> None:
        view = query(at_rest(), [], [Wanted("ControlSet*\\Services\\*", values=("start",))])
        assert len(view.keys) == 20
        assert {value.name for key in view.keys for value in key.values} == {"Start"}
        assert len(boot_start(view, "ControlSet001\\Services")) == 10

    def test_levels_below(self) -> None:
        every = query(at_rest(), [], [Wanted("", depth=9)])
        assert len(every.keys) == 1 + 1 + 1 + 1 + 1 + 1 + 1 + 20
        assert every.subkeys("") == ("ControlSet001", "Select", "Setup")
        one_level = query(at_rest(), [], [Wanted("ControlSet001", depth=1)])
        assert [key.path for key in one_level.keys][1:] == [
            "ControlSet001\\Control",
            "ControlSet001\\Services",
        ]

    def test_no_values(self) -> None:
        view = query(at_rest(), [], [Wanted("Select", values=())])
        assert view.keys[0].values == ()

    def test_the_same_key_twice_is_one_record(self) -> None:
        wanted = [Wanted("Select", values=("Current",)), Wanted("SELECT", values=("Default",))]
        (key,) = query(at_rest(), [], wanted).keys
        assert [value.name for value in key.values] == ["Current", "Default"]

    def test_nothing_found_is_no_error(self) -> None:
        assert query(at_rest(), [], [Wanted("No\\Such\\*")]).keys == ()

    def test_says_what_was_replayed(self) -> None:
        torn = in_the_middle(at_rest(), 22, 21)
        log = new_log([at_rest(), with_services("late")], 22)
        view = query(torn, [log], [Wanted("ControlSet001\\Services\\late")])
        assert view.state == "replayed"
        assert view.done == ("log 1: entries 22 to 22 applied",)
        assert len(view.keys) == 1


class TestBounds:
    WANTED = (Wanted("ControlSet001", depth=5),)

    @pytest.mark.parametrize(
        ("bounds", "what"),
        [
            (Bounds(keys=10), "10 keys"),
            (Bounds(entries=10), "10 entries"),
            (Bounds(total_bytes=10), "10 bytes"),
        ],
    )
    def test_more_than_allowed_is_an_error(self, bounds: Bounds, what: str) -> None:
        with pytest.raises(Unsupported, match=f"more than {what}"):
            query(at_rest(), [], self.WANTED, bounds)

    def test_exactly_as_much_as_allowed_is_none(self) -> None:
        assert len(query(at_rest(), [], self.WANTED, Bounds(keys=24, entries=84)).keys) == 24

    def test_a_value_that_is_too_big_is_left_out(self) -> None:
        view = query(at_rest(), [], [Wanted("Select"), Wanted("Setup")], Bounds(value_bytes=10))
        assert [len(key.values) for key in view.keys] == [2, 0]
        assert "'SystemPartition' of key 'Setup' has" in view.warnings[0]

    def test_levels_are_bounded(self) -> None:
        root = Key()
        root.key("\\".join("x" * 40))
        with pytest.raises(Unsupported, match="more than 32 levels"):
            query(made(root), [], [Wanted("", depth=1000)])


class TestDamage:
    """What is damaged is left out, said, and never just missing."""

    def lost(self, offset: int, where: bytes, wanted: str, to: int = 0x7FFF_FFF0) -> View:
        data = bytearray(at_rest())
        node = data.index(b"nk", data.index(where) - 80)
        struct.pack_into("<I", data, node + offset, to)
        return query(bytes(data), [], [Wanted(wanted, depth=2)])

    def test_values_that_cannot_be_found(self) -> None:
        view = self.lost(40, b"Setup", "Setup")
        assert view.keys[0].values == ()
        assert "key 'Setup' at byte" in view.warnings[0]
        assert "expected 1 values, found 0" in view.warnings[0]

    @pytest.mark.parametrize("place", [0x7FFF_FFF0, 0xFFFF_FFFF, 0x20, 0], ids=hex)
    def test_subkeys_that_cannot_be_found(self, place: int) -> None:
        view = self.lost(28, b"Services", "ControlSet001\\Services", place)
        assert view.subkeys("ControlSet001\\Services") == ()
        assert "ControlSet001" in view.warnings[0]
        assert view.warnings[0].endswith("it is left out")

    def test_one_key_of_many(self) -> None:
        data = bytearray(at_rest())
        data[data.index(b"driver7") - 76] ^= 1  # "nk"
        view = query(bytes(data), [], [Wanted("ControlSet001\\Services\\*")])
        assert len(view.keys) == 19
        assert len(view.warnings) == 1

    def test_the_root_is_an_error(self) -> None:
        data = bytearray(at_rest())
        root = 4096 + struct.unpack_from("<I", data, 36)[0] + 4
        struct.pack_into("<I", data, root + 28, 0x7FFF_FFF0)
        with pytest.raises(Corrupt):
            query(bytes(data), [], [Wanted("Select")])

    def test_warnings_are_bounded(self) -> None:
        root = Key()
        for number in range(MAX_WARNINGS + 50):
            root.put("All", **{f"v{number}": binary(bytes(20))})
        view = query(made(root), [], [Wanted("All")], Bounds(value_bytes=10))
        assert len(view.warnings) == MAX_WARNINGS


class TestAsHivexWritesIt:
    def test_a_merged_hive(self) -> None:
        text = '[\\Extra]\n"Text"="value"\n"Number"=dword:0000002a\n"Raw"=hex(b):01,02'
        view = query(hivex.merged(at_rest(), text), [], [Wanted("Extra")])
        assert view.value("extra", "TEXT") == Found("Text", SZ, "value\0".encode("utf-16-le"))
        number = view.value("Extra", "Number")
        assert number is not None
        assert number.number == 42
        assert view.value("Extra", "Raw") == Found("Raw", 11, b"\x01\x02")


@needs_corpus
class TestRealHives:
    SERVICES = Wanted("ControlSet*\\Services\\*", values=("Start", "Type", "ImagePath"))

    def services(self, data: bytes, logs: list[bytes]) -> tuple[View, str]:
        view = query(data, logs, [Wanted("Select"), self.SERVICES])
        current = view.value("Select", "Current")
        assert current is not None
        return view, f"ControlSet{current.number:03}\\Services"

    def test_windows_7_has_36_boot_start_services(self) -> None:
        view, services = self.services(corpus("SYSTEM_win7"), [])
        assert len(boot_start(view, services)) == 36
        assert not view.warnings

    def test_windows_10_has_86_boot_start_services(self) -> None:
        view, services = self.services(corpus("SYSTEM_win10_dirty"), dirty_logs())
        assert view.state == "replayed"
        assert len(boot_start(view, services)) == 86
        assert "ad_driver" in view.subkeys(services)
        assert not view.warnings

    @pytest.mark.parametrize("name", ["SYSTEM_win7", "SYSTEM_win10_dirty", "BCD"])
    def test_every_value_is_the_one_that_hivex_reads(self, name: str) -> None:
        logs = dirty_logs() if name == "SYSTEM_win10_dirty" else []
        data = replay(corpus(name), logs).data
        view = query(data, [], [Wanted("", depth=30)])
        theirs = hivex.values(data)
        assert len(view.keys) == sum(value == "[]" for _, value in theirs)
        for key in view.keys:
            for value in key.values:
                kind, stored = theirs.pop((key.path, value.name))
                assert value.type == kind
                # Of a string libregf returns no more than what precedes the terminator, and that.
                assert value.data == stored or is_cut(value, stored)
        assert {value for _, value in theirs} == {"[]"}
        assert not view.warnings


def is_cut(value: Found, stored: bytes) -> bool:
    return (
        value.text is not None
        and stored.startswith(value.data)
        and value.text == Found("", value.type, stored).text
    )
