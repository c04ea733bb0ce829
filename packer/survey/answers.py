"""What is demanded of every answer of a child, whatever it is about."""

from __future__ import annotations

from collections.abc import Sequence

from packer.survey.child import clean_text
from packer.survey.wire import MalformedError

MAX_SIGNER_CHARACTERS = 256


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
