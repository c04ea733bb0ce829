"""What symbol servers know a program by, compared with the reader of whole programs."""

from __future__ import annotations

import random

import pytest

from formats.source import Memory
from formats.windows.image_key import START_BYTES, ImageKey, image_key
from formats.windows.pe import PortableExecutable
from tests.formats.windows.make_pe import PE_OFFSET, TIMESTAMP, Form, program


@pytest.mark.parametrize("is_64_bit", [False, True])
def test_it_says_what_the_reader_of_programs_says(is_64_bit: bool) -> None:
    data = program(Form(imports=("ntoskrnl.exe",), is_64_bit=is_64_bit))
    whole = PortableExecutable(Memory(data))
    assert image_key(data[:START_BYTES]) == ImageKey(TIMESTAMP, whole.size_of_image)
    assert whole.size_of_image > 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"M",
        b"MZ",
        b"MZ" + bytes(62),
        b"MZ" + bytes(4000),
        b"\x7fELF" + bytes(100),
        program(Form())[: PE_OFFSET + 83],
        b"MZ" + bytes(58) + (0xFFFFFFFF).to_bytes(4, "little") + bytes(100),
        program(Form()).replace(b"PE\0\0", b"NE\0\0"),
    ],
    ids=len,
)
def test_what_is_no_program_has_none(data: bytes) -> None:
    assert image_key(data[:START_BYTES]) is None


def test_damaged_headers_give_a_key_or_none() -> None:
    chance = random.Random(4)
    sound = program(Form(imports=("hal.dll",)))[:START_BYTES]
    found = []
    for _ in range(2000):
        data = bytearray(sound[: chance.randrange(len(sound))])
        for _ in range(min(3, len(data))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        found.append(image_key(bytes(data)))
    assert any(found)
    assert not all(found)
