"""Find the server of a pack's disk, or start it: one for all that read the same disk here."""

from __future__ import annotations

import os
import select
import subprocess
import time
from contextlib import suppress

from packer.environment import inherited
from packer.errors import Error
from packer.run.server.control import Control, ServerGoneError
from packer.run.server.control_protocol import decode_answer
from packer.run.server.spec import ServerAddress, ServerSpec, encode_spec
from packer.run.sockets import SERVERS, runtime_folder, socket_path
from packer.survey.child import bare_environment, import_path, interpreter_running

START_SECONDS = 120.0
"""Until a started server answers: its pack may lie far away."""

IDLE_EXIT_SECONDS = 60.0
MAX_WORDS_BYTES = 1 << 16
WORDS_SHOWN = 500

# Forked before anything is loaded: whoever has started a server need not wait for its end.
_BOOT = (
    "import os, sys, importlib\n"
    "if os.fork(): os._exit(0)\n"
    "sys.path[:] = sys.argv[2:]\n"
    "importlib.import_module('packer.run.server.process').main(float(sys.argv[1]))"
)


def ensure_server(
    spec: ServerSpec, *, idle_exit_seconds: float = IDLE_EXIT_SECONDS
) -> ServerAddress:
    """Return where a server of `spec` answers; start one if none does.

    A started one lives on when this process dies, and ends when nobody was connected to it for
    `idle_exit_seconds`. Raises Error with what it said when it cannot serve.
    """
    address = address_of(spec)
    if not _answers(address, spec):
        _start(spec, address, idle_exit_seconds)
        if not _answers(address, spec):
            raise Error(f"the server of {spec.pack} ended at once", hint=f"see {address.log}")
    return address


def begin_server(spec: ServerSpec) -> None:
    """Begin to start a server that will be needed soon; `ensure_server` waits for it.

    What goes wrong is left to that.
    """
    with suppress(Error, OSError), _launch(spec, IDLE_EXIT_SECONDS, subprocess.DEVNULL):
        pass


def address_of(spec: ServerSpec) -> ServerAddress:
    """Return where a shared server of `spec` listens, or would listen."""
    folder = runtime_folder(SERVERS) / spec.key
    return ServerAddress(socket_path(folder, "nbd"), socket_path(folder, "control"), folder / "log")


def _answers(address: ServerAddress, spec: ServerSpec) -> bool:
    """Return whether a server lives there; one that does completes the disk if that is wanted."""
    try:
        with Control(address.control) as control:
            control.hello()
            if spec.complete:
                control.complete()
    except ServerGoneError:
        return False
    return True


def _start(spec: ServerSpec, address: ServerAddress, idle_exit_seconds: float) -> None:
    """Start a server and return when one answers; several may be started, one stays."""
    with _launch(spec, idle_exit_seconds, subprocess.PIPE) as process:
        assert process.stdout is not None
        words = _words(process.stdout.fileno(), spec, address)
    _believe(words, spec)


def _launch(spec: ServerSpec, idle_exit_seconds: float, words: int) -> subprocess.Popen[bytes]:
    """Launch the process of a server. words: where it says whether it serves, for Popen."""
    process = subprocess.Popen(
        interpreter_running(_BOOT, str(idle_exit_seconds), *import_path()),
        stdin=subprocess.PIPE,
        stdout=words,
        stderr=subprocess.STDOUT,
        env={**inherited(token=True), **bare_environment()},
        cwd="/",
        start_new_session=True,  # neither our terminal nor an interrupt there is its business
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it says why
        process.stdin.write(encode_spec(spec))
        process.stdin.close()
    return process


def _words(fd: int, spec: ServerSpec, address: ServerAddress) -> bytes:
    """Return what a starting server says until it has said all. Raises Error after too long."""
    deadline = time.monotonic() + START_SECONDS
    words = bytearray()
    while len(words) < MAX_WORDS_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise Error(
                f"the server of {spec.pack} was not ready within {START_SECONDS:.0f} s",
                hint=f"see {address.log}; it may be ready later",
            )
        data = os.read(fd, MAX_WORDS_BYTES - len(words))
        if not data:
            break
        words += data
    return bytes(words)


def _believe(words: bytes, spec: ServerSpec) -> None:
    """Raise the error that a server has ended with, if it has."""
    line = words.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        decode_answer(line, type(None))
    except ValueError as error:
        said = words.decode("utf-8", "replace").strip()[-WORDS_SHOWN:]
        raise Error(
            f"the server of {spec.pack} did not start: {said or 'it said nothing'}"
        ) from error
