"""A `qemu-nbd` of our own, for containers that only qemu can read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from packer.errors import InputError
from packer.survey.child import (
    ChildError,
    Job,
    bare_environment,
    clean_text,
    exchange,
    import_path,
    interpreter_running,
)
from packer.survey.limits import GIB, Limits
from packer.transport.nbd import NbdError, NbdSource

START_SECONDS = 15.0
STOP_SECONDS = 5.0
DRIVERS = {"vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi", "parallels": "parallels"}
"""Names of qemu's drivers for the containers of formats.container.detect."""

_POLL_SECONDS = 0.02
_MAX_SOCKET_BYTES = 107  # sun_path of unix(7), less the NUL
_MESSAGE_BYTES = 1 << 12
# It serves for as long as a pack takes, and opens every piece of a VMDK that is split in many.
_MEMORY_BYTES = 4 * GIB
_CPU_SECONDS = 1 << 20
_OPEN_FILES = 8192
_LIMITED = (
    "import sys, os; sys.path[:] = sys.argv[1:sys.argv.index('--')]; "
    "from packer.survey.limits import Limits, limit_this_process; "
    f"limit_this_process(Limits(memory_bytes={_MEMORY_BYTES}, cpu_seconds={_CPU_SECONDS}, "
    f"open_files={_OPEN_FILES}), die_with_parent=False); "
    "command = sys.argv[sys.argv.index('--') + 1:]; "
)
_BOOT = _LIMITED + "os.execv(command[0], command)"
_BOOT_MAP = _LIMITED + "from packer.survey.qemu_map import exec_map; exec_map(command)"


class QemuNbd:
    """A running server for one image, and the connection that keeps it alive.

    It is not persistent: when its last client is gone, because this process closed it or died,
    it ends by itself. Raises InputError when qemu-nbd is missing or refuses the image.
    """

    def __init__(self, path: Path, container: str, *, force_share: bool = False) -> None:
        program = shutil.which("qemu-nbd")
        if program is None:
            raise InputError(
                f"{path} is a {container} image, which is read through qemu-nbd",
                hint="install qemu-nbd (package qemu-utils on Debian and Ubuntu, qemu-img on "
                "Fedora), or convert the image to qcow2",
            )
        self.path = path
        self._folder = _private_folder()
        self._messages, write_end = os.pipe()
        try:
            # A server that talks more than anybody reads loses words, not time.
            os.set_blocking(write_end, False)
            os.set_blocking(self._messages, False)
            self._process = subprocess.Popen(
                interpreter_running(
                    _BOOT,
                    *import_path(),
                    "--",
                    program,
                    "--read-only",
                    "--shared=0",
                    f"--socket={self._folder / 'socket'}",
                    _image(path, container, force_share),
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=write_end,
                env=bare_environment(),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._messages)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            os.close(write_end)
        self.uri = f"nbd+unix:///?socket={quote(str(self._folder / 'socket'), safe='/')}"
        try:
            self.source = self._connected()
        except BaseException:
            self._stop()
            raise

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def close(self) -> None:
        """Disconnect and end the server."""
        try:
            self.source.close()
        except NbdError:  # it is dead already, which is what is wanted
            pass
        finally:
            self._stop()

    def _connected(self) -> NbdSource:
        deadline = time.monotonic() + START_SECONDS
        while True:
            ended = self._process.poll() is not None
            try:
                return NbdSource(self.uri)
            except NbdError as error:
                if ended or time.monotonic() > deadline:
                    reason = self._said() or error.message
                    raise InputError(
                        f"qemu-nbd cannot serve {self.path}: {reason}",
                        hint="`qemu-img info` and `qemu-img check` say more about the image",
                    ) from error
            time.sleep(_POLL_SECONDS)

    def _said(self) -> str:
        try:
            text = os.read(self._messages, _MESSAGE_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            return ""
        return clean_text(" ".join(text.split()))

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        os.close(self._messages)
        shutil.rmtree(self._folder, ignore_errors=True)


def demand_complete(path: Path, container: str, files: Sequence[Path]) -> None:
    """Raise InputError when an image refers to bytes behind the end of its files.

    qemu serves such bytes as zeros and says nothing: a download that was cut short would be
    packed as a disk with holes in it. `qemu-img check` notices some of them, the offsets that
    `qemu-img map` lists show the rest where clusters are not compressed.
    files: all files that the image consists of. Not every driver can do both.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise InputError(
            f"{path} is a {container} image, which is checked with qemu-img before it is read",
            hint="install qemu-img (package qemu-utils on Debian and Ubuntu)",
        )
    image = _image(path, container, force_share=True)
    code, _, complaints = _asked(_BOOT, path, program, "check", "--output=json", "-U", image)
    if code not in _CHECK_PASSED:
        words = complaints[:_MESSAGE_BYTES].decode("utf-8", "replace").split()
        raise _incomplete(
            path, clean_text(" ".join(words)) or f"qemu-img check ended with code {code}"
        )
    code, answer, complaints = _asked(_BOOT_MAP, path, program, "map", "--output=json", "-U", image)
    if not answer.isdigit():
        last = complaints.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise InputError(f"{path}: its map of qemu-img cannot be read: {clean_text(last)}")
    if code:
        raise _incomplete(path, "its map cannot be read")
    longest = max(file.stat().st_size for file in files)
    if (reach := int(answer)) > longest:
        raise _incomplete(path, f"expected at least {reach} bytes, found {longest}")


_CHECK_PASSED = (0, 3, 63)
"""Exit codes of `qemu-img check`: sound, leaked clusters only, a driver that cannot check."""
_CHECK_SECONDS = 600
_ANSWER_BYTES = 1 << 20


def _asked(
    boot: str, path: Path, program: str, verb: str, *arguments: str
) -> tuple[int, bytearray, bytes]:
    """Run qemu-img under the limits of a parser: see child.exchange.

    Raises InputError when it takes too long or answers too much.
    """
    command = interpreter_running(boot, *import_path(), "--", program, verb, *arguments)
    limits = Limits(wall_seconds=_CHECK_SECONDS, result_bytes=_ANSWER_BYTES)
    try:
        return exchange(command, Job(f"qemu-img {verb}", path.name, b"", limits=limits))
    except ChildError as error:
        raise InputError(
            f"{path}: qemu-img {verb} {error.reason}",
            hint="copy it to faster storage, or convert it with qemu-img convert -O qcow2",
        ) from error


def _incomplete(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is damaged or cut short: {reason}",
        hint="copy it again; `qemu-img check` says more about it",
    )


def _image(path: Path, container: str, force_share: bool) -> str:
    """Return the image in qemu's JSON form, in which no part of a file name has a meaning."""
    options: dict[str, object] = {
        "driver": DRIVERS[container],
        "read-only": True,
        "file": {"driver": "file", "filename": str(path.resolve())},
    }
    if container == "vmdk":
        options["backing"] = None  # an image with a parent was refused before
    if force_share:
        options["force-share"] = True
    return "json:" + json.dumps(options)


def _private_folder() -> Path:
    """Make a folder, mode 0700, with a path short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="vmpack-"))
    if len(os.fsencode(folder / "socket")) <= _MAX_SOCKET_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="vmpack-", dir="/tmp"))
