"""DER as far as PKCS #7 needs it: nested elements of a tag, a length and a content.

Source: ITU-T X.690 (02/2021), sections 8.1 (identifier and length octets), 8.19 (object
identifiers), 10.1 (DER: lengths are definite).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from formats.errors import Corrupt, Truncated, Unsupported

OCTET_STRING, OBJECT_IDENTIFIER, SEQUENCE, SET = 0x04, 0x06, 0x30, 0x31
CONTEXT_0 = 0xA0  # [0], constructed

_LONG_TAG = 0x1F  # the number follows in octets of its own; PKCS #7 has no such element
_LONG_LENGTH = 0x80  # the low seven bits say how many octets hold the length
_MAX_LENGTH_OCTETS = 4
_MAX_FIELDS = 64  # a certificate has ten


class Element(NamedTuple):
    """One element of `data`: its tag, where it starts, and where its content lies."""

    data: bytes
    tag: int
    start: int
    content_start: int
    end: int

    @property
    def content(self) -> bytes:
        """Return the content octets."""
        return self.data[self.content_start : self.end]

    @property
    def encoded(self) -> bytes:
        """Return the whole element, tag and length included."""
        return self.data[self.start : self.end]

    def children(self) -> Iterator[Element]:
        """Yield the elements inside. Raises FormatError."""
        at = self.content_start
        while at < self.end:
            child = element_at(self.data, at, self.end)
            yield child
            at = child.end

    def expect(self, tag: int) -> Element:
        """Return the element itself. Raises Corrupt when it has another tag."""
        if self.tag != tag:
            raise Corrupt("DER", self.start, f"expected tag {tag:#04x}, found {self.tag:#04x}")
        return self

    def fields(self, least: int) -> list[Element]:
        """Return the elements inside a structure, which are few.

        Raises FormatError, also for fewer than `least` and for more than any structure has.
        """
        found = list(islice(self.children(), _MAX_FIELDS + 1))
        if len(found) > _MAX_FIELDS:
            raise Corrupt("DER", self.start, f"more than {_MAX_FIELDS} elements inside")
        if len(found) < least:
            reason = f"expected {least} elements inside, found {len(found)}"
            raise Corrupt("DER", self.start, reason)
        return found


def parse(data: bytes) -> Element:
    """Return the first element of `data`; what follows it is nobody's. Raises FormatError."""
    return element_at(data, 0, len(data))


def element_at(data: bytes, start: int, end: int) -> Element:
    """Return the element that begins at `start` and ends before `end`. Raises FormatError."""
    if start + 2 > end:
        raise Truncated("DER", start, "expected a tag and a length")
    tag, length, content_start = data[start], data[start + 1], start + 2
    if tag & _LONG_TAG == _LONG_TAG:
        raise Unsupported("DER", start, "a tag of several octets")
    if length & _LONG_LENGTH:
        octets = length - _LONG_LENGTH
        if not 1 <= octets <= _MAX_LENGTH_OCTETS:
            raise Unsupported("DER", start, f"a length of {octets} octets")
        content_start += octets
        length = int.from_bytes(data[start + 2 : content_start], "big")
    if content_start + length > end:
        raise Truncated("DER", start, f"expected {length} bytes, its surroundings end at {end}")
    return Element(data, tag, start, content_start, content_start + length)


def object_identifier(dotted: str) -> bytes:
    """Return the content octets of an object identifier: "1.2.840" is 2a 86 48."""
    first, second, *rest = map(int, dotted.split("."))
    return b"".join(map(_base_128, (first * 40 + second, *rest)))


def _base_128(number: int) -> bytes:
    septets = [number & 0x7F]
    while number := number >> 7:
        septets.append(number & 0x7F | 0x80)
    return bytes(reversed(septets))
