"""A small guest whose files dpkg itself installed, from packages made by dpkg-deb."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.guest.material import write_tree
from tests.host import run


@dataclass(frozen=True, slots=True)
class Deb:
    """A package to make: its files, its conffiles, members of its control archive."""

    name: str
    files: dict[str, bytes]
    version: str = "1.0-1"
    architecture: str = "all"
    conffiles: dict[str, bytes] = field(default_factory=dict)
    control: dict[str, bytes] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


def build_deb(folder: Path, deb: Deb) -> Path:
    """Return the package, with md5sums as dh_md5sums writes them (conffiles left out)."""
    work = folder / f"{deb.name}_{deb.version}_{deb.architecture}"
    write_tree(work, deb.files | deb.conffiles, {})
    fields = {
        "Package": deb.name,
        "Version": deb.version,
        "Architecture": deb.architecture,
        "Maintainer": "Nobody <nobody@example.org>",
        "Description": "a package for tests",
        **deb.fields,
    }
    control = "".join(f"{name}: {value}\n" for name, value in fields.items())
    sums = "".join(
        f"{run('md5sum', work / path.lstrip('/')).split()[0]}  {path.lstrip('/')}\n"
        for path in sorted(deb.files)
    )
    members = {"control": control.encode(), "md5sums": sums.encode(), **deb.control}
    if deb.conffiles:
        members["conffiles"] = "".join(f"{path}\n" for path in deb.conffiles).encode()
    write_tree(work / "DEBIAN", members, {})
    for script in ("preinst", "postinst", "prerm", "postrm", "config"):
        if script in members:
            (work / "DEBIAN" / script).chmod(0o755)
    archive = folder / f"{work.name}.deb"
    run("dpkg-deb", "--build", "--root-owner-group", "-Znone", work, archive)
    return archive


class DpkgRoot:
    """A folder that dpkg treats as the root of a system."""

    def __init__(self, folder: Path, *, foreign: str = "") -> None:
        self.root = folder / "root"
        self.archives = folder / "archives"
        for name in ("usr/bin", "usr/lib", "usr/share", "etc", "tmp", "var/lib/dpkg/info"):
            (self.root / name).mkdir(parents=True)
        for name in ("bin", "lib"):
            (self.root / name).symlink_to(f"usr/{name}")
        for name in ("status", "available"):
            (self.root / "var/lib/dpkg" / name).touch()
        (self.root / "etc/os-release").write_text("ID=debian\n")
        if foreign:
            self.dpkg("--add-architecture", foreign)

    def dpkg(self, *words: str | Path) -> str:
        # Nothing in the folder can be run: neither ldconfig nor a shell for scripts.
        return run(
            "dpkg",
            f"--root={self.root}",
            "--force-bad-path",
            "--force-script-chrootless",
            "--force-confold",
            *words,
        )

    def install(self, *debs: Deb) -> None:
        self.archives.mkdir(exist_ok=True)
        self.dpkg("--install", *(build_deb(self.archives, deb) for deb in debs))

    def divert(self, path: str, to: str, package: str) -> None:
        run(
            "dpkg-divert",
            f"--root={self.root}",
            *("--package", package, "--add", "--rename", "--divert", to, path),
        )


def own_architecture() -> str:
    """Return what dpkg calls this machine."""
    return run("dpkg", "--print-architecture").strip()


HAS_DPKG = os.access("/usr/bin/dpkg-deb", os.X_OK)
