"""Whether a pack may be used: bytes in, a verified config or an error out, no I/O.

`judge` decides in this order, and nothing is parsed before the step that needs it:

1.  The digest of the config's bytes is computed here; what the manifest says does not matter.
2.  Without an envelope the pack is unsigned: refused, unless unsigned packs are allowed.
3.  The envelope is decoded, bounded; it must speak of this very digest.
4.  Every key of every rule is tried on every signature; so are the keys that the envelope carries
    and whose fingerprint the user named. If none of them signed, the signer is unknown: refused
    unless unsigned packs are allowed, with the fingerprints of those who did sign; or, if no
    carried key fits its own signature either, the signature is bad: refused in any case.
5.  The config is decoded. (For the first time: its bytes are now those that a known key signed.)
6.  A rule accepts the pack when one of its patterns fits the config's name and at least
    `threshold` distinct keys of the rule signed. A fingerprint named by the user accepts any name.
    One acceptance is enough; without one the pack is refused.
7.  Each authority that accepted (the rule, by its patterns; each signer that counted, by its
    fingerprint) remembers the highest version of this name that was *used* and its config's
    digest. A lower version is refused, and so is the same version with another digest, unless
    older ones are allowed. (By rule, so that the keys of one rule stand in for each other; by
    signer, so that the same signer's old pack cannot come in through another rule.)

What was accepted is remembered only after it was used, by `remember`; looking at a pack changes
nothing. References: TUF specification 1.0.33, section 5 (order, thresholds by distinct keys,
rollback); DSSE protocol.md (keyid decides nothing).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from packer.artifact import config as configs
from packer.artifact.config import Config
from packer.artifact.keys import PublicKey
from packer.artifact.signature import OpenEnvelope, open_envelope
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
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)


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
    which names the memory keeps its use. notes: what was allowed although it is refused by
    default, for the user to read.
    """

    config: Config
    config_digest: str
    signers: frozenset[PublicKey]
    authorities: tuple[str, ...]
    notes: tuple[str, ...]


def judge(
    config_bytes: bytes,
    envelope: bytes | None,
    rules: Iterable[Rule],
    memory: Memory,
    *,
    signers: Collection[str] = (),
    allow_older: bool = False,
    allow_unsigned: bool = False,
    what: str = "pack",
) -> Verdict:
    """Return the verified config of a pack that may be used; see the module for the order.

    signers: fingerprints ("SHA256:…") that the user named for this one time. what: names the pack
    in errors. Raises TrustError with what to do about it; InputError when envelope or config are
    no such thing.
    """
    rules = tuple(rules)
    digest = configs.digest(config_bytes)
    if envelope is None:
        return _unsigned(config_bytes, digest, what, allow_unsigned)
    opened = open_envelope(envelope, digest, f"{what}: signature")
    known = opened.signed_by({key for rule in rules for key in rule.keys})
    claimed = opened.claimed_signers() if signers or not known else frozenset()
    named = frozenset(key for key in claimed if key.fingerprint in signers)
    if not known and not named:
        if allow_unsigned and claimed:  # not a signature that fits nothing: that is damage
            return _unsigned(config_bytes, digest, what, allow_unsigned)
        raise _unknown(opened, claimed, what)
    config = configs.decode(config_bytes, f"{what}: config")
    accepted = [rule for rule in rules if _accepts(rule, known, config.name)]
    counted = named.union(*(known.intersection(rule.keys) for rule in accepted))
    if not counted:
        raise _not_for_this_name(rules, known, config.name, what)
    authorities = sorted(
        {rule.authority for rule in accepted} | {f"key {key.fingerprint}" for key in counted}
    )
    notes = _check_versions(config, digest, authorities, memory, allow_older, what)
    return Verdict(config, digest, counted, tuple(authorities), notes)


def remember(verdict: Verdict, memory: Memory) -> dict[tuple[str, str], Used]:
    """Return the memory after the pack of this verdict was used; it never goes back."""
    after = dict(memory)
    used = Used(verdict.config.version, verdict.config_digest)
    for authority in verdict.authorities:
        before = after.get((authority, verdict.config.name))
        if before is None or before.version < used.version:
            after[authority, verdict.config.name] = used
    return after


def _accepts(rule: Rule, known: frozenset[PublicKey], name: str) -> bool:
    return rule.fits(name) and len(known.intersection(rule.keys)) >= max(1, rule.threshold)


def _unsigned(config_bytes: bytes, digest: str, what: str, allowed: bool) -> Verdict:
    if not allowed:
        raise TrustError(
            f"{what} is not signed: anybody may have made or changed it",
            hint="ask its author to sign it; or use it at your own risk with --allow-unsigned",
        )
    config = configs.decode(config_bytes, f"{what}: config")
    note = "nobody whom this host trusts signed this pack; neither author nor version were checked"
    return Verdict(config, digest, frozenset(), (), (note,))


def _unknown(opened: OpenEnvelope, claimed: frozenset[PublicKey], what: str) -> TrustError:
    if not claimed:
        return TrustError(
            f"{what}: bad signature: expected one by a trusted key, found {len(opened)} "
            "that fit neither a trusted key nor the keys they name",
            hint="the pack was damaged or changed; fetch it again from its author",
        )
    prints = sorted(key.fingerprint for key in claimed)
    return TrustError(
        f"{what} is signed by a key that this host does not trust: {', '.join(prints)}",
        hint="compare the fingerprint with one that the author gave you in another way; if it is "
        f"the same, name it with --signer {prints[0]} or keep it with: vmpack trust add",
    )


def _not_for_this_name(
    rules: Iterable[Rule], known: frozenset[PublicKey], name: str, what: str
) -> TrustError:
    prints = ", ".join(sorted(key.fingerprint for key in known))
    short = [rule for rule in rules if rule.fits(name) and known.intersection(rule.keys)]
    if short:
        needed = min(rule.threshold for rule in short)
        return TrustError(
            f"{what}: {name!r} must be signed by {needed} trusted keys, found only {prints}",
            hint="the other signers must sign it too",
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
