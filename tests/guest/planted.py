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

ANSWERS = (
    b'<?xml version="1.0"?>\r\n<AutoLogon><Password>\r\n  <Value>%s</Value><PlainText>true'
    b"</PlainText></Password></AutoLogon>"
)
GROUPS = b'<Properties action="U" cpassword="j1Uyj3Vx8TY9LtLZil2uAu" userName="admin"/>'
DATABASE = b"\1\xef\xcd\xab\x89"  # ESE, behind a checksum

SECRETS: dict[str, dict[str, bytes]] = {
    "ssh-host-key": {"/etc/ssh/ssh_host_ed25519_key": OPENSSH_KEY},
    "keyring": {
        "/home/eve/.gnupg/private-keys-v1.d/0A.key": b"(private-key",
        "/home/eve/.local/share/keyrings/login.keyring": b"GnomeKeyring\n\r\0\n",
        "/home/eve/.password-store/bank/card.gpg": b"\x85",
        "/srv/all.kdbx": b"\x03\xd9\xa2\x9a",
        "/Users/Eve/AppData/Roaming/Microsoft/Protect/S-1-5-21-1/0a1b-2c3d": b"\2\0\0\0",
        "/Users/Eve/AppData/Local/Microsoft/Credentials/0A1B2C": b"\1\0\0\0",
        "/Users/Eve/AppData/Local/Microsoft/Vault/4BF4C442/Policy.vpol": b"\1",
        "/Documents and Settings/Eve/Application Data/Microsoft/Protect/S-1-5/key": b"\2",
        "/Windows/System32/Microsoft/Protect/S-1-5-18/User/0a1b": b"\2\0",
        "/ProgramData/Microsoft/Vault/AC658CB4/Policy.vpol": b"\1",
        "/Windows/ServiceProfiles/LocalService/AppData/Local/Microsoft/NGC/{1}/1.dat": b"P",
    },
    "vpn": {
        "/etc/wireguard/wg0.conf": b"[Interface]\nPrivateKey = abc=\n",
        "/etc/openvpn/client/demo.ovpn": b"<key>\n" + PEM_KEY,
        "/etc/openvpn/ta.key": b"-----BEGIN OpenVPN Static key V1-----\n00\n",
        "/home/eve/work.ovpn": b"remote vpn.example\n<key>\n" + PEM_KEY,
        "/etc/ppp/chap-secrets": b"# client server secret\ndemo * secret *\n",
        "/etc/ipsec.secrets": b'# secrets\n: PSK "correct horse"\n',
        "/Program Files/OpenVPN/config/office/client.conf": b"<key>\n" + PEM_KEY,
        "/Program Files/WireGuard/Data/Configurations/wg.conf.dpapi": b"\1\0\0\0\xd0",
        "/Users/Eve/AppData/Roaming/Microsoft/Network/Connections/Pbk/rasphone.pbk": b"[Work]\r\n",
    },
    "disk-key": {
        "/etc/cryptsetup-keys.d/data.key": b"\x07" * 512,
        "/crypto_keyfile.bin": b"\x08",
        "/Users/Eve/Documents/0A1B2C3D.BEK": b"\x9c\0",
    },
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
        "/ProgramData/Microsoft/Crypto/RSA/MachineKeys/76944f_3450d102": b"\2\0\0\0",
        "/Users/Eve/AppData/Roaming/Microsoft/Crypto/Keys/de7cf8a7901d2ad1": b"\2\0",
        "/Users/Eve/.ssh/id_ecdsa_work": OPENSSH_KEY,
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
        "/Windows/System32/config/SECURITY": b"regf",
        "/Windows/System32/config/SAM.LOG1": b"regf",
        "/Windows/System32/config/RegBack/SAM": b"regf",
        "/WINDOWS/repair/security": b"regf",
        "/Windows/NTDS/ntds.dit": DATABASE,
        "/Windows/Panther/unattend.xml": ANSWERS % b"correct horse",
        "/Windows/System32/Sysprep/Panther/autounattend.xml": (
            "\ufeff" + (ANSWERS % b"x").decode()
        ).encode("utf-16-le"),
        "/sysprep/sysprep.inf": b"[GuiUnattended]\r\nAdminPassword=horse\r\n",
        "/winnt.sif": b'[UserData]\r\nProductID="AAAAA-BBBBB-CCCCC-DDDDD-EEEEE"\r\n',
        "/Windows/SYSVOL/x/Policies/{1}/Machine/Preferences/Groups/Groups.xml": GROUPS,
    },
    "cloud": {
        "/root/.aws/credentials": b"[default]\n",
        "/home/eve/.kube/config": b"apiVersion: v1\n",
        "/home/eve/.config/gcloud/legacy_credentials/eve/adc.json": b"{}",
        "/var/lib/cloud/instances/i-1/user-data.txt": b"#cloud-config\npassword: demo\n",
        "/Users/Eve/.aws/credentials": b"[default]\r\n",
        "/Users/Eve/AppData/Roaming/gcloud/access_tokens.db": b"SQLite format 3\0",
        "/Users/Eve/AppData/Local/.IdentityService/msal.cache": b"\1",
    },
    "token": {
        "/root/.netrc": b"machine a login b password c\n",
        "/home/eve/.git-credentials": b"https://eve:x@git.example\n",
        "/home/eve/.docker/config.json": b'{"auths": {"r": {"auth": "ZQ=="}}}',
        "/home/eve/.npmrc": b"//registry.example/:_authToken=x\n",
        "/home/eve/.bashrc": b"export GITHUB=" + GITHUB + b"\n",
        "/home/eve/.config/tool/settings.toml": b"key = '" + AWS + b"'\n",
        "/srv/app/.env": b"DB_HOST=localhost\nDB_PASSWORD=correct-horse\n",
        "/srv/app/.git/config": b"url = https://eve:secret@git.example/app\n",
        "/etc/environment": b"TOKEN=" + GITHUB + b"\n",
        "/Users/Eve/AppData/Roaming/GitHub CLI/hosts.yml": b"github.com:\n",
        "/Users/Eve/AppData/Roaming/FileZilla/sitemanager.xml": b'<Pass encoding="base64">cHc=<',
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
        "/ProgramData/Microsoft/Wlansvc/Profiles/Interfaces/{1}/{2}.xml": b"<WLANProfile>",
    },
    "browser": {
        "/home/eve/.mozilla/firefox/x.default/logins.json": b"{}",
        "/home/eve/.mozilla/firefox/x.default/cookies.sqlite": b"SQLite format 3\0",
        "/home/eve/.config/google-chrome/Default/Login Data": b"SQLite format 3\0",
        "/home/eve/.config/google-chrome/Profile 1/Network/Cookies": b"SQLite format 3\0",
        "/Users/Eve/AppData/Local/Google/Chrome/User Data/Local State": b"{}",
        "/Users/Eve/AppData/Local/Microsoft/Edge/User Data/Default/Login Data": b"SQLite format",
        "/Users/Eve/AppData/Local/Microsoft/Windows/WebCache/WebCacheV01.dat": DATABASE,
        "/Users/Eve/AppData/Local/Microsoft/Windows/INetCookies/Low/0A1B.cookie": b"a",
        "/Documents and Settings/Eve/Cookies/index.dat": b"Client UrlCache",
        "/Documents and Settings/Eve/Local Settings/History/History.IE5/index.dat": b"Client",
    },
    "mail": {
        "/var/mail/eve": b"From a@b\n",
        "/home/eve/Maildir/cur/1.M1:2,S": b"From: a@b\n",
        "/var/spool/postfix/deferred/A/A1": b"x",
        "/home/eve/.thunderbird/x.default/Mail/Local Folders/Inbox": b"From -\n",
        "/Users/Eve/Documents/Outlook Files/eve@example.org.pst": b"!BDN",
        "/Users/Eve/AppData/Local/Microsoft/Outlook/eve.ost": b"!BDN",
        "/Users/Eve/AppData/Local/Comms/UnistoreDB/store.vol": b"\0\1",
    },
    "history": {
        "/root/.bash_history": b"ls\n",
        "/home/eve/.local/share/fish/fish_history": b"- cmd: ls\n",
        "/var/lib/postgresql/.psql_history": b"select 1;\n",
        "/home/eve/.viminfo": b"# viminfo\n",
        "/Users/Eve/AppData/Roaming/Microsoft/Windows/PowerShell/PSReadLine/"
        "ConsoleHost_history.txt": b"dir\r\n",
    },
    "known-hosts": {"/home/eve/.ssh/known_hosts": b"git.example " + SSH_PUBLIC_KEY},
    "login-key": {"/root/.ssh/authorized_keys": SSH_PUBLIC_KEY},
    "remote-desktop": {
        "/Users/Eve/Documents/Default.rdp": b"full address:s:192.0.2.1\r\n",
        "/Users/Eve/AppData/Local/Microsoft/Terminal Server Client/Cache/Cache0000.bin": b"RDP8",
    },
    "trace": {
        "/Users/Eve/AppData/Roaming/Microsoft/Windows/Recent/Salaries.lnk": b"L\0\0\0",
        "/Documents and Settings/Eve/Recent/Salaries.lnk": b"L\0\0\0",
        "/Users/Eve/AppData/Local/Microsoft/Windows/Explorer/thumbcache_256.db": b"CMMM",
        "/ProgramData/Microsoft/Search/Data/Applications/Windows/Windows.edb": DATABASE,
        "/Users/Eve/NTUSER.DAT": b"regf",
        "/Users/Eve/AppData/Local/Microsoft/Windows/UsrClass.dat": b"regf",
    },
    "trash": {
        "/$Recycle.Bin/S-1-5-21-1-1000/$IA1B2C3.docx": b"\2\0",
        "/$Recycle.Bin/S-1-5-21-1-1000/$RA1B2C3/salaries.xlsx": b"PK",
        "/RECYCLER/S-1-5-21-1-1000/Dc1.doc": b"\xd0\xcf",
        "/home/eve/.local/share/Trash/files/letter.odt": b"PK",
    },
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
        "/Windows/System32/winevt/Logs/Security.evtx": b"ElfFile\0",
        "/WINDOWS/system32/config/SecEvent.Evt": b"LfLe",
    },
    "core-dump": {
        "/var/crash/core.1": b"\x7fELF",
        "/Windows/MEMORY.DMP": b"PAGEDU64",
        "/Users/Eve/AppData/Local/CrashDumps/app.exe.1.dmp": b"MDMP",
        "/ProgramData/Microsoft/Windows/WER/ReportQueue/App_1/memory.hdmp": b"MDMP",
    },
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
    "/etc/apt/sources.list": b"deb http://mirror.example/debian bookworm main\n",
    "/etc/NetworkManager/system-connections/wired.nmconnection": b"[ethernet]\n",
    "/etc/netplan/01-all.yaml": b"network:\n  ethernets:\n    e:\n      dhcp4: true\n",
    "/etc/network/interfaces": b"auto lo\niface lo inet loopback\n",
    "/etc/ppp/pap-secrets": b"# nothing\n",
    "/etc/ipsec.secrets": b"# comment\ninclude /var/lib/strongswan/ipsec.secrets.inc\n",
    "/boot/grub/grub.cfg": b"set timeout=0\n",
    "/var/cache/debconf/passwords.dat": b"Name: a/pw\nTemplate: a/pw\nValue:\nOwners: a\n",
    "/home/eve/.npmrc": b"registry=https://registry.example/\n",
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
    "/Windows/Panther/unattend.xml": b"<Password>*SENSITIVE*DATA*DELETED*</Password>",
    "/Windows/System32/Sysprep/unattend.xml": b"<UserLocale>de-DE</UserLocale>",
    "/sysprep.inf": b"[GuiUnattended]\r\nAdminPassword=*\r\nOEMSkipRegional=1\r\n",
    "/Windows/SYSVOL/x/Groups.xml": b'<Properties cpassword="" action="U"/>',
    "/Windows/System32/config/SOFTWARE": b"regf",
    "/Windows/System32/samsrv.dll": b"MZ",
    "/$Recycle.Bin/S-1-5-21-1-1000/desktop.ini": b"[.ShellClassInfo]\r\n",
    "/Users/Eve/AppData/Local/Temp/x.tmp": b"x",
    "/Program Files/OpenVPN/config/README.txt": b"put your files here\r\n",
}
