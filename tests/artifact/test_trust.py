from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from packer.artifact import config as configs
from packer.artifact.keys import PrivateKey
from packer.artifact.signature import sign
from packer.artifact.trust import Memory, Rule, Used, Verdict, judge, remember
from packer.artifact.trust_store import TrustStore
from packer.errors import Error, InputError, TrustError, UsageError
from tests.artifact.fake_packs import sha256, small_config
from tests.artifact.test_signature import ALICE, BOB, CAROL
from tests.host import in_processes

MALLORY = CAROL
DEMO = Rule(("demo*",), (ALICE.public,))
TWO_OF_THREE = Rule(("demo",), (ALICE.public, BOB.public, CAROL.public), threshold=2)


def config_bytes(name: str = "demo", version: int = 3, note: str = "") -> bytes:
    data = configs.encode(small_config(name, version))
    return data.replace(b'"release": ""', b'"release": "%s"' % note.encode())


def envelope_of(config: bytes, *keys: PrivateKey) -> bytes:
    return sign(configs.digest(config), keys)


def accept(
    config: bytes, *keys: PrivateKey, rules: Iterable[Rule] = (DEMO,), memory: Memory | None = None
) -> Verdict:
    return judge(config, envelope_of(config, *keys), rules, memory or {})


def test_a_pack_of_a_trusted_signer_is_accepted() -> None:
    config = config_bytes()
    verdict = accept(config, MALLORY, ALICE)
    assert verdict.config == configs.decode(config)
    assert verdict.config_digest == configs.digest(config)
    assert verdict.signers == {ALICE.public}
    assert verdict.authorities == (f"key {ALICE.public.fingerprint}", "rule demo*")
    assert verdict.notes == ()


def test_an_unsigned_pack_is_refused() -> None:
    with pytest.raises(TrustError, match=r"demo\.vmpack is not signed") as caught:
        judge(config_bytes(), None, [DEMO], {}, what="demo.vmpack")
    assert "--allow-unsigned" in caught.value.hint


def test_an_unsigned_pack_may_be_allowed_and_leaves_no_memory() -> None:
    verdict = judge(config_bytes(), None, [DEMO], {}, allow_unsigned=True)
    assert (verdict.signers, verdict.authorities) == (frozenset(), ())
    assert "nobody" in verdict.notes[0]
    assert remember(verdict, {}) == {}


def test_allowing_unsigned_packs_does_not_skip_the_checks_of_signed_ones() -> None:
    config = config_bytes(version=2)
    memory = {("rule demo*", "demo"): Used(3, sha256(b""))}
    with pytest.raises(TrustError, match="version 2"):
        judge(config, envelope_of(config, ALICE), [DEMO], memory, allow_unsigned=True)
    assert not judge(config, envelope_of(config, BOB), [DEMO], {}, allow_unsigned=True).signers


def test_an_unknown_signer_is_refused_by_fingerprint() -> None:
    with pytest.raises(TrustError, match=MALLORY.public.fingerprint[:20]) as caught:
        accept(config_bytes(), MALLORY)
    assert f"--signer {MALLORY.public.fingerprint}" in caught.value.hint


def test_without_any_rule_every_signer_is_unknown() -> None:
    with pytest.raises(TrustError, match="does not trust"):
        accept(config_bytes(), ALICE, rules=[])


def test_a_bad_signature_is_refused() -> None:
    config = config_bytes()
    document = json.loads(envelope_of(config, ALICE))
    document["signatures"][0]["sig"] = "A" * 86 + "=="
    for allowed in (False, True):  # it was damaged or changed, and not just by somebody unknown
        with pytest.raises(TrustError, match="bad signature"):
            judge(config, json.dumps(document).encode(), [DEMO], {}, allow_unsigned=allowed)


def test_a_signature_of_another_config_is_refused() -> None:
    with pytest.raises(TrustError, match="payload"):
        judge(config_bytes(version=4), envelope_of(config_bytes(), ALICE), [DEMO], {})


def test_every_flipped_byte_of_a_signed_config_is_refused() -> None:
    config = config_bytes()
    envelope = envelope_of(config, ALICE)
    for position in range(len(config)):
        damaged = bytearray(config)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(TrustError):
            judge(bytes(damaged), envelope, [DEMO], {})


def test_a_config_is_not_parsed_before_its_signature_was_verified() -> None:
    with pytest.raises(TrustError):
        accept(b"no JSON at all", MALLORY)
    with pytest.raises(InputError, match="config: expected JSON"):
        accept(b"no JSON at all", ALICE)


@pytest.mark.parametrize("name", ["dem", "xdemo", "other"])
def test_a_signer_is_trusted_for_the_names_of_its_rule_only(name: str) -> None:
    with pytest.raises(TrustError, match=f"not trusted for packs called '{name}'") as caught:
        accept(config_bytes(name), ALICE)
    assert f"--name {name}" in caught.value.hint


def test_a_threshold_counts_distinct_keys_of_one_rule() -> None:
    assert accept(config_bytes(), ALICE, CAROL, rules=[TWO_OF_THREE]).signers == {
        ALICE.public,
        CAROL.public,
    }
    with pytest.raises(TrustError, match="signed by 2 trusted keys, found only SHA256:"):
        accept(config_bytes(), ALICE, rules=[TWO_OF_THREE])
    apart = [Rule(("demo",), (ALICE.public, BOB.public), 2), Rule(("other",), (CAROL.public,))]
    with pytest.raises(TrustError):
        accept(config_bytes(), ALICE, CAROL, rules=apart)
    doubled = Rule(("demo",), (ALICE.public, ALICE.public), 2)
    with pytest.raises(TrustError):
        accept(config_bytes(), ALICE, rules=[doubled])


def test_a_threshold_of_nothing_is_still_one() -> None:
    with pytest.raises(TrustError):
        accept(config_bytes(), BOB, rules=[Rule(("*",), (ALICE.public,), 0)])


def test_one_rule_that_accepts_is_enough() -> None:
    verdict = accept(config_bytes(), ALICE, rules=[TWO_OF_THREE, DEMO])
    assert verdict.authorities == (f"key {ALICE.public.fingerprint}", "rule demo*")


def test_a_fingerprint_from_the_user_is_enough_without_the_key() -> None:
    config = config_bytes("anything")
    envelope = envelope_of(config, BOB)
    verdict = judge(config, envelope, [], {}, signers=[BOB.public.fingerprint])
    assert verdict.signers == {BOB.public}
    assert verdict.authorities == (f"key {BOB.public.fingerprint}",)
    with pytest.raises(TrustError):
        judge(config, envelope, [], {}, signers=[ALICE.public.fingerprint])


def test_a_named_fingerprint_cannot_be_claimed_by_another_key() -> None:
    config = config_bytes()
    document = json.loads(envelope_of(config, MALLORY))
    document["signatures"][0]["publicKey"] = ALICE.public.line
    document["signatures"][0]["keyid"] = ALICE.public.fingerprint
    with pytest.raises(TrustError, match="bad signature"):
        judge(config, json.dumps(document).encode(), [], {}, signers=[ALICE.public.fingerprint])


def test_an_older_version_than_the_one_used_is_refused() -> None:
    memory = remember(accept(config_bytes(version=5), ALICE), {})
    assert accept(config_bytes(version=5), ALICE, memory=memory).notes == ()
    assert accept(config_bytes(version=6), ALICE, memory=memory).notes == ()
    with pytest.raises(TrustError, match="version 4 of 'demo', this host has used 5") as caught:
        accept(config_bytes(version=4), ALICE, memory=memory)
    assert "--allow-older" in caught.value.hint


def test_the_same_version_with_another_digest_is_refused() -> None:
    memory = remember(accept(config_bytes(version=5), ALICE), {})
    with pytest.raises(TrustError, match="another version 5 of 'demo'"):
        accept(config_bytes(version=5, note="changed"), ALICE, memory=memory)


@pytest.mark.parametrize(("version", "note"), [(4, ""), (5, "changed")])
def test_what_is_allowed_is_noted_and_lowers_nothing(version: int, note: str) -> None:
    memory = remember(accept(config_bytes(version=5), ALICE), {})
    config = config_bytes(version=version, note=note)
    envelope = envelope_of(config, ALICE)
    verdict = judge(config, envelope, [DEMO], memory, allow_older=True)
    assert verdict.notes[0].startswith("allowed: ")
    assert remember(verdict, memory) == memory


def test_judging_changes_nothing_and_memory_grows_with_use() -> None:
    memory: dict[tuple[str, str], Used] = {}
    verdict = accept(config_bytes(version=5), ALICE, memory=memory)
    assert memory == {}
    used = Used(5, verdict.config_digest)
    memory = remember(verdict, memory)
    assert memory == {
        ("rule demo*", "demo"): used,
        (f"key {ALICE.public.fingerprint}", "demo"): used,
    }
    assert remember(accept(config_bytes("demo2", 1), ALICE, memory=memory), memory).items() >= (
        memory.items()
    )


def test_keys_of_one_rule_stand_in_for_each_other() -> None:
    both = Rule(("demo",), (ALICE.public, BOB.public))
    memory = remember(accept(config_bytes(version=5), ALICE, rules=[both]), {})
    with pytest.raises(TrustError, match="version 4"):
        accept(config_bytes(version=4), BOB, rules=[both], memory=memory)


def test_an_old_pack_cannot_come_in_through_another_rule_or_by_fingerprint() -> None:
    memory = remember(accept(config_bytes(version=5), ALICE), {})
    old = config_bytes(version=4)
    with pytest.raises(TrustError, match="version 4"):
        accept(old, ALICE, rules=[Rule(("*",), (ALICE.public,))], memory=memory)
    with pytest.raises(TrustError, match="version 4"):
        judge(old, envelope_of(old, ALICE), [], memory, signers=[ALICE.public.fingerprint])


def test_one_signer_cannot_make_anothers_packs_look_old() -> None:
    rules = [DEMO, Rule(("d*",), (MALLORY.public,))]
    high = accept(config_bytes(version=1 << 50), MALLORY, rules=rules)
    memory = remember(high, {})
    assert accept(config_bytes(version=5), ALICE, rules=rules, memory=memory).notes == ()


# The store


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "config" / "trust.json", tmp_path / "state" / "used.json")


def test_a_new_host_trusts_nobody(store: TrustStore) -> None:
    assert store.rules() == ()
    assert store.memory() == {}


def test_rules_are_kept(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    store.add(BOB.public, "demo*")
    rule = store.add(CAROL.public, "other", threshold=1)
    assert rule == Rule(("other",), (CAROL.public,))
    assert store.rules() == (Rule(("demo*",), (ALICE.public, BOB.public)), rule)
    store.add(ALICE.public, "demo*", threshold=2)
    assert store.rules()[0] == Rule(("demo*",), (BOB.public, ALICE.public), 2)
    store.add(CAROL.public, "demo*")
    assert store.rules()[0].threshold == 2


def test_keys_are_removed_by_fingerprint(store: TrustStore) -> None:
    for pattern in ("demo*", "other"):
        store.add(ALICE.public, pattern)
    store.add(BOB.public, "demo*")
    taken = store.remove(ALICE.public.fingerprint)
    assert taken == tuple(Rule((pattern,), (ALICE.public,)) for pattern in ("demo*", "other"))
    assert store.rules() == (Rule(("demo*",), (BOB.public,)),)
    with pytest.raises(UsageError, match="no rule"):
        store.remove(ALICE.public.fingerprint)


@pytest.mark.parametrize("pattern", ["", "Demo", "a b", "x" * 129, "a\n", "\x1b"])
def test_a_pattern_that_fits_no_name_is_refused(store: TrustStore, pattern: str) -> None:
    with pytest.raises(UsageError, match="pattern"):
        store.add(ALICE.public, pattern)
    for threshold in (0, -1, 65):
        with pytest.raises(UsageError, match="threshold"):
            store.add(ALICE.public, "demo", threshold=threshold)


def test_use_is_remembered(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    verdict = accept(config_bytes(version=5), ALICE, rules=store.rules())
    store.remember(verdict)
    assert store.memory() == remember(verdict, {})
    store.remember(accept(config_bytes(version=7), ALICE, rules=store.rules()))
    store.remember(accept(config_bytes("demo-b"), ALICE, rules=store.rules()))
    assert {used.version for used in store.memory().values()} == {7, 3}
    with pytest.raises(TrustError):
        accept(config_bytes(version=6), ALICE, rules=store.rules(), memory=store.memory())


def test_a_rule_of_many_long_patterns_leaves_a_memory_that_can_be_read(store: TrustStore) -> None:
    """Such a rule is written by hand, and its patterns are its name in the memory."""
    names = [f"{letter * 120}*" for letter in "abcdefghij"]
    rule = Rule(("demo", *names), (ALICE.public,))
    verdict = accept(config_bytes(version=5), ALICE, rules=[rule])
    store.remember(verdict)
    assert store.memory() == remember(verdict, {})


def test_of_two_entries_about_one_use_the_higher_one_counts(store: TrustStore) -> None:
    store.remember(accept(config_bytes(version=5), ALICE))
    whole = json.loads(store.memory_path.read_bytes())
    whole["used"] += [{**entry, "version": 4} for entry in whole["used"]]
    store.memory_path.write_text(json.dumps(whole))
    assert {used.version for used in store.memory().values()} == {5}


def test_only_whole_files_are_ever_seen(store: TrustStore) -> None:
    store.add(ALICE.public, "demo*")
    folder = store.rules_path.parent
    assert {path.name for path in folder.iterdir()} == {"trust.json", "trust.json.lock"}
    json.loads(store.rules_path.read_bytes())


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"schema": 2}', '{"rules": [{"patterns": [], "keys": ["x"]}]}',
        '{"rules": [{"patterns": ["*"], "keys": ["ssh-ed25519 AAAA"]}]}',
        '{"rules": [{"patterns": ["*"], "keys": []}]}', '{"roles": []}',
        '{"rules": [{"patterns": ["*"], "keys": ["KEY"], "threshold": 0}]}',
        '{"rules": [{"patterns": ["A B"], "keys": ["KEY"]}]}',
        '{"rules": [{"patterns": ["*"], "keys": ["KEY"], "treshold": 2}]}',
        '{"rules": [{"patterns": ["*"], "keys": ["KEY"]}, {"patterns": ["*"], "keys": ["KEY"]}]}',
        '{"rules": [{"patterns": ["a", "b"], "keys": ["KEY"]},'
        ' {"patterns": ["b", "a"], "keys": ["KEY"], "threshold": 2}]}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error_and_never_means_nobody(store: TrustStore, text: str) -> None:
    store.rules_path.parent.mkdir()
    store.rules_path.write_text(text.replace("KEY", ALICE.public.line))
    with pytest.raises(InputError, match=r"trust\.json"):
        store.rules()
    with pytest.raises(InputError):
        store.add(ALICE.public, "demo")
    assert store.rules_path.read_text() == text.replace("KEY", ALICE.public.line)


@pytest.mark.parametrize("text", ["", '{"used": [{"authority": "x", "name": "y"}]}', '{"x": 1}'])
def test_a_damaged_memory_is_an_error(store: TrustStore, text: str) -> None:
    store.memory_path.parent.mkdir()
    store.memory_path.write_text(text)
    with pytest.raises(InputError, match=r"used\.json"):
        store.memory()


def use(rules_path: Path, memory_path: Path, first: int) -> None:
    store = TrustStore(rules_path, memory_path)
    for number in range(first, first + 10):
        store.remember(accept(config_bytes(f"demo{number}"), ALICE))


def test_several_processes_do_not_undo_each_others_work(store: TrustStore) -> None:
    paths = (store.rules_path, store.memory_path)
    in_processes(use, [(*paths, 10 * row) for row in range(4)])
    assert len({name for _authority, name in store.memory()}) == 40


def test_the_default_files_lie_below_the_hosts_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path))
    TrustStore().add(ALICE.public, "demo")
    assert (tmp_path / "config" / "trust.json").exists()
    assert TrustStore().memory_path == tmp_path / "state" / "used.json"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = TrustStore(tmp_path / "file" / "trust.json", tmp_path / "file" / "used.json")
    with pytest.raises(Error, match="cannot write"):
        store.add(ALICE.public, "demo")
    with pytest.raises(Error, match="cannot read"):
        store.rules()
