"""What a running disk tells of itself: whose bytes it has, and what nobody has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FromSource:
    """What one source gave so far: bytes that were proven, bytes that had to travel for them."""

    uri: str
    proven_bytes: int
    fetched_bytes: int
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MissingContent:
    """A content that somebody has read and nobody has.

    path: in the guest, "" if unknown. looked_in: URIs of those who were asked for it.
    """

    name: str
    size: int
    path: str
    looked_in: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a lazy disk.

    sources: in the order of asking, those that were asked for nothing, too. missing: the first of
    `missing_contents`. contents, content_bytes: of the pack. at_hand, at_hand_bytes: those of them
    that can be read without asking anybody. completing: whether the rest is being brought.
    demanded_bytes: pieces that were read so far, each counted once.
    """

    sources: tuple[FromSource, ...]
    missing: tuple[MissingContent, ...]
    missing_contents: int
    contents: int
    content_bytes: int
    at_hand: int
    at_hand_bytes: int
    completing: bool
    demanded_bytes: int
