"""Secrets to plant in guests, in the forms that real programs write, and what only looks like one.

Keys are made anew for each run; tokens are put together here, so that no scanner of
repositories takes this file for a leak.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

_ED25519 = Ed25519PrivateKey.generate()
_RSA = generate_private_key(65537, 2048)
_PASSPHRASE = BestAvailableEncryption(b"passphrase")

OPENSSH_KEY = _ED25519.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
LOCKED_OPENSSH_KEY = _ED25519.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, _PASSPHRASE)
PEM_KEY = _RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
LOCKED_PEM_KEY = _RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _PASSPHRASE)
RSA_KEY = _RSA.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
LOCKED_RSA_KEY = _RSA.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, _PASSPHRASE)
DER_KEY = _RSA.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
PKCS12_KEY = serialize_key_and_certificates(b"demo", _RSA, None, None, _PASSPHRASE)
PUBLIC_KEY = _RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER_PUBLIC_KEY = _RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
SSH_PUBLIC_KEY = _ED25519.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PGP_KEY = b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ==\n"
PUTTY_KEY = b"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: %s\nComment: demo\n"
JAVA_STORE = b"\xfe\xed\xfe\xed\0\0\0\2\0\0\0\1\0\0\0%c"  # version 2, one entry, its kind

GITHUB = b"ghp_" + b"aB3" * 12
AWS = b"AKIA" + b"Z7" * 8
HASH = b"$y$j9T$" + b"x" * 22 + b"$" + b"y" * 43
ID = b"3450d102932948659ce313985c406958\n"
CONNECTION = b"[wifi]\nssid=home\n\n[wifi-security]\npsk=correct horse\n"

SECRETS: dict[str, dict[str, bytes]] = {
    "ssh-host-key": {"/etc/ssh/ssh_host_ed25519_key": OPENSSH_KEY},
    "keyring": {
        "/home/eve/.gnupg/private-keys-v1.d/0A.key": b"(private-key",
        "/home/eve/.local/share/keyrings/login.keyring": b"GnomeKeyring\n\r\0\n",
        "/home/eve/.password-store/bank/card.gpg": b"\x85",
        "/srv/all.kdbx": b"\x03\xd9\xa2\x9a",
    },
    "vpn": {
        "/etc/wireguard/wg0.conf": b"[Interface]\nPrivateKey = abc=\n",
        "/etc/openvpn/client/demo.ovpn": b"<key>\n" + PEM_KEY,
        "/etc/openvpn/ta.key": b"-----BEGIN OpenVPN Static key V1-----\n00\n",
        "/home/eve/work.ovpn": b"remote vpn.example\n<key>\n" + PEM_KEY,
        "/etc/ppp/chap-secrets": b"# client server secret\ndemo * secret *\n",
        "/etc/ipsec.secrets": b'# secrets\n: PSK "correct horse"\n',
    },
    "disk-key": {"/etc/cryptsetup-keys.d/data.key": b"\x07" * 512, "/crypto_keyfile.bin": b"\x08"},
    "private-key": {
        "/home/eve/.ssh/id_rsa": RSA_KEY,
        "/home/eve/.ssh/work": LOCKED_OPENSSH_KEY,
        "/home/eve/.ssh/keys/customer/1": OPENSSH_KEY,
        "/srv/push.p8": PEM_KEY,
        "/srv/signing.der": DER_KEY,
        "/etc/letsencrypt/archive/demo/privkey1.pem": PEM_KEY,
        "/etc/haproxy/all.pem": CERTIFICATE * 100 + PEM_KEY,
        "/etc/ssl/private/ssl-cert-snakeoil.key": LOCKED_PEM_KEY,
        "/srv/old.pem": LOCKED_RSA_KEY,
        "/srv/mok.priv": DER_KEY,
        "/srv/backup.p12": PKCS12_KEY,
        "/srv/signing.asc": PGP_KEY,
        "/srv/eve.ppk": PUTTY_KEY % b"none",
        "/srv/eve-2.ppk": PUTTY_KEY % b"aes256-cbc",
        "/srv/app.jks": JAVA_STORE % 1,
    },
    "password": {
        "/etc/shadow": b"daemon:*:1::::::\nroot:" + HASH + b":20779:0:99999:7:::\n",
        "/etc/shadow-": b"eve:!" + HASH + b":1::::::\nold:aB3aB3aB3aB3a:1::::::\n",
        "/etc/gshadow": b"admin:" + HASH + b"::eve\n",
        "/var/backups/gshadow.bak": b"admin:" + HASH + b"::eve\n",
        "/srv/www/.htpasswd": b"eve:$apr1$aB3aB3aB$" + b"x" * 22,
        "/boot/grub/user.cfg": b"GRUB2_PASSWORD=grub.pbkdf2.sha512.10000.AB.CD\n",
        "/var/cache/debconf/passwords.dat": b"Name: a/pw\nTemplate: a/pw\nValue: secret\n",
        "/root/anaconda-ks.cfg": b"lang en\nrootpw --iscrypted " + HASH + b"\n",
        "/var/lib/postgresql/15/main/global/1260": b"\0" * 99 + b"SCRAM-SHA-256$4096:",
        "/Windows/System32/config/SAM": b"regf",
    },
    "cloud": {
        "/root/.aws/credentials": b"[default]\n",
        "/home/eve/.kube/config": b"apiVersion: v1\n",
        "/home/eve/.config/gcloud/legacy_credentials/eve/adc.json": b"{}",
        "/var/lib/cloud/instances/i-1/user-data.txt": b"#cloud-config\npassword: demo\n",
    },
    "token": {
        "/root/.netrc": b"machine a login b password c\n",
        "/home/eve/.git-credentials": b"https://eve:x@git.example\n",
        "/home/eve/.docker/config.json": b'{"auths": {"r": {"auth": "ZQ=="}}}',
        "/home/eve/.npmrc": b"//registry.npmjs.org/:_authToken=x\n",
        "/home/eve/.bashrc": b"export GITHUB=" + GITHUB + b"\n",
        "/home/eve/.config/tool/settings.toml": b"key = '" + AWS + b"'\n",
        "/srv/app/.env": b"DB_HOST=localhost\nDB_PASSWORD=correct-horse\n",
        "/srv/app/.git/config": b"url = https://eve:secret@git.example/app\n",
        "/etc/environment": b"TOKEN=" + GITHUB + b"\n",
    },
    "service-secret": {
        "/etc/apt/auth.conf.d/private.conf": b"machine a login b password c\n",
        "/etc/apt/sources.list": b"deb https://eve:pw@apt.example/ stable main\n",
        "/etc/bind/rndc.key": b"key",
        "/etc/postfix/sasl_passwd": b"smtp.example eve:pw\n",
        "/etc/mysql/debian.cnf": b"[client]\nuser = root\npassword = secret\n",
        "/etc/fstab": b"//nas/x /x cifs username=eve,password=pw 0 0\n",
        "/var/lib/systemd/credential.secret": b"\x09" * 4096,
        "/var/lib/NetworkManager/secret_key": b"nm-v2:" + b"\x0a" * 32,
    },
    "kerberos": {"/etc/krb5.keytab": b"\x05\x02", "/tmp/krb5cc_1000": b"\x05\x04"},
    "wifi": {
        "/etc/NetworkManager/system-connections/home.nmconnection": CONNECTION,
        "/etc/netplan/50-wifi.yaml": b"network:\n  wifis:\n    w:\n      access-points:\n",
        "/etc/wpa_supplicant/wpa_supplicant.conf": b'network={\n  ssid="a"\n}\n',
        "/etc/network/interfaces": b"iface wlan0 inet dhcp\n    wpa-psk secret\n",
        "/var/lib/iwd/home.psk": b"[Security]\n",
        "/var/lib/bluetooth/AA:BB/CC:DD/info": b"[General]\nName=a\n\n[LinkKey]\nKey=00\n",
    },
    "browser": {
        "/home/eve/.mozilla/firefox/x.default/logins.json": b"{}",
        "/home/eve/.mozilla/firefox/x.default/cookies.sqlite": b"SQLite format 3\0",
        "/home/eve/.config/google-chrome/Default/Login Data": b"SQLite format 3\0",
        "/home/eve/.config/google-chrome/Profile 1/Network/Cookies": b"SQLite format 3\0",
    },
    "mail": {
        "/var/mail/eve": b"From a@b\n",
        "/home/eve/Maildir/cur/1.M1:2,S": b"From: a@b\n",
        "/var/spool/postfix/deferred/A/A1": b"x",
        "/home/eve/.thunderbird/x.default/Mail/Local Folders/Inbox": b"From -\n",
    },
    "history": {
        "/root/.bash_history": b"ls\n",
        "/home/eve/.local/share/fish/fish_history": b"- cmd: ls\n",
        "/var/lib/postgresql/.psql_history": b"select 1;\n",
        "/home/eve/.viminfo": b"# viminfo\n",
    },
    "known-hosts": {"/home/eve/.ssh/known_hosts": b"git.example " + SSH_PUBLIC_KEY},
    "login-key": {"/root/.ssh/authorized_keys": SSH_PUBLIC_KEY},
    "machine-id": {"/etc/machine-id": ID, "/var/lib/dbus/machine-id": ID},
    "random-seed": {
        "/var/lib/systemd/random-seed": b"\x0b" * 32,
        "/boot/efi/loader/random-seed": b"\x0c" * 32,
    },
    "lease": {"/var/lib/dhcp/dhclient.eth0.leases": b"lease {}\n"},
    "log": {
        "/var/log/wtmp": b"\x02\0",
        "/var/log/auth.log.1": b"sshd: Accepted publickey for eve from 192.0.2.7\n",
        "/var/log/journal/3450d1/system.journal": b"LPKSHHRH",
        "/var/log/nginx/access.log": b"192.0.2.7 - -\n",
    },
    "core-dump": {"/var/crash/core.1": b"\x7fELF"},
}
"""Rule -> {path: what lies there}."""

HARMLESS: dict[str, bytes] = {
    "/etc/ssl/certs/demo.pem": CERTIFICATE,
    "/srv/public.pem": PUBLIC_KEY,
    "/srv/public.key": DER_PUBLIC_KEY,
    "/srv/trust.jks": JAVA_STORE % 2,
    "/home/eve/.ssh/id_ed25519.pub": SSH_PUBLIC_KEY,
    "/home/eve/.ssh/config": b"Host *\n",
    "/root/.ssh/authorized_keys2": b"# nobody\n\n",
    "/usr/share/keyrings/demo.asc": b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n",
    "/etc/machine-id": b"uninitialized\n",
    "/etc/shadow": b"root:*:1::::::\ndaemon:!:1::::::\neve::1::::::\nx:!!:1::::::\ny:!*:1::::::\n",
    "/etc/gshadow": b"root:*::\nadmin:!::eve\n",
    "/etc/passwd": b"root:x:0:0:root:/root:/bin/bash\n",
    "/etc/fstab": b"UUID=1 / ext4 errors=remount-ro 0 1\n",
    "/etc/hostname": b"demo\n",
    "/etc/resolv.conf": b"nameserver 192.0.2.1\n",
    "/etc/apt/sources.list": b"deb http://deb.debian.org/debian bookworm main\n",
    "/etc/NetworkManager/system-connections/wired.nmconnection": b"[ethernet]\n",
    "/etc/netplan/01-all.yaml": b"network:\n  ethernets:\n    e:\n      dhcp4: true\n",
    "/etc/network/interfaces": b"auto lo\niface lo inet loopback\n",
    "/etc/ppp/pap-secrets": b"# nothing\n",
    "/etc/ipsec.secrets": b"# comment\ninclude /var/lib/strongswan/ipsec.secrets.inc\n",
    "/boot/grub/grub.cfg": b"set timeout=0\n",
    "/var/cache/debconf/passwords.dat": b"Name: a/pw\nTemplate: a/pw\nValue:\nOwners: a\n",
    "/home/eve/.npmrc": b"registry=https://registry.npmjs.org/\n",
    "/home/eve/.bashrc": b"export PATH=$PATH:/opt/bin\n",
    "/srv/app/.env": b"DB_PASSWORD=\nSECRET=${SECRET}\nAPI_KEY=<yours>\n",
    "/srv/app/.git/config": b"url = https://git.example/app\n",
    "/var/lib/cloud/instances/i-1/user-data.txt": b"#cloud-config\nhostname: demo\n",
    "/var/lib/postgresql/15/main/global/1260": b"\0" * 8192,
    "/var/log/dpkg.log": b"install a\n",
    "/var/log/apt/history.log": b"Start-Date\n",
    "/usr/lib/python3/random-seed.py": b"x = 1\n",
    "/usr/lib/go-1.19/pkg/linux_amd64/log/syslog.a": b"!<arch>\n",
    "/srv/ssh_host_keys": b"x",
    "/etc/shadow-utils": b"x",
}
