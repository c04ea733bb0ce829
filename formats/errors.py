"""Errors of everything below `formats`."""

from __future__ import annotations


class FormatError(Exception):
    """Bytes that are not what their structure demands.

    structure: what was being read, in the specification's words ("qcow2 header").
    offset: where it lies, in bytes from the start of the source that was given.
    reason: expected and found, in one clause.
    """

    def __init__(self, structure: str, offset: int, reason: str) -> None:
        super().__init__(structure, offset, reason)
        self.structure = structure
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.structure} at byte {self.offset}: {self.reason}"


class Truncated(FormatError):
    """The source ends before the structure does."""


class Corrupt(FormatError):
    """The structure contradicts its specification or itself."""


class Unsupported(FormatError):
    """A valid structure that uses something this reader does not know."""
