"""Questions about files of a disk, and what is demanded of every answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from packer.errors import InputError
from packer.survey import wire
from packer.survey.child import clean_text, lied
from packer.survey.disk import Disk
from packer.survey.limits import Limits
from packer.survey.wire import MalformedError

_Believed = TypeVar("_Believed")

COPY_IT = "copy the disk to storage that can be read without errors"

MAX_SIGNER_CHARACTERS = 256


def ask(
    disk: Disk,
    reader: str,
    request: wire.Request,
    kind: type[wire.Expected],
    believe: Callable[[wire.Expected], _Believed],
    *,
    what: str,
    limits: Limits,
    hint: str = COPY_IT,
) -> _Believed:
    """Have a child answer a request about files of a disk, and return what is believed of it.

    reader, what: name the child and the files in errors. believe: raises MalformedError for an
    answer that cannot be. hint: for when the files cannot be read.
    Raises InputError when they cannot, or when the child does not answer as it should.
    """
    reply = disk.ask(reader, disk.path, request, kind, limits)
    if isinstance(reply, wire.Failure):
        raise InputError(
            f"{what} {disk.path} cannot be read: {clean_text(reply.reason)}", hint=hint
        )
    try:
        return believe(reply)
    except MalformedError as error:
        raise lied(reader, disk.path, error) from error


def demand(fact: bool, otherwise: str) -> None:
    """Raise MalformedError, naming what is otherwise, unless the fact holds."""
    if not fact:
        raise MalformedError(otherwise)


def demand_texts(texts: Sequence[str], most_characters: int) -> list[str]:
    """Return texts that are safe to print. Raises MalformedError for one that is too long."""
    demand(max(map(len, texts), default=0) <= most_characters, "a text that is too long")
    return [clean_text(text) for text in texts]


def demand_signers(signers: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """Return (organization, common name) of at most `most` signers, safe to print.

    Raises MalformedError.
    """
    demand(len(signers) <= most, f"{len(signers)} signers")
    organizations = demand_texts([one for one, _ in signers], MAX_SIGNER_CHARACTERS)
    common_names = demand_texts([one for _, one in signers], MAX_SIGNER_CHARACTERS)
    return list(zip(organizations, common_names, strict=True))
