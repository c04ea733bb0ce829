"""What the first bytes of a file tell about secrets in it.

A look takes at most LOOK_BYTES and returns what it found, "" when there is no more to say than the
rule does, or None where there is nothing to hide. The bytes are a guest's, so they may be made to
do harm: a repetition in a pattern here is bounded, or begins at a line's start.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

LOOK_BYTES = 64 << 10

Look = Callable[[bytes], str | None]

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?)-----")
_PEM_HEADERS_BYTES = 100
_OPENSSH_MAGIC = b"openssh-key-v1\0"
_CIPHER_BYTES = 64
_PUTTY = b"PuTTY-User-Key-File-"
_DER_VERSION_0 = b"\x02\x01\x00"
_JAVA_MAGICS = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")
_JAVA_PRIVATE_ENTRY = (1).to_bytes(4, "big")

ENCRYPTED, NOT_ENCRYPTED = "encrypted", "not encrypted"


def private_key(data: bytes) -> str | None:
    """Look for a private key in PEM, of OpenSSH, PGP or PuTTY, in DER or in a Java key store.

    Sources: RFC 7468, 1421 (Proc-Type); PROTOCOL.key of OpenSSH; PKCS #1 and #8 (RFC 8017, 5958).
    """
    pem = _PEM.search(data)
    if pem:
        return _pem_state(pem[1], data[pem.end() :])
    if data.startswith(_PUTTY):
        return NOT_ENCRYPTED if b"\nEncryption: none" in data[:300] else ENCRYPTED
    if data[:1] == b"\x30" and _DER_VERSION_0 in data[:8]:
        return NOT_ENCRYPTED
    if data[:4] in _JAVA_MAGICS and data[12:16] == _JAVA_PRIVATE_ENTRY:  # behind version and count
        return ENCRYPTED
    return None


def _pem_state(label: bytes, rest: bytes) -> str:
    if label.startswith(b"OPENSSH"):
        return _openssh_state(rest)
    if label.startswith(b"PGP"):
        return ""  # whether it is encrypted, its packets say
    headers = rest[:_PEM_HEADERS_BYTES]
    return ENCRYPTED if label.startswith(b"ENCRYPTED") or b"ENCRYPTED" in headers else NOT_ENCRYPTED


def _openssh_state(rest: bytes) -> str:
    """Return what the cipher says that is named first in the key."""
    text = b"".join(rest[: 2 * _CIPHER_BYTES].split())[:_CIPHER_BYTES]
    try:
        start = base64.b64decode(text)
    except binascii.Error:
        return ""
    if not start.startswith(_OPENSSH_MAGIC):
        return ""
    cipher = start[len(_OPENSSH_MAGIC) + 4 :]  # behind its length
    return NOT_ENCRYPTED if cipher.startswith(b"none") else ENCRYPTED


def pkcs12(data: bytes) -> str | None:
    """Look for a PKCS #12 file (RFC 7292): a SEQUENCE that begins with version 3."""
    return ENCRYPTED if data[:1] == b"\x30" and b"\x02\x01\x03" in data[:8] else None


def machine_id(data: bytes) -> str | None:
    """Look for an ID; empty and "uninitialized" are none (machine-id(5))."""
    return "" if re.fullmatch(rb"[0-9a-fA-F-]{32,36}", data.strip()) else None


# crypt(5): "$id$…", BSDi's "_…", the traditional 13 characters; behind "!" of a locked account, too
_HASH = re.compile(
    rb"^[^:\n]{1,256}:!{0,2}(?:\$[^:\n]{8}|_[./0-9A-Za-z]{19}:|[./0-9A-Za-z]{13}(?::|$))", re.M
)


def password_hashes(data: bytes) -> str | None:
    """Look for accounts with a password in shadow(5), gshadow(5) and what htpasswd writes."""
    accounts = len(_HASH.findall(data))
    return f"{accounts} account{'s' * (accounts > 1)}" if accounts else None


_TOKENS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("GitHub", rb"\bgh[opsur]_[0-9A-Za-z]{36}|\bgithub_pat_[0-9A-Za-z_]{22}"),
        ("GitLab", rb"\bgl(?:pat|dt|rt)-[0-9A-Za-z_-]{20}"),
        ("AWS", rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("Google", rb"\bAIza[0-9A-Za-z_-]{35}|\bya29\.[0-9A-Za-z_-]{20}"),
        ("Slack", rb"\bxox[abeprs]-[0-9A-Za-z-]{10}"),
        ("npm", rb"\bnpm_[0-9A-Za-z]{36}"),
        ("PyPI", rb"\bpypi-AgE[0-9A-Za-z_-]{20}"),
        ("Docker Hub", rb"\bdckr_(?:pat|oat)_[0-9A-Za-z_-]{20}"),
        ("Hugging Face", rb"\bhf_[0-9A-Za-z]{30}"),
        ("Stripe", rb"\b[rs]k_live_[0-9A-Za-z]{20}"),
        ("OpenAI or Anthropic", rb"\bsk-(?:proj-|ant-|svcacct-)?[0-9A-Za-z_-]{32}"),
        ("DigitalOcean", rb"\bdop_v1_[0-9a-f]{64}"),
        ("HashiCorp Vault", rb"\bhvs\.[0-9A-Za-z_-]{24}"),
        ("age", rb"\bAGE-SECRET-KEY-1[0-9A-Z]{20}"),
    )
)
_URL_PASSWORD = re.compile(rb"://[^/\s:@\"']{1,128}:[^/\s@\"']{1,128}@")


def tokens(data: bytes) -> str | None:
    """Look for what well-known services hand out, and for URLs with a password."""
    found = [name for name, pattern in _TOKENS if pattern.search(data)]
    if _URL_PASSWORD.search(data):
        found.append("password in a URL")
    return ", ".join(found) if found else None


_ASSIGNED = re.compile(
    rb"(?:SECRET|TOKEN|PASSW(?:OR)?D|API_?KEY|PRIVATE_KEY)[A-Z0-9_]{0,32}[ \t]{0,8}[=:]"
    rb"[ \t]{0,8}[\"']?[^\s\"'#$<{]{4}",
    re.IGNORECASE,
)


def assigned_secrets(data: bytes) -> str | None:
    """Look for tokens, and for settings whose name says that their value is secret."""
    return tokens(data) or ("" if _ASSIGNED.search(data) else None)


_ANSWERS = re.compile(
    rb"<(?:Administrator)?Password>\s{0,256}(?:<Value>\s{0,256})?[^<*\s]"
    rb"|(?:Admin|Domain|Default|User)\w{0,16}Password[ \t]{0,8}=[ \t]{0,8}\"?[^\s\"*]"
    rb"|Product(?:Key|ID)(?:>\s{0,256}(?:<Key>)?|[ \t]{0,8}=)[\s\"]{0,256}[0-9A-Z]{5}-[0-9A-Z]{5}-",
    re.IGNORECASE,
)


def answer_file(data: bytes) -> str | None:
    """Look for passwords and product keys in what the setup of Windows was told.

    It puts "*SENSITIVE*DATA*DELETED*" in place of those it has used. In XP's files an asterisk is
    an empty password. Sources: Microsoft, "Unattended Windows Setup Reference"; ref.chm of XP.
    """
    return "" if _ANSWERS.search(data.replace(b"\0", b"")) else None  # of UTF-16, which is usual


def holds(pattern: bytes) -> Look:
    """Return a look for a pattern, in lines."""
    compiled = re.compile(pattern, re.M)
    return lambda data: "" if compiled.search(data) else None
