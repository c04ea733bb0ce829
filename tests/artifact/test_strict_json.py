"""JSON of strangers: whatever it is, it is a value of the type or one clear error."""

from __future__ import annotations

import msgspec
import pytest

from packer.artifact.strict_json import decode
from packer.errors import InputError


class Record(msgspec.Struct):
    number: int
    text: str = ""


@pytest.mark.parametrize(
    "data",
    [
        b'{"number": 1e999}',
        b'{"number": 1, "unknown": [{"deep": -1e400}]}',
        b"1e999",
        b'{"number": 1, "text": "\xff"}',
        b'{"number": 1, "text": "\\ud800"}',
        b'{"number": ' + b"[" * 100_000,
        b"",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_json_of_any_reader_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(InputError, match="the text: "):
        decode(data, Record, "the text", 1 << 20)


def test_an_error_names_the_key_and_what_is_there() -> None:
    with pytest.raises(InputError, match="the text: number: expected `int`, got `str`"):
        decode(b'{"number": "many"}', Record, "the text", 100)
    with pytest.raises(InputError, match="the text: number: missing"):
        decode(b"{}", Record, "the text", 100)
