"""JSON that came from somebody else: bounded, checked against a type, errors with a key path."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from packer.errors import InputError

T = TypeVar("T")

_MESSAGE = re.compile(r"(?P<reason>.*?)(?: - at `(?P<path>(?:key in )?\$.*)`)?\Z", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[A-Za-z_]\w*)|\[(?P<row>\d+)\]")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_FOUND_CHARACTERS = 80


def decode(data: bytes, kind: type[T], what: str, max_bytes: int) -> T:
    """Return JSON text as a value of a msgspec type.

    what: names the text in errors. max_bytes: how long it may be; checked before anything else.
    Raises InputError with the path of the first key that is wrong ("disks[0].map"), what was
    expected there and what was found.
    """
    if len(data) > max_bytes:
        raise InputError(f"{what}: expected at most {max_bytes} bytes, found {len(data)}")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what}: expected JSON, found otherwise: {error}") from error
    except RecursionError as error:
        raise InputError(f"{what}: nested too deeply") from error
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{what}: {_explain(value, str(error))}") from error


def encode(value: msgspec.Struct) -> bytes:
    """Return a record as JSON for people and machines: fields in order, two spaces, UTF-8."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def invalid(what: str, path: str, expected: str, found: object) -> InputError:
    """Return the error for a value that contradicts what the type alone cannot say."""
    return InputError(f"{what}: {path}: expected {expected}, found {show(found)}")


def show(value: object) -> str:
    """Return a value as one short line without control characters."""
    text = ascii(value)
    return text if len(text) <= _FOUND_CHARACTERS else text[:_FOUND_CHARACTERS] + "…"


def _explain(value: object, message: str) -> str:
    match = _MESSAGE.match(message)
    assert match is not None  # every group is optional
    reason, path = match["reason"], match["path"] or "$"
    if missing := _MISSING.fullmatch(reason):
        return f"{_key(path + '.' + missing['name'])}: missing"
    reason = reason[:1].lower() + reason[1:]
    if "got" not in reason and not path.startswith("key in "):
        reason += f", found {show(_at(value, path))}"
    return f"{_key(path)}: {reason}"


def _key(path: str) -> str:
    return path.replace("$.", "", 1).replace("$", "the whole text", 1)


def _at(value: Any, path: str) -> object:
    """Return what lies at a path like "$.disks[0].size", or None where that cannot be told."""
    for step in _STEP.finditer(path):
        try:
            value = value[step["name"]] if step["name"] else value[int(step["row"])]
        except (KeyError, IndexError, TypeError):
            return None
    return value
