"""What kind of file system an open file lies on."""

from __future__ import annotations

from pathlib import Path

# fmt: off
LOCAL_TYPES = frozenset((
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs",
    "nilfs2", "ntfs3", "overlay", "ramfs", "reiserfs", "squashfs", "tmpfs", "udf", "vfat", "xfs",
    "zfs",
))
PSEUDO_TYPES = frozenset((
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
    "devtmpfs", "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore",
    "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs",
))
# fmt: on
"""Files of these are made up while they are read. What is in neither set (nfs, cifs, 9p, fuse and
everything unknown) may hang or be somebody else's: it is read only where the user named it."""


def file_system_type(fd: int) -> str:
    """Return the type of the file system that an open file lies on, "" when it cannot be told.

    By mount ID (proc(5): /proc/PID/fdinfo, /proc/PID/mountinfo): device numbers of btrfs and
    overlay are not those of their mounts, and mounts may cover each other.
    """
    try:
        information = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii").splitlines()
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return ""
    fields = dict(line.split(":", 1) for line in information if ":" in line)
    identifier = fields.get("mnt_id", "").strip().encode()
    for mount in mounts:
        if mount.split(b" ", 1)[0] == identifier:
            return mount.partition(b" - ")[2].split(b" ")[0].decode("ascii", "replace")
    return ""
