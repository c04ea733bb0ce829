"""Hives that are in order by every checksum and made to keep a reader busy."""

from __future__ import annotations

import struct
from collections.abc import Callable

from fixtures.windows.hive import Form, Key, binary, hive

BINS = 4096
LISTS = 5


class Lists:
    """A hive with five lists of subkeys of which every element can be set.

    They lie in the data of values, which the form of NT 5 keeps in one piece whatever their size.
    """

    def __init__(self, elements: int) -> None:
        self.elements = elements
        fillings = [
            struct.pack("<2sH", b"ri", elements) + bytes([65 + number]) * (4 * elements)
            for number in range(LISTS)
        ]
        root = Key()
        root.key("Victim\\child")
        for number, filling in enumerate(fillings):
            root.put("Lists", **{f"list {number}": binary(filling)})
        self.data = bytearray(hive("ROOT", root, Form(3, "HARM", 1)))
        self.lists = [self.data.index(filling) for filling in fillings]

    def fill(self, number: int, kind: bytes, element: int) -> None:
        """Make all elements of a list name the same cell."""
        at = self.lists[number]
        self.data[at : at + 2] = kind
        self.data[at + 4 : at + 4 + 4 * self.elements] = cell(element) * self.elements

    def node(self, name: bytes) -> int:
        return self.data.index(name) - 76

    def finished(self, subkeys: int) -> bytes:
        """The hive in which the first list is the victim's, who claims so many subkeys."""
        node = self.node(b"Victim")
        struct.pack_into("<I", self.data, node + 20, subkeys & 0xFFFF_FFFF)
        self.data[node + 28 : node + 32] = cell(self.lists[0])
        return bytes(self.data)


def cell(at: int) -> bytes:
    """How the hive writes where a cell lies whose data begin at this byte."""
    return struct.pack("<I", at - 4 - BINS)


def list_of_itself() -> bytes:
    lists = Lists(4000)
    lists.fill(0, b"ri", lists.lists[0])
    return lists.finished(4000)


def lists_of_lists() -> bytes:
    """100 to the fifth subkeys, of which all are the same."""
    lists = Lists(100)
    for number in range(LISTS - 1):
        lists.fill(number, b"ri", lists.lists[number + 1])
    lists.fill(LISTS - 1, b"li", lists.node(b"child"))
    return lists.finished(100**5)


def many_lists_of_many() -> bytes:
    """Sixteen million subkeys by two levels of lists, as the form allows."""
    lists = Lists(4000)
    lists.fill(0, b"ri", lists.lists[1])
    lists.fill(1, b"li", lists.node(b"child"))
    return lists.finished(4000**2)


def one_child_many_times() -> bytes:
    lists = Lists(60_000)
    lists.fill(0, b"li", lists.node(b"child"))
    return lists.finished(60_000)


def many_children_with_many_children() -> bytes:
    """60,000 times a child that has 60,000 children itself."""
    lists = Lists(60_000)
    lists.fill(0, b"li", lists.node(b"child"))
    lists.fill(1, b"li", lists.node(b"Lists"))
    child = lists.node(b"child")
    struct.pack_into("<I", lists.data, child + 20, 60_000)
    lists.data[child + 28 : child + 32] = cell(lists.lists[1])
    return lists.finished(60_000)


def key_below_itself() -> bytes:
    lists = Lists(1000)
    lists.fill(0, b"li", lists.node(b"Victim"))
    return lists.finished(1000)


HARMFUL: tuple[Callable[[], bytes], ...] = (
    list_of_itself,
    lists_of_lists,
    many_lists_of_many,
    one_child_many_times,
    many_children_with_many_children,
    key_below_itself,
)
