"""Who signs in whose place: from a key of a rule to the key that counts for it today. No I/O.

A host remembers replacements that it was told of or has seen at work; a pack may carry statements
about further ones. Both are steps from an old key to a new one for certain pack names. Followed
for one name from one key of a rule they give a line of keys, and the line counts as one signer,
whichever of its keys signed: a rule that asks for two of three keys still asks for two people.

-   At each key, what the host remembers comes first; of two replacements of one key the first
    counts.
-   A statement that a pack carries counts when both of its keys signed it and a line leads to it.
    Two of them that replace one key differently for one name are refused, and so is a circle.
-   A key that was replaced on this host no longer counts, unless the user keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from packer.artifact import name_patterns
from packer.artifact.keys import PublicKey
from packer.artifact.rotation import Rotation, Statement, open_statement
from packer.errors import InputError, TrustError

_WHICH_KEY = "ask the author which of these keys is the one in use"


@dataclass(frozen=True, slots=True)
class Replacement:
    """A rotation that this host goes by.

    since: the day on which it began to, "2027-06-30", by this host's clock. keep_old: whether the
    old key counts as well.
    """

    rotation: Rotation
    since: str = ""
    keep_old: bool = False


@dataclass(frozen=True, slots=True)
class Succession:
    """The keys that followed each other in one place of a rule, for packs of one name.

    keys: oldest first. steps: from each to the next. counts: whether each one's signature does.
    learnt: whether only the pack knows each step.
    """

    keys: tuple[PublicKey, ...]
    steps: tuple[Rotation, ...]
    counts: tuple[bool, ...]
    learnt: tuple[bool, ...]

    def signer(self, signed: Collection[PublicKey]) -> int | None:
        """Return which of the keys speaks for this place: the newest that signed and counts."""
        for row in reversed(range(len(self.keys))):
            if self.counts[row] and self.keys[row] in signed:
                return row
        return None

    def replaced(self, signed: Collection[PublicKey]) -> Rotation | None:
        """Return by which step a key that signed, and no longer counts, was replaced."""
        for row, key in enumerate(self.keys):
            if not self.counts[row] and key in signed:
                return self.steps[row]
        return None

    def used(self, signer: int) -> tuple[Rotation, ...]:
        """Return the steps up to this key that only the pack knows."""
        rows = zip(self.steps[:signer], self.learnt[:signer], strict=True)
        return tuple(step for step, learnt in rows if learnt)


def succession(
    key: PublicKey,
    name: str,
    known: Sequence[Replacement],
    carried: Sequence[Rotation] = (),
    what: str = "pack",
) -> Succession:
    """Return the line of keys that begins with a key of a rule.

    name: of the pack. known: what the host goes by. carried: statements of the pack, proven. what:
    names the pack in errors.
    Raises TrustError when the carried ones contradict each other or lead in a circle.
    """
    keys, steps, counts, learnt = [key], list[Rotation](), [True], list[bool]()
    while True:
        told = _next_known(keys[-1], name, known)
        step = told.rotation if told else _next_carried(keys[-1], name, carried, what)
        if step is None or (told and step.new in keys):
            break  # nothing is gained by going round; `adopt` refuses what would close a circle
        if step.new in keys:
            raise TrustError(
                f"{what}: statements about replaced keys lead in a circle: {step.sentence}",
                hint=_WHICH_KEY,
            )
        counts[-1] = told is None or told.keep_old
        # The owner stays the same, and so does what the user calls them.
        keys.append(PublicKey(step.new.algorithm, step.new.blob, keys[-1].comment))
        steps.append(step)
        counts.append(True)
        learnt.append(told is None)
    return Succession(tuple(keys), tuple(steps), tuple(counts), tuple(learnt))


def prove(
    roots: Iterable[PublicKey],
    told: Sequence[Rotation],
    statements: Sequence[bytes],
    what: str = "pack",
) -> tuple[tuple[Rotation, ...], tuple[str, ...]]:
    """Return (the rotations to which a line of proven statements leads, what is wrong with others).

    roots: keys of rules. told: the rotations that this host goes by, which are part of such lines.
    statements: as the pack carries them. what: names the pack.
    """
    opened: list[Statement] = []
    wrong: list[str] = []
    for number, data in enumerate(statements):
        try:
            opened.append(open_statement(data, f"{what}: statement {number}"))
        except InputError as error:
            wrong.append(str(error))
    known = {key.fingerprint: key for key in reachable(roots, told)}
    proven: list[Rotation] = []
    waiting = list(opened)
    while reached := [one for one in waiting if one.rotation.old in known]:
        for statement in reached:
            waiting.remove(statement)
            rotation = statement.rotation
            if statement.proven_by(known[rotation.old]):
                proven.append(rotation)
                for key in reachable((rotation.new,), told):
                    known.setdefault(key.fingerprint, key)
            else:
                wrong.append(f"{what}: both keys must sign that {rotation.sentence}")
    wrong.extend(f"{what}: {one.rotation.sentence}: an old key unknown here" for one in waiting)
    return tuple(proven), tuple(wrong)


def reachable(keys: Iterable[PublicKey], steps: Iterable[Rotation]) -> frozenset[PublicKey]:
    """Return these keys and all that steps lead to from them, for whatever name."""
    found = {key.fingerprint: key for key in keys}
    waiting = list(steps)
    while reached := [step for step in waiting if step.old in found]:
        waiting = [step for step in waiting if step.old not in found]
        for step in reached:
            found.setdefault(step.new.fingerprint, step.new)
    return frozenset(found.values())


def adopt(
    known: Sequence[Replacement],
    rotation: Rotation,
    *,
    since: str,
    keep_old: bool = False,
) -> tuple[Replacement, ...]:
    """Return what a host goes by after it was told of a rotation.

    The same rotation again changes nothing but whether the old key is kept. Raises TrustError
    when the old key was replaced by another one before, or the new one, in the end, by the old.
    """
    for before in known:
        step = before.rotation
        if step == rotation:
            return tuple(
                Replacement(rotation, one.since, keep_old) if one is before else one
                for one in known
            )
        if step.old == rotation.old and step.new != rotation.new and _overlap(step, rotation):
            raise TrustError(
                f"on this host {step.sentence} already; found that {rotation.sentence}",
                hint="one of the two was not made by the key's owner: ask, in another way than "
                "the one by which this came",
            )
    line = reachable((rotation.new,), (one.rotation for one in known))
    if any(key.fingerprint == rotation.old for key in line):
        raise TrustError(
            f"on this host the one is replaced by the other already; found that "
            f"{rotation.sentence}: replaced keys would lead in a circle",
            hint=_WHICH_KEY,
        )
    return (*known, Replacement(rotation, since, keep_old))


def _next_known(key: PublicKey, name: str, known: Iterable[Replacement]) -> Replacement | None:
    old = key.fingerprint
    return next((one for one in known if one.rotation.old == old and one.rotation.fits(name)), None)


def _next_carried(
    key: PublicKey, name: str, carried: Iterable[Rotation], what: str
) -> Rotation | None:
    old = key.fingerprint
    steps = [one for one in carried if one.old == old and one.fits(name)]
    for other in steps[1:]:
        if other.new != steps[0].new:
            raise TrustError(
                f"{what}: contradicting statements: {steps[0].sentence}, and {other.sentence}",
                hint="one of the two was not made by the key's owner: ask, in another way than "
                "the one by which this pack came",
            )
    return steps[0] if steps else None


def _overlap(one: Rotation, other: Rotation) -> bool:
    return name_patterns.covers(one.names, other.names) or name_patterns.covers(
        other.names, one.names
    )
