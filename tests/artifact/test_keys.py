from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from packer import host
from packer.artifact import keys
from packer.artifact.keys import (
    PublicKey,
    check_fingerprint,
    default_key_path,
    generate,
    load_private,
    load_public,
    parse_public,
)
from packer.errors import InputError, UsageError

KINDS = {
    "ed25519": ("ssh-ed25519", []),
    "ecdsa-256": ("ecdsa-sha2-nistp256", ["-t", "ecdsa", "-b", "256"]),
    "ecdsa-384": ("ecdsa-sha2-nistp384", ["-t", "ecdsa", "-b", "384"]),
    "ecdsa-521": ("ecdsa-sha2-nistp521", ["-t", "ecdsa", "-b", "521"]),
    "rsa-2048": ("ssh-rsa", ["-t", "rsa", "-b", "2048"]),
    "rsa-3072": ("ssh-rsa", ["-t", "rsa", "-b", "3072"]),
}


def ssh_keygen(*arguments: str | Path) -> str:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    done = subprocess.run(["ssh-keygen", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def make(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    options = KINDS[kind][1] or ["-t", "ed25519"]
    ssh_keygen("-q", "-C", "alice at work", "-N", passphrase, "-f", path, *options)
    return path


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def line(algorithm: str, *fields: bytes) -> str:
    blob = b"".join(map(string, (algorithm.encode(), *fields)))
    return f"{algorithm} {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_ssh_keygen_are_read(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "key", kind)
    private = load_private(path)
    public = load_public(tmp_path / "key.pub")
    assert private.public == public
    assert public.algorithm == KINDS[kind][0]
    assert public.comment == "alice at work"
    assert f"{public.line} {public.comment}" == (tmp_path / "key.pub").read_text().strip()


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "key", kind)
    listed = ssh_keygen("-l", "-f", tmp_path / "key.pub").split()[1]
    assert load_private(path).public.fingerprint == listed
    assert check_fingerprint(listed) == listed


@pytest.mark.parametrize("kind", KINDS)
def test_signatures_verify_and_are_the_same_each_time(tmp_path: Path, kind: str) -> None:
    key = load_private(make(tmp_path / "key", kind))
    signature = key.sign(b"message")
    assert signature == key.sign(b"message")
    assert key.public.verifies(signature, b"message")
    assert not key.public.verifies(signature, b"another message")
    for damaged in (b"", signature[:-1], signature + b"\0", bytes(len(signature))):
        assert not key.public.verifies(damaged, b"message")
    assert not load_private(make(tmp_path / "other", kind)).public.verifies(signature, b"message")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-256", "rsa-2048"])
def test_encrypted_keys_ask_for_their_passphrase_once(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "key", kind, passphrase="fünf Wörter")
    asked: list[Path] = []

    def ask(key: Path) -> str:
        asked.append(key)
        return "fünf Wörter"

    assert load_private(path, ask).public == load_public(tmp_path / "key.pub")
    assert asked == [path]
    with pytest.raises(UsageError, match="wrong passphrase"):
        load_private(path, lambda _path: "guess")
    with pytest.raises(UsageError, match="encrypted"):
        load_private(path)


def test_a_key_without_passphrase_asks_nobody(tmp_path: Path) -> None:
    load_private(make(tmp_path / "key"), lambda path: pytest.fail("asked"))


@pytest.mark.parametrize("passphrase", ["", "secret words"])
def test_ssh_keygen_reads_what_is_generated(tmp_path: Path, passphrase: str) -> None:
    path = tmp_path / "new" / "key"
    key = generate(path, passphrase=passphrase, comment="bob")
    listed = ssh_keygen("-y", "-P", passphrase, "-f", path).split()
    assert " ".join(listed[:2]) == key.public.line
    assert (tmp_path / "new" / "key.pub").read_text() == f"{key.public.line} bob\n"
    assert ssh_keygen("-l", "-f", f"{path}.pub").split()[1] == key.public.fingerprint
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = load_private(path, lambda _path: passphrase)
    assert again.public == key.public
    assert again.sign(b"m") == key.sign(b"m")


@pytest.mark.parametrize("taken", ["key", "key.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(UsageError, match=f"{taken}: File exists"):
        generate(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


def test_the_private_half_is_not_shown(tmp_path: Path) -> None:
    key = generate(tmp_path / "key")
    assert "_key" not in repr(key)


def test_keys_are_equal_when_their_bytes_are(tmp_path: Path) -> None:
    public = generate(tmp_path / "key").public
    assert PublicKey(public.algorithm, public.blob, "somebody else") == public
    assert len({public, parse_public(public.line), parse_public(public.line + " x y z")}) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = make(tmp_path / "key")
    path.chmod(mode)
    with pytest.raises(UsageError, match="others may read") as caught:
        load_private(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_small_rsa_keys_are_refused(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", tmp_path / "key")
    for load in (load_private, load_public):
        path = tmp_path / ("key" if load is load_private else "key.pub")
        with pytest.raises(InputError, match=r"expected an RSA key of 2048 .* found 1024"):
            load(path)


def test_a_huge_rsa_key_is_refused() -> None:
    modulus = b"\0" + b"\xff" * 4096
    with pytest.raises(InputError, match="16384 bits, found 32768"):
        parse_public(line("ssh-rsa", b"\x01\x00\x01", modulus))


def test_dsa_keys_are_refused(tmp_path: Path) -> None:
    blob = line("ssh-dss", b"\x01", b"\x01", b"\x01", b"\x01")
    with pytest.raises(InputError, match="DSA"):
        parse_public(blob)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line("sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:"), "in hardware"),
        (line("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", bytes(65), b"ssh:"), "hardware"),
        (line("ssh-ed25519-cert-v01@openssh.com", bytes(32)), "a certificate"),
        (line("ssh-future", bytes(32)), "an unknown kind"),
    ],
)
def test_keys_of_other_kinds_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        parse_public(text)
    assert "ed25519" in caught.value.hint


def test_a_private_key_in_hardware_is_refused_with_the_reason(tmp_path: Path) -> None:
    kind = b"sk-ssh-ed25519@openssh.com"
    public = string(kind) + string(bytes(32)) + string(b"ssh:")
    body = b"openssh-key-v1\0" + string(b"none") + string(b"none") + string(b"")
    body += (1).to_bytes(4, "big") + string(public) + string(bytes(64))
    path = tmp_path / "key"
    text = base64.encodebytes(body).decode()
    path.write_text(
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}-----END OPENSSH PRIVATE KEY-----\n"
    )
    path.chmod(0o600)
    with pytest.raises(InputError, match="in hardware"):
        load_private(path)


def test_a_second_spelling_of_a_key_is_refused() -> None:
    odd = bytes([0x80]) + hashlib.sha256(b"n").digest() * 8
    modulus = odd[:255] + b"\xff"
    parse_public(line("ssh-rsa", b"\x01\x00\x01", b"\0" + modulus))
    for fields in (
        (b"\x01\x00\x01", b"\0\0" + modulus),
        (b"\0\x01\x00\x01", b"\0" + modulus),
    ):
        with pytest.raises(InputError):
            parse_public(line("ssh-rsa", *fields))
    good = line("ssh-ed25519", hashlib.sha256(b"k").digest())
    parse_public(good)
    with pytest.raises(InputError):
        parse_public(line("ssh-ed25519", hashlib.sha256(b"k").digest(), b"more"))


@pytest.mark.parametrize(
    "text",
    [
        "", "ssh-ed25519", "ssh-ed25519 !!!!", "ssh-ed25519 AAAA", "ssh-rsa é", "\0 \0",
        line("ecdsa-sha2-nistp256", b"nistp256", b"\2" + bytes(32)),
        "no-pty ssh-ed25519 AAAA", line("ssh-ed25519", bytes(31)),
        line("ecdsa-sha2-nistp256", b"nistp256", b"\4" + bytes(64)),
        line("ecdsa-sha2-nistp256", b"nistp384", b"\4" + bytes(64)),
        line("ssh-rsa", b"\x02", b"\0" + b"\xff" * 256),
        "ssh-rsa " + line("ssh-ed25519", bytes(32)).split()[1],
    ],
)  # fmt: skip
def test_lines_that_hold_no_key_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_public(text)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-256", "ecdsa-521", "rsa-2048"])
def test_every_flipped_bit_of_a_public_key_is_an_error_or_another_key(
    tmp_path: Path, kind: str
) -> None:
    key = load_private(make(tmp_path / "key", kind))
    signature = key.sign(b"message")
    for position in range(len(key.public.blob)):
        for bit in range(8):
            blob = bytearray(key.public.blob)
            blob[position] ^= 1 << bit
            text = f"{key.public.algorithm} {base64.b64encode(blob).decode()}"
            try:
                other = parse_public(text)
            except InputError:
                continue
            assert other != key.public
            assert not other.verifies(signature, b"message")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-256", "rsa-2048"])
def test_flipped_bits_of_a_private_key_are_an_error_or_no_matter(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "key", kind)
    public = load_private(path).public
    lines = path.read_text().splitlines()
    body = base64.b64decode("".join(lines[1:-1]))
    chance = random.Random(7)
    for _ in range(300):
        damaged = bytearray(body)
        damaged[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        text = base64.encodebytes(damaged).decode()
        path.write_text(f"{lines[0]}\n{text}{lines[-1]}\n")
        try:
            key = load_private(path, lambda _path: "x")
        except (InputError, UsageError):
            continue
        assert key.public == public


def test_damaged_private_keys_are_refused(tmp_path: Path) -> None:
    data = make(tmp_path / "good").read_bytes()
    path = tmp_path / "key"
    path.touch(mode=0o600)
    for damaged in (
        b"", b"garbage", data[:100], data[:60] + data[-36:], data.replace(b"OPENSSH", b"RSA"),
        data[:36] + b"AAAA" + data[40:], bytes(70_000),
    ):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="key"):
            load_private(path)


def test_a_private_key_is_no_public_key_and_the_other_way_round(tmp_path: Path) -> None:
    path = make(tmp_path / "key")
    with pytest.raises(InputError) as caught:
        load_public(path)
    assert caught.value.hint == f"name {path}.pub"
    (tmp_path / "key.pub").chmod(0o600)
    with pytest.raises(InputError, match="expected a private key"):
        load_private(tmp_path / "key.pub")
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", ".", "pipe"):
        with pytest.raises(InputError):
            load_public(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["", "SHA256:", "MD5:00:11", "SHA256:" + "a" * 44, "SHA256:" + "=" * 43]
)
def test_what_is_no_fingerprint_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="SHA256"):
        check_fingerprint(text)


def test_one_folder_may_hold_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path))
    folders = [host.config_dir(), host.state_dir(), host.cache_dir(), host.data_dir()]
    assert [folder.parent for folder in folders] == [tmp_path] * 4
    assert len(set(folders)) == 4
    assert default_key_path() == tmp_path / "config" / "id_ed25519"
    monkeypatch.delenv("VMPACK_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert host.state_dir() == tmp_path / "xdg" / "vmpack"
    assert keys.default_key_path().name == "id_ed25519"
