"""Run one job in a child process that may die, hang or lie, and get its bytes back.

Whoever parses a disk's structures does it in there. A fresh interpreter is started, not a fork:
the parent may have threads, and holds nothing that the child should see.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from packer.errors import InputError
from packer.survey import frozen
from packer.survey.limits import Limits

EXIT_OUT_OF_MEMORY = 77
"""The worker's exit code after a MemoryError; no exit code that Python itself uses."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CHUNK_BYTES = 1 << 16
_STDERR_BYTES = 1 << 16
_REASON_CHARACTERS = 300
_TIDY_SECONDS = 5.0
WORKER = "packer.survey.worker"
"""The module whose `main(parent_pid)` answers in the child."""

_BOOT = (
    "import sys, importlib; sys.path[:] = sys.argv[3:]; "
    "importlib.import_module(sys.argv[1]).main(int(sys.argv[2]))"
)
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")  # where the interpreter finds its own libraries
_VARIABLES = {
    "LC_ALL": "C.UTF-8",
    # numpy's linear algebra would start a thread, with its stack, for every processor
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


class ChildError(InputError):
    """A reader died, used too much, or sent back something that is not its answer.

    reason: what it did, as a clause without its subject ("stopped (signal 11, SIGSEGV)").
    """

    def __init__(self, reader: str, place: str, reason: str) -> None:
        super().__init__(
            f"the {reader} reader {reason} while reading {place}",
            hint="the image is damaged or made to do harm; check it with its own tools "
            "(qemu-img check, fsck)",
        )
        self.reason = reason


def lied(reader: str, place: str, error: Exception) -> ChildError:
    """Return the error for an answer that no honest child gives."""
    return ChildError(reader, place, f"sent back something that cannot be ({error})")


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is asked to do: a request, and the descriptors it may read from.

    reader and place name it in errors: "ext4", "volume 2 of guest.qcow2".
    """

    reader: str
    place: str
    request: bytes
    fds: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def failed(self, reason: str) -> ChildError:
        """Return the error that says what this job's child did."""
        return ChildError(self.reader, self.place, reason)


def run(job: Job) -> bytearray:
    """Start a child, give it the request, and return all that it answers.

    Raises ChildError when it dies, takes too long or answers too much. The answer itself is not
    looked at: it is as untrusted as the disk.
    """
    code, answer, errors = exchange(
        interpreter_running(_BOOT, WORKER, str(os.getpid()), *import_path()), job
    )
    if code != 0:
        raise job.failed(_why(code, errors, job.limits))
    return answer


def exchange(command: list[str], job: Job) -> tuple[int, bytearray, bytes]:
    """Run a command with the job's request as its input; the command limits itself.

    Returns (exit code, or minus the signal; what it answered; the end of what it complained).
    Raises ChildError when it takes too long or answers too much.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=job.fds,
        env=bare_environment(),
        cwd="/",
        start_new_session=True,  # an interrupt at the terminal is the parent's to handle
    )
    try:
        answer, errors = _Exchange(process, job).finish()
    finally:
        _end(process)
    return process.returncode, answer, errors


def interpreter_running(code: str, *arguments: str) -> list[str]:
    """Return a command line for a Python that looks at no variable, folder or site package."""
    if frozen.is_frozen():
        return frozen.command_running(code, arguments)
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", code, *arguments]


def bare_environment() -> dict[str, str]:
    """Return the few variables that a child needs."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    if frozen.is_frozen():
        kept |= frozen.child_variables()
    return kept | _VARIABLES


def import_path() -> list[str]:
    """Return this process's import path, for a child that runs no `site` and trusts no variable."""
    root = str(Path(__file__).resolve().parents[2])
    known = [entry for entry in sys.path if entry and Path(entry).is_absolute()]
    return known if root in known else [*known, root]


class _Exchange:
    """The three pipes of a child, served together so that none of them can block the others."""

    def __init__(self, process: subprocess.Popen[bytes], job: Job) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._job = job
        self._deadline = time.monotonic() + job.limits.wall_seconds
        self._request = memoryview(job.request)
        self._answer = bytearray()
        self._errors = bytearray()
        self._selector = selectors.DefaultSelector()
        for pipe, event, serve in (
            (process.stdin, selectors.EVENT_WRITE, self._send),
            (process.stdout, selectors.EVENT_READ, self._receive),
            (process.stderr, selectors.EVENT_READ, self._note),
        ):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, event, serve)

    def finish(self) -> tuple[bytearray, bytes]:
        """Return (answer, what was written to standard error) once the child has ended."""
        with self._selector:
            while self._selector.get_map():
                ready = self._selector.select(self._left())
                for key, _ in ready:
                    key.data(key.fd)
        try:
            self._process.wait(self._left())
        except subprocess.TimeoutExpired as error:
            raise self._too_long() from error
        return self._answer, bytes(self._errors)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._too_long()
        return left

    def _too_long(self) -> ChildError:
        allowed = round(self._job.limits.wall_seconds, 1)
        return self._job.failed(f"took longer than {allowed:g} seconds")

    def _send(self, fd: int) -> None:
        try:
            sent = os.write(fd, self._request[:_CHUNK_BYTES])
        except BrokenPipeError:  # it has ended; its exit code says why
            sent = len(self._request)
        self._request = self._request[sent:]
        if not self._request:
            assert self._process.stdin is not None
            self._selector.unregister(self._process.stdin)
            self._process.stdin.close()

    def _receive(self, fd: int) -> None:
        data = os.read(fd, _CHUNK_BYTES)
        if not data:
            self._selector.unregister(fd)
        self._answer += data
        if len(self._answer) > self._job.limits.result_bytes:
            raise self._job.failed(f"answered more than {self._job.limits.result_bytes} bytes")

    def _note(self, fd: int) -> None:
        data = os.read(fd, _CHUNK_BYTES)
        if not data:
            self._selector.unregister(fd)
        self._errors += data
        del self._errors[:-_STDERR_BYTES]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child if it still runs, and forget it."""
    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    process.wait(_TIDY_SECONDS)


def _why(code: int, errors: bytes, limits: Limits) -> str:
    if code == EXIT_OUT_OF_MEMORY:
        return f"needed more than {limits.memory_bytes >> 20} MiB of memory"
    if code == -signal.SIGXCPU:
        return f"used more than {limits.cpu_seconds} seconds of processor time"
    if code < 0:
        return f"stopped (signal {-code}{_signal_name(-code)})"
    last = clean_text(errors.decode("utf-8", "replace").strip().rpartition("\n")[2])
    return f"failed (exit code {code}): {last[:_REASON_CHARACTERS]}"


def _signal_name(number: int) -> str:
    try:
        return f", {signal.Signals(number).name}"
    except ValueError:
        return ""


def clean_text(text: str) -> str:
    """Return text from an image with everything replaced that could steer a terminal."""
    return "".join(letter if letter.isprintable() else _REPLACEMENT for letter in text)
