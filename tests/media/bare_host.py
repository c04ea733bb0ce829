"""A new host: a bare root without vmpack, pip and a route, and a medium that was put in."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from fixtures.bare_root import bare_root
from tests.round_trip.command import LIMIT_S
from tests.round_trip.disks import tool

STRANGER = 4711
"""A user whom the host does not know."""

# All mounts are the run's own and end with it.
ENTER = """
set -e
root=$1 medium=$2 out=$3 user=$4
shift 4
mount --bind "$root" "$root"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$medium" "$root/media"
mount -o remount,bind,ro "$root/media"
mount --bind "$out" "$root/out"
mount -t tmpfs -o ro none "$root/read-only"
mount -t tmpfs -o noexec,mode=1777 none "$root/no-programs"
exec chroot --userspec="$user:$user" "$root" "$@"
"""


@dataclass(frozen=True)
class BareHost:
    """root: its tree. out: outside, what is its /out. medium: outside, what is its /media."""

    root: Path
    out: Path
    medium: Path

    def run(
        self, *command: str, user: int = 0, variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it; it has these variables and no others but PATH."""
        enter = ["unshare", "--net", "--mount", "sh", "-c", ENTER, "sh"]
        return subprocess.run(
            [*enter, str(self.root), str(self.medium), str(self.out), str(user), *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(variables or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )


def make_tree(root: Path) -> Path:
    """The tree of such a host, which many can share: only what is mounted there is written to."""
    root.mkdir()
    tool("tar", "-xf", bare_root(), "-C", root, "--exclude=./dev/*")
    for name in ("out", "read-only", "no-programs"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    return root


def new_host(tree: Path, room: Path, medium: Path) -> BareHost:
    """A host whose /out is a folder of the room."""
    host = BareHost(tree, room / "out", medium)
    host.out.mkdir()
    host.out.chmod(0o777)
    return host
