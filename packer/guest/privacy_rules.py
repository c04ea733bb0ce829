"""Where secrets and personal matters lie in guests: rules as data.

A pattern is the end of a path, by whole names: `.ssh/*` fits in any home, chroot or volume.
`*`, `?` and `[…]` stand within one name; `**` as the last name is everything below. A Windows
guest's paths have slashes. Upper and lower case are the same.

A look decides where the place alone says too little. Not listed, because they tell nothing about
anybody or are what a demo is for: host name, resolver, package managers' logs, accounts without
password, certificates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from packer.guest.privacy_looks import (
    Look,
    answer_file,
    assigned_secrets,
    holds,
    machine_id,
    password_hashes,
    pkcs12,
    private_key,
    tokens,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A pattern of paths, and what to look for in the file; None where the path says enough.

    small: only files of at most LOOK_BYTES are looked into.
    """

    pattern: str
    look: Look | None = None
    small: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What is private, and where it is found.

    clean: the group of `pack --clean` that takes it out, "" if there is none.
    """

    id: str
    what: str
    places: tuple[Place, ...]
    clean: str = ""


def _at(*patterns: str, look: Look | None = None, small: bool = False) -> tuple[Place, ...]:
    return tuple(Place(pattern, look, small) for pattern in patterns)


def _rule(id: str, what: str, *places: tuple[Place, ...], clean: str = "") -> Rule:
    return Rule(id, what, tuple(chain(*places)), clean)


UNREAD_VOLUME = Rule("unread-volume", "volumes or files that could not be looked into", ())
FREE_SPACE = Rule("free-space", "free blocks, with what was deleted", ())
"""These two are about volumes; see packer.pack.published."""

_LOCAL = ("AppData/Local", "Local Settings/Application Data")
_OF_USERS = ("AppData/Roaming", "Application Data", *_LOCAL)
"""Where programs of Windows keep what is a user's; the names with blanks are those of XP."""
_A_LINE = holds(rb"^[^#\s]")
_OPENVPN_KEY = holds(rb"PRIVATE KEY-----|OpenVPN Static key")
_PASS = holds(rb"<Pass\b|Password=\S")
_PASSWORD_LINE = holds(
    rb"^[ \t]{0,64}[\"']?[\w-]{0,32}(?:password|passwd|secret)\b[ \t\"']{0,8}[=:]"
)
_WIFI = holds(rb"^\[wifi\]|^[ \t]{0,64}(?:psk|password|wep[-_]key\d?|wpa-\w{1,16}|access-points)\b")
_USER_DATA = holds(
    rb"passw|ssh_authorized_keys|ssh_keys|write_files|PRIVATE KEY|\$[0-9a-z]{1,2}\$|token|secret"
)

RULES = (
    _rule(
        "ssh-host-key",
        "this machine's SSH host keys",
        _at("ssh/ssh_host_*_key", "dropbear/*_host_key", "initramfs/*_host_key"),
        _at("dropbear-initramfs/*_host_key"),
        clean="identity",
    ),
    _rule(
        "keyring",
        "password stores and key rings",
        _at(".gnupg/private-keys-v1.d/*.key", ".gnupg/secring.gpg", ".password-store/**"),
        _at("share/keyrings/*.keyring", "share/kwalletd/*.kwl", "*.kdbx", "sops/age/keys.txt"),
        # DPAPI: its master keys, and what they protect (learn.microsoft.com, "Windows Data
        # Protection"; dpapilab and mimikatz name the folders)
        _at(*(f"{folder}/Microsoft/Protect/**" for folder in (*_OF_USERS, "System32"))),
        _at(*(f"{folder}/Microsoft/Credentials/**" for folder in _OF_USERS)),
        _at(*(f"{folder}/Microsoft/Vault/**" for folder in (*_OF_USERS, "ProgramData"))),
        _at("LocalService/AppData/Local/Microsoft/NGC/**"),
    ),
    _rule(
        "vpn",
        "keys and secrets of VPNs",
        _at("etc/wireguard/*.conf", look=holds(rb"^[ \t]{0,64}P(?:rivate|reshared)Key[ \t]{0,8}=")),
        _at("etc/wireguard/*.key", "zerotier-one/identity.secret", "tailscale/tailscaled.state"),
        _at("etc/openvpn/**", "OpenVPN/config/**", "*.ovpn", look=_OPENVPN_KEY),
        _at("etc/ppp/*-secrets", look=_A_LINE),
        _at(
            "etc/ipsec.secrets",
            "etc/ipsec.d/*.secrets",
            look=holds(rb"^[^#\n]{0,512}[\"']|^[^#\n]{0,512}0[sx]"),
        ),
        _at("etc/swanctl/swanctl.conf", "swanctl/conf.d/*", look=_PASSWORD_LINE),
        _at("WireGuard/Data/Configurations/*"),
        _at("Network/Connections/Pbk/*.pbk", look=holds(rb"^\[")),
    ),
    _rule(
        "disk-key",
        "keys of encrypted disks",
        _at("cryptsetup-keys.d/*", "etc/luks/*", "etc/luks-keys/*", "etc/keys/*"),
        _at("crypto_keyfile.bin", "*.keyfile", "*.bek"),
    ),
    _rule(
        "private-key",
        "private keys: TLS, SSH, signing",
        _at(".ssh/**", "etc/ssl/private/*", "tls/private/*", "*.pem", "*.key", look=private_key),
        _at("id_rsa", "id_ed25519", "id_ecdsa", "id_dsa", "*.ppk", "*.jks", look=private_key),
        _at("*.keystore", "*.priv", "*.asc", "*.der", "*.p8", "*.pk8", look=private_key),
        _at("*.p12", "*.pfx", look=pkcs12),
        _at("tor/*/hs_ed25519_secret_key", "etc/dnssec-keys/*.private"),
        # CryptoAPI and CNG (learn.microsoft.com, "Key Storage and Retrieval")
        _at("Microsoft/Crypto/**"),
    ),
    _rule(
        "password",
        "password hashes, passwords given to installers",
        _at("etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-", look=password_hashes),
        _at("etc/master.passwd", "backups/*shadow.bak", ".htpasswd", look=password_hashes),
        _at("security/opasswd", look=holds(rb"\$[0-9a-z]{1,8}\$|:[./0-9A-Za-z]{13}(?:,|$)")),
        _at("grub/user.cfg", "grub2/user.cfg", "grub/grub.cfg", look=holds(rb"grub\.pbkdf2\.")),
        _at("grub2/grub.cfg", "grub.d/*", look=holds(rb"grub\.pbkdf2\.")),
        _at("debconf/passwords.dat", "cdebconf/*.dat", look=holds(rb"^Value: {0,8}\S")),
        _at("anaconda-ks.cfg", "original-ks.cfg", look=holds(rb"^[ \t]{0,64}(?:rootpw|user)\b")),
        _at("installer/autoinstall-user-data", look=holds(rb"\bpassword:")),
        _at("autoinst.xml", look=holds(b"assword>")),
        _at("unattend.xml", "autounattend.xml", "sysprep.xml", look=answer_file),
        _at("sysprep.inf", "winnt.sif", "unattend.txt", look=answer_file),
        _at("Groups.xml", "ScheduledTasks.xml", "Services.xml", look=holds(rb"cpassword=\"[^\"]")),
        _at("samba/private/passdb.tdb", "samba/private/secrets.tdb"),
        # Hashes of accounts, cached logins of a domain, secrets of services; and their copies
        *(
            _at(f"{folder}/{hive}", f"{folder}/{hive}.*")
            for folder in ("System32/config", "config/RegBack", "Windows/repair")
            for hive in ("SAM", "SECURITY")
        ),
        _at("NTDS/ntds.dit"),
        _at("global/1260", look=holds(rb"SCRAM-SHA-256\$|md5[0-9a-f]{32}")),  # pg_authid
        _at("mysql/mysql.ibd", "mysql/mysql/user.MYD", "mysql/mysql/global_priv.MAD"),
    ),
    _rule(
        "cloud",
        "credentials of clouds and clusters",
        _at(".aws/credentials", ".aws/*/cache/*", ".azure/msal_token_cache*", ".oci/config"),
        _at(".azure/accessTokens.json", ".azure/service_principal_entries*"),
        _at("gcloud/credentials.db", "gcloud/access_tokens.db", "gcloud/legacy_credentials/**"),
        _at("application_default_credentials.json", "rclone/rclone.conf", ".boto", ".s3cfg"),
        _at("doctl/config.yaml", "hcloud/cli.toml", "k3s/server/token", "rancher/k3s/k3s.yaml"),
        _at(".kube/config", "etc/kubernetes/*.conf", "kubelet/pki/*.pem"),
        _at("instances/*/user-data.txt*", "instances/*/vendor-data*.txt*", look=_USER_DATA),
        _at("cloud/seed/**", "instance-data-sensitive.json", look=_USER_DATA),
        _at("ubuntu-advantage/private/**"),
        _at(".IdentityService/msal.cache", "Microsoft/TokenBroker/Cache/*"),
    ),
    _rule(
        "token",
        "access tokens and passwords of services, in settings of users",
        _at(".git-credentials", ".netrc", "_netrc", ".pgpass", ".vault-token", ".fetchmailrc"),
        _at(".docker/config.json", look=holds(rb"\"(?:auth|identitytoken|registrytoken)\"")),
        _at("containers/auth.json", ".dockercfg", look=holds(rb"\"auth\"")),
        _at(".npmrc", ".yarnrc.yml", look=holds(rb"_auth|_password|npmAuth")),
        _at(".pypirc", ".my.cnf", ".msmtprc", ".mylogin.cnf", look=holds(rb"passw|\bpass\b|\0")),
        _at("gh/hosts.yml", "config/hub", "glab-cli/config.yml", look=holds(rb"token")),
        _at(".cargo/credentials", ".cargo/credentials.toml", ".gem/credentials"),
        _at(".m2/settings.xml", look=holds(rb"<(?:password|passphrase)>")),
        _at(".gradle/gradle.properties", ".env", ".env.local", look=assigned_secrets, small=True),
        _at("composer/auth.json", ".composer/auth.json", "credentials.tfrc.json", ".terraformrc"),
        _at("huggingface/token", "huggingface/stored_tokens", ".kaggle/kaggle.json"),
        _at(".smbcredentials", ".claude/.credentials.json", "GitHub CLI/hosts.yml"),
        _at("FileZilla/sitemanager.xml", "FileZilla/recentservers.xml", "WinSCP.ini", look=_PASS),
        _at("root/.*", "home/*/.*", "Users/*/.*", look=tokens, small=True),
        _at(".config/*/*", ".git/config", "etc/environment", look=tokens, small=True),
        _at("profile.d/*", "cron.d/*", "crontabs/*", look=tokens, small=True),
    ),
    _rule(
        "service-secret",
        "passwords and keys of services, in settings of the system",
        _at("apt/auth.conf", "apt/auth.conf.d/*", look=holds(rb"\bpassword\b")),
        _at("apt/sources.list", "sources.list.d/*", "yum.repos.d/*", "pip.conf", look=tokens),
        _at("rndc.key", "postfix/sasl_passwd", "postfix/sasl_passwd.db", "etc/ldap.secret"),
        _at("etc/pam_ldap.secret", "etc/libnss-ldap.secret", "wp-config.php", ".smbcred"),
        _at("exim4/passwd.client", "chrony.keys", "ntp.keys", look=_A_LINE),
        _at("mysql/debian.cnf", look=holds(rb"^password[ \t]{0,8}=[ \t]{0,8}\S")),
        _at("etc/fstab", look=holds(rb"^[^#\n]{0,512}\bpassw?(?:or)?d?=")),
        _at("systemd/credential.secret", "etc/credstore/**", "etc/credstore.encrypted/**"),
        _at("NetworkManager/secret_key"),
    ),
    _rule(
        "kerberos",
        "Kerberos keys and tickets, cached logins of a domain",
        _at("*.keytab", "tmp/krb5cc_*", "sss/db/*.ldb", "sss/secrets/*"),
    ),
    _rule(
        "wifi",
        "Wi-Fi networks and their passwords, paired devices",
        _at("system-connections/*", "netplan/*.yaml", look=_WIFI),
        _at(
            "wpa_supplicant/*.conf", look=holds(rb"^[ \t]{0,64}(?:network[ \t]{0,8}=|psk|password)")
        ),
        _at("network/interfaces", "interfaces.d/*", look=holds(rb"^[ \t]{0,64}w(?:pa|ireless)-")),
        _at("iwd/*.psk", "iwd/*.8021x", "iwd/*.open", "NetworkManager/seen-bssids"),
        _at("bluetooth/*/*/info", look=holds(rb"^\[(?:LinkKey|LongTermKey)")),
        _at("Wlansvc/Profiles/Interfaces/*/*.xml"),
    ),
    _rule(
        "browser",
        "browser profiles: cookies, passwords, history",
        _at("cookies.sqlite", "places.sqlite", "formhistory.sqlite", "logins.json", "key4.db"),
        _at("sessionstore.jsonlz4", "sessionstore-backups/*", "Login Data", "Web Data"),
        _at("Default/Cookies", "Profile */Cookies", "Network/Cookies"),
        _at("Default/History", "Profile */History", "WebCache/WebCacheV01.dat"),
        _at("User Data/Local State", "INetCookies/**", "Cookies/index.dat", "History.IE5/**"),
    ),
    _rule(
        "remote-desktop",
        "remote desktops: where to, as whom, what was seen",
        _at("*.rdp", "Terminal Server Client/Cache/**"),
    ),
    _rule(
        "mail",
        "mail and messages",
        _at("var/mail/*", "spool/mail/*", "Maildir/**", ".maildir/**", "mbox", "*.pst", "*.ost"),
        _at("postfix/deferred/**", "postfix/active/**", "postfix/incoming/**", "exim4/input/**"),
        _at(".thunderbird/*/Mail/**", ".thunderbird/*/ImapMail/**", "share/evolution/mail/**"),
        _at("Thunderbird/Profiles/**", ".config/Signal/**", "TelegramDesktop/tdata/**"),
        _at("Comms/UnistoreDB/**", "Outlook Express/**", "Roaming/Signal/**"),
    ),
    _rule(
        "history",
        "histories of shells, editors and clients",
        *(
            _at(f".{name}_history")
            for name in (
                *("bash", "zsh", "ash", "sh", "ksh", "python", "node_repl", "psql", "mysql"),
                *("mariadb", "sqlite", "rediscli", "irb", "ipython", "octave", "R"),
            )
        ),
        _at(".history", ".histfile", ".lesshst", ".viminfo", ".wget-hsts", "fish/fish_history"),
        _at("nvim/shada/main.shada", ".Rhistory", "recently-used.xbel", "dbshell"),
        _at("PSReadLine/ConsoleHost_history.txt"),
        clean="history",
    ),
    _rule(
        "trace",
        "what a user did: recent files, previews, index of searches, registry",
        _at("Microsoft/Windows/Recent/**", "Recent/*.lnk", "Explorer/thumbcache_*.db"),
        _at("ConnectedDevicesPlatform/*/ActivitiesCache.db", "Applications/Windows/Windows.*"),
        _at("Users/*/NTUSER.DAT", "Documents and Settings/*/NTUSER.DAT"),
        _at("Microsoft/Windows/UsrClass.dat"),
    ),
    _rule(
        "trash",
        "deleted files that are still in the recycle bin",
        _at("$Recycle.Bin/*/$I*", "$Recycle.Bin/*/$R*", "$Recycle.Bin/*/$R*/**"),
        _at("RECYCLER/*/*", "RECYCLED/*", "share/Trash/files/**"),
        clean="trash",
    ),
    _rule(
        "known-hosts",
        "which machines were visited over SSH",
        _at(".ssh/known_hosts", ".ssh/known_hosts.old"),
    ),
    _rule(
        "login-key",
        "whose SSH keys may log in",
        _at(".ssh/authorized_keys", ".ssh/authorized_keys2", look=_A_LINE),
        _at("administrators_authorized_keys", look=_A_LINE),
    ),
    _rule(
        "machine-id",
        "this machine's ID",
        _at("etc/machine-id", "dbus/machine-id", look=machine_id),
        clean="identity",
    ),
    _rule(
        "random-seed",
        "the seed of its random numbers",
        _at("systemd/random-seed", "urandom/random-seed", "misc/random-seed", "loader/random-seed"),
        clean="identity",
    ),
    _rule(
        "lease",
        "networks where it was: DHCP leases, network cards",
        _at("dhcp/*.lease*", "dhclient/*.lease*", "dhcpcd/*.lease*", "NetworkManager/*.lease"),
        _at("systemd/netif/leases/*", "rules.d/70-persistent-net.rules"),
        clean="identity",
    ),
    _rule(
        "log",
        "logs with addresses, names and logins",
        _at(
            "var/log/wtmp*",
            "var/log/btmp*",
            "var/log/lastlog",
            "var/log/auth.log*",
            "var/log/secure*",
        ),
        _at(
            "var/log/syslog*",
            "var/log/messages*",
            "var/log/user.log*",
            "var/log/daemon.log*",
            "var/log/cron*",
        ),
        _at(
            "var/log/mail.*",
            "var/log/maillog*",
            "var/log/journal/**",
            "var/log/audit/**",
            "var/log/samba/**",
        ),
        _at(
            "var/log/sssd/**", "var/log/cups/access_log*", "var/log/nginx/**", "var/log/apache2/**"
        ),
        _at("var/log/httpd/**", "var/log/postgresql/**", "var/log/mysql/**", "var/log/cloud-init*"),
        _at("winevt/Logs/*.evtx", "config/*.Evt", "System32/LogFiles/**", "inetpub/logs/**"),
        clean="logs",
    ),
    _rule(
        "core-dump",
        "memory of programs: crash dumps",
        _at("var/crash/*", "systemd/coredump/*", "Windows/MEMORY.DMP", "Windows/Minidump/*"),
        _at("Local/CrashDumps/*", "LiveKernelReports/**", "WER/ReportQueue/**"),
        _at("WER/ReportArchive/**"),
        clean="logs",
    ),
    UNREAD_VOLUME,
    FREE_SPACE,
)
