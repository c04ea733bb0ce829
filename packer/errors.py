"""Errors that a person is meant to read, and the exit codes of the command.

Codes: 1 failed, 2 usage, 3 bad or unsupported input, 4 refused by trust, 5 contents missing,
6 in use or dirty, 7 does not match (verify), 8 refused by policy, 130 interrupted.
"""

from __future__ import annotations


class Error(Exception):
    """Something the user can understand and act on: a message, a hint, an exit code."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(Error):
    """The command line or a setting contradicts itself."""

    exit_code = 2


class InputError(Error):
    """An image, pack or source holds something it must not hold."""

    exit_code = 3


class TrustError(Error):
    """Unsigned, signed by nobody this host accepts, or older than what it has seen."""

    exit_code = 4


class MissingError(Error):
    """Contents that no source has."""

    exit_code = 5


class InUseError(Error):
    """A disk that something else uses, or a guest that is not shut down."""

    exit_code = 6


class MismatchError(Error):
    """A disk is not what its pack says."""

    exit_code = 7


class PolicyError(Error):
    """Something that the user asked to be strict about."""

    exit_code = 8
