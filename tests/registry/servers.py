"""What a registry on loopback needs for its tests: users, a token server, certificates."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fixtures.registry import Certificate

USER, PASSWORD = "ada", "correct horse"
SERVICE, ISSUER = "a registry", "a token server"


def config_json(
    folder: Path, host: str, user: str = USER, password: str = PASSWORD, **more: Any
) -> Path:
    """A folder for DOCKER_CONFIG that knows one registry, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    content = {"auths": {host: {"auth": auth}}, **more}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def authority(work: Path) -> Certificate:
    """A self-made certificate authority."""
    return _issue(work, "authority", None)


def certificate(work: Path, signer: Certificate, *names: str) -> Certificate:
    """A server's certificate for these host names, and 127.0.0.1."""
    return _issue(work, "server", signer, names)


def _issue(
    work: Path, kind: str, signer: Certificate | None, names: tuple[str, ...] = ()
) -> Certificate:
    work.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"test {kind}")])
    issuer, signing = subject, key
    if signer is not None:
        issuer = x509.load_pem_x509_certificate(signer.certificate.read_bytes()).subject
        loaded = serialization.load_pem_private_key(signer.key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signing = loaded
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    )
    if signer is not None:
        hosts: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        hosts.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    made = Certificate(work / f"{kind}.crt", work / f"{kind}.key")
    made.certificate.write_bytes(
        builder.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made


class TokenServer(ThreadingHTTPServer):
    """Gives tokens that a docker-registry believes (distribution, docs/spec/auth/token.md).

    Anybody may pull; who brings user name and password, or the refresh token, may push, too.
    """

    daemon_threads = True
    refresh_token = "a refresh token"

    def __init__(self, work: Path, tls: Certificate | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _TokenHandler)
        self.signer = authority(work)
        self.lock = threading.Lock()
        self.asked: list[Asked] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/token"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = f"https://localhost:{self.server_address[1]}/token"

    @property
    def auth(self) -> dict[str, Any]:
        """The `auth` section of a registry that believes this server."""
        return {
            "token": {
                "realm": self.url,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.signer.certificate),
            }
        }

    def token(self, scopes: list[str], *, known: bool) -> str:
        """A signed token for what of the scopes is allowed."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.rsplit(":", 2)
            allowed = [one for one in actions.split(",") if known or one == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": USER if known else "",
            "aud": SERVICE,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        pem = x509.load_pem_x509_certificate(self.signer.certificate.read_bytes())
        der = pem.public_bytes(serialization.Encoding.DER)
        head = {"alg": "ES256", "typ": "JWT", "x5c": [base64.b64encode(der).decode()]}
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        key = serialization.load_pem_private_key(self.signer.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a token."""

    method: str
    scopes: list[str]
    known: bool
    fields: dict[str, list[str]] = field(repr=False)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _TokenHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TokenServer

    def do_GET(self) -> None:
        fields = parse_qs(urlsplit(self.path).query)
        header = self.headers.get("Authorization", "")
        expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if header and header != f"Basic {expected}":
            return self._give(401, {"details": "who is that?"})
        return self._grant("GET", fields, fields.get("scope", []), known=bool(header))

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        fields = parse_qs(text)
        if fields.get("refresh_token") != [self.server.refresh_token]:
            return self._give(401, {"details": "what is that?"})
        return self._grant("POST", fields, fields["scope"][0].split(" "), known=True)

    def _grant(
        self, method: str, fields: dict[str, list[str]], scopes: list[str], *, known: bool
    ) -> None:
        with self.server.lock:
            self.server.asked.append(Asked(method, scopes, known, fields))
        name = "access_token" if method == "POST" else "token"
        self._give(200, {name: self.server.token(scopes, known=known), "expires_in": 300})

    def _give(self, status: int, answer: Mapping[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):  # who does not trust the certificate hangs up
            super().handle()


@contextmanager
def token_server(work: Path, tls: Certificate | None = None) -> Iterator[TokenServer]:
    """A token server that runs; with TLS its name is localhost."""
    with TokenServer(work, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
