"""Replaced keys: which signatures count before and after, and that nobody gains a place."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from packer.artifact.keys import PrivateKey
from packer.artifact.manifest import MAX_ROTATIONS
from packer.artifact.rotation import Rotation, Statement, make_statement, open_statement
from packer.artifact.succession import Replacement, adopt
from packer.artifact.trust import Memory, Rule, Used, Verdict, judge, remember
from packer.artifact.trust_store import TrustStore
from packer.errors import Error, InputError, TrustError, UsageError
from tests.artifact.test_rotation import rotation, statement
from tests.artifact.test_signature import ALICE, BOB, CAROL, changed, ed25519_key, resigned
from tests.artifact.test_trust import config_bytes, envelope_of
from tests.host import in_processes

ALICE_2, ALICE_3, BOB_2, MALLORY = (ed25519_key(seed) for seed in (11, 12, 21, 66))
DEMO = Rule(("demo*",), (ALICE.public,))
TWO_OF_THREE = Rule(("demo",), (ALICE.public, BOB.public, CAROL.public), threshold=2)
TO_2 = statement(ALICE, ALICE_2)
TO_3 = statement(ALICE_2, ALICE_3)


def told(*steps: Rotation, keep_old: bool = False) -> tuple[Replacement, ...]:
    known: tuple[Replacement, ...] = ()
    for step in steps:
        known = adopt(known, step, since="2027-06-30", keep_old=keep_old)
    return known


def accept(
    *keys: PrivateKey,
    carried: Sequence[bytes] = (),
    known: Sequence[Replacement] = (),
    rules: Iterable[Rule] = (DEMO,),
    memory: Memory | None = None,
    name: str = "demo",
    version: int = 3,
    signers: Sequence[str] = (),
) -> Verdict:
    config = config_bytes(name, version)
    envelope = envelope_of(config, *keys)
    return judge(
        config, envelope, rules, memory or {}, known=known, statements=carried, signers=signers
    )


def refused(match: str, *keys: PrivateKey, **given: object) -> TrustError:
    with pytest.raises(TrustError, match=match) as caught:
        accept(*keys, **given)  # type: ignore[arg-type]
    return caught.value


# What a pack carries


def test_a_pack_by_the_new_key_is_accepted_with_a_statement_by_the_old_one() -> None:
    verdict = accept(ALICE_2, carried=[TO_2])
    assert verdict.signers == {ALICE_2.public}
    assert verdict.rotations == (rotation(ALICE, ALICE_2),)
    assert ALICE.public.fingerprint in verdict.notes[0]
    refused("does not trust", ALICE_2)


def test_a_chain_of_statements_is_followed_in_any_order() -> None:
    for carried in itertools.permutations([TO_2, TO_3, statement(BOB, CAROL)]):
        verdict = accept(ALICE_3, carried=carried)
        assert verdict.rotations == (rotation(ALICE, ALICE_2), rotation(ALICE_2, ALICE_3))
    refused("does not trust", ALICE_3, carried=[TO_3])
    refused("does not trust", ALICE_3, carried=[TO_2])


def test_the_longest_chain_that_a_pack_may_carry_is_followed() -> None:
    keys = [ALICE, *(ed25519_key(seed) for seed in range(100, 100 + MAX_ROTATIONS))]
    carried = [statement(old, new) for old, new in itertools.pairwise(keys)]
    assert len(accept(keys[-1], carried=carried).rotations) == MAX_ROTATIONS


def test_nothing_is_taken_over_that_was_not_needed() -> None:
    assert accept(ALICE, carried=[TO_2]).rotations == ()
    assert accept(ALICE_2, carried=[TO_2, TO_3]).rotations == (rotation(ALICE, ALICE_2),)


def test_whoever_signs_with_both_keys_has_moved_on() -> None:
    assert accept(ALICE, ALICE_2, carried=[TO_2]).rotations == (rotation(ALICE, ALICE_2),)


HOSTILE = {
    "by the new key only": make_statement(rotation(ALICE, MALLORY), [MALLORY]),
    "by the old key only": make_statement(rotation(ALICE, MALLORY), [ALICE]),
    "by somebody else": resigned(
        statement(CAROL, MALLORY), keyid=ALICE.public.fingerprint, publicKey=ALICE.public.line
    ),
    "of another key": statement(CAROL, MALLORY),
    "for another name": statement(ALICE, MALLORY, ["other*"]),
    "of another type": changed(statement(ALICE, MALLORY), payloadType="application/json"),
    "cut off": statement(ALICE, MALLORY)[:-200],
    "too large": b" " * (1 << 20) + statement(ALICE, MALLORY),
    "empty": b"",
    "with another payload": changed(
        statement(ALICE, MALLORY), payload=json.loads(statement(ALICE, BOB))["payload"]
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_statement_opens_no_door(kind: str) -> None:
    refused("does not trust|is not trusted for", MALLORY, carried=[HOSTILE[kind]])


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_statement_shuts_no_door(kind: str) -> None:
    """Whoever carries a pack can add one; that must not make a good pack worse."""
    assert accept(ALICE, carried=[HOSTILE[kind]]).notes == ()
    assert accept(ALICE_2, carried=[HOSTILE[kind], TO_2]).signers == {ALICE_2.public}


def test_statements_that_contradict_each_other_are_refused() -> None:
    both = [TO_2, statement(ALICE, MALLORY)]
    for key in (ALICE_2, MALLORY):
        error = refused("contradicting statements", key, carried=both)
        assert "another way" in error.hint
    apart = [statement(ALICE, ALICE_2, ["demo"]), statement(ALICE, MALLORY, ["other"])]
    assert accept(ALICE_2, carried=apart).signers == {ALICE_2.public}
    refused("is not trusted for", MALLORY, carried=apart)


def test_a_circle_of_statements_is_refused() -> None:
    circle = [TO_2, TO_3, statement(ALICE_3, ALICE)]
    for key in (ALICE, ALICE_2, ALICE_3):
        refused("in a circle", key, carried=circle)


def test_a_statement_does_not_make_other_names_trusted() -> None:
    refused("not trusted for packs called 'other'", ALICE_2, carried=[TO_2], name="other")


def test_a_statement_for_some_names_counts_for_these_only() -> None:
    everything = [Rule(("*",), (ALICE.public,))]
    limited = [statement(ALICE, ALICE_2, ["demo*", "lab"])]
    for name, right in (("demo", True), ("demo-b", True), ("lab", True), ("lab2", False)):
        if right:
            accept(ALICE_2, carried=limited, rules=everything, name=name)
        else:
            refused("is not trusted for", ALICE_2, carried=limited, rules=everything, name=name)


# What a host goes by


def test_after_it_was_replaced_the_old_key_counts_no_longer() -> None:
    known = told(rotation(ALICE, ALICE_2))
    assert accept(ALICE_2, known=known).rotations == ()
    error = refused("was replaced", ALICE, known=known)
    assert ALICE_2.public.fingerprint in str(error)
    assert f"--signer {ALICE.public.fingerprint}" in error.hint
    refused("was replaced", ALICE, known=known, carried=[TO_2])


def test_every_key_but_the_newest_is_out() -> None:
    known = told(rotation(ALICE, ALICE_2), rotation(ALICE_2, ALICE_3))
    for old in (ALICE, ALICE_2):
        refused("was replaced", old, known=known)
    accept(ALICE_3, known=known)
    known = told(rotation(ALICE, ALICE_2))
    assert accept(ALICE_3, known=known, carried=[TO_3]).rotations == (rotation(ALICE_2, ALICE_3),)


def test_a_stolen_old_key_cannot_name_another_heir() -> None:
    known = told(rotation(ALICE, ALICE_2))
    theft = statement(ALICE, MALLORY)
    error = refused("already; found that", MALLORY, known=known, carried=[theft])
    assert "was not made by the key's owner" in error.hint
    for both in ([theft, TO_2], [TO_2, theft]):
        refused("already; found that", MALLORY, known=known, carried=both)
        assert accept(ALICE_2, known=known, carried=both).rotations == ()


def test_what_could_not_be_remembered_after_is_refused_before() -> None:
    """For this name alone nothing contradicts it, but for another one that it speaks for."""
    known = told(rotation(ALICE, ALICE_2, ["demo1"]))
    both = statement(ALICE, ALICE_3, ["demo1", "demo2"])
    refused("already; found that", ALICE_3, known=known, carried=[statement(ALICE, ALICE_3)])
    accept(ALICE_3, known=known, carried=[statement(ALICE, ALICE_3, ["demo2"])], name="demo2")
    refused("already; found that", ALICE_3, known=known, carried=[both], name="demo2")


def test_a_replaced_key_does_not_come_back() -> None:
    known = told(rotation(ALICE, ALICE_2))
    back = statement(ALICE_2, ALICE)
    refused("in a circle", ALICE, known=known, carried=[back])
    with pytest.raises(TrustError, match="in a circle"):
        adopt(known, rotation(ALICE_2, ALICE), since="")
    by_carol = Rule(("demo",), (CAROL.public,))
    given = {"known": known, "rules": [by_carol], "carried": [statement(CAROL, ALICE)]}
    refused("was replaced", ALICE, **given)
    assert accept(ALICE_2, **given).signers == {ALICE_2.public}  # type: ignore[arg-type]


def test_a_circle_through_what_this_host_goes_by_opens_no_door() -> None:
    rules = [Rule(("demo",), (ALICE_3.public,))]
    known = told(rotation(ALICE, ALICE_2))
    carried = [statement(ALICE_3, CAROL), statement(CAROL, ALICE), statement(ALICE_2, ALICE_3)]
    for key in (ALICE, ALICE_2):
        refused("in a circle|was replaced", key, known=known, rules=rules, carried=carried)
    known = told(rotation(ALICE, ALICE_3))
    given = {"known": known, "rules": rules, "carried": carried[:2]}
    refused("in a circle", ALICE, **given)
    for key, learnt in ((ALICE_3, ()), (CAROL, (rotation(ALICE_3, CAROL),))):
        assert accept(key, **given).rotations == learnt  # type: ignore[arg-type]


@pytest.mark.parametrize("places", list(itertools.permutations([ALICE, ALICE_2, ALICE_3])))
def test_one_owners_keys_may_stand_in_a_rule_in_any_order(places: Sequence[PrivateKey]) -> None:
    """Some users added each of an author's keys by hand before the author made statements."""
    rule = Rule(("demo",), tuple(key.public for key in places))
    verdict = accept(ALICE_3, carried=[TO_2, TO_3], rules=[rule])
    assert set(verdict.rotations) == {rotation(ALICE, ALICE_2), rotation(ALICE_2, ALICE_3)}


def test_a_host_may_hear_of_a_later_replacement_before_an_earlier_one() -> None:
    rules = [Rule(("demo",), (ALICE.public,)), Rule(("demo*",), (ALICE_2.public,))]
    known = told(rotation(ALICE_2, ALICE_3))
    verdict = accept(ALICE_3, known=known, rules=rules, carried=[TO_2, TO_3])
    assert verdict.rotations == (rotation(ALICE, ALICE_2),)
    refused("was replaced", ALICE_2, known=known, rules=rules, carried=[TO_2, TO_3])


def test_an_old_key_can_be_kept_beside_the_new_one() -> None:
    known = told(rotation(ALICE, ALICE_2), keep_old=True)
    for key in (ALICE, ALICE_2):
        assert accept(key, known=known).signers == {key.public}


def test_a_key_replaced_for_some_names_counts_for_the_others() -> None:
    rules = [Rule(("*",), (ALICE.public,))]
    known = told(rotation(ALICE, ALICE_2, ["demo*"]))
    accept(ALICE, known=known, rules=rules, name="other")
    accept(ALICE_2, known=known, rules=rules, name="demo")
    refused("was replaced", ALICE, known=known, rules=rules, name="demo")
    refused("is not trusted for", ALICE_2, known=known, rules=rules, name="other")


def test_the_user_can_name_a_replaced_key_for_one_run_and_is_told() -> None:
    known = told(rotation(ALICE, ALICE_2))
    verdict = accept(ALICE, known=known, signers=[ALICE.public.fingerprint])
    assert verdict.notes[0].startswith("allowed: ")
    assert verdict.rotations == ()


# Thresholds


def test_a_threshold_is_the_same_after_a_rotation() -> None:
    carried = [TO_2]
    rules = [TWO_OF_THREE]
    assert accept(ALICE_2, BOB, carried=carried, rules=rules).signers == {
        ALICE_2.public,
        BOB.public,
    }
    accept(BOB, CAROL, carried=carried, rules=rules)
    refused("must be signed by 2", ALICE_2, carried=carried, rules=rules)
    refused("must be signed by 2", ALICE, ALICE_2, carried=carried, rules=rules)
    refused("must be signed by 2", ALICE, ALICE_2, MALLORY, carried=carried, rules=rules)


def test_two_keys_of_one_place_count_once_even_where_both_are_kept() -> None:
    known = told(rotation(ALICE, ALICE_2), keep_old=True)
    refused("must be signed by 2", ALICE, ALICE_2, known=known, rules=[TWO_OF_THREE])
    accept(ALICE, ALICE_2, BOB, known=known, rules=[TWO_OF_THREE])


def test_two_places_that_move_to_one_key_count_once() -> None:
    carried = [statement(ALICE, BOB)]
    refused("must be signed by 2", BOB, carried=carried, rules=[TWO_OF_THREE])
    refused("must be signed by 2", ALICE, BOB, carried=carried, rules=[TWO_OF_THREE])
    accept(BOB, CAROL, carried=carried, rules=[TWO_OF_THREE])


def test_a_replaced_key_does_not_help_to_reach_a_threshold() -> None:
    known = told(rotation(ALICE, ALICE_2))
    refused("was replaced", ALICE, BOB, known=known, rules=[TWO_OF_THREE])
    accept(ALICE_2, BOB, known=known, rules=[TWO_OF_THREE])


def test_several_places_can_move_at_once() -> None:
    verdict = accept(ALICE_2, BOB_2, carried=[TO_2, statement(BOB, BOB_2)], rules=[TWO_OF_THREE])
    assert set(verdict.rotations) == {rotation(ALICE, ALICE_2), rotation(BOB, BOB_2)}


PEOPLE = {
    "alice": (ALICE, ALICE_2, ALICE_3),
    "bob": (BOB, BOB_2),
    "carol": (CAROL,),
    "mallory": (MALLORY, ed25519_key(67)),
}
OWNER = {key.public: person for person, keys in PEOPLE.items() for key in keys}
KEYS = [key for keys in PEOPLE.values() for key in keys]
STEPS = [(old, new) for keys in PEOPLE.values() for old in keys for new in keys if old is not new]


@settings(max_examples=300, deadline=None)
@given(
    threshold=st.integers(1, 3),
    trusted=st.sets(st.sampled_from(KEYS[:6]), min_size=1, max_size=6),
    signing=st.sets(st.sampled_from(KEYS), min_size=1, max_size=6),
    known=st.lists(st.sampled_from(STEPS), max_size=4),
    carried=st.lists(st.sampled_from(STEPS), max_size=6),
    keep_old=st.booleans(),
)
def test_k_of_n_keys_are_always_k_people(
    threshold: int,
    trusted: set[PrivateKey],
    signing: set[PrivateKey],
    known: list[tuple[PrivateKey, PrivateKey]],
    carried: list[tuple[PrivateKey, PrivateKey]],
    keep_old: bool,
) -> None:
    """Where each person moves among keys of their own, whatever was moved how."""
    by_people = [key for key in KEYS if key in trusted]
    first = {OWNER[key.public]: key.public for key in reversed(by_people)}
    rule = Rule(("demo",), tuple(first.values()), threshold)
    host: tuple[Replacement, ...] = ()
    for step in known:
        try:
            host = adopt(host, rotation(*step), since="", keep_old=keep_old)
        except TrustError:
            continue
    try:
        verdict = accept(
            *signing, rules=[rule], known=host, carried=[statement(*step) for step in carried]
        )
    except TrustError as error:
        event(str(error).partition(":")[0][:30])
        return
    event(f"accepted after {len(verdict.rotations)} rotations")
    people = {OWNER[key] for key in verdict.signers}
    assert len(people) == len(verdict.signers) >= threshold
    assert people <= first.keys()
    assert verdict.signers <= {key.public for key in signing}
    gone = {one.rotation.old for one in host if not one.keep_old}
    assert not gone & {key.fingerprint for key in verdict.signers}
    assert {OWNER[one.new] for one in verdict.rotations} <= people


# Versions


def test_what_was_used_under_the_old_key_is_not_forgotten() -> None:
    """Whatever authority the old version was used under."""
    elsewhere = Rule(("*",), (ALICE.public,))
    for memory in (
        remember(accept(ALICE, version=5), {}),
        remember(accept(ALICE, version=5, rules=[elsewhere]), {}),
        remember(accept(ALICE, version=5, rules=[], signers=[ALICE.public.fingerprint]), {}),
    ):
        refused("version 4", ALICE_2, carried=[TO_2], memory=memory, version=4)
        accept(ALICE_2, carried=[TO_2], memory=memory, version=5)


def test_what_was_used_under_the_new_key_holds_for_the_old_one_too() -> None:
    verdict = accept(ALICE_2, carried=[TO_2], version=5)
    memory = remember(verdict, {})
    used = Used(5, verdict.config_digest)
    for key in (ALICE, ALICE_2):
        assert memory[f"key {key.public.fingerprint}", "demo"] == used
    known = told(rotation(ALICE, ALICE_2))
    named = [ALICE.public.fingerprint]
    refused("version 4", ALICE, known=known, memory=memory, version=4, signers=named)


def test_what_was_used_under_the_old_key_holds_for_the_new_one_when_it_is_named() -> None:
    memory = remember(accept(ALICE, version=5), {})
    known = told(rotation(ALICE, ALICE_2), rotation(ALICE_2, ALICE_3))
    for key in (ALICE_2, ALICE_3):
        named = [key.public.fingerprint]
        given = {"known": known, "memory": memory, "rules": [], "signers": named}
        refused("version 4", key, version=4, **given)
        accept(key, version=5, **given)  # type: ignore[arg-type]
    elsewhere = told(rotation(ALICE, ALICE_2, ["other"]))
    named = [ALICE_2.public.fingerprint]
    accept(ALICE_2, known=elsewhere, memory=memory, rules=[], signers=named, version=4)


def test_nobody_can_burden_a_stranger_with_their_versions() -> None:
    rules = [DEMO, Rule(("d*",), (MALLORY.public,))]
    forced = make_statement(rotation(MALLORY, ALICE), [MALLORY])
    high = accept(MALLORY, carried=[forced], rules=rules, version=1 << 50)
    memory = remember(high, {})
    assert accept(ALICE, rules=rules, memory=memory, version=5).notes == ()


# The store


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "config" / "trust.json", tmp_path / "state" / "used.json")


def opened(old: PrivateKey, new: PrivateKey, names: Sequence[str] = ("*",)) -> Statement:
    return open_statement(statement(old, new, names))


def judged(store: TrustStore, *keys: PrivateKey, carried: Sequence[bytes] = ()) -> Verdict:
    trusted = store.trusted()
    return accept(
        *keys, carried=carried, known=trusted.replaced, rules=trusted.rules, memory=store.memory()
    )


def test_a_statement_is_taken_over_and_kept(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.add(BOB.public, "other")
    assert store.rotate(opened(ALICE, ALICE_2)) == (DEMO,)
    (kept,) = store.trusted().replaced
    assert kept.rotation == rotation(ALICE, ALICE_2)
    assert len(kept.since) == len("2027-06-30")
    assert store.rules()[0] == DEMO  # as the user wrote it
    judged(store, ALICE_2)
    with pytest.raises(TrustError, match="was replaced"):
        judged(store, ALICE)


def test_looking_first_changes_nothing(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    before = store.rules_path.read_bytes()
    assert store.rotate(opened(ALICE, ALICE_2), dry_run=True) == (DEMO,)
    assert store.rules_path.read_bytes() == before


def test_the_same_statement_twice_changes_nothing_more(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, ALICE_2), keep_old=True)
    store.rotate(opened(ALICE, ALICE_2), keep_old=True)
    assert [one.keep_old for one in store.trusted().replaced] == [True]
    store.rotate(opened(ALICE, ALICE_2))
    assert [one.keep_old for one in store.trusted().replaced] == [False]


def test_a_statement_about_a_key_that_no_rule_trusts_is_refused(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    for wrong in (opened(BOB, BOB_2), opened(ALICE, ALICE_2, ["other"])):
        with pytest.raises(TrustError, match="no rule trusts the old key"):
            store.rotate(wrong)
    assert store.trusted().replaced == ()


@pytest.mark.parametrize("kind", ["by the new key only", "by the old key only"])
def test_a_statement_that_one_key_did_not_sign_is_refused(store: TrustStore, kind: str) -> None:
    store.add(ALICE.public, "demo*")
    lacking = "old" if kind == "by the new key only" else "new"
    with pytest.raises(TrustError, match=f"not signed by the {lacking} key"):
        store.rotate(open_statement(HOSTILE[kind]))
    assert store.trusted().replaced == ()


def test_a_second_heir_is_refused(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, ALICE_2))
    with pytest.raises(TrustError, match="already; found that"):
        store.rotate(opened(ALICE, MALLORY))
    store.rotate(opened(ALICE_2, ALICE_3))
    judged(store, ALICE_3)


def test_use_of_a_pack_takes_its_statements_over(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.remember(judged(store, ALICE))
    judged(store, ALICE_2, carried=[TO_2])
    assert store.trusted().replaced == ()  # looking changes nothing
    store.remember(judged(store, ALICE_2, carried=[TO_2]))
    judged(store, ALICE_2)  # the statement need not come again
    with pytest.raises(TrustError, match="was replaced"):
        judged(store, ALICE)
    store.remember(judged(store, ALICE_2, carried=[TO_2]))
    assert len(store.trusted().replaced) == 1


def test_removing_a_new_key_does_not_bring_the_old_one_back(store: TrustStore) -> None:
    for removed in (ALICE, ALICE_2):
        store.add(ALICE.public, "demo*", again=True)
        store.add(BOB.public, "demo*")
        store.rotate(opened(ALICE, ALICE_2))
        store.remove(removed.public.fingerprint)
        for key in (ALICE, ALICE_2):
            with pytest.raises(TrustError):
                judged(store, key)
        judged(store, BOB)


def test_a_replaced_key_is_added_again_only_on_purpose(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, ALICE_2))
    with pytest.raises(UsageError, match="is replaced by") as caught:
        store.add(ALICE.public, "demo*")
    assert "--again" in caught.value.hint
    store.add(ALICE.public, "demo*", again=True)
    assert store.trusted().replaced == ()
    judged(store, ALICE)


@pytest.mark.parametrize("keep_old", [False, True])
def test_an_heir_that_was_removed_does_not_come_back_with_the_old_key(
    store: TrustStore, keep_old: bool
) -> None:
    """Mallory had stolen the key and named an heir; its owner goes on with the old one."""
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, MALLORY, ["demo*"]), keep_old=keep_old)
    if keep_old:
        store.add(ALICE.public, "demo*", threshold=1)  # nothing is new about that
    store.remove(MALLORY.public.fingerprint)
    for pattern in ("demo", "demo*", "*", "d*"):
        with pytest.raises(UsageError, match="is replaced by") as caught:
            store.add(ALICE.public, pattern)
        assert "the new one no longer" in caught.value.hint
    store.add(ALICE.public, "demo", again=True)
    judged(store, ALICE)
    with pytest.raises(TrustError):
        judged(store, MALLORY)


def test_a_key_replaced_for_other_names_can_be_added(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, ALICE_2, ["demo*"]))
    store.add(ALICE.public, "other")
    assert len(store.trusted().replaced) == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"old": "SHA256:x"},
        {"new": "ssh-ed25519 AAAA"},
        {"names": []},
        {"names": ["A B"]},
        {"since": "yesterday"},
        {"keep_old": "no"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_damaged_replacement_is_an_error_and_never_means_none(
    store: TrustStore, damage: dict[str, object]
) -> None:
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, ALICE_2))
    whole = json.loads(store.rules_path.read_bytes())
    whole["replaced"][0].update(damage)
    store.rules_path.write_text(json.dumps(whole))
    before = store.rules_path.read_bytes()
    with pytest.raises(InputError, match=r"trust\.json.*replaced\[0\]"):
        store.trusted()
    with pytest.raises(InputError):
        store.remember(accept(ALICE_2, carried=[TO_2]))
    with pytest.raises(InputError):
        store.rotate(opened(ALICE, ALICE_2))
    assert store.rules_path.read_bytes() == before


def test_every_truncation_of_the_store_is_an_error(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, ALICE_2))
    whole = store.rules_path.read_bytes().rstrip()
    for length in range(len(whole)):
        store.rules_path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            store.trusted()


def test_a_circle_written_by_hand_ends(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.rotate(opened(ALICE, ALICE_2))
    whole = json.loads(store.rules_path.read_bytes())
    (there,) = whole["replaced"]
    back = {**there, "old": ALICE_2.public.fingerprint, "new": ALICE.public.line}
    whole["replaced"].append(back)
    store.rules_path.write_text(json.dumps(whole))
    judged(store, ALICE_2)
    with pytest.raises(TrustError):
        judged(store, MALLORY)


def learn(rules_path: Path, memory_path: Path, seed: int) -> None:
    store = TrustStore(rules_path, memory_path)
    old, new = ed25519_key(seed), ed25519_key(seed + 50)
    store.add(old.public, f"demo{seed}")
    store.rotate(opened(old, new))


def test_several_processes_do_not_undo_each_others_work(store: TrustStore) -> None:
    in_processes(learn, [(store.rules_path, store.memory_path, seed) for seed in range(80, 86)])
    assert len(store.trusted().replaced) == len(store.rules()) == 6


class Unset(datetime.datetime):
    """The clock of a machine whose battery is empty."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Unset:
        return cls(1970, 1, 1, tzinfo=tz)


def test_a_clock_that_was_never_set_spoils_nothing(
    store: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(ALICE.public, "demo*")
    monkeypatch.setattr(datetime, "datetime", Unset)
    store.rotate(opened(ALICE, ALICE_2))
    store.remember(judged(store, ALICE_3, carried=[TO_3]))
    assert [one.since for one in store.trusted().replaced] == ["", ""]
    judged(store, ALICE_3)


def test_a_store_that_cannot_be_written_keeps_at_least_the_version(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    verdict = judged(store, ALICE_2, carried=[TO_2])
    store.rules_path.unlink()
    store.rules_path.mkdir()
    with pytest.raises(Error, match=r"trust\.json"):
        store.remember(verdict)
    assert {used.version for used in store.memory().values()} == {3}
