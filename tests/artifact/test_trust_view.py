from __future__ import annotations

from collections.abc import Sequence

from packer.artifact.keys import PrivateKey, PublicKey
from packer.artifact.succession import Replacement
from packer.artifact.trust import Memory, Rule, Used
from packer.artifact.trust_view import Seen, seen, standing
from tests.artifact.fake_packs import sha256
from tests.artifact.test_rotation import rotation
from tests.artifact.test_signature import ALICE, BOB, CAROL, ed25519_key

ALICE_2, ALICE_3 = (ed25519_key(seed) for seed in (11, 12))


def replaced(
    old: PrivateKey, new: PrivateKey, names: Sequence[str] = ("*",), *, keep_old: bool = False
) -> Replacement:
    return Replacement(rotation(old, new, names), "2027-06-30", keep_old)


def shown(rule: Rule, *steps: Replacement) -> list[tuple[str, bool, tuple[str, ...]]]:
    return [
        (one.key.fingerprint, one.came is not None, one.gone_for) for one in standing(rule, steps)
    ]


def test_a_rule_shows_the_keys_that_count_in_its_order() -> None:
    rule = Rule(("demo",), (ALICE.public, BOB.public))
    alice, bob, new = (key.public.fingerprint for key in (ALICE, BOB, ALICE_2))
    assert shown(rule) == [(alice, False, ()), (bob, False, ())]
    assert shown(rule, replaced(ALICE, ALICE_2)) == [(new, True, ()), (bob, False, ())]
    kept = replaced(ALICE, ALICE_2, keep_old=True)
    assert shown(rule, kept) == [(alice, False, ()), (new, True, ()), (bob, False, ())]


def test_a_chain_shows_its_end_and_whose_place_it_takes() -> None:
    rule = Rule(("demo",), (PublicKey(ALICE.public.algorithm, ALICE.public.blob, "alice@home"),))
    (one,) = standing(rule, [replaced(ALICE, ALICE_2), replaced(ALICE_2, ALICE_3)])
    assert one.key == ALICE_3.public
    assert one.key.comment == "alice@home"  # the owner is the same
    assert one.came is not None
    assert one.came.rotation.old == ALICE_2.public.fingerprint
    assert one.came.since == "2027-06-30"


def test_a_key_replaced_for_some_names_is_shown_with_them() -> None:
    rule = Rule(("*",), (ALICE.public,))
    alice, new = (key.public.fingerprint for key in (ALICE, ALICE_2))
    limited = replaced(ALICE, ALICE_2, ["demo*", "lab"])
    assert shown(rule, limited) == [(alice, False, ("demo*", "lab")), (new, True, ())]


def test_a_circle_ends() -> None:
    rule = Rule(("*",), (ALICE.public,))
    assert shown(rule, replaced(ALICE, ALICE_2), replaced(ALICE_2, ALICE)) == []


def test_each_version_is_shown_once_with_all_who_answer_for_it() -> None:
    first, second = Used(5, sha256(b"5")), Used(7, sha256(b"7"))
    old, new, bob = (key.public.fingerprint for key in (ALICE, ALICE_2, BOB))
    memory: Memory = {
        ("rule demo*", "demo"): second,
        (f"key {old}", "demo"): second,
        (f"key {new}", "demo"): second,
        (f"key {bob}", "demo"): first,
        (f"key {CAROL.public.fingerprint}", "a"): first,
    }
    assert seen(memory, [replaced(ALICE, ALICE_2)]) == (
        Seen("a", 5, first.config_digest, (), (CAROL.public.fingerprint,)),
        Seen("demo", 5, first.config_digest, (), (bob,)),
        Seen("demo", 7, second.config_digest, ("demo*",), (new,)),
    )
    assert seen(memory, [])[2].keys == tuple(sorted([old, new]))
