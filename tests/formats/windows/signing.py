"""Sign programs and catalogs with osslsigncode and a certificate made for the test."""

from __future__ import annotations

import datetime
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANIZATION, COMMON_NAME = "Example Corporation", "Example Windows"


@dataclass(frozen=True, slots=True)
class Author:
    """Files in PEM: the chain (the signer's certificate first), its key, the root alone."""

    chain: Path
    key: Path
    root: Path

    def sign(self, original: Path, signed: Path, algorithm: str = "sha256") -> Path:
        options: list[str | Path] = ["-certs", self.chain, "-key", self.key, "-h", algorithm]
        _run("sign", *options, "-in", original, "-out", signed)
        return signed

    def check(self, program: Path, *options: str | Path) -> str:
        return _run("verify", "-CAfile", self.root, *options, "-in", program)


def make_author(folder: Path) -> Author:
    """A root and a certificate for code that it has signed; both are enclosed in signatures."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = _name("Example Roots", "Example Root")
    root = _certificate(root_name, root_name, root_key.public_key(), root_key, is_root=True)
    leaf_name = _name(ORGANIZATION, COMMON_NAME)
    leaf = _certificate(leaf_name, root_name, key.public_key(), root_key, is_root=False)
    pem = serialization.Encoding.PEM
    author = Author(folder / "chain.pem", folder / "key.pem", folder / "root.pem")
    # The root stands first in what is enclosed: a reader that takes the first one is wrong.
    author.chain.write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    author.root.write_bytes(root.public_bytes(pem))
    author.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return author


def _name(organization: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_root: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _run(*words: str | Path) -> str:
    done = subprocess.run(["osslsigncode", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
