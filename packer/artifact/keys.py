"""OpenSSH keys: the files that people have already, read, written and named as ssh-keygen does.

Ed25519, ECDSA (nistp256, 384, 521) and RSA (2048 to 16384 bits) can sign and verify. Keys in
hardware ("sk-…") sign with a counter and flags around the message, certificates say more than a
key, DSA is broken: all three are refused. Formats: OpenSSH PROTOCOL.key; RFC 4253, section 6.6;
RFC 5656, section 3.1; RFC 8709, section 4.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from packer import host
from packer.errors import InputError, UsageError

MAX_KEY_FILE_BYTES = 64 << 10
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16384
"""As in OpenSSH; a larger key would make each check of a signature take seconds."""

_ED25519 = "ssh-ed25519"
_RSA = "ssh-rsa"
_CURVES: dict[str, hashes.HashAlgorithm] = {
    "ecdsa-sha2-nistp256": hashes.SHA256(),
    "ecdsa-sha2-nistp384": hashes.SHA384(),
    "ecdsa-sha2-nistp521": hashes.SHA512(),
}
"""The hash that goes with each curve: RFC 5656, section 6.2.1."""

_ALGORITHMS = (_ED25519, _RSA, *_CURVES)
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_MAGIC = b"openssh-key-v1\0"
_BEGIN = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_END = b"-----END OPENSSH PRIVATE KEY-----"

_AnyPublic = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_AnyPrivate = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

Passphrase = Callable[[Path], str]
"""Asks the user for the passphrase of a key file."""


@dataclass(frozen=True)
class PublicKey:
    """A public key; equal to another one when its bytes are, whatever the comment.

    algorithm: OpenSSH's name, "ssh-ed25519". blob: the key as RFC 4253 encodes it.
    """

    algorithm: str
    blob: bytes
    comment: str = field(default="", compare=False)

    @property
    def line(self) -> str:
        """Return the key as in a .pub file, without its comment."""
        return f"{self.algorithm} {base64.b64encode(self.blob).decode('ascii')}"

    @property
    def fingerprint(self) -> str:
        """Return "SHA256:…" as `ssh-keygen -l` prints it."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether this key's private half signed the message."""
        key = self._key
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, message, ec.ECDSA(_CURVES[self.algorithm]))
            else:
                key.verify(signature, message, padding.PKCS1v15(), hashes.SHA512())
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> _AnyPublic:
        return _load_public(self.line)


@dataclass(frozen=True)
class PrivateKey:
    """A key that can sign."""

    public: PublicKey
    _key: _AnyPrivate = field(repr=False, compare=False)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message; the same key and message give the same bytes.

        Ed25519: RFC 8032. ECDSA: RFC 6979 with the curve's hash, DER. RSA: PKCS #1 v1.5 with
        SHA-512, which is OpenSSH's rsa-sha2-512; PSS would put a random salt into each one.
        """
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, padding.PKCS1v15(), hashes.SHA512())
        curve_hash = _CURVES[self.public.algorithm]
        try:
            return self._key.sign(message, ec.ECDSA(curve_hash, deterministic_signing=True))
        except UnsupportedAlgorithm as error:
            raise UsageError(
                "ECDSA signatures that are the same each time need OpenSSL 3.2 or later",
                hint="use an Ed25519 key (vmpack key generate)",
            ) from error


def default_key_path() -> Path:
    """Return where the key that signs lies unless another one is named."""
    return host.config_dir() / "id_ed25519"


def parse_public(line: str, what: str = "public key") -> PublicKey:
    """Return the key in one line of a .pub or authorized_keys file (without options).

    what: names the line in errors. Raises InputError for anything but a key of a kind that is
    accepted, in its one canonical encoding.
    """
    parts = line.strip().split(None, 2)
    if len(parts) < 2:
        raise InputError(f"{what}: expected 'ssh-ed25519 AAAA…', found {line[:40]!r}")
    algorithm, text = parts[0], parts[1]
    _check_algorithm(algorithm, what)
    try:
        blob = base64.b64decode(text, validate=True)
        key = _load_public(f"{algorithm} {text}")
    except (ValueError, NotImplementedError, UnsupportedAlgorithm) as error:
        raise InputError(f"{what}: expected an OpenSSH public key: {error}") from error
    _check_size(key, what)
    canonical = key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode("ascii")
    if canonical != f"{algorithm} {text}":  # one key in two spellings would count twice
        raise InputError(f"{what}: expected the canonical encoding of the key, found another")
    return PublicKey(algorithm, blob, parts[2] if len(parts) == 3 else "")


def is_fingerprint(text: str) -> bool:
    """Return whether a text is a fingerprint as `ssh-keygen -l` prints it."""
    return _FINGERPRINT.fullmatch(text) is not None


def check_fingerprint(text: str) -> str:
    """Return a fingerprint as the user gave it. Raises UsageError when it is none."""
    if not is_fingerprint(text):
        raise UsageError(
            f"expected a fingerprint like SHA256:… (43 characters after the colon), found {text!r}",
            hint="ssh-keygen -l -f KEYFILE.pub prints it",
        )
    return text


def load_public(path: Path) -> PublicKey:
    """Return the key in a .pub file. Raises InputError when it holds no usable key."""
    data = _read(path)
    if data.lstrip().startswith(b"-----BEGIN"):
        raise InputError(
            f"{path}: expected a public key, found a private one", hint=f"name {path}.pub"
        )
    try:
        lines = [line for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected one line of text, found bytes") from error
    if len(lines) != 1:
        raise InputError(f"{path}: expected one public key, found {len(lines)} lines")
    return parse_public(lines[0], str(path))


def load_private(path: Path, passphrase: Passphrase | None = None) -> PrivateKey:
    """Return the key in an OpenSSH private key file.

    passphrase: asked once, only for a key that is encrypted. Raises InputError when the file
    holds no usable key, UsageError when others may read it or the passphrase is missing or wrong.
    """
    return parse_private(_read(path, private=True), path, passphrase)


def parse_private(data: bytes, path: Path, passphrase: Passphrase | None = None) -> PrivateKey:
    """Return the key that these bytes of an OpenSSH private key file are.

    path: names them in errors and questions. Raises as `load_private` does.
    """
    algorithm, blob, encrypted = _inspect(data, path)
    _check_algorithm(algorithm, str(path))
    if encrypted and passphrase is None:
        raise UsageError(f"{path} is encrypted, and there is nobody to ask for the passphrase")
    secret = passphrase(path).encode("utf-8") if encrypted and passphrase else None
    try:
        key = serialization.load_ssh_private_key(data, secret)
    except UnsupportedAlgorithm as error:
        raise InputError(f"{path}: cannot be decrypted here: {error}") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        if encrypted:
            raise UsageError(f"{path}: wrong passphrase, or a damaged file: {error}") from error
        raise InputError(f"{path}: expected an OpenSSH private key: {error}") from error
    if not isinstance(key, _AnyPrivate):
        raise InputError(f"{path}: expected one of {', '.join(_ALGORITHMS)}")
    public = _public_of(key, str(path))
    if public.blob != blob:
        raise InputError(f"{path}: expected both halves of one key, found two: it is damaged")
    return PrivateKey(public, key)


def generate(path: Path, *, passphrase: str = "", comment: str = "vmpack") -> PrivateKey:
    """Make an Ed25519 key: `path` (mode 0600) and `path`.pub, both new files.

    passphrase: encrypts the private file unless empty. Raises UsageError when a file is there
    already, or cannot be written.
    """
    key = ed25519.Ed25519PrivateKey.generate()
    cipher: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase.encode("utf-8"))
        if passphrase
        else serialization.NoEncryption()
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, cipher
    )
    public = _public_of(key, str(path))
    public_path = path.with_name(path.name + ".pub")
    written: list[Path] = []
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for target, data, mode in (
            (path, private, 0o600),
            (public_path, f"{public.line} {comment}".rstrip().encode() + b"\n", 0o644),
        ):
            _write_new(target, data, mode, written)
    except OSError as error:
        for target in written:
            target.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {error.filename or path}: {error.strerror}",
            hint="choose another file; a key is never overwritten",
        ) from error
    return PrivateKey(PublicKey(public.algorithm, public.blob, comment), key)


def _write_new(path: Path, data: bytes, mode: int, written: list[Path]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    written.append(path)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _public_of(key: _AnyPrivate, what: str) -> PublicKey:
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return parse_public(line.decode("ascii"), what)


def _load_public(line: str) -> _AnyPublic:
    key = serialization.load_ssh_public_key(line.encode("utf-8"))
    if not isinstance(key, _AnyPublic):
        raise ValueError(f"expected one of {', '.join(_ALGORITHMS)}")
    return key


def _check_algorithm(algorithm: str, what: str) -> None:
    if algorithm in _ALGORITHMS:
        return
    reason = "an unknown kind of key"
    if algorithm.startswith("sk-"):
        reason = "a key in hardware, whose signatures have another format"
    elif "-cert-v" in algorithm:
        reason = "a certificate"
    elif algorithm == "ssh-dss":
        reason = "a DSA key, which is no longer safe"
    raise InputError(
        f"{what}: expected one of {', '.join(_ALGORITHMS)}, found {algorithm[:60]!r}: {reason}",
        hint="make a key with: vmpack key generate (or ssh-keygen -t ed25519)",
    )


def _check_size(key: _AnyPublic, what: str) -> None:
    if isinstance(key, rsa.RSAPublicKey) and not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise InputError(
            f"{what}: expected an RSA key of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, "
            f"found {key.key_size}",
            hint="make a key with: vmpack key generate (or ssh-keygen -t ed25519)",
        )


def _inspect(data: bytes, path: Path) -> tuple[str, bytes, bool]:
    """Return (algorithm, public key, encrypted) from the part that is never encrypted.

    PROTOCOL.key: magic, cipher name, KDF name, KDF options, number of keys, public key, …
    """
    text = data.strip()
    if not (text.startswith(_BEGIN) and text.endswith(_END)):
        raise InputError(
            f"{path}: expected a private key in OpenSSH format",
            hint=f"other formats can be converted with: ssh-keygen -p -f {path}",
        )
    try:
        body = binascii.a2b_base64(text[len(_BEGIN) : -len(_END)])
        if not body.startswith(_MAGIC):
            raise ValueError("no 'openssh-key-v1'")
        cipher, rest = _string(body[len(_MAGIC) :])
        _kdf, rest = _string(rest)
        _options, rest = _string(rest)
        public, _rest = _string(rest[4:])
        algorithm, _rest = _string(public)
        return algorithm.decode("ascii"), public, cipher != b"none"
    except ValueError as error:  # binascii.Error and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path}: expected a private key in OpenSSH format: {error}") from error


def _string(data: bytes) -> tuple[bytes, bytes]:
    """Return (string, rest): four bytes of length, big-endian, then the bytes."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 + length:
        raise ValueError(f"a field of {length} bytes, {max(0, len(data) - 4)} are left")
    return data[4 : 4 + length], data[4 + length :]


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer before it is refused
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise InputError(f"{path}: expected a key file, found something else")
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read key {path}: {error.strerror}") from error
    if private and mode & 0o077:
        raise UsageError(
            f"{path}: others may read this private key (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod 600 {path}",
        )
    if len(data) > MAX_KEY_FILE_BYTES:
        raise InputError(f"{path}: expected at most {MAX_KEY_FILE_BYTES} bytes")
    return data
