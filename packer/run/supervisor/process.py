"""The process of a supervisor: how it is started, and what it says when it is there."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from packer.environment import inherited
from packer.errors import Error
from packer.run.server.ensure import begin_server
from packer.run.supervisor.scrollback import MAX_WORDS_LOG_BYTES, last_words, shorten
from packer.run.vm.record import VmMissingError
from packer.run.vm.vm import Vm, the_vm
from packer.survey.child import bare_environment, import_path, interpreter_running

READY_SECONDS = 60.0
LOCK_SECONDS = 5.0
"""How long a supervisor waits for one before it, which may be about to end."""

_READY, _BUSY = b"ready\n", b"busy\n"
_log = logging.getLogger(__name__)

# Forked before anything is loaded: whoever starts it need not wait for its end.
_BOOT = (
    "import os, sys, importlib\n"
    "if os.fork(): os._exit(0)\n"
    "sys.path[:] = sys.argv[2:]\n"
    "importlib.import_module('packer.run.supervisor.process').main(sys.argv[1])"
)


def start_supervisor(vm: Vm, *, to_start: bool) -> bool:
    """Start a supervisor for a VM and return when one listens.

    to_start: whether it is to start the VM, not only to look after one that may run. Returns False
    if another process holds the VM: a supervisor that lives already, or who commits it, say. Raises
    VmMissingError, Error with what it said when none comes up.
    """
    log = vm.folder / "supervisor.log"
    shorten(log, MAX_WORDS_LOG_BYTES)
    log_start = log.stat().st_size if log.exists() else 0
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise VmMissingError(f"the VM {vm.name} is no more") from error
    except OSError as error:
        raise Error(f"{log}: cannot be written: {error.strerror}") from error
    if to_start and vm.base is None:
        begin_server(vm.server_spec())  # both take their time to load, side by side
    try:
        with subprocess.Popen(
            interpreter_running(_BOOT, str(vm.folder), *import_path()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=fd,
            # The token is for the server, which asks the neighbours.
            env={**inherited(token=True), **bare_environment()},
            cwd="/",
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            word = _word(process.stdout.fileno())
    finally:
        os.close(fd)
    if word not in (_READY, _BUSY):
        reason = last_words(log, log_start) or "it said nothing"
        raise Error(f"the supervisor of {vm.name} did not start: {reason}", hint=f"see {log}")
    return word == _READY


def _word(fd: int) -> bytes:
    """Return what a starting supervisor says, b"" when it says nothing in time."""
    deadline = time.monotonic() + READY_SECONDS
    said = b""
    while not said.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
        if not select.select([fd], [], [], left)[0]:
            break
        data = os.read(fd, 64)
        if not data:
            break
        said += data
    return said


def main(folder: str) -> None:
    """Become the supervisor of the VM in a folder, unless another process is it already."""
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it raises what it would log
    place = Path(folder)
    try:
        vm = the_vm(place.name, place.parent.parent)
        lock = vm.lock(seconds=LOCK_SECONDS)
        if lock is None:
            _tell(_BUSY)
            return
        # Whoever held the lock until now may have put another base below the overlay.
        _supervise(vm.read_again(), lock)
    except Error as error:
        _log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
    except Exception:  # noqa: BLE001 - the interpreter would write it down, and then wait
        _log.exception("this is a bug")
    # At once: a thread may still wait for a server that nobody needs, and the lock is held so long.
    sys.stderr.flush()
    os._exit(0)


def _supervise(vm: Vm, lock: int) -> None:
    # Here: who starts one does without its libraries.
    from packer.run.supervisor.supervisor import Supervisor

    asyncio.run(Supervisor(vm, lock).run(lambda: _tell(_READY)))


def _tell(word: bytes) -> None:
    """Say the one word to whoever started this process, and hold on to nothing of theirs."""
    with suppress(OSError):
        os.write(1, word)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)
