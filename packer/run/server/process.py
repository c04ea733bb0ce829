"""The process of a server that VMs share; see packer.run.server.ensure for who starts it and how.

It reads its spec from standard input, says once on standard output whether it serves, and holds
neither of them after that. What it has to say later stands in the log beside its sockets.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

from packer.artifact.opened import OpenedPack
from packer.errors import Error, TrustError
from packer.run.server.control import Control, ServerGoneError
from packer.run.server.control_protocol import encode_failure, encode_result, failure_of
from packer.run.server.ensure import START_SECONDS, address_of
from packer.run.server.serve import Listening, Served, serve
from packer.run.server.spec import MAX_SPEC_BYTES, ServerAddress, ServerSpec, decode_spec
from packer.run.sockets import lock_folder, remove_stale
from packer.sources.open import SourceOpener, open_pack
from packer.sources.store import Store

MAX_LOG_BYTES = 1 << 20
LOG_CHECK_SECONDS = 2.0
LOCK_TRY_SECONDS = 0.2
_log = logging.getLogger(__name__)


def main(idle_exit_seconds: float) -> NoReturn:
    """Become the server of the spec on standard input, unless another process is it already."""
    try:
        _main(idle_exit_seconds)
    except BaseException:  # noqa: BLE001 - the interpreter would write it down, and then wait
        traceback.print_exc()
    # At once: a thread may still wait for a source that says nothing.
    os._exit(0)


def _main(idle_exit_seconds: float) -> None:
    os.umask(0o077)
    words = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    try:
        spec = decode_spec(sys.stdin.buffer.read(MAX_SPEC_BYTES + 1))
        address = address_of(spec)
        remove_stale(address.control.parent.parent)
        lock = _lock(address)
        if lock is None:
            _say(words, encode_result(None))
            return
        _turn_to(address.log)
        _serve(spec, address, idle_exit_seconds, words)
    except Error as error:
        _log.error("%s", error)
        _say(words, encode_failure(failure_of(error)))


def _lock(address: ServerAddress) -> int | None:
    """Return what holds the server's folder, None when a living server has it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        fd = lock_folder(address.control.parent, seconds=LOCK_TRY_SECONDS)
        if fd is not None:
            return fd
        with suppress(ServerGoneError), Control(address.control) as control:
            control.hello()
            return None
    raise Error(f"{address.control.parent}: a server is there that does not answer")


def _turn_to(path: Path) -> None:
    """Let go of whoever has started this process: from now on, what is said goes to the log."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    threading.Thread(target=_keep_short, daemon=True).start()


def _keep_short() -> None:
    """Empty the log whenever it has grown too long: what matters is its end."""
    while True:
        time.sleep(LOG_CHECK_SECONDS)
        if os.fstat(2).st_size > MAX_LOG_BYTES:
            os.ftruncate(2, 0)
            _log.info("what stood here was longer than %d bytes", MAX_LOG_BYTES)


def _serve(spec: ServerSpec, address: ServerAddress, idle_seconds: float, words: IO[bytes]) -> None:
    def started(_port: int) -> None:
        _log.info("serving %s to whoever comes to %s", spec.pack, address.nbd)
        _say(words, encode_result(None))

    with opened(spec) as served:
        listening = Listening(address.control, address.nbd)
        serve(
            served,
            listening,
            complete=spec.complete,
            idle_exit_seconds=idle_seconds,
            started=started,
        )
    _log.info("ended")


def _say(words: IO[bytes], line: bytes) -> None:
    """Tell who has started this process, if it still listens, the one thing it waits for."""
    if not words.closed:
        with suppress(OSError), words:
            words.write(line)


@contextmanager
def opened(spec: ServerSpec) -> Iterator[Served]:
    """Open what a spec names. Raises TrustError for another pack than was decided about."""
    store = Store(Path(spec.store))
    with open_pack(spec.pack) as pack, SourceOpener(store, pack) as opener:
        _check_identity(spec, pack)
        if spec.sources:
            sources, notes = opener.open_all(spec.sources)
        else:
            sources, notes = opener.defaults(offline=spec.offline)
        for text in notes:
            _log.warning("%s", text)
        yield Served(pack, sources, store, spec.key)


def _check_identity(spec: ServerSpec, pack: OpenedPack) -> None:
    if pack.config_digest != spec.config:
        raise TrustError(
            f"{spec.pack}: expected the pack {spec.config}, found {pack.config_digest}",
            hint="it was replaced meanwhile; name the new one to have it checked",
        )
