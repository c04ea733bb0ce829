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

from packer.environment import STORE_TOKEN, inherited
from packer.errors import Error
from packer.run.supervisor.scrollback import MAX_WORDS_LOG_BYTES, last_words, shorten
from packer.run.vm.vm import Vm, find_vm
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


def start_supervisor(vm: Vm) -> None:
    """Start a supervisor for a VM and return when one listens; if one lives already, it stays.

    Raises Error with what it said when none comes up.
    """
    environment = {**inherited(), **bare_environment()}
    if token := os.environ.get(STORE_TOKEN):  # for the server, which asks the neighbours
        environment[STORE_TOKEN] = token
    log = vm.folder / "supervisor.log"
    shorten(log, MAX_WORDS_LOG_BYTES)
    log_start = log.stat().st_size if log.exists() else 0
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Error(f"the VM {vm.name} is no more: {log}: {error.strerror}") from error
    try:
        with subprocess.Popen(
            interpreter_running(_BOOT, str(vm.folder), *import_path()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=fd,
            env=environment,
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
        vm = find_vm(place.name, place.parent.parent)
        if vm is None:
            raise Error(f"{folder}: there is no VM")
        lock = vm.lock(seconds=LOCK_SECONDS)
        if lock is None:
            _tell(_BUSY)
            return
        # Whoever held the lock until now may have put another base below the overlay.
        _supervise(vm.read_again(), lock)
    except Error as error:
        _log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
    # A thread may still be waiting for a server that nobody needs any more.
    sys.stderr.flush()
    os._exit(0)


def _supervise(vm: Vm, lock: int) -> None:
    from packer.run.supervisor.supervisor import (
        Supervisor,  # here: who starts one does without its libraries
    )

    asyncio.run(Supervisor(vm, lock).run(lambda: _tell(_READY)))


def _tell(word: bytes) -> None:
    """Say the one word to whoever started this process, and hold on to nothing of theirs."""
    with suppress(OSError):
        os.write(1, word)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)
