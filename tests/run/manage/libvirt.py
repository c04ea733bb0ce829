"""A libvirt of a user's own, for a while, and units as systemd would start them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as Xml

from tests.host import let_others_enter
from tests.run.vms import kill

DAEMON = "/usr/sbin/libvirtd"  # not in the PATH of ordinary users
START_S = 60.0
ASK_S = 60.0
CONFIG = 'stdio_handler = "file"\nsecurity_driver = "none"\n'
"""Without a log daemon, which would outlive the test."""

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
NOBODYS_ID = 65534


class Libvirt:
    """libvirtd with folders of its own, as an ordinary user: root's would be the system's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = NOBODY if os.geteuid() == 0 else ()
        for name in ("home", "runtime", "config/libvirt"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "config" / "libvirt" / "qemu.conf").write_text(CONFIG)
        (folder / "runtime").chmod(0o700)
        self.give(folder)
        self.daemon: subprocess.Popen[bytes] | None = None

    def give(self, folder: Path) -> None:
        """Let libvirt's user have a folder with all that lies in it."""
        if self.before:
            let_others_enter(folder.parent)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODYS_ID, NOBODYS_ID, follow_symlinks=False)

    def start(self) -> None:
        self.daemon = subprocess.Popen(
            [*self.before, DAEMON], env=self._environment(), stderr=subprocess.DEVNULL
        )
        _wait_for((self.folder / "runtime" / "libvirt" / "libvirt-sock").is_socket)

    def virsh(self, *words: str | Path, check: bool = True) -> str:
        done = subprocess.run(
            [*self.before, "virsh", "-c", "qemu:///session", *map(str, words)],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done.stdout

    def pid_of(self, name: str) -> int:
        """The QEMU of a domain."""
        file = self.folder / "runtime" / "libvirt" / "qemu" / "run" / f"{name}.pid"
        return int(file.read_text())

    def kill(self) -> None:
        """Kill the daemon."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None
        shutil.rmtree(self.folder / "runtime" / "libvirt", ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **inherited,
            "HOME": str(self.folder / "home"),
            "XDG_RUNTIME_DIR": str(self.folder / "runtime"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "home" / "cache"),
        }


@contextmanager
def libvirt(folder: Path) -> Iterator[Libvirt]:
    """libvirt until the block ends; its domains end with it."""
    one = Libvirt(folder)
    try:
        one.start()
        yield one
        for name in one.virsh("list", "--name").split():
            one.virsh("destroy", name)
    finally:
        for file in (folder / "runtime" / "libvirt" / "qemu" / "run").glob("*.pid"):
            kill(int(file.read_text()))
        one.kill()


class Console:
    """What a paused domain says from here on."""

    def __init__(self, path: Path) -> None:
        self.text = ""
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def has(self, words: str) -> bool:
        try:
            while data := os.read(self._fd, 1 << 16):
                self.text += data.decode("utf-8", "replace")
        except (BlockingIOError, OSError):
            pass  # nothing new, or its QEMU has ended
        return words in self.text

    def close(self) -> None:
        os.close(self._fd)


def tell_guest(domain: Path, values: Mapping[str, str], job: Path | None = None) -> None:
    """Hand a fixture guest its nonce, as fixtures.boot does; job: a script for it to run."""
    tree = Xml.parse(domain)
    for old in tree.getroot().findall("sysinfo"):
        tree.getroot().remove(old)
    given = Xml.SubElement(tree.getroot(), "sysinfo", type="fwcfg")
    for name, text in values.items():
        Xml.SubElement(given, "entry", name=f"opt/vmpack/{name}").text = text
    if job is not None:
        Xml.SubElement(given, "entry", name="opt/vmpack/job", file=str(job))
    tree.write(domain)


# -- units -----------------------------------------------------------------------------------------


def directives(unit: str) -> dict[str, str]:
    """The lines of a unit, by name."""
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)


class Unit:
    """A unit, started as systemd would: plain words, its environment, its folder, READY=1."""

    def __init__(self, text: str, runtime: Path) -> None:
        self._lines = directives(text)
        self._runtime = runtime
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self._runtime / self._lines["RuntimeDirectory"]
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        home = dict([self._lines["Environment"].split("=", 1)])
        address = f"\0{folder}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(address)
            ready.settimeout(START_S)
            self.process = subprocess.Popen(
                shlex.split(self._lines["ExecStart"]),
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": f"@{folder}", **home},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            assert ready.recv(100) == b"READY=1"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as systemd does; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_S)


@contextmanager
def started(unit: Unit) -> Iterator[Unit]:
    """The unit runs until the block ends."""
    unit.start()
    try:
        yield unit
    finally:
        if unit.process is not None and unit.process.poll() is None:
            unit.kill()


def _wait_for(done: object) -> None:
    assert callable(done)
    deadline = time.monotonic() + START_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
