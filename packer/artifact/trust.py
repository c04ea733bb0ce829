"""Whether a pack may be used: bytes in, a verified config or an error out, no I/O.

`judge` decides in this order, and nothing is parsed before the step that needs it:

1.  The digest of the config's bytes is computed here; what the manifest says does not matter.
2.  Without an envelope the pack is unsigned: refused, unless unsigned packs are allowed.
3.  The envelope is decoded, bounded; it must speak of this very digest.
4.  Statements about replaced keys that the pack carries are decoded, bounded. One counts when
    both of its keys signed it and the old one is known from a rule or by the ones before it.
5.  Every key of every rule, and every key that follows one of them, is tried on every signature;
    so are the keys that the envelope carries and whose fingerprint the user named. If none of
    them signed, the signer is unknown: refused unless unsigned packs are allowed, with the
    fingerprints of those who did sign; or, if no carried key fits its own signature either, the
    signature is bad: refused in any case.
6.  The config is decoded. (For the first time: its bytes are now those that a known key signed.)
7.  A rule accepts the pack when one of its patterns fits the config's name and at least
    `threshold` distinct keys signed, each in another place of the rule. Which keys stand in a
    place for this name, and which were replaced, says packer.artifact.succession. A fingerprint
    named by the user accepts any name. One acceptance is enough; without one the pack is refused.
8.  Each authority that accepted (the rule, by its patterns; each signer that counted and those
    whom it replaced, by fingerprint) remembers the highest version of this name that was *used*
    and its config's digest. A lower version is refused, and so is the same version with another
    digest, unless older ones are allowed. (By rule, so that the keys of one rule stand in for
    each other; by signer, so that the same signer's old pack cannot come in through another rule.)

What was accepted is remembered only after it was used, by `remember`; looking at a pack changes
nothing. From then on the host goes by the statements that were needed: a key that was replaced
counts no longer. References: TUF specification 1.0.33, section 5 (order, thresholds by distinct
keys, rollback, rotation of the root); DSSE protocol.md (keyid decides nothing).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from packer.artifact import config as configs
from packer.artifact import name_patterns
from packer.artifact.config import Config
from packer.artifact.keys import PublicKey
from packer.artifact.rotation import Rotation
from packer.artifact.signature import OpenEnvelope, open_envelope
from packer.artifact.succession import (
    Replacement,
    Succession,
    adopt,
    prove,
    reachable,
    succession,
)
from packer.errors import TrustError


@dataclass(frozen=True, slots=True)
class Rule:
    """Keys whose word is taken for packs whose name fits a shell-style pattern ("demo*").

    threshold: how many distinct ones of them must have signed, at least 1.
    """

    patterns: tuple[str, ...]
    keys: tuple[PublicKey, ...]
    threshold: int = 1

    @property
    def authority(self) -> str:
        """How the memory calls this rule; adding or removing keys does not make it forget."""
        return "rule " + " ".join(sorted(self.patterns))

    def fits(self, name: str) -> bool:
        """Return whether the rule speaks about packs of this name."""
        return name_patterns.fits(name, self.patterns)


@dataclass(frozen=True, slots=True)
class Used:
    """The highest version of a pack that was used, and the digest of its config."""

    version: int
    config_digest: str


Memory = Mapping[tuple[str, str], Used]
"""{(authority, pack name): what was used}"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A pack that may be used.

    signers: distinct keys that signed and counted, empty for an unsigned pack. authorities: under
    which names the memory keeps its use. notes: for the user to read: what was allowed although
    it is refused by default, who signs in whose place. rotations: what this host goes by once the
    pack was used.
    """

    config: Config
    config_digest: str
    signers: frozenset[PublicKey]
    authorities: tuple[str, ...]
    notes: tuple[str, ...]
    rotations: tuple[Rotation, ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    """A place of a rule: the keys that followed each other in it, and which of them signed."""

    line: Succession
    signer: int

    @property
    def key(self) -> PublicKey:
        return self.line.keys[self.signer]


def judge(
    config_bytes: bytes,
    envelope: bytes | None,
    rules: Iterable[Rule],
    memory: Memory,
    *,
    known: Sequence[Replacement] = (),
    statements: Sequence[bytes] = (),
    signers: Collection[str] = (),
    allow_older: bool = False,
    allow_unsigned: bool = False,
    what: str = "pack",
) -> Verdict:
    """Return the verified config of a pack that may be used; see the module for the order.

    known: the replaced keys that this host goes by. statements: those about further ones that the
    pack carries. signers: fingerprints ("SHA256:…") that the user named for this one time. what:
    names the pack in errors. Raises TrustError with what to do about it; InputError when envelope
    or config are no such thing.
    """
    rules = tuple(rules)
    digest = configs.digest(config_bytes)
    if envelope is None:
        return _unsigned(config_bytes, digest, what, allow_unsigned)
    opened = open_envelope(envelope, digest, f"{what}: signature")
    roots = [key for rule in rules for key in rule.keys]
    told = [one.rotation for one in known]
    carried, wrong = prove(roots, told, statements, what)
    signed = opened.signed_by(reachable(roots, (*told, *carried)))
    claimed = opened.claimed_signers() if signers or not signed else frozenset()
    named = frozenset(key for key in claimed if key.fingerprint in signers)
    if not signed and not named:
        if allow_unsigned and claimed:  # not a signature that fits nothing: that is damage
            return _unsigned(config_bytes, digest, what, allow_unsigned)
        raise _unknown(opened, claimed, what, wrong)
    config = configs.decode(config_bytes, f"{what}: config")
    lines = {
        rule: tuple(succession(key, config.name, known, carried, what) for key in rule.keys)
        for rule in rules
        if rule.fits(config.name)
    }
    accepted = {
        rule: signing
        for rule, line in lines.items()
        if _enough(rule, signing := _places(line, signed))
    }
    if not accepted and not named:
        _check_adoption(known, (one for one in carried if one.new in signed), what)
        raise _refusal(lines, signed, config.name, what)
    places = [place for signing in accepted.values() for place in signing]
    rotations = tuple(dict.fromkeys(step for one in places for step in one.line.used(one.signer)))
    _check_adoption(known, rotations, what)
    authorities = _authorities(accepted, places, _with_predecessors(named, known, config.name))
    notes = _check_versions(config, digest, authorities, memory, allow_older, what)
    notes += tuple(f"{one.sentence}; both keys signed that" for one in rotations)
    notes += _named_anyway(named, known, config.name)
    counted = named.union(place.key for place in places)
    return Verdict(config, digest, counted, authorities, notes, rotations)


def remember(verdict: Verdict, memory: Memory) -> dict[tuple[str, str], Used]:
    """Return the memory after the pack of this verdict was used; it never goes back."""
    after = dict(memory)
    used = Used(verdict.config.version, verdict.config_digest)
    for authority in verdict.authorities:
        before = after.get((authority, verdict.config.name))
        if before is None or before.version < used.version:
            after[authority, verdict.config.name] = used
    return after


def _places(lines: Iterable[Succession], signed: frozenset[PublicKey]) -> tuple[_Place, ...]:
    """Return the places of a rule in which somebody signed whose signature counts."""
    signers = ((line, line.signer(signed)) for line in lines)
    return tuple(_Place(line, signer) for line, signer in signers if signer is not None)


def _enough(rule: Rule, places: Iterable[_Place]) -> bool:
    return len({place.key for place in places}) >= max(1, rule.threshold)


def _authorities(
    accepted: Iterable[Rule], places: Iterable[_Place], named: Collection[str]
) -> tuple[str, ...]:
    """Return under which names the memory keeps this use; named: fingerprints.

    A new key answers for what its predecessors signed: nothing is forgotten by replacing a key.
    """
    keys = {key.fingerprint for one in places for key in one.line.keys[: one.signer + 1]}
    found = {rule.authority for rule in accepted}
    return tuple(sorted(found | {f"key {one}" for one in keys.union(named)}))


def _with_predecessors(
    keys: Iterable[PublicKey], known: Iterable[Replacement], name: str
) -> frozenset[str]:
    """Return the fingerprints of keys and of those that they have replaced for this name."""
    steps = [one.rotation for one in known if one.rotation.fits(name)]
    found = {key.fingerprint for key in keys}
    while more := {step.old for step in steps if step.new.fingerprint in found} - found:
        found |= more
    return frozenset(found)


def _check_adoption(known: Sequence[Replacement], rotations: Iterable[Rotation], what: str) -> None:
    """Raise TrustError for rotations that contradict what this host goes by."""
    try:
        for rotation in rotations:
            known = adopt(known, rotation, since="")
    except TrustError as error:
        raise TrustError(f"{what}: {error}", hint=error.hint) from error


def _named_anyway(
    named: Iterable[PublicKey], known: Iterable[Replacement], name: str
) -> tuple[str, ...]:
    """Return notes about keys that the user named for this run although they were replaced."""
    prints = {key.fingerprint for key in named}
    steps = [one.rotation for one in known if not one.keep_old]
    return tuple(
        f"allowed: {one.sentence} on this host"
        for one in steps
        if one.old in prints and one.fits(name)
    )


def _unsigned(config_bytes: bytes, digest: str, what: str, allowed: bool) -> Verdict:
    if not allowed:
        raise TrustError(
            f"{what} is not signed: anybody may have made or changed it",
            hint="ask its author to sign it; or use it at your own risk with --allow-unsigned",
        )
    config = configs.decode(config_bytes, f"{what}: config")
    note = "nobody whom this host trusts signed this pack; neither author nor version were checked"
    return Verdict(config, digest, frozenset(), (), (note,))


def _unknown(
    opened: OpenEnvelope, claimed: frozenset[PublicKey], what: str, wrong: Sequence[str]
) -> TrustError:
    if not claimed:
        return TrustError(
            f"{what}: bad signature: expected one by a trusted key, found {len(opened)} "
            "that fit neither a trusted key nor the keys they name",
            hint="the pack was damaged or changed; fetch it again from its author",
        )
    prints = sorted(key.fingerprint for key in claimed)
    useless = f"; it carries statements that do not help: {wrong[0]}" if wrong else ""
    return TrustError(
        f"{what} is signed by a key that this host does not trust: {', '.join(prints)}{useless}",
        hint="compare the fingerprint with one that the author gave you in another way; if it is "
        f"the same, name it with --signer {prints[0]} or keep it with: vmpack trust add",
    )


def _refusal(
    lines: Mapping[Rule, tuple[Succession, ...]],
    signed: frozenset[PublicKey],
    name: str,
    what: str,
) -> TrustError:
    """Return why no rule accepts a pack of this name although a known key signed it."""
    prints = ", ".join(sorted(key.fingerprint for key in signed))
    gone = [step for rule in lines for line in lines[rule] if (step := line.replaced(signed))]
    short = [rule for rule, line in lines.items() if _places(line, signed)]
    if gone:
        return TrustError(
            f"{what} is signed by a key that was replaced: on this host {gone[0].sentence}",
            hint="ask its author to sign it with the new key; to use it all the same: "
            f"--signer {gone[0].old}",
        )
    if short:
        needed = min(rule.threshold for rule in short)
        return TrustError(
            f"{what}: {name!r} must be signed by {needed} trusted keys, found only {prints}",
            hint="the other signers must sign it too: vmpack sign PACK --key KEYFILE",
        )
    return TrustError(
        f"{what} is signed by {prints}, who is not trusted for packs called {name!r}",
        hint=f"if that is right: vmpack trust add KEYFILE --name {name}",
    )


def _check_versions(
    config: Config,
    digest: str,
    authorities: Iterable[str],
    memory: Memory,
    allowed: bool,
    what: str,
) -> tuple[str, ...]:
    """Return notes about what was allowed; raise TrustError for what is not."""
    seen = [memory[key] for name in authorities if (key := (name, config.name)) in memory]
    higher = max((used.version for used in seen), default=0)
    if higher > config.version:
        problem = f"version {config.version} of {config.name!r}, this host has used {higher}"
        hint = "an old version may have known holes; to use it all the same: --allow-older"
    elif any(u.version == config.version and u.config_digest != digest for u in seen):
        problem = f"another version {config.version} of {config.name!r} than this host has used"
        hint = "its author must raise the version; to use it all the same: --allow-older"
    else:
        return ()
    if not allowed:
        raise TrustError(f"{what} is {problem}", hint=hint)
    return (f"allowed: {problem}",)
